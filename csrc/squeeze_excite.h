// output = input * gate(expand(activation(reduce(mean over H, W of input)))). Dense NHWC.
#pragma once

#include "inverted_residual.h"

namespace fastconv {

struct SqueezeExciteConv2dParams {
  int64_t batch, pixels;  // pixels = H * W
  SqueezeExciteParams weights;
  const void* input;  // [N, H, W, C]
  void* output;       // [N, H, W, C]
};

}  // namespace fastconv
