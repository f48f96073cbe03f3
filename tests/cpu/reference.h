// What the kernels should compute: plain loops in double precision. Along with each value goes its
// magnitude, the sum of the absolute values of everything added up in it: rounding errors are small
// against that, whatever cancels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "csrc/activation.h"
#include "csrc/packed.h"

namespace fastconv::test {

// Memory of exactly this size from the heap: AddressSanitizer sees the first float beyond it. No
// bias: an empty one.
using Floats = std::vector<float>;

inline const float* data_or_null(const Floats& x) { return x.empty() ? nullptr : x.data(); }

struct Window {
  int64_t kernel_height = 1, kernel_width = 1;
  int64_t stride_height = 1, stride_width = 1;
  int64_t dilation_height = 1, dilation_width = 1;
  int64_t top = 0, bottom = 0, left = 0, right = 0;

  static int64_t outputs(int64_t in, int64_t kernel, int64_t stride, int64_t dilation) {
    return (in - dilation * (kernel - 1) - 1) / stride + 1;
  }
  int64_t out_height(int64_t h) const {
    return outputs(h + top + bottom, kernel_height, stride_height, dilation_height);
  }
  int64_t out_width(int64_t w) const {
    return outputs(w + left + right, kernel_width, stride_width, dilation_width);
  }
};

// [N, H, W, C]
struct Map {
  Map(int64_t n, int64_t h, int64_t w, int64_t c)
      : batch(n), height(h), width(w), channels(c), value(n * h * w * c), magnitude(value.size()) {}
  Map(int64_t n, int64_t h, int64_t w, int64_t c, const Floats& x) : Map(n, h, w, c) {
    for (std::size_t i = 0; i < value.size(); ++i) {
      value[i] = x[i];
      magnitude[i] = std::abs(x[i]);
    }
  }
  int64_t at(int64_t n, int64_t y, int64_t x, int64_t c) const {
    return ((n * height + y) * width + x) * channels + c;
  }

  int64_t batch, height, width, channels;
  std::vector<double> value, magnitude;
};

// weight [K, C / groups, KH, KW]; groups is 1, or C = K for a depthwise convolution.
inline Map convolve(const Map& in, const Floats& weight, const Floats& bias, int64_t out_channels,
                    int64_t groups, const Window& s) {
  Map out(in.batch, s.out_height(in.height), s.out_width(in.width), out_channels);
  const int64_t depth = in.channels / groups, taps = s.kernel_height * s.kernel_width;
  for (int64_t i = 0; i < static_cast<int64_t>(out.value.size()); ++i) {
    const int64_t k = i % out_channels, x = i / out_channels % out.width;
    const int64_t y = i / (out_channels * out.width) % out.height,
                  n = i / (out_channels * out.width * out.height);
    double value = bias.empty() ? 0 : bias[k], magnitude = std::abs(value);
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t in_y = y * s.stride_height - s.top + tap / s.kernel_width * s.dilation_height;
      const int64_t in_x = x * s.stride_width - s.left + tap % s.kernel_width * s.dilation_width;
      if (in_y < 0 || in_y >= in.height || in_x < 0 || in_x >= in.width) continue;
      const int64_t pixel = in.at(n, in_y, in_x, groups == 1 ? 0 : k);
      for (int64_t c = 0; c < depth; ++c) {
        const double w = weight[(k * depth + c) * taps + tap];
        value += w * in.value[pixel + c];
        magnitude += std::abs(w) * in.magnitude[pixel + c];
      }
    }
    out.value[i] = value;
    out.magnitude[i] = magnitude;
  }
  return out;
}

inline double activate(double x, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kRelu6:
      return std::clamp(x, 0.0, 6.0);
    case Activation::kHardswish:
      return x * std::clamp(x + 3, 0.0, 6.0) / 6;
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kSigmoid:
      return 1 / (1 + std::exp(-x));
    case Activation::kHardsigmoid:
      return std::clamp(x + 3, 0.0, 6.0) / 6;
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kGelu:
      return 0.5 * x * std::erfc(-std::sqrt(0.5) * x);
  }
  return NAN;
}

// No activation is steeper than 1.5.
inline Map activate(Map x, Activation activation) {
  for (std::size_t i = 0; i < x.value.size(); ++i) {
    x.value[i] = activate(x.value[i], activation);
    x.magnitude[i] = 1.5 * x.magnitude[i] + std::abs(x.value[i]);
  }
  return x;
}

// residual: of x's shape, or empty.
inline Map add(Map x, const Floats& residual) {
  for (std::size_t i = 0; i < residual.size(); ++i) {
    x.value[i] += residual[i];
    x.magnitude[i] += std::abs(residual[i]);
  }
  return x;
}

// A dense convolution's result as Winograd's algorithm has it, where that is taken: rounding errors
// are those of the largest of the 4x4 outputs that are computed together, at most twice as large.
inline Map as_computed(Map x, int64_t in_channels, const Window& s) {
  if (!suits_winograd(DataType::kFloat32, x.channels, in_channels, s.kernel_height, s.kernel_width,
                      s.stride_height, s.stride_width))
    return x;
  const Map exact = x;
  for (int64_t i = 0; i < static_cast<int64_t>(x.value.size()); ++i) {
    const int64_t c = i % x.channels, pixel = i / x.channels, column = pixel % x.width;
    const int64_t row = pixel / x.width % x.height, n = pixel / (x.width * x.height);
    for (int64_t y = row / 4 * 4; y < std::min(x.height, row / 4 * 4 + 4); ++y) {
      for (int64_t z = column / 4 * 4; z < std::min(x.width, column / 4 * 4 + 4); ++z)
        x.magnitude[i] = std::max(x.magnitude[i], 2 * exact.magnitude[exact.at(n, y, z, c)]);
    }
  }
  return x;
}

// The largest value of every window, or the sum over its size.
inline Map pool_windows(const Map& in, const Window& s, bool largest) {
  Map out(in.batch, s.out_height(in.height), s.out_width(in.width), in.channels);
  const double size = s.kernel_height * s.kernel_width;
  for (int64_t i = 0; i < static_cast<int64_t>(out.value.size()); ++i) {
    const int64_t c = i % in.channels, x = i / in.channels % out.width;
    const int64_t y = i / (in.channels * out.width) % out.height,
                  n = i / (in.channels * out.width * out.height);
    double value = largest ? -INFINITY : 0, magnitude = 0;
    for (int64_t tap = 0; tap < s.kernel_height * s.kernel_width; ++tap) {
      const int64_t in_y = y * s.stride_height - s.top + tap / s.kernel_width;
      const int64_t in_x = x * s.stride_width - s.left + tap % s.kernel_width;
      if (in_y < 0 || in_y >= in.height || in_x < 0 || in_x >= in.width) continue;
      const int64_t at = in.at(n, in_y, in_x, c);
      value = largest ? std::max(value, in.value[at]) : value + in.value[at] / size;
      magnitude = std::max(magnitude, in.magnitude[at]);
    }
    out.value[i] = value;
    out.magnitude[i] = magnitude;
  }
  return out;
}

// The channels of b behind those of a.
inline Map concatenate(const Map& a, const Map& b) {
  Map out(a.batch, a.height, a.width, a.channels + b.channels);
  for (int64_t i = 0; i < static_cast<int64_t>(out.value.size()); ++i) {
    const int64_t pixel = i / out.channels, c = i % out.channels;
    const Map& from = c < a.channels ? a : b;
    const int64_t at = pixel * from.channels + (c < a.channels ? c : c - a.channels);
    out.value[i] = from.value[at];
    out.magnitude[i] = from.magnitude[at];
  }
  return out;
}

// scale: [N, 1, 1, C]
inline Map multiply(Map x, const Map& scale) {
  const int64_t image = x.height * x.width * x.channels;
  for (int64_t i = 0; i < static_cast<int64_t>(x.value.size()); ++i) {
    const int64_t j = i / image * x.channels + i % x.channels;
    x.magnitude[i] =
        x.magnitude[i] * std::abs(scale.value[j]) + std::abs(x.value[i]) * scale.magnitude[j];
    x.value[i] *= scale.value[j];
  }
  return x;
}

// [N, 1, 1, C]
inline Map mean(const Map& x) {
  Map out(x.batch, 1, 1, x.channels);
  const int64_t pixels = x.height * x.width, image = pixels * x.channels;
  for (int64_t i = 0; i < static_cast<int64_t>(x.value.size()); ++i) {
    const int64_t j = i / image * x.channels + i % x.channels;
    out.value[j] += x.value[i] / pixels;
    out.magnitude[j] += x.magnitude[i] / pixels;
  }
  return out;
}

}  // namespace fastconv::test
