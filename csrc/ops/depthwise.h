// The depthwise part that three ops have in common.
#pragma once

#include "check.h"

namespace fastconv {

// Sizes and window of a depthwise convolution of `image`; activation and pointers are left to the
// op.
inline DepthwiseConv2dParams depthwise_window(const char* op, const Sizes& image, int64_t channels,
                                              const KernelSize& kernel, const Ints& stride,
                                              const Ints& padding, const Ints& dilation) {
  const Window window = check_window(op, image, kernel, stride, padding, dilation);
  DepthwiseConv2dParams p{};
  set_window(p, image, kernel, window, stride, padding);
  p.channels = channels;
  p.dilation_height = dilation[0];
  p.dilation_width = dilation[1];
  return p;
}

inline DepthwiseConv2dParams depthwise_params(const char* op, const char* weight_name,
                                              const Sizes& image, int64_t channels,
                                              const Tensor& weight, const Ints& stride,
                                              const Ints& padding, const Ints& dilation) {
  check_depthwise_weight(op, weight_name, weight, channels);
  return depthwise_window(op, image, channels, KernelSize(weight), stride, padding, dilation);
}

}  // namespace fastconv
