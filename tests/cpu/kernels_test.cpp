// Kernels of every instruction set that this CPU runs, and of the 16-lane test level, against their
// definition, on buffers of exactly the size they need: AddressSanitizer sees any step outside.
#include <algorithm>
#include <cstdio>
#include <limits>
#include <random>

#include "csrc/cpu/dispatch.h"
#include "csrc/packed.h"
#include "definition.h"

namespace fastconv {
namespace wide {
extern const KernelTable table;
}
}  // namespace fastconv

using namespace fastconv;
using definition::Floats;
using definition::Map;
using definition::Window;

static int passed = 0, failed = 0;

static Floats random_floats(int64_t count) {
  static std::mt19937 generator(0);
  std::normal_distribution<float> normal;
  Floats values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

static void compare(const char* op, const Floats& actual, const Floats& expected) {
  float scale = 1.f;
  for (float value : expected) scale = std::max(scale, std::fabs(value));
  bool ok = true;
  for (std::size_t i = 0; i < actual.size(); ++i)
    ok = ok && std::fabs(actual[i] - expected[i]) <= 2e-5f * scale;
  (ok ? passed : failed)++;
  if (!ok) std::printf("%s is wrong\n", op);
}

static void test(const KernelTable& kernels, const Map& map, int64_t out, const Window& w) {
  const Threads alone{1, nullptr};
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const int64_t c = map.channels, taps = w.kernel_height * w.kernel_width;
  const int64_t oh = w.out_height(map.height), ow = w.out_width(map.width);
  const Floats input = random_floats(map.size()), bias = random_floats(std::max(c, out));
  const Floats depthwise = random_floats(c * taps), pointwise = random_floats(out * c);
  Floats packed_depthwise(packed_size(c, taps)), packed_pointwise(packed_size(out, c));
  kernels.pack_depthwise(depthwise.data(), c, taps, bias.data(),
                         packed_depthwise.data() + kPackedHeader);
  kernels.pack_pointwise(pointwise.data(), out, c, 1, bias.data(),
                         packed_pointwise.data() + kPackedHeader);
  const Window point{1, 1, 1, 1, 0, 0, 0, 0, 1};
  const Map inner{map.batch, oh, ow, c};

  DepthwiseConv2dParams d{map.batch,
                          map.height,
                          map.width,
                          c,
                          oh,
                          ow,
                          w.kernel_height,
                          w.kernel_width,
                          w.stride_height,
                          w.stride_width,
                          w.top,
                          w.left,
                          w.dilation,
                          w.dilation,
                          Activation::kRelu6,
                          input.data(),
                          packed_depthwise.data(),
                          nullptr};
  const Floats hidden =
      definition::convolve(input, map, depthwise, bias, c, true, w, Activation::kRelu6);
  Floats result(hidden.size(), nan);
  d.output = result.data();
  kernels.depthwise_conv2d(d, alone);
  compare("depthwise_conv2d", result, hidden);

  const Floats projected =
      definition::convolve(hidden, inner, pointwise, bias, out, false, point, Activation::kNone);
  Floats block(projected.size(), nan);
  InvertedResidualParams p{};
  p.depthwise = d;
  p.depthwise.output = block.data();
  p.in_channels = c;
  p.out_channels = out;
  p.project_packed = packed_pointwise.data();
  kernels.inverted_residual(p, alone);
  compare("inverted_residual", block, projected);
}

int main() {
  const Window windows[] = {{3, 3, 1, 1, 1, 1, 1, 1, 1},
                            {3, 3, 2, 2, 0, 1, 0, 1, 1},
                            {5, 5, 2, 2, 2, 2, 2, 2, 1},
                            {2, 4, 3, 1, 1, 1, 3, 1, 1}};
  const Map maps[] = {{1, 7, 7, 8}, {2, 5, 9, 17}, {0, 4, 4, 8}, {1, 13, 30, 33}};
  std::vector<const KernelTable*> levels{&wide::table};
  for (Isa isa : isa_levels()) levels.push_back(kernels_of(isa));
  for (const KernelTable* level : levels)
    for (const Map& map : maps)
      for (const Window& window : windows) test(*level, map, 9 + map.channels, window);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
