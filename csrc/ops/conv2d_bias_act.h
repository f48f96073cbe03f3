// The dense convolution's part that the op and a sequence of ops have in common.
#pragma once

#include "check.h"

namespace fastconv {

// Sizes and window of a dense convolution of `image`; activation and pointers are left to the op.
inline Conv2dBiasActParams conv2d_window(const char* op, const Sizes& image, int64_t out_channels,
                                         const KernelSize& kernel, const Ints& stride,
                                         const Ints& padding) {
  const Window window = check_window(op, image, kernel, stride, padding, {1, 1});
  Conv2dBiasActParams p{};
  set_window(p, image, kernel, window, stride, padding);
  p.in_channels = image.channels;
  p.out_channels = out_channels;
  return p;
}

// The input as it lies in memory.
inline void set_strided_input(Conv2dBiasActParams& p, const Tensor& input) {
  p.input = data(input);
  p.batch_stride = input.stride(0);
  p.channel_stride = input.stride(1);
  p.row_stride = input.stride(2);
  p.column_stride = input.stride(3);
}

}  // namespace fastconv
