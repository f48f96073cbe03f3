// output = activation(conv2d(input) + bias + residual), dense kernel, groups 1, dilation 1.
#pragma once

#include <cstdint>

#include "activation.h"

namespace fastconv {

struct Conv2dBiasActParams {
  int64_t batch, height, width, in_channels;
  int64_t out_height, out_width, out_channels;
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t pad_top, pad_left;
  Activation activation;
  const void* input;                                                // any strides
  int64_t batch_stride, channel_stride, row_stride, column_stride;  // of the input, in elements
  const float* packed;                                              // pack_conv2d's result
  bool winograd;                                                    // which of its two kinds
  const void* residual;                                             // as the output, or null
  void* output;                                                     // [N, OH, OW, K]
  int64_t out_row;  // elements between pixels of the output; 0: K
};

}  // namespace fastconv
