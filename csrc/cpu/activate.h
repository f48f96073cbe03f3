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

// exp(x), relative error below 2 ulp for |x| <= 87; saturates outside. 2^n is built in the exponent
// bits after adding a constant that rounds to an integer, and exp(r), |r| <= ln(2)/2, is a degree-6
// Taylor-like polynomial (Cephes' split).
FASTCONV_INLINE Vec vexp(Vec x) {
  x = clamp(x, vset(-87.f), vset(88.f));
  const Vec magic =
      vset(12583039.f);  // 1.5 * 2^23 + 127: the sum's low bits are round(x / ln 2) + 127
  const Vec biased = vfma(x, vset(1.44269504088896341f), magic);
  const Vec n = vsub(biased, magic);
  Vec r = vfma(n, vset(-0.693359375f), x);
  r = vfma(n, vset(2.12194440e-4f), r);
  Vec p = vset(1.9875691500e-4f);
  p = vfma(p, r, vset(1.3981999507e-3f));
  p = vfma(p, r, vset(8.3334519073e-3f));
  p = vfma(p, r, vset(4.1665795894e-2f));
  p = vfma(p, r, vset(1.6666665459e-1f));
  p = vfma(p, r, vset(5.0000001201e-1f));
  p = vadd(vfma(vmul(r, r), p, r), vset(1.f));
  return vmul(p, vshift_to_exponent(biased));
}

FASTCONV_INLINE Vec vsigmoid(Vec x) {
  return vdiv(vset(1.f), vadd(vset(1.f), vexp(vsub(vzero(), x))));
}

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
      return vmul(x, vsigmoid(x));
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

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
