// A chain of ops, each reading what the one before it wrote: a whole network in one call.
#pragma once

#include <cstdint>

#include "conv2d_bias_act.h"
#include "depthwise_conv2d.h"
#include "inverted_residual.h"
#include "linear.h"
#include "pointwise_conv2d.h"
#include "pointwise_conv2d_pool.h"
#include "squeeze_excite.h"

namespace fastconv {

enum class StepKind : int64_t {
  kConv2dBiasAct = 0,
  kPointwise = 1,
  kDepthwise = 2,
  kInvertedResidual = 3,  // also depthwise-separable: without expansion
  kPool = 4,
  kLinear = 5,
  kSqueezeExcite = 6,
};
constexpr int64_t kStepKinds = 7;

// One op: sizes and weights. Batch, input, output and residual are set when it runs.
struct SequentialStep {
  StepKind kind;
  bool residual;                      // adds its input
  int64_t in_elements, out_elements;  // of one image
  WeightRegion weights;               // all of this step's
  union {
    Conv2dBiasActParams conv2d_bias_act;
    PointwiseConv2dParams pointwise;
    DepthwiseConv2dParams depthwise;
    InvertedResidualParams inverted_residual;
    PointwiseConv2dPoolParams pool;
    LinearParams linear;
    SqueezeExciteConv2dParams squeeze_excite;
  };
};

struct SequentialParams {
  int64_t batch, count;
  const SequentialStep* steps;  // [count], count >= 1; a dense convolution may only be the first
  const void* input;            // [N, in_elements of step 0], or as a first dense convolution says
  void* output;                 // [N, out_elements of the last step]
};

}  // namespace fastconv
