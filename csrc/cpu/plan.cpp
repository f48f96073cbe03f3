#include "plan.h"

#include <algorithm>

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

bool is_far(const DepthwiseConv2dParams& p, DataType type) {
  return element_bytes(type) * p.height * p.width * p.channels > cache_sizes().l2;
}

CacheSizes cache_sizes() {
  static const CacheSizes sizes{l1d_bytes(), l2_bytes(), l3_bytes()};
  return sizes;
}

}  // namespace fastconv
