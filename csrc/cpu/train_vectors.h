// Vectors of the channels of a pixel, of maps that are normalized on the way.
#pragma once

#include "activate.h"
#include "element.h"
#include "train.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

// Sums over pixels are sums of sums of so many: a long one alone would lose digits.
constexpr int64_t kRun = 16;

// f(c, lanes) for every vector of channels; lanes < kW: the last one is not whole.
template <class F>
FASTCONV_INLINE void each_vector(int64_t count, const F& f) {
  int64_t c = 0;
  for (; c + kW <= count; c += kW) f(c, kW);
  if (c < count) f(c, static_cast<int>(count - c));
}

template <class T>
FASTCONV_INLINE Vec load_lanes(const T* p, int lanes) {
  return lanes == kW ? vload(p) : vload_first(p, lanes);
}

template <class T>
FASTCONV_INLINE void store_lanes(T* p, Vec x, int lanes) {
  if (lanes == kW) {
    vstore(p, x);
  } else {
    vstore_first(p, x, lanes);
  }
}

// The derivative of an activation, as PyTorch has it at the corners.
template <Activation kKind>
FASTCONV_INLINE Vec activation_slope(Vec x) {
  const Vec one = vset(1.f);
  const auto inside = [&](float low, float high, Vec a) __attribute__((always_inline)) {
    return vwhere_above(x, vset(low), vwhere_below(x, vset(high), a));
  };
  switch (kKind) {
    case Activation::kRelu:
      return vwhere_above(x, vzero(), one);
    case Activation::kRelu6:
      return inside(0.f, 6.f, one);
    case Activation::kHardswish:
      return vadd(inside(-3.f, 3.f, vfma(x, vset(1.f / 3.f), vset(-0.5f))),
                  vwhere_above(x, vset(-3.f), one));
    case Activation::kSilu: {
      const Vec s = vsigmoid(x);
      return vfma(vmul(s, x), vsub(one, s), s);
    }
    case Activation::kSigmoid: {
      const Vec s = vsigmoid(x);
      return vmul(s, vsub(one, s));
    }
    case Activation::kHardsigmoid:
      return inside(-3.f, 3.f, vset(1.f / 6.f));
    case Activation::kTanh: {
      const Vec t = vtanh(x);
      return vsub(one, vmul(t, t));
    }
    case Activation::kGelu: {
      constexpr float kDensity = 0.398942280401432678f;  // of the normal distribution at 0
      const Normal normal = vnormal(x);
      const Vec above = vwhere_above(x, vzero(), vfma(vset(-2.f), normal.below, one));
      const Vec near = clamp(x, vset(-13.f), vset(13.f));
      return vfma(near, vmul(vset(kDensity), normal.exponential), vadd(normal.below, above));
    }
    default:
      return one;
  }
}

// The activation of a map and its derivative, as a part of the loop that calls them.
template <Activation kKind>
struct InlineActivation {
  static constexpr bool kIsNone = kKind == Activation::kNone;
  FASTCONV_INLINE Vec value(Vec x) const { return activate<kKind>(x); }
  FASTCONV_INLINE Vec slope(Vec x) const { return activation_slope<kKind>(x); }
};

// One by a call for each vector.
Vec activated(Activation kind, Vec x);
Vec activated_slope(Activation kind, Vec x);
struct CalledActivation {
  static constexpr bool kIsNone = false;
  FASTCONV_INLINE Vec value(Vec x) const { return activated(kind, x); }
  FASTCONV_INLINE Vec slope(Vec x) const { return activated_slope(kind, x); }
  Activation kind;
};

// Calls f with one of these. Every loop is compiled for each activation in line: only for those of
// the maps of mobile networks.
template <class F>
FASTCONV_INLINE void with_map_activation(Activation kind, const F& f) {
  switch (kind) {
    case Activation::kNone:
      return f(InlineActivation<Activation::kNone>());
    case Activation::kRelu:
      return f(InlineActivation<Activation::kRelu>());
    case Activation::kRelu6:
      return f(InlineActivation<Activation::kRelu6>());
    case Activation::kHardswish:
      return f(InlineActivation<Activation::kHardswish>());
    case Activation::kSilu:
      return f(InlineActivation<Activation::kSilu>());
    default:
      return f(CalledActivation{kind});
  }
}

// A pixel's vector of the gradient of the map before the activation, and of the raw map.
struct GradientReader {
  GradientReader(const GradientMap& map, const MapTile& tile)
      : grad(elements(map.grad) + tile.begin * tile.channels + tile.first),
        channels(tile.channels) {
    if (map.raw == nullptr) return;
    const int64_t c = tile.channels, at = tile.image * c + tile.first;
    raw = elements(map.raw) + tile.begin * c + tile.first;
    if (map.affine != nullptr) scale = map.affine + tile.first, shift = scale + c;
    if (map.gate != nullptr) gate = map.gate + at;
    if (map.offset != nullptr) offset = map.offset + at;
    if (map.coefficients != nullptr) coefficients = map.coefficients + tile.first;
  }

  template <class MapActivation>
  FASTCONV_INLINE Vec before_activation(const MapActivation& activation, int64_t c, int lanes,
                                        Vec* x) const {
    Vec g = load_lanes(grad + c, lanes);
    if (raw == nullptr) return g;
    *x = load_lanes(raw + c, lanes);
    if (gate != nullptr) g = vmul(g, load_lanes(gate + c, lanes));
    if (offset != nullptr) g = vadd(g, load_lanes(offset + c, lanes));
    if (MapActivation::kIsNone) return g;
    Vec v = *x;
    if (scale != nullptr) v = vfma(v, load_lanes(scale + c, lanes), load_lanes(shift + c, lanes));
    return vmul(g, activation.slope(v));
  }

  template <class MapActivation>
  FASTCONV_INLINE Vec of_raw(const MapActivation& activation, int64_t c, int lanes) const {
    Vec x = vzero();
    const Vec g = before_activation(activation, c, lanes, &x);
    if (coefficients == nullptr) return g;
    const float* k = coefficients + c;
    const Vec centered = vsub(x, load_lanes(k + 2 * channels, lanes));
    const Vec rest =
        vfma(centered, load_lanes(k + channels, lanes), load_lanes(k + 3 * channels, lanes));
    return vfma(g, load_lanes(k, lanes), rest);
  }

  FASTCONV_INLINE void next() {
    grad += channels;
    if (raw != nullptr) raw += channels;
  }

  const Element* grad;
  const Element* raw = nullptr;
  const float *scale = nullptr, *shift = nullptr, *gate = nullptr, *offset = nullptr;
  const float* coefficients = nullptr;
  int64_t channels;
};

inline Activation activation_of(const NormalizedMap& map) {
  return map.affine == nullptr ? Activation::kNone : map.activation;
}
inline Activation activation_of(const GradientMap& map) {
  return map.raw == nullptr ? Activation::kNone : map.activation;
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
