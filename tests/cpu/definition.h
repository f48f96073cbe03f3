// Convolutions as their definition says, in double precision, NHWC: what the kernels are compared
// with.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "csrc/activation.h"

namespace definition {

using Floats = std::vector<float>;

inline double activate(fastconv::Activation kind, double x) {
  const double gate = std::fmin(std::fmax(x + 3, 0), 6) / 6;
  switch (kind) {
    case fastconv::Activation::kRelu:
      return std::fmax(x, 0);
    case fastconv::Activation::kRelu6:
      return std::fmin(std::fmax(x, 0), 6);
    case fastconv::Activation::kHardswish:
      return x * gate;
    case fastconv::Activation::kSilu:
      return x / (1 + std::exp(-x));
    case fastconv::Activation::kSigmoid:
      return 1 / (1 + std::exp(-x));
    case fastconv::Activation::kHardsigmoid:
      return gate;
    default:
      return x;
  }
}

struct Map {
  int64_t batch, height, width, channels;
  int64_t size() const { return batch * height * width * channels; }
};

struct Window {
  int64_t kernel_height, kernel_width, stride_height, stride_width, top, bottom, left, right,
      dilation;
  int64_t out_height(int64_t h) const {
    return (h + top + bottom - dilation * (kernel_height - 1) - 1) / stride_height + 1;
  }
  int64_t out_width(int64_t w) const {
    return (w + left + right - dilation * (kernel_width - 1) - 1) / stride_width + 1;
  }
};

// weight [out, in / groups, KH, KW]; groups is 1 or the number of channels.
inline Floats convolve(const Floats& in, const Map& map, const Floats& weight, const Floats& bias,
                       int64_t out_channels, bool depthwise, const Window& w,
                       fastconv::Activation activation) {
  const int64_t oh = w.out_height(map.height), ow = w.out_width(map.width);
  const int64_t depth = depthwise ? 1 : map.channels;
  Floats out(map.batch * oh * ow * out_channels);
  float* result = out.data();
  for (int64_t n = 0; n < map.batch; ++n)
    for (int64_t y = 0; y < oh; ++y)
      for (int64_t x = 0; x < ow; ++x)
        for (int64_t k = 0; k < out_channels; ++k) {
          double sum = bias[k];
          for (int64_t i = 0; i < w.kernel_height; ++i)
            for (int64_t j = 0; j < w.kernel_width; ++j) {
              const int64_t in_y = y * w.stride_height - w.top + i * w.dilation;
              const int64_t in_x = x * w.stride_width - w.left + j * w.dilation;
              if (in_y < 0 || in_y >= map.height || in_x < 0 || in_x >= map.width) continue;
              const float* pixel =
                  in.data() + ((n * map.height + in_y) * map.width + in_x) * map.channels;
              for (int64_t c = 0; c < depth; ++c)
                sum += static_cast<double>(pixel[depthwise ? k : c]) *
                       weight[((k * depth + c) * w.kernel_height + i) * w.kernel_width + j];
            }
          *result++ = static_cast<float>(activate(activation, sum));
        }
  return out;
}

// The mean over the pixels of each image: [N, C].
inline Floats pool(const Floats& in, int64_t batch, int64_t pixels, int64_t channels) {
  Floats out(batch * channels);
  for (int64_t n = 0; n < batch; ++n)
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t m = 0; m < pixels; ++m) sum += in[(n * pixels + m) * channels + c];
      out[n * channels + c] = static_cast<float>(sum / pixels);
    }
  return out;
}

}  // namespace definition
