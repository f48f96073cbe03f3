// The inner product of a tile: rows of A by a panel of B, for any number of k.
#pragma once

#include "element.h"
#include "gemm_avx2.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

// The inputs of a step, and what is left of one, in every lane.
struct Broadcast {
  FASTCONV_INLINE Vec operator()(const Element* a) const { return vset_step(a); }
  FASTCONV_INLINE Half half(const Element* a) const { return vset_half_step(a); }
};
constexpr Broadcast kBroadcast;
#if defined(FASTCONV_BFLOAT16)
struct BroadcastLast {
  FASTCONV_INLINE Vec operator()(const Element* a) const { return vset_last(a); }
  FASTCONV_INLINE Half half(const Element* a) const { return vset_half_last(a); }
};
constexpr BroadcastLast kBroadcastLast;
#else
constexpr Broadcast kBroadcastLast;
#endif

// Where the pixels of a tile are: equally far from each other, or anywhere.
struct EqualRows {
  FASTCONV_INLINE const Element* operator()(int i) const { return first + i * row; }
  FASTCONV_INLINE void advance(int64_t elements) { first += elements; }
  const Element* first;
  int64_t row;
};
template <int MR>
struct AnyRows {
  FASTCONV_INLINE const Element* operator()(int i) const { return rows[i]; }
  FASTCONV_INLINE void advance(int64_t elements) {
    FASTCONV_UNROLL for (int i = 0; i < MR; ++i) rows[i] += elements;
  }
  const Element* rows[MR];
};

// Adds A[., 0..length) B[0..length, .] to the accumulators; returns B past what was read. Not
// unrolled over k: gcc's register allocation then holds every accumulator in place (measured 89-98
// % of peak; unrolled by 8, 64-97 %; gemm_avx2.h unrolls by hand). In a copy of the accumulators,
// which nothing else points to: on NEON gcc otherwise also stores them at every k in tiles of 8 and
// more rows.
//
// On NEON gcc makes of a broadcast and its FMAs a scalar load and FMAs by lane: 6x4 takes 36
// instructions a k, of which 24 are FMAs, 2 paired loads of B and 6 loads of A. Whole vectors of A,
// four k at a time, would not fit: 24 + 4 + 6 registers.
template <int MR, int NV, class Rows>
FASTCONV_INLINE const float* multiply(const Rows a, int64_t length, const float* b,
                                      Vec (&acc)[MR * NV]) {
  Vec sum[MR * NV];
  FASTCONV_UNROLL for (int i = 0; i < MR * NV; ++i) sum[i] = acc[i];
  const auto step = [&](int64_t k, const auto& broadcast) __attribute__((always_inline)) {
    Vec bv[NV];
    FASTCONV_UNROLL for (int j = 0; j < NV; ++j) bv[j] = vload(b + j * kW);
    FASTCONV_UNROLL for (int i = 0; i < MR; ++i) {
      const Vec av = broadcast(a(i) + k);
      FASTCONV_UNROLL for (int j = 0; j < NV; ++j) sum[i * NV + j] =
          vdot(av, bv[j], sum[i * NV + j]);
    }
    b += NV * kW;
  };
  int64_t k = 0;
  for (; k + kStep <= length; k += kStep) step(k, kBroadcast);
  if constexpr (kStep > 1) {
    if (k < length) step(k, kBroadcastLast);
  }
  FASTCONV_UNROLL for (int i = 0; i < MR * NV; ++i) acc[i] = sum[i];
  return b;
}

// The same without the upper half of the last vector. One or two vectors are taken as halves
// throughout: a broadcast of half a vector costs half, too.
template <int MR, int NV>
struct HalfTile {
  static constexpr int kWhole = NV <= 2 ? 0 : NV - 1;
  static constexpr int kHalves = NV <= 2 ? 2 * NV - 1 : 1;

  FASTCONV_INLINE explicit HalfTile(const Vec (&acc)[MR * NV]) {
    FASTCONV_UNROLL for (int i = 0; i < MR; ++i) {
      FASTCONV_UNROLL for (int j = 0; j < kWhole; ++j) whole[i * NV + j] = acc[i * NV + j];
      FASTCONV_UNROLL for (int j = 0; j < kHalves; ++j) {
        const Vec source = acc[i * NV + kWhole + j / 2];
        halves[i * kHalves + j] = j % 2 == 0 ? vlow(source) : vhigh(source);
      }
    }
  }

  FASTCONV_INLINE const float* multiply(const EqualRows a, int64_t length, const float* b) {
    const auto step = [&](int64_t k, const auto& broadcast) __attribute__((always_inline)) {
      Vec bv[NV];
      Half bh[kHalves];
      FASTCONV_UNROLL for (int j = 0; j < kWhole; ++j) bv[j] = vload(b + j * kW);
      FASTCONV_UNROLL for (int j = 0; j < kHalves; ++j) bh[j] =
          vload_half(b + kWhole * kW + j * (kW / 2));
      FASTCONV_UNROLL for (int i = 0; i < MR; ++i) {
        if constexpr (kWhole > 0) {
          const Vec av = broadcast(a(i) + k);
          FASTCONV_UNROLL for (int j = 0; j < kWhole; ++j) whole[i * NV + j] =
              vdot(av, bv[j], whole[i * NV + j]);
          halves[i] = vdot(vlow(av), bh[0], halves[i]);
        } else {
          const Half av = broadcast.half(a(i) + k);
          FASTCONV_UNROLL for (int j = 0; j < kHalves; ++j) halves[i * kHalves + j] =
              vdot(av, bh[j], halves[i * kHalves + j]);
        }
      }
      b += NV * kW;
    };
    int64_t k = 0;
    for (; k + kStep <= length; k += kStep) step(k, kBroadcast);
    if constexpr (kStep > 1) {
      if (k < length) step(k, kBroadcastLast);
    }
    return b;
  }

  FASTCONV_INLINE void store(Vec (&acc)[MR * NV]) const {
    FASTCONV_UNROLL for (int i = 0; i < MR; ++i) {
      FASTCONV_UNROLL for (int j = 0; j < kWhole; ++j) acc[i * NV + j] = whole[i * NV + j];
      FASTCONV_UNROLL for (int j = 0; j < kHalves; j += 2) {
        const Half low = halves[i * kHalves + j];
        acc[i * NV + kWhole + j / 2] =
            vjoin(low, j + 1 < kHalves ? halves[i * kHalves + j + 1] : low);
      }
    }
  }

  Vec whole[MR * NV];
  Half halves[MR * kHalves];
};

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
