// output[n, k] = mean over H, W of activation(conv1x1(input) + bias): the head of a network, its
// map never stored.
#pragma once

#include <cstdint>

#include "activation.h"
#include "packed.h"

namespace fastconv {

struct PointwiseConv2dPoolParams {
  int64_t batch, pixels, in_channels, out_channels;
  Activation activation;
  const void* input;    // [N, H, W, C]
  const float* packed;  // pack_pointwise's result
  void* output;         // [N, K]
  WeightRegion ahead;   // prefetched meanwhile; may be empty
};

}  // namespace fastconv
