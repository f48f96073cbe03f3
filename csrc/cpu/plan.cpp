#include "plan.h"

#include <algorithm>

#include "../parallel.h"
#include "features.h"

namespace fastconv {

int64_t ring_rows(const DepthwiseConv2dParams& p, int64_t rows) {
  return (rows - 1) * p.stride_height + (p.kernel_height - 1) * p.dilation_height + 1;
}

InvertedResidualPlan plan_inverted_residual(const InvertedResidualParams& p, DataType type,
                                            int64_t lanes, int64_t panel, const CacheSizes& cache) {
  const DepthwiseConv2dParams& d = p.depthwise;
  const int64_t mid = (d.channels + lanes - 1) / lanes * lanes;
  const int64_t row_floats = d.width + 2 * d.pad_left;
  const bool expands = p.expand_packed != nullptr;
  // Weights are read once per step: enough pixels a step to make that cheap, and two rows at least,
  // which a depthwise tile may take together.
  constexpr int64_t kPixelsPerStep = 100;
  const int64_t wanted = (kPixelsPerStep + d.out_width - 1) / std::max<int64_t>(1, d.out_width);
  const int64_t rows = std::max<int64_t>(1, std::min(std::max<int64_t>(2, wanted), d.out_height));
  const int64_t bytes = element_bytes(type);
  const int64_t matrices = bytes * mid * ((expands ? p.in_channels : 0) + p.out_channels);
  const int64_t taps = 4 * mid * d.kernel_height * d.kernel_width;
  const int64_t slab = expands ? 4 * mid * row_floats * ring_rows(d, rows) : 0;
  const int64_t step_bytes = slab + matrices + taps + bytes * rows * d.out_width * mid;
  const int64_t map_bytes = bytes * d.out_height * d.out_width * mid;
  const bool fits = step_bytes <= cache.l2 * 3 / 4;
  // A ring that leaves L2 is still better than a depthwise output that leaves the last-level cache.
  const bool map_too_large = map_bytes > 8 * cache.l2;
  if (p.squeeze_excite.squeezed == 0 && (fits || map_too_large)) return {true, rows};

  const int64_t line = 4 * panel * row_floats;
  int64_t chunk_rows = std::max<int64_t>(1, d.out_height);
  while (chunk_rows > 1 && line * ring_rows(d, chunk_rows) > cache.l1 * 3 / 4) --chunk_rows;
  return {false, std::max(chunk_rows, std::min(rows, d.out_height))};
}

bool shares_rows(const InvertedResidualParams& p, int64_t threads) {
  const DepthwiseConv2dParams& d = p.depthwise;
  if (d.out_height < threads) return false;
  const int64_t in_row = p.expand_packed == nullptr ? 0 : d.width * p.in_channels;
  const int64_t out_row = d.out_width * (d.kernel_height * d.kernel_width + p.out_channels);
  int64_t longest = 0;
  for (int64_t i = 0; i < threads; ++i) {
    const Share rows(d.out_height, threads, i);
    const int64_t first = rows.begin * d.stride_height - d.pad_top;
    const int64_t end = std::min(d.height, first + ring_rows(d, rows.end - rows.begin));
    const int64_t expanded = std::max<int64_t>(0, end - std::max<int64_t>(0, first));
    longest = std::max(longest, expanded * in_row + (rows.end - rows.begin) * out_row);
  }
  const int64_t all = d.height * in_row + d.out_height * out_row;
  constexpr int64_t kMostWork = 110;  // percent of equal parts
  return 100 * threads * longest <= kMostWork * all;
}

bool is_far(const DepthwiseConv2dParams& p, DataType type) {
  return element_bytes(type) * p.height * p.width * p.channels > cache_sizes().l2;
}

CacheSizes cache_sizes() {
  static const CacheSizes sizes{l1d_bytes(), l2_bytes(), l3_bytes()};
  return sizes;
}

}  // namespace fastconv
