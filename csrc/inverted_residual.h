// output = project(gate * activation(depthwise(activation(expand(input))))) + residual. All tensors
// dense NHWC. Without `expand` the depthwise convolution reads the input: that is the
// depthwise-separable convolution.
#pragma once

#include "depthwise_conv2d.h"
#include "packed.h"

namespace fastconv {

struct SqueezeExciteParams {
  int64_t channels, squeezed;  // squeezed = 0: no squeeze-excite
  Activation activation, gate;
  const float* reduce_packed;  // pack_pointwise's result, [squeezed, channels]
  const float* expand_packed;  // [channels, squeezed]
  WeightRegion weights;        // both, where they lie together; may be empty
};

struct InvertedResidualParams {
  DepthwiseConv2dParams
      depthwise;  // input, output: those of the block; channels: the expanded ones
  int64_t in_channels, out_channels;
  Activation expand_activation, project_activation;
  const float* expand_packed;  // or null
  const float* project_packed;
  SqueezeExciteParams squeeze_excite;
  const void* residual;  // [N, OH, OW, K] or null
  WeightRegion ahead;    // prefetched meanwhile; may be empty
};

}  // namespace fastconv
