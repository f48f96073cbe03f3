// How a fused block is cut: which schedule, how many rows at a time. Pure arithmetic on shapes and
// cache sizes.
#pragma once

#include <cstdint>

#include "../inverted_residual.h"

namespace fastconv {

struct InvertedResidualPlan {
  // true: a ring of expanded rows with all channels, projected as it goes (depthwise output:
  // rows_per_step rows). false: a few channels at a time through the whole map, whose depthwise
  // output is then projected (needs one barrier; gives squeeze-excite its sums; each weight is read
  // by one core).
  bool ring;
  int64_t rows_per_step;  // output rows
};

struct CacheSizes {
  int64_t l1, l2;  // bytes of one core
  int64_t l3;      // of several cores; 0: none that is known
};

// lanes: floats per vector; panel: expanded channels of one chunk of the second schedule.
InvertedResidualPlan plan_inverted_residual(const InvertedResidualParams& p, DataType type,
                                            int64_t lanes, int64_t panel, const CacheSizes& cache);

// Whether threads that share an image do better to take some rows of it each, from the input to the
// output, than some channels and then some pixels: neither map then passes between cores, but rows
// at the joints are expanded twice, and not every height has equal parts.
bool shares_rows(const InvertedResidualParams& p, int64_t threads);

// Input rows under `rows` output rows: what the ring must hold.
int64_t ring_rows(const DepthwiseConv2dParams& p, int64_t rows);

CacheSizes cache_sizes();

// Whether an image of the input is larger than L2.
bool is_far(const DepthwiseConv2dParams& p, DataType type);

}  // namespace fastconv
