// output = project_activation(project(depthwise_activation(depthwise(activation(expand(input))))) +
// residual), all tensors dense NHWC, 16-bit; or without the projection, with the sums that
// squeeze-and-excitation needs.
#pragma once

#include "../activation.h"
#include "../data_type.h"
#include "tiles.h"

namespace fastconv {

struct CudaInvertedResidualParams {
  BlockSizes sizes;
  Tile tile;
  int64_t pad_top, pad_left;
  Activation activation, depthwise_activation, project_activation;
  DataType type;                  // kFloat16 or kBfloat16
  const void* input;              // [N, H, W, C]
  const void* expand_weight;      // [M, C] or null
  const float* expand_bias;       // [M] or null
  const float* depthwise_weight;  // [K, K, M]
  const float* depthwise_bias;    // [M] or null
  const void* project_weight;     // [OUT, M] or null
  const float* project_bias;      // [OUT] or null
  const void* residual;           // [N, OH, OW, OUT] or null
  void* output;                   // [N, OH, OW, OUT], or without projection [N, OH, OW, M]
  float* sums;                    // [N, tiles, M] where there is no projection, or null
};

// Null, or what went wrong.
const char* launch_inverted_residual(const CudaInvertedResidualParams& p, void* stream);

}  // namespace fastconv
