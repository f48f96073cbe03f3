// output = activation(conv1x1(input * input_scale) + bias + residual). All tensors dense NHWC.
#pragma once

#include <cstdint>

#include "activation.h"

namespace fastconv {

struct PointwiseConv2dParams {
  int64_t batch, height, width, in_channels;
  int64_t out_height, out_width, out_channels;
  int64_t stride_height, stride_width;
  Activation activation;
  const void* input;        // [N, H, W, C]
  const float* packed;      // pack_pointwise's result
  const void* residual;     // [N, OH, OW, K] or null
  const void* input_scale;  // [N, C] or null
  void* output;             // [N, OH, OW, K]
  int64_t out_row;          // elements between pixels of the output; 0: K
};

}  // namespace fastconv
