// output = activation(depthwise(input) + bias). All tensors dense NHWC.
#pragma once

#include <cstdint>

#include "activation.h"

namespace fastconv {

struct DepthwiseConv2dParams {
  int64_t batch, height, width, channels;
  int64_t out_height, out_width;
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t pad_top, pad_left;
  int64_t dilation_height, dilation_width;
  Activation activation;
  const void* input;    // [N, H, W, C]
  const float* packed;  // pack_depthwise's result
  void* output;         // [N, OH, OW, C]
};

}  // namespace fastconv
