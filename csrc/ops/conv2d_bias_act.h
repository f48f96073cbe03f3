// The dense convolution's part that the op and a sequence of ops have in common.
#pragma once

#include "check.h"

namespace fastconv {

// Sizes and window of a dense convolution of `image`; activation and pointers are left to the op.
inline Conv2dBiasActParams conv2d_window(const char* op, const Image& image, int64_t out_channels,
                                         const KernelSize& kernel, const Ints& stride,
                                         const Ints& padding) {
  const Window window = check_window(op, image, kernel, stride, padding, {1, 1});
  Conv2dBiasActParams p{};
  p.batch = image.batch;
  p.height = image.height;
  p.width = image.width;
  p.in_channels = image.channels;
  p.out_height = window.out_height;
  p.out_width = window.out_width;
  p.out_channels = out_channels;
  p.kernel_height = kernel.height;
  p.kernel_width = kernel.width;
  p.stride_height = stride[0];
  p.stride_width = stride[1];
  p.pad_top = padding[0];
  p.pad_left = padding[2];
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
