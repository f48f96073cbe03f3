// SIMD verbs. One vector type `Vec` of kW floats per instruction set, and the same free functions
// for each, so that a kernel is written once and compiled once per level. Everything lives in a
// namespace named after the level: the linker must never merge an AVX-512 copy of a function with a
// portable one.
//
// Half is half a Vec; kHasHalf: it costs half as much.
//
// Register budget kRegisters (named in the tile shapes of gemm.h and depthwise.h): 16 for AVX2, 32
// for AVX-512 and NEON. kShortTiles: tiles smaller than that, so that the levels which nobody
// runs for their speed compile fast.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(FASTCONV_ISA_AVX512)
#include <immintrin.h>
#if defined(FASTCONV_BFLOAT16)
#define FASTCONV_ISA_NAMESPACE avx512_bf16
#else
#define FASTCONV_ISA_NAMESPACE avx512
#endif
#elif defined(FASTCONV_ISA_AVX2)
#include <immintrin.h>
#define FASTCONV_ISA_NAMESPACE avx2
#elif defined(FASTCONV_ISA_NEON)
#include <arm_neon.h>
#define FASTCONV_ISA_NAMESPACE neon
#elif defined(FASTCONV_ISA_WIDE)
// Test-only level: the 16-lane, 32-register tiles of AVX-512 on any CPU.
#if defined(FASTCONV_BFLOAT16)
#define FASTCONV_ISA_NAMESPACE wide_bf16
#else
#define FASTCONV_ISA_NAMESPACE wide
#endif
#else
#define FASTCONV_ISA_NAMESPACE scalar
#endif

#define FASTCONV_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define FASTCONV_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FASTCONV_UNROLL _Pragma("GCC unroll 64")
#endif

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

#if defined(FASTCONV_ISA_AVX512)

using Vec = __m512;
constexpr int kW = 16;
constexpr int kRegisters = 32;

FASTCONV_INLINE Vec vzero() { return _mm512_setzero_ps(); }
FASTCONV_INLINE Vec vset(float x) { return _mm512_set1_ps(x); }
FASTCONV_INLINE Vec vload(const float* p) { return _mm512_loadu_ps(p); }
FASTCONV_INLINE void vstore(float* p, Vec x) { _mm512_storeu_ps(p, x); }
FASTCONV_INLINE Vec vload_first(const float* p, int n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
}
FASTCONV_INLINE void vstore_first(float* p, Vec x, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), x);
}
FASTCONV_INLINE Vec vfma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
FASTCONV_INLINE Vec vadd(Vec a, Vec b) { return _mm512_add_ps(a, b); }
FASTCONV_INLINE Vec vfms(Vec a, Vec b, Vec c) { return _mm512_fmsub_ps(a, b, c); }  // a b - c
FASTCONV_INLINE Vec vsub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
FASTCONV_INLINE Vec vmul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
FASTCONV_INLINE Vec vdiv(Vec a, Vec b) { return _mm512_div_ps(a, b); }
// min and max return the second operand where either is NaN: pass the data second and NaN survives
// a clamp.
FASTCONV_INLINE Vec vmin(Vec a, Vec b) { return _mm512_min_ps(a, b); }
FASTCONV_INLINE Vec vmax(Vec a, Vec b) { return _mm512_max_ps(a, b); }
// NaN where either is NaN: otherwise both orders give the same bits, but for the sign of a zero.
FASTCONV_INLINE Vec vmax_or_nan(Vec a, Vec b) { return _mm512_or_ps(vmax(a, b), vmax(b, a)); }
// a where x is above (below) the limit or NaN, else 0.
FASTCONV_INLINE Vec vwhere_above(Vec x, Vec limit, Vec a) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLE_UQ), a);
}
FASTCONV_INLINE Vec vwhere_below(Vec x, Vec limit, Vec a) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NGE_UQ), a);
}
// n = round(x scale), in the form that vfma_exp2 takes, and what is left of x scale.
FASTCONV_INLINE Vec vround_scaled(Vec x, Vec scale, Vec* fraction) {
  const Vec n = _mm512_roundscale_ps(_mm512_mul_ps(x, scale), _MM_FROUND_TO_NEAREST_INT | 8);
  *fraction = _mm512_fmsub_ps(x, scale, n);
  return n;
}
// p 2^n + c
FASTCONV_INLINE Vec vfma_exp2(Vec p, Vec n, Vec c) { return vadd(_mm512_scalef_ps(p, n), c); }

using Half = __m256;
FASTCONV_INLINE Half vlow(Vec x) { return _mm512_castps512_ps256(x); }
FASTCONV_INLINE Half vhigh(Vec x) { return _mm512_extractf32x8_ps(x, 1); }
FASTCONV_INLINE Vec vjoin(Half low, Half high) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
FASTCONV_INLINE Half vset_half(float x) { return _mm256_set1_ps(x); }
FASTCONV_INLINE Half vload_half(const float* p) { return _mm256_loadu_ps(p); }
FASTCONV_INLINE Half vfma(Half a, Half b, Half c) { return _mm256_fmadd_ps(a, b, c); }

#elif defined(FASTCONV_ISA_AVX2)

using Vec = __m256;
constexpr int kW = 8;
constexpr int kRegisters = 16;

FASTCONV_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FASTCONV_INLINE Vec vzero() { return _mm256_setzero_ps(); }
FASTCONV_INLINE Vec vset(float x) { return _mm256_set1_ps(x); }
FASTCONV_INLINE Vec vload(const float* p) { return _mm256_loadu_ps(p); }
FASTCONV_INLINE void vstore(float* p, Vec x) { _mm256_storeu_ps(p, x); }
FASTCONV_INLINE Vec vload_first(const float* p, int n) {
  return _mm256_maskload_ps(p, first_lanes(n));
}
FASTCONV_INLINE void vstore_first(float* p, Vec x, int n) {
  _mm256_maskstore_ps(p, first_lanes(n), x);
}
FASTCONV_INLINE Vec vfma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
FASTCONV_INLINE Vec vfms(Vec a, Vec b, Vec c) { return _mm256_fmsub_ps(a, b, c); }  // a b - c
FASTCONV_INLINE Vec vadd(Vec a, Vec b) { return _mm256_add_ps(a, b); }
FASTCONV_INLINE Vec vsub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
FASTCONV_INLINE Vec vmul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
FASTCONV_INLINE Vec vdiv(Vec a, Vec b) { return _mm256_div_ps(a, b); }
// min and max return the second operand where either is NaN: pass the data second and NaN survives
// a clamp.
FASTCONV_INLINE Vec vmin(Vec a, Vec b) { return _mm256_min_ps(a, b); }
FASTCONV_INLINE Vec vmax(Vec a, Vec b) { return _mm256_max_ps(a, b); }
// NaN where either is NaN: otherwise both orders give the same bits, but for the sign of a zero.
FASTCONV_INLINE Vec vmax_or_nan(Vec a, Vec b) { return _mm256_or_ps(vmax(a, b), vmax(b, a)); }
// a where x is above (below) the limit or NaN, else 0.
FASTCONV_INLINE Vec vwhere_above(Vec x, Vec limit, Vec a) {
  return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NLE_UQ), a);
}
FASTCONV_INLINE Vec vwhere_below(Vec x, Vec limit, Vec a) {
  return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NGE_UQ), a);
}
FASTCONV_INLINE Vec vshift_to_exponent(Vec x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 23));
}

#elif defined(FASTCONV_ISA_NEON)

using Vec = float32x4_t;
constexpr int kW = 4;
constexpr int kRegisters = 32;

FASTCONV_INLINE Vec vzero() { return vdupq_n_f32(0.f); }
FASTCONV_INLINE Vec vset(float x) { return vdupq_n_f32(x); }
FASTCONV_INLINE Vec vload(const float* p) { return vld1q_f32(p); }
FASTCONV_INLINE void vstore(float* p, Vec x) { vst1q_f32(p, x); }
FASTCONV_INLINE Vec vload_first(const float* p, int n) {
  const float32x2_t none = vdup_n_f32(0.f);
  switch (n) {
    case 1:
      return vcombine_f32(vld1_lane_f32(p, none, 0), none);
    case 2:
      return vcombine_f32(vld1_f32(p), none);
    case 3:
      return vcombine_f32(vld1_f32(p), vld1_lane_f32(p + 2, none, 0));
    case 4:
      return vload(p);
    default:
      return vzero();
  }
}
FASTCONV_INLINE void vstore_first(float* p, Vec x, int n) {
  if (n >= 4) return vstore(p, x);
  if (n >= 2) vst1_f32(p, vget_low_f32(x));
  if (n == 1) vst1q_lane_f32(p, x, 0);
  if (n == 3) vst1q_lane_f32(p + 2, x, 2);
}
FASTCONV_INLINE Vec vfma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
FASTCONV_INLINE Vec vfms(Vec a, Vec b, Vec c) { return vfmaq_f32(vnegq_f32(c), a, b); }  // a b - c
FASTCONV_INLINE Vec vadd(Vec a, Vec b) { return vaddq_f32(a, b); }
FASTCONV_INLINE Vec vsub(Vec a, Vec b) { return vsubq_f32(a, b); }
FASTCONV_INLINE Vec vmul(Vec a, Vec b) { return vmulq_f32(a, b); }
FASTCONV_INLINE Vec vdiv(Vec a, Vec b) { return vdivq_f32(a, b); }
// NaN in either operand gives NaN: data as the second operand survives a clamp here, too.
FASTCONV_INLINE Vec vmin(Vec a, Vec b) { return vminq_f32(a, b); }
FASTCONV_INLINE Vec vmax(Vec a, Vec b) { return vmaxq_f32(a, b); }
FASTCONV_INLINE Vec vmax_or_nan(Vec a, Vec b) { return vmax(a, b); }
// a where x is above (below) the limit or NaN, else 0.
FASTCONV_INLINE Vec vwhere_above(Vec x, Vec limit, Vec a) {
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a), vcleq_f32(x, limit)));
}
FASTCONV_INLINE Vec vwhere_below(Vec x, Vec limit, Vec a) {
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a), vcgeq_f32(x, limit)));
}
FASTCONV_INLINE Vec vshift_to_exponent(Vec x) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(x), 23));
}

#else

#if defined(FASTCONV_ISA_WIDE)
constexpr int kW = 16;
constexpr int kRegisters = 32;
#else
constexpr int kW = 4;
constexpr int kRegisters = 16;
#endif
typedef float Vec __attribute__((vector_size(4 * kW)));
typedef int32_t VecInt __attribute__((vector_size(4 * kW)));

FASTCONV_INLINE Vec vset(float x) { return Vec{} + x; }
FASTCONV_INLINE Vec vzero() { return Vec{}; }
FASTCONV_INLINE Vec vload(const float* p) {
  Vec x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}
FASTCONV_INLINE void vstore(float* p, Vec x) { std::memcpy(p, &x, sizeof(x)); }
FASTCONV_INLINE Vec vload_first(const float* p, int n) {
  Vec x = vzero();
  std::memcpy(&x, p, sizeof(float) * n);
  return x;
}
FASTCONV_INLINE void vstore_first(float* p, Vec x, int n) { std::memcpy(p, &x, sizeof(float) * n); }
FASTCONV_INLINE Vec vfma(Vec a, Vec b, Vec c) { return a * b + c; }
FASTCONV_INLINE Vec vfms(Vec a, Vec b, Vec c) { return a * b - c; }  // a b - c
FASTCONV_INLINE Vec vadd(Vec a, Vec b) { return a + b; }
FASTCONV_INLINE Vec vsub(Vec a, Vec b) { return a - b; }
FASTCONV_INLINE Vec vmul(Vec a, Vec b) { return a * b; }
FASTCONV_INLINE Vec vdiv(Vec a, Vec b) { return a / b; }
// min and max return the second operand where either is NaN: pass the data second and NaN survives
// a clamp.
FASTCONV_INLINE Vec vmin(Vec a, Vec b) { return a < b ? a : b; }
FASTCONV_INLINE Vec vmax(Vec a, Vec b) { return a > b ? a : b; }
// NaN where either is NaN.
FASTCONV_INLINE Vec vmax_or_nan(Vec a, Vec b) { return a != a ? a : vmax(a, b); }
// a where x is above (below) the limit or NaN, else 0.
FASTCONV_INLINE Vec vwhere_above(Vec x, Vec limit, Vec a) { return x <= limit ? vzero() : a; }
FASTCONV_INLINE Vec vwhere_below(Vec x, Vec limit, Vec a) { return x >= limit ? vzero() : a; }
FASTCONV_INLINE Vec vshift_to_exponent(Vec x) { return (Vec)((VecInt)x << 23); }

#endif

#if !defined(FASTCONV_ISA_AVX512)
// n = round(x scale), in the form that vfma_exp2 takes, which is 2^n, and what is left of x scale.
// |x scale| < 126.
FASTCONV_INLINE Vec vround_scaled(Vec x, Vec scale, Vec* fraction) {
  // After adding 1.5 * 2^23 the sum's low bits are an integer: with 127, the exponent's.
  const Vec magic = vset(12582912.f + 127.f);
  const Vec sum = vfma(x, scale, magic);
  *fraction = vfms(x, scale, vsub(sum, magic));
  return vshift_to_exponent(sum);
}
// p 2^n + c
FASTCONV_INLINE Vec vfma_exp2(Vec p, Vec power, Vec c) { return vfma(p, power, c); }
#endif

#if defined(FASTCONV_ISA_AVX512) || defined(FASTCONV_ISA_AVX2) || defined(FASTCONV_ISA_NEON)
constexpr bool kShortTiles = false;
#else
constexpr bool kShortTiles = true;
#endif

#if defined(FASTCONV_ISA_AVX512)
constexpr bool kHasHalf = true;
#else
constexpr bool kHasHalf = kRegisters == 32 && kW > 4;
typedef float Half __attribute__((vector_size(2 * kW)));
FASTCONV_INLINE Half vload_half(const float* p) {
  Half x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}
FASTCONV_INLINE Half vset_half(float x) { return Half{} + x; }
FASTCONV_INLINE Half vlow(Vec x) { return vload_half(reinterpret_cast<const float*>(&x)); }
FASTCONV_INLINE Half vhigh(Vec x) {
  return vload_half(reinterpret_cast<const float*>(&x) + kW / 2);
}
FASTCONV_INLINE Vec vjoin(Half low, Half high) {
  Half both[] = {low, high};
  return vload(reinterpret_cast<const float*>(both));
}
FASTCONV_INLINE Half vfma(Half a, Half b, Half c) { return a * b + c; }
#endif

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
