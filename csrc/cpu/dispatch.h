// The kernels of one instruction set and type of element, and the choice among the sets.
#pragma once

#include "../conv2d_bias_act.h"
#include "../data_type.h"
#include "../depthwise_conv2d.h"
#include "../inverted_residual.h"
#include "../linear.h"
#include "../parallel.h"
#include "../pointwise_conv2d.h"
#include "../pointwise_conv2d_pool.h"
#include "../pool.h"
#include "../sequential.h"
#include "../squeeze_excite.h"
#include "../train.h"
#include "features.h"

namespace fastconv {

struct KernelTable {
  Isa isa;
  DataType type;
  // What follows the header: weight [n, channels, segments, taps], or [channels, taps]; bias may be
  // null.
  void (*pack_pointwise)(const float* weight, int64_t n, int64_t channels, int64_t segments,
                         int64_t taps, const float* bias, float* packed);
  // weight [n, channels, 3, 3]; null where there is no such kernel.
  void (*pack_winograd)(const float* weight, int64_t n, int64_t channels, const float* bias,
                        float* packed);
  void (*pack_depthwise)(const float* weight, int64_t channels, int64_t taps, const float* bias,
                         float* packed);
  void (*pointwise_conv2d)(const PointwiseConv2dParams* parts, int64_t count, const Threads&);
  void (*depthwise_conv2d)(const DepthwiseConv2dParams&, const Threads&);
  void (*inverted_residual)(const InvertedResidualParams&, const Threads&);
  void (*squeeze_excite)(const SqueezeExciteConv2dParams&, const Threads&);
  void (*conv2d_bias_act)(const Conv2dBiasActParams&, const Threads&);
  void (*pointwise_conv2d_pool)(const PointwiseConv2dPoolParams&, const Threads&);
  void (*linear)(const LinearParams&, const Threads&);
  void (*max_pool)(const PoolParams&, const Threads&);
  void (*average_pool)(const PoolParams&, const Threads&);
  void (*train_pointwise_conv2d)(const TrainPointwiseConv2dParams&, const Threads&);
  void (*train_pointwise_conv2d_backward)(const TrainPointwiseConv2dBackwardParams&,
                                          const Threads&);
  void (*train_depthwise_conv2d)(const TrainDepthwiseConv2dParams&, const Threads&);
  void (*train_depthwise_conv2d_backward)(const TrainDepthwiseConv2dBackwardParams&,
                                          const Threads&);
  void (*train_normalize)(const TrainMapParams&, const Threads&);
  void (*train_normalized_mean)(const TrainMapParams&, const Threads&);
  void (*train_moments)(const TrainMapParams&, const Threads&);
  void (*train_gradient)(const TrainMapParams&, const Threads&);
  void (*train_gradient_sums)(const TrainMapParams&, const Threads&);
  double (*fma_peak)(double seconds);
};

// The float32 table in use: best_isa() at first use, or what select_isa chose.
const KernelTable& kernels();

// The table in use for a type, or null if its level has none.
const KernelTable* kernels_for(DataType type);

// The table of a level, or null if this build or this CPU lacks it.
const KernelTable* kernels_of(Isa isa, DataType type = DataType::kFloat32);

// Runs a chain of a level's kernels.
void sequential(const KernelTable& table, const SequentialParams& p, const Threads& threads);

// Returns false, and changes nothing, if the level cannot run here.
bool select_isa(Isa isa);

}  // namespace fastconv
