// Activations. The clamps (none, relu, relu6) and hardswish are computed in the registers of a
// tile, the others where floats have been stored: the tile's sums leave no registers for their
// constants, and a division for every vector of one tile after the other keeps the CPU from looking
// past it. (SiLU on AVX2: 3.6 ns a vector in the tile, 2.3 after it, of which a division takes
// 0.5.) NaN stays NaN, as in PyTorch.
#pragma once

#include <limits>
#include <type_traits>

#include "../activation.h"
#include "vec.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

struct ActivationBounds {
  bool is_clamp;
  float low, high;
};

constexpr ActivationBounds activation_bounds(Activation kind) {
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

// Whether a tile stored as T leaves it to activate_memory. What is short is computed in the tile's
// registers, and so is all that is rounded when it is stored.
template <class T>
constexpr bool activated_later(Activation kind) {
  return std::is_same_v<T, float> && kind != Activation::kHardswish &&
         !activation_bounds(kind).is_clamp;
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
  return vquotient(a, vfma_exp2(vexp2_fraction(f), n, vset(1.f)));
}

FASTCONV_INLINE Vec vsigmoid(Vec x) { return vover_one_plus_exp(vset(1.f), x); }

// expm1(2 x) / (expm1(2 x) + 2), expm1 = 2^n (2^f - 1) + (2^n - 1): no difference of nearly equal
// numbers. (2^f - 1) / f for |f| <= 1/2 is a polynomial of degree 5 found as above, exact
// to 1.1e-8. Within 4 ulp (2^-11 of the value if it estimates).
FASTCONV_INLINE Vec vtanh(Vec x) {
  // From 9.02 on it is 1.
  x = clamp(x, vset(-16.f), vset(16.f));
  Vec f;
  const Vec n = vround_scaled(x, vset(2.88539008177792681f), &f);
  Vec p = vset(1.5403512787e-4f);
  p = vfma(p, f, vset(1.3390735623e-3f));
  p = vfma(p, f, vset(9.6182374943e-3f));
  p = vfma(p, f, vset(5.5503574334e-2f));
  p = vfma(p, f, vset(2.4022649795e-1f));
  p = vfma(p, f, vset(6.9314718793e-1f));
  const Vec minus_one = vfma_exp2(vset(1.f), n, vset(-1.f));
  const Vec expm1 = vfma_exp2(vmul(p, f), n, minus_one);
  return vquotient(expm1, vadd(expm1, vset(2.f)));
}

// Of the normal distribution at -|x|, of which no more than 13 counts: its function and exp(-x^2 /
// 2). Their quotient is a polynomial of degree 9 in t = 1 / (1 + 0.35 |x|), 0 at 0, found as above,
// exact to 3.2e-8.
struct Normal {
  Vec z;  // |x|
  Vec below, exponential;
};
FASTCONV_INLINE Normal vnormal(Vec x) {
  const Vec z = vmin(vset(13.f), vmax(vsub(vzero(), x), x));
  const Vec square = vmul(z, z), scale = vset(-0.72134752044448170f);
  Vec f;
  const Vec n = vround_scaled(square, scale, &f);
  f = vfma(vfms(z, z, square), scale, f);  // what rounding took from the square
  const Vec t = vquotient(vset(1.f), vfma(z, vset(0.35f), vset(1.f)));
  Vec p = vset(-2.910222858e-2f);
  p = vfma(p, t, vset(1.437549740e-1f));
  p = vfma(p, t, vset(-2.552571297e-1f));
  p = vfma(p, t, vset(1.586399972e-1f));
  p = vfma(p, t, vset(-2.273281850e-2f));
  p = vfma(p, t, vset(1.053439677e-1f));
  p = vfma(p, t, vset(1.198756844e-1f));
  p = vfma(p, t, vset(1.398557574e-1f));
  p = vfma(p, t, vset(1.396217644e-1f));
  const Vec fraction = vexp2_fraction(f);
  return {z, vfma_exp2(vmul(vmul(p, t), fraction), n, vzero()), vfma_exp2(fraction, n, vzero())};
}

// Within 8 ulp where |x| <= 4, 24 ulp to 13 (16 and 128 where FMA rounds twice; 2^-11 of the value
// if it estimates); 0 from -13 down.
FASTCONV_INLINE Vec vgelu(Vec x) {
  const Normal normal = vnormal(x);
  const Vec part = vwhere_above(x, vset(-13.f), vmul(normal.z, normal.below));
  return vsub(vmax(vzero(), x), part);
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
      return vover_one_plus_exp(x, x);
    case Activation::kSigmoid:
      return vsigmoid(x);
    case Activation::kHardsigmoid:
      return vhardsigmoid(x);
    case Activation::kTanh:
      return vtanh(x);
    case Activation::kGelu:
      return vgelu(x);
    default:
      return x;
  }
}

// Calls f with the activation as a type.
template <Activation kKind>
struct ActivationTag {
  static constexpr Activation kValue = kKind;
};
template <class F>
FASTCONV_INLINE void with_activation(Activation kind, const F& f) {
#define FASTCONV_WITH_ACTIVATION(name) \
  case Activation::name:               \
    return f(ActivationTag<Activation::name>());
  switch (kind) {
    FASTCONV_WITH_ACTIVATION(kNone)
    FASTCONV_WITH_ACTIVATION(kRelu)
    FASTCONV_WITH_ACTIVATION(kRelu6)
    FASTCONV_WITH_ACTIVATION(kHardswish)
    FASTCONV_WITH_ACTIVATION(kSilu)
    FASTCONV_WITH_ACTIVATION(kSigmoid)
    FASTCONV_WITH_ACTIVATION(kHardsigmoid)
    FASTCONV_WITH_ACTIVATION(kTanh)
    FASTCONV_WITH_ACTIVATION(kGelu)
  }
#undef FASTCONV_WITH_ACTIVATION
}

// Of a tile, from its place in memory and back: as a part of each of some hundred tiles it would be
// most of the code.
inline __attribute__((noinline)) void activate_vectors(Activation kind, Vec* x, int count) {
  with_activation(kind, [&](auto tag) __attribute__((always_inline)) {
    for (int i = 0; i < count; ++i) x[i] = activate<decltype(tag)::kValue>(x[i]);
  });
}

// Vectors in memory: number i is at data + (offsets ? offsets[i] : i * stride).
template <class T>
struct Vectors {
  T* data;
  int64_t stride;
  const int32_t* offsets;
  int64_t count;
};

// Returns sum plus what they become.
template <class T>
__attribute__((noinline)) Vec activate_memory(Activation kind, const Vectors<T>& vectors, Vec sum) {
  with_activation(kind, [&](auto tag) __attribute__((always_inline)) {
    const auto [data, stride, offsets, count] = vectors;
    Vec total = sum;
    for (int64_t i = 0; i < count; ++i) {
      T* at = data + (offsets == nullptr ? i * stride : offsets[i]);
      const Vec x = activate<decltype(tag)::kValue>(vload(at));
      vstore(at, x);
      total = vadd(total, x);
    }
    sum = total;
  });
  return sum;
}

// A tile that is about to be stored as T, unless it is activated_later<T>. In a copy, so that the
// tile may stay in registers.
template <class T, int kCount>
FASTCONV_INLINE void activate_tile(Activation kind, const ActivationBounds& bounds,
                                   Vec (&x)[kCount]) {
  if (bounds.is_clamp) {
    const Vec low = vset(bounds.low), high = vset(bounds.high);
    FASTCONV_UNROLL for (int i = 0; i < kCount; ++i) x[i] = clamp(x[i], low, high);
    return;
  }
  if (kind == Activation::kHardswish) {
    FASTCONV_UNROLL for (int i = 0; i < kCount; ++i) x[i] = activate<Activation::kHardswish>(x[i]);
    return;
  }
  if constexpr (std::is_same_v<T, float>) return;
  Vec values[kCount];
  FASTCONV_UNROLL for (int i = 0; i < kCount; ++i) values[i] = x[i];
  activate_vectors(kind, values, kCount);
  FASTCONV_UNROLL for (int i = 0; i < kCount; ++i) x[i] = values[i];
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
