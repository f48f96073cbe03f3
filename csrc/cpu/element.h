// The elements of maps, and the verbs that differ between float32 and bfloat16: loads and stores,
// always from and to registers of floats, and the step of a matrix product. A kernel is compiled
// once for each type of element, like once for each instruction set.
//
// bfloat16 is the upper half of a float32. Stores round to nearest, ties to even; what is smaller
// than the smallest normal number becomes 0.
#pragma once

#include "../data_type.h"
#include "vec.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

struct Bfloat16 {
  uint16_t bits;
};

#if defined(FASTCONV_BFLOAT16)
using Element = Bfloat16;
constexpr DataType kDataType = DataType::kBfloat16;
#else
using Element = float;
constexpr DataType kDataType = DataType::kFloat32;
#endif

// Inputs of a step: what one lane of a packed weight's vector holds.
constexpr int64_t kStep = inputs_per_step(kDataType);

FASTCONV_INLINE const Element* elements(const void* p) { return static_cast<const Element*>(p); }
FASTCONV_INLINE Element* elements(void* p) { return static_cast<Element*>(p); }

#if !defined(FASTCONV_BFLOAT16)

// The inputs of one step in every lane.
FASTCONV_INLINE Vec vset_step(const float* p) { return vset(*p); }
// c + the products of a step's inputs and weights.
FASTCONV_INLINE Vec vdot(Vec a, Vec b, Vec c) { return vfma(a, b, c); }
FASTCONV_INLINE Half vset_half_step(const float* p) { return vset_half(*p); }
FASTCONV_INLINE Half vdot(Half a, Half b, Half c) { return vfma(a, b, c); }

#elif defined(FASTCONV_ISA_AVX512)

FASTCONV_INLINE Vec from_bits(__m512i x) { return _mm512_castsi512_ps(x); }
FASTCONV_INLINE Vec vload(const Bfloat16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return from_bits(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
FASTCONV_INLINE Vec vload_first(const Bfloat16* p, int n) {
  const auto mask = static_cast<__mmask16>((1u << n) - 1u);
  return from_bits(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
}
FASTCONV_INLINE __m256i rounded(Vec x) {
  const __m256bh narrow = _mm512_cvtneps_pbh(x);
  __m256i bits;
  std::memcpy(&bits, &narrow, sizeof bits);
  return bits;
}
FASTCONV_INLINE void vstore(Bfloat16* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded(x));
}
FASTCONV_INLINE void vstore_first(Bfloat16* p, Vec x, int n) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1u), rounded(x));
}

FASTCONV_INLINE int32_t pair(const Bfloat16* p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return bits;
}
FASTCONV_INLINE Vec vset_step(const Bfloat16* p) { return from_bits(_mm512_set1_epi32(pair(p))); }
// Of an odd number of inputs the last one; the other of its pair is 0.
FASTCONV_INLINE Vec vset_last(const Bfloat16* p) { return from_bits(_mm512_set1_epi32(p->bits)); }
FASTCONV_INLINE Vec vdot(Vec a, Vec b, Vec c) {
  return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
FASTCONV_INLINE Half vset_half_step(const Bfloat16* p) {
  return _mm256_castsi256_ps(_mm256_set1_epi32(pair(p)));
}
FASTCONV_INLINE Half vset_half_last(const Bfloat16* p) {
  return _mm256_castsi256_ps(_mm256_set1_epi32(p->bits));
}
FASTCONV_INLINE Half vdot(Half a, Half b, Half c) {
  return _mm256_dpbf16_ps(c, reinterpret_cast<__m256bh>(a), reinterpret_cast<__m256bh>(b));
}

#else

// In vectors throughout: copies in memory would be most of what sanitizers check.
typedef uint16_t Narrow __attribute__((vector_size(2 * kW)));
typedef uint32_t Wide __attribute__((vector_size(4 * kW)));

FASTCONV_INLINE Vec widened(Narrow x) {
  return reinterpret_cast<Vec>(__builtin_convertvector(x, Wide) << 16);
}
FASTCONV_INLINE Narrow rounded(Vec x) {
  const Wide bits = reinterpret_cast<Wide>(x);
  const Wide nearest = bits + 0x7fff + (bits >> 16 & 1);
  return __builtin_convertvector((x == x ? nearest : bits | 0x400000) >> 16, Narrow);
}
FASTCONV_INLINE Vec vload_first(const Bfloat16* p, int n) {
  Narrow x{};
  std::memcpy(&x, p, sizeof(Bfloat16) * n);
  return widened(x);
}
FASTCONV_INLINE Vec vload(const Bfloat16* p) { return vload_first(p, kW); }
FASTCONV_INLINE void vstore_first(Bfloat16* p, Vec x, int n) {
  const Narrow bits = rounded(x);
  std::memcpy(p, &bits, sizeof(Bfloat16) * n);
}
FASTCONV_INLINE void vstore(Bfloat16* p, Vec x) { vstore_first(p, x, kW); }

FASTCONV_INLINE uint32_t pair(const Bfloat16* p) {
  uint32_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return bits;
}
// Bits, not a number: arithmetic would change some of them.
template <class V>
FASTCONV_INLINE V broadcast_bits(uint32_t bits) {
  typedef uint32_t Bits __attribute__((vector_size(sizeof(V))));
  return reinterpret_cast<V>(Bits{} + bits);
}
FASTCONV_INLINE Vec vset_step(const Bfloat16* p) { return broadcast_bits<Vec>(pair(p)); }
FASTCONV_INLINE Vec vset_last(const Bfloat16* p) { return broadcast_bits<Vec>(p->bits); }
FASTCONV_INLINE Half vset_half_step(const Bfloat16* p) { return broadcast_bits<Half>(pair(p)); }
FASTCONV_INLINE Half vset_half_last(const Bfloat16* p) { return broadcast_bits<Half>(p->bits); }

// The first and the second input of each lane's step.
template <class V>
FASTCONV_INLINE V first_inputs(V x) {
  typedef uint32_t Bits __attribute__((vector_size(sizeof(V))));
  return reinterpret_cast<V>(reinterpret_cast<Bits>(x) << 16);
}
template <class V>
FASTCONV_INLINE V second_inputs(V x) {
  typedef uint32_t Bits __attribute__((vector_size(sizeof(V))));
  return reinterpret_cast<V>(reinterpret_cast<Bits>(x) & 0xffff0000u);
}
template <class V>
FASTCONV_INLINE V vdot(V a, V b, V c) {
  c += first_inputs(a) * first_inputs(b);
  return c + second_inputs(a) * second_inputs(b);
}

#endif

// Stores that go past the caches, for a map that will not be in them when it is read: the line need
// not come from memory first. Only where the whole line is written: of aligned float vectors of 64
// bytes. vfence() before another thread reads.
#if defined(FASTCONV_ISA_AVX512) && !defined(FASTCONV_BFLOAT16)
constexpr bool kStreams = true;
FASTCONV_INLINE void vstream(float* p, Vec x) { _mm512_stream_ps(p, x); }
FASTCONV_INLINE void vfence() { _mm_sfence(); }
#else
constexpr bool kStreams = false;
FASTCONV_INLINE void vstream(Element* p, Vec x) { vstore(p, x); }
FASTCONV_INLINE void vfence() {}
#endif

// One lane, which may hold a step's bits, in every lane.
FASTCONV_INLINE Vec vset_lane(const float* p) {
#if !defined(FASTCONV_BFLOAT16)
  return vset(*p);
#else
  int32_t bits;
  std::memcpy(&bits, p, sizeof bits);
#if defined(FASTCONV_ISA_AVX512)
  return from_bits(_mm512_set1_epi32(bits));
#else
  return broadcast_bits<Vec>(static_cast<uint32_t>(bits));
#endif
#endif
}

#if defined(FASTCONV_BFLOAT16)
// The lanes of two vectors as one vector of steps; second may be null, for 0.
FASTCONV_INLINE Vec vpair(const Bfloat16* first, const Bfloat16* second) {
#if defined(FASTCONV_ISA_AVX512)
  const auto half = [](const Bfloat16* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  };
  const __m512i low = half(first);
  if (second == nullptr) return from_bits(low);
  return from_bits(_mm512_or_si512(low, _mm512_slli_epi32(half(second), 16)));
#else
  const auto bits = [](const Bfloat16* p) { return reinterpret_cast<Wide>(vload(p)); };
  const Wide low = bits(first) >> 16;
  return reinterpret_cast<Vec>(second == nullptr ? low : low | bits(second));
#endif
}
#endif

// The weights of a step as one lane.
FASTCONV_INLINE float packed_step(const float (&weights)[kStep]) {
#if defined(FASTCONV_BFLOAT16)
  uint32_t lane = 0;
  for (int64_t i = 0; i < kStep; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &weights[i], sizeof bits);
    const uint32_t half =
        weights[i] != weights[i] ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
    lane |= half >> 16 << (16 * i);
  }
  float step;
  std::memcpy(&step, &lane, sizeof step);
  return step;
#else
  return weights[0];
#endif
}

// The weights of a step, each times the factor of its input.
FASTCONV_INLINE Vec vscale_step(Vec weights, const float* factors) {
#if !defined(FASTCONV_BFLOAT16)
  return vmul(weights, vset(*factors));
#elif defined(FASTCONV_ISA_AVX512)
  const __m512i both = _mm512_castps_si512(weights);
  const __m512i upper = _mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000)));
  const Vec first = vmul(from_bits(_mm512_slli_epi32(both, 16)), vset(factors[0]));
  const Vec second = vmul(from_bits(upper), vset(factors[1]));
  const __m512i low = _mm512_cvtepu16_epi32(rounded(first));
  const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded(second)), 16);
  return from_bits(_mm512_or_si512(low, high));
#else
  const auto scaled = [](Vec x, float factor) {
    return reinterpret_cast<Wide>(widened(rounded(x * factor)));
  };
  const Wide low = scaled(first_inputs(weights), factors[0]) >> 16;
  return reinterpret_cast<Vec>(low | scaled(second_inputs(weights), factors[1]));
#endif
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
