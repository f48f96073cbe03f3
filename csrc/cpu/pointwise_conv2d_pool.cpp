// 1x1 convolution, activation and mean over the pixels. Each panel of output channels is computed
// for some pixels into a tile in L1, summed, and forgotten. Memory moved: the input, the weight
// once per image, and K floats out.
#include <algorithm>

#include "gemm.h"
#include "kernels.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

constexpr int64_t kTilePixels = 64;

void pool_panel(const PointwiseConv2dPoolParams& p, const Panels& panels, int64_t n,
                int64_t panel) {
  const int64_t first = panels.first_vector(panel), width = panels.width(panel), in = p.in_channels;
  float* tile = scratch_floats(Scratch::kTile, (kTilePixels + 1) * width * kW);
  float* sums = tile + kTilePixels * width * kW;
  std::fill(sums, sums + width * kW, 0.f);
  for (int64_t m = 0; m < p.pixels; m += kTilePixels) {
    const int64_t count = std::min(kTilePixels, p.pixels - m);
    const GemmA a{elements(p.input) + (n * p.pixels + m) * in, in, in, 0, in};
    const GemmC c{tile, true, width * kW, kW, nullptr, panels.vectors * kW, first};
    const bool cold = n == 0 && m == 0;
    gemm(a, {p.packed + kPackedHeader, cold, cold ? p.ahead : WeightRegion{}}, panels, count, c,
         {p.activation, nullptr, 0}, panel, panel + 1);
    for (int64_t v = 0; v < width; ++v) {
      Vec sum = vload(sums + v * kW);
      for (int64_t i = 0; i < count; ++i) sum = vadd(sum, vload(tile + (i * width + v) * kW));
      vstore(sums + v * kW, sum);
    }
  }
  const Vec scale = vset(1.f / static_cast<float>(p.pixels));
  Element* out = elements(p.output) + n * p.out_channels + first * kW;
  for (int64_t v = 0; v < width; ++v) {
    const Vec mean = vmul(vload(sums + v * kW), scale);
    const int64_t left = p.out_channels - (first + v) * kW;
    if (left >= kW) {
      vstore(out + v * kW, mean);
    } else {
      vstore_first(out + v * kW, mean, static_cast<int>(left));
    }
  }
}

}  // namespace

void pointwise_conv2d_pool(const PointwiseConv2dPoolParams& p, const Threads& threads) {
  if (p.batch == 0) return;
  const Panels panels(p.out_channels);
  threads.parallel(panels.count, [&](int64_t panel) {
    for (int64_t n = 0; n < p.batch; ++n) pool_panel(p, panels, n, panel);
  });
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
