// Activations in registers. For maps of 16 bits sigmoids are hyperbolic tangents of the special
// function unit, one instruction, exact to about 2^-11; for float32 they are computed in full.
#pragma once

#include "../activation.h"
#include "device.cuh"

namespace fastconv {

#ifdef __CUDA_ARCH__
__device__ inline float special_tanh(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

template <class T>
__device__ float sigmoid(float x) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 2) {
    return 0.5f + 0.5f * special_tanh(0.5f * x);
  }
#endif
  return 1.0f / (1.0f + expf(-x));
}

// CUDA's tanhf and erfcf have parts for small and large numbers, which would cost every kernel
// their registers.
template <class T>
__device__ float hyperbolic_tangent(float x) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 2) return special_tanh(x);
#endif
  return 2.0f * sigmoid<T>(2.0f * x) - 1.0f;
}

// e^x and 1 / x, for maps of 16 bits by the special function unit alone.
template <class T>
__device__ float exponential_of(float x) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 2) return __expf(x);
#endif
  return expf(x);
}
template <class T>
__device__ float reciprocal(float x) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(T) == 2) return __fdividef(1.0f, x);
#endif
  return 1.0f / x;
}

// The normal distribution's function, and exp(-x^2 / 2), as csrc/cpu/activate.h has them.
struct Normal {
  float below, exponential;
};
template <class T>
__device__ Normal normal_at(float x) {
  const float t = reciprocal<T>(1.0f + 0.35f * fabsf(x));
  float p = -2.910222858e-2f;
  p = p * t + 1.437549740e-1f;
  p = p * t - 2.552571297e-1f;
  p = p * t + 1.586399972e-1f;
  p = p * t - 2.273281850e-2f;
  p = p * t + 1.053439677e-1f;
  p = p * t + 1.198756844e-1f;
  p = p * t + 1.398557574e-1f;
  p = p * t + 1.396217644e-1f;
  const float exponential = exponential_of<T>(-0.5f * x * x);
  const float below = p * t * exponential;
  return {x > 0.0f ? 1.0f - below : below, exponential};
}

__device__ inline float clamp6(float x) {
  x = x < 0.0f ? 0.0f : x;  // NaN stays, as in PyTorch
  return x > 6.0f ? 6.0f : x;
}

// The same one for all threads, so the switch costs next to nothing. T: of the map.
template <class T>
__device__ float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return x < 0.0f ? 0.0f : x;
    case Activation::kRelu6:
      return clamp6(x);
    case Activation::kHardswish:
      return x * (clamp6(x + 3.0f) * (1.0f / 6.0f));
    case Activation::kSilu:
      return x * sigmoid<T>(x);
    case Activation::kSigmoid:
      return sigmoid<T>(x);
    case Activation::kHardsigmoid:
      return clamp6(x + 3.0f) * (1.0f / 6.0f);
    case Activation::kTanh:
      return hyperbolic_tangent<T>(x);
    case Activation::kGelu:
      return x * normal_at<T>(x).below;
  }
  return x;
}

// The derivative, as PyTorch has it at the corners.
template <class T>
__device__ float activation_slope(Activation activation, float x) {
  switch (activation) {
    case Activation::kNone:
      return 1.0f;
    case Activation::kRelu:
      return x > 0.0f ? 1.0f : 0.0f;
    case Activation::kRelu6:
      return x > 0.0f && x < 6.0f ? 1.0f : 0.0f;
    case Activation::kHardswish:
      if (x >= 3.0f) return 1.0f;
      return x > -3.0f ? x * (1.0f / 3.0f) + 0.5f : 0.0f;
    case Activation::kSilu: {
      const float s = sigmoid<T>(x);
      return s * x * (1.0f - s) + s;
    }
    case Activation::kSigmoid: {
      const float s = sigmoid<T>(x);
      return s * (1.0f - s);
    }
    case Activation::kHardsigmoid:
      return x > -3.0f && x < 3.0f ? 1.0f / 6.0f : 0.0f;
    case Activation::kTanh: {
      const float t = hyperbolic_tangent<T>(x);
      return 1.0f - t * t;
    }
    case Activation::kGelu: {
      const Normal normal = normal_at<T>(x);
      return normal.below + x * (0.3989422804f * normal.exponential);
    }
  }
  return 1.0f;
}

template <Activation kKind>
struct ActivationTag {
  static constexpr Activation kValue = kKind;
};

// Calls f with the activation as a type: one switch for all that a thread has at hand.
template <class F>
__device__ void with_activation(Activation kind, const F& f) {
  switch (kind) {
    case Activation::kNone:
      return f(ActivationTag<Activation::kNone>());
    case Activation::kRelu:
      return f(ActivationTag<Activation::kRelu>());
    case Activation::kRelu6:
      return f(ActivationTag<Activation::kRelu6>());
    case Activation::kHardswish:
      return f(ActivationTag<Activation::kHardswish>());
    case Activation::kSilu:
      return f(ActivationTag<Activation::kSilu>());
    case Activation::kSigmoid:
      return f(ActivationTag<Activation::kSigmoid>());
    case Activation::kHardsigmoid:
      return f(ActivationTag<Activation::kHardsigmoid>());
    case Activation::kTanh:
      return f(ActivationTag<Activation::kTanh>());
    case Activation::kGelu:
      return f(ActivationTag<Activation::kGelu>());
  }
}

template <class T, int kPixels, int kVector>
__device__ void activate_all(Activation activation, float (&x)[kPixels][kVector]) {
  with_activation(activation, [&](auto tag) {
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
#pragma unroll
      for (int v = 0; v < kVector; ++v) x[p][v] = activate<T>(decltype(tag)::kValue, x[p][v]);
    }
  });
}

}  // namespace fastconv
