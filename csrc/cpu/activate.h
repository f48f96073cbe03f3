// Activations on registers. The clamps (none, relu, relu6) cost two instructions and no branch; the
// others are chosen by one predictable branch per register tile. NaN stays NaN, as in PyTorch.
#pragma once

#include <limits>

#include "../activation.h"
#include "vec.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

struct ActivationBounds {
  bool is_clamp;
  float low, high;
};

inline ActivationBounds activation_bounds(Activation kind) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  switch (kind) {
    case Activation::kRelu:
      return {true, 0.f, kInf};
    case Activation::kRelu6:
      return {true, 0.f, 6.f};
    case Activation::kNone:
      return {true, -kInf, kInf};
    default:
      return {false, 0.f, 0.f};
  }
}

FASTCONV_INLINE Vec clamp(Vec x, Vec low, Vec high) { return vmin(high, vmax(low, x)); }

// Where the result is rounded to bfloat16, a shorter polynomial and an estimate of the quotient do.
#if defined(FASTCONV_BFLOAT16) && defined(FASTCONV_ISA_AVX512)
constexpr bool kEstimates = true;
FASTCONV_INLINE Vec vquotient(Vec a, Vec b) { return vmul(a, _mm512_rcp14_ps(b)); }
#else
constexpr bool kEstimates = false;
FASTCONV_INLINE Vec vquotient(Vec a, Vec b) { return vdiv(a, b); }
#endif

// 2^f for |f| <= 1/2: the polynomial of degree 5 (3), 1 at 0, whose largest relative error is
// smallest, found by Lawson's algorithm: 1.1e-7 (1.1e-4).
FASTCONV_INLINE Vec vexp2_fraction(Vec f) {
  if constexpr (kEstimates) {
    Vec p = vset(5.5008348078e-2f);
    p = vfma(p, f, vset(2.4221333861e-1f));
    p = vfma(p, f, vset(6.9328325987e-1f));
    return vfma(p, f, vset(1.f));
  }
  Vec p = vset(1.3264645822e-3f);
  p = vfma(p, f, vset(9.6715763211e-3f));
  p = vfma(p, f, vset(5.5507346988e-2f));
  p = vfma(p, f, vset(2.4022240937e-1f));
  p = vfma(p, f, vset(6.9314700365e-1f));
  return vfma(p, f, vset(1.f));
}

// a / (1 + exp(-x)); exp(-x) = 2^n 2^f with n an integer. For a = 1 or x within 6 ulp where |x| <=
// 16, 22 ulp to 87 (17 and 63 where FMA rounds twice; 2^-11 of the value if it estimates). Levels
// without vscalefps saturate beyond.
FASTCONV_INLINE Vec vover_one_plus_exp(Vec a, Vec x) {
  // Far outside, nothing of x would be left in its fraction.
#if defined(FASTCONV_ISA_AVX512)
  x = clamp(x, vset(-104.f), vset(104.f));
#else
  x = clamp(x, vset(-87.f), vset(87.f));
#endif
  Vec f;
  const Vec n = vround_scaled(x, vset(-1.44269504088896341f), &f);
  return vquotient(a, vadd(vset(1.f), vmul_exp2(vexp2_fraction(f), n)));
}

FASTCONV_INLINE Vec vsigmoid(Vec x) { return vover_one_plus_exp(vset(1.f), x); }

FASTCONV_INLINE Vec vhardsigmoid(Vec x) {
  return vmul(clamp(vadd(x, vset(3.f)), vzero(), vset(6.f)), vset(1.f / 6.f));
}

template <Activation kKind>
FASTCONV_INLINE Vec activate(Vec x) {
  switch (kKind) {
    case Activation::kRelu:
      return vmax(vzero(), x);
    case Activation::kRelu6:
      return clamp(x, vzero(), vset(6.f));
    case Activation::kHardswish:
      return vmul(x, vhardsigmoid(x));
    case Activation::kSilu:
      return vover_one_plus_exp(x, x);
    case Activation::kSigmoid:
      return vsigmoid(x);
    case Activation::kHardsigmoid:
      return vhardsigmoid(x);
    default:
      return x;
  }
}

// Applies a non-clamp activation to `count` registers: the branch stays outside the loop.
template <int kCount>
FASTCONV_INLINE void activate_registers(Activation kind, Vec* x) {
#define FASTCONV_ACTIVATE_CASE(name)                                                          \
  case Activation::name:                                                                      \
    FASTCONV_UNROLL for (int i = 0; i < kCount; ++i) x[i] = activate<Activation::name>(x[i]); \
    break;
  switch (kind) {
    FASTCONV_ACTIVATE_CASE(kHardswish)
    FASTCONV_ACTIVATE_CASE(kSilu)
    FASTCONV_ACTIVATE_CASE(kSigmoid)
    FASTCONV_ACTIVATE_CASE(kHardsigmoid)
    default:
      break;
  }
#undef FASTCONV_ACTIVATE_CASE
}

inline __attribute__((noinline)) void activate_vectors(Activation kind, Vec* x, int count) {
  constexpr int kTogether = 4;
  int i = 0;
  for (; i + kTogether <= count; i += kTogether) activate_registers<kTogether>(kind, x + i);
  for (; i < count; ++i) activate_registers<1>(kind, x + i);
}

// The same by a call: as a part of each of some hundred tiles it would be most of the code. In a
// copy, so that the tile itself may stay in registers.
template <int kCount>
FASTCONV_INLINE void activate_tile(Activation kind, Vec (&x)[kCount]) {
  Vec values[kCount];
  FASTCONV_UNROLL for (int i = 0; i < kCount; ++i) values[i] = x[i];
  activate_vectors(kind, values, kCount);
  FASTCONV_UNROLL for (int i = 0; i < kCount; ++i) x[i] = values[i];
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
