// A chain of ops: a whole network in one call. Each reads what the one before it wrote, or an
// earlier map; some add another map, or write some of the channels of one that they share.
#pragma once

#include <cstdint>

#include "conv2d_bias_act.h"
#include "depthwise_conv2d.h"
#include "inverted_residual.h"
#include "linear.h"
#include "pointwise_conv2d.h"
#include "pointwise_conv2d_pool.h"
#include "pool.h"
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
  kMaxPool = 7,
  kAveragePool = 8,
  kMean = 9,  // an average pooling of the whole map
};
constexpr int64_t kStepKinds = 10;

// Map 0 is the chain's input, map i + 1 what step i writes first.
constexpr int64_t kNoMap = -1;
// Buffers for the maps that are needed at the same time.
constexpr int64_t kMapSlots = 5;

// One op: sizes and weights. Batch, input, output and residual are set when it runs.
struct SequentialStep {
  StepKind kind;
  int64_t input, residual, output;    // maps; kNoMap: no residual
  int64_t out_begin;                  // its first channel of the output
  int64_t in_elements, out_elements;  // of these maps, one image of them
  WeightRegion weights;               // all of this step's
  // Set by plan_maps:
  bool begins;          // from here on no map is needed from before but that of the step before
  int64_t last_reader;  // of map i + 1 of step i: the last step that needs it
  int64_t slot;         // and where it is
  union {
    Conv2dBiasActParams conv2d_bias_act;
    PointwiseConv2dParams pointwise;
    DepthwiseConv2dParams depthwise;
    InvertedResidualParams inverted_residual;
    PointwiseConv2dPoolParams pool;
    LinearParams linear;
    SqueezeExciteConv2dParams squeeze_excite;
    PoolParams window;
  };
};

// Finds room for all maps. False if more than kMapSlots are needed at the same time.
bool plan_maps(SequentialStep* steps, int64_t count);

struct SequentialParams {
  int64_t batch, count;
  const SequentialStep* steps;  // [count], count >= 1, after plan_maps
  const void* input;            // [N, in_elements of step 0], or as a first dense convolution says
  void* output;                 // [N, out_elements of the last step]
  // [count]: to each is added what the step took, of all threads together; null for no clock. Steps
  // that run as one have their time in the first of them, the others none.
  int64_t* nanoseconds = nullptr;
};

}  // namespace fastconv
