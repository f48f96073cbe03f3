#include "csrc/cuda/inverted_residual.h"

#include <sstream>

#include "harness.h"

namespace fastconv_test {
namespace {

using fastconv::Activation;
using fastconv::BlockSizes;
using fastconv::CudaInvertedResidualParams;
using fastconv::Tile;

struct Case {
  BlockSizes sizes;
  Tile tile;
  int64_t top, left, bottom, right;
  Activation activation, depthwise_activation, project_activation;
  bool residual, biases;
};

std::string text(const Case& k) {
  std::ostringstream out;
  const BlockSizes& s = k.sizes;
  out << "block " << s.batch << "x" << s.in_channels << "x" << s.height << "x" << s.width << " to "
      << s.mid_channels << " to " << s.out_channels << " k" << s.kernel << "s" << s.stride
      << (s.expands ? "" : " separable") << " tile " << k.tile.height << "x" << k.tile.width
      << " padding " << k.top << "," << k.bottom << "," << k.left << "," << k.right;
  return out.str();
}

template <class T>
double rounded(double x) {
  return fastconv::to_float(fastconv::from_float<T>(static_cast<float>(x)));
}

template <class T>
void run(Results& results, Random& random, Case k) {
  BlockSizes& s = k.sizes;
  s.out_height = (s.height + k.top + k.bottom - s.kernel) / s.stride + 1;
  s.out_width = (s.width + k.left + k.right - s.kernel) / s.stride + 1;
  const int64_t in = s.in_channels, mid = s.mid_channels, out = s.out_channels;
  const int64_t kk = s.kernel * s.kernel, pixels = s.out_height * s.out_width;
  const auto input = random.values<T>(s.batch * s.height * s.width * in);
  const auto expand_weight = random.values<T>(mid * in, 1 / std::sqrt(static_cast<float>(in)));
  const auto project_weight = random.values<T>(out * mid, 1 / std::sqrt(static_cast<float>(mid)));
  const auto filters = random.values<float>(kk * mid, 0.4f);
  const auto expand_bias = random.values<float>(mid), depthwise_bias = random.values<float>(mid);
  const auto project_bias = random.values<float>(out);
  const auto residual = random.values<T>(s.batch * pixels * out);
  const int64_t stored = out ? out : mid;
  auto output = unwritten<T>(s.batch * pixels * stored);
  const int64_t tiles = ((s.out_height + k.tile.height - 1) / k.tile.height) *
                        ((s.out_width + k.tile.width - 1) / k.tile.width);
  auto sums = unwritten<float>(s.batch * tiles * mid);

  CudaInvertedResidualParams p{};
  p.sizes = s;
  p.tile = k.tile;
  p.pad_top = k.top;
  p.pad_left = k.left;
  p.activation = k.activation;
  p.depthwise_activation = k.depthwise_activation;
  p.project_activation = k.project_activation;
  p.type = type_of<T>();
  p.input = input.data();
  p.expand_weight = s.expands ? expand_weight.data() : nullptr;
  p.expand_bias = s.expands && k.biases ? expand_bias.data() : nullptr;
  p.depthwise_weight = filters.data();
  p.depthwise_bias = k.biases ? depthwise_bias.data() : nullptr;
  p.project_weight = out ? project_weight.data() : nullptr;
  p.project_bias = out && k.biases ? project_bias.data() : nullptr;
  p.residual = k.residual ? residual.data() : nullptr;
  p.output = output.data();
  p.sums = out ? nullptr : sums.data();
  results.require(text(k) + ": does not fit", fastconv::fits(s, k.tile, 227 << 10));
  const char* error = fastconv::launch_inverted_residual(p, nullptr);
  results.require(text(k) + ": " + (error == nullptr ? "" : error), error == nullptr);

  std::vector<double> expected(output.size()), expected_sums(s.batch * mid);
  std::vector<double> expanded(s.height * s.width * mid), between(mid);
  for (int64_t n = 0; n < s.batch; ++n) {
    const T* image = input.data() + n * s.height * s.width * in;
    for (int64_t i = 0; i < s.height * s.width; ++i)
      for (int64_t m = 0; m < mid; ++m) {
        double total = s.expands ? 0 : fastconv::to_float(image[i * in + m]);
        if (s.expands) {
          for (int64_t c = 0; c < in; ++c)
            total += static_cast<double>(fastconv::to_float(image[i * in + c])) *
                     fastconv::to_float(expand_weight[m * in + c]);
          if (k.biases) total += expand_bias[m];
          total = rounded<T>(activate(k.activation, total));
        }
        expanded[i * mid + m] = total;
      }
    for (int64_t y = 0; y < s.out_height; ++y)
      for (int64_t x = 0; x < s.out_width; ++x) {
        for (int64_t m = 0; m < mid; ++m) {
          double total = k.biases ? depthwise_bias[m] : 0;
          for (int64_t tap = 0; tap < kk; ++tap) {
            const int64_t in_y = y * s.stride - k.top + tap / s.kernel;
            const int64_t in_x = x * s.stride - k.left + tap % s.kernel;
            if (in_y < 0 || in_y >= s.height || in_x < 0 || in_x >= s.width) continue;
            total += expanded[(in_y * s.width + in_x) * mid + m] * filters[tap * mid + m];
          }
          total = activate(k.depthwise_activation, total);
          expected_sums[n * mid + m] += total;
          between[m] = rounded<T>(total);
        }
        const int64_t pixel = n * pixels + y * s.out_width + x;
        for (int64_t o = 0; o < stored; ++o) {
          double total = out ? (k.biases ? project_bias[o] : 0) : between[o];
          if (out) {
            for (int64_t m = 0; m < mid; ++m)
              total += between[m] * fastconv::to_float(project_weight[o * mid + m]);
            if (k.residual) total += fastconv::to_float(residual[pixel * out + o]);
            total = activate(k.project_activation, total);
          }
          expected[pixel * stored + o] = total;
        }
      }
  }
  // Two results that were rounded between the steps can be some roundings apart.
  results.check(text(k), output, expected, 8 * rounding<T>());
  if (out) return;
  std::vector<float> whole(s.batch * mid);
  for (int64_t n = 0; n < s.batch; ++n)
    for (int64_t t = 0; t < tiles; ++t)
      for (int64_t m = 0; m < mid; ++m) whole[n * mid + m] += sums[(n * tiles + t) * mid + m];
  results.check(text(k) + " sums", whole, expected_sums, 8 * rounding<T>());
}

// batch, height, width, (out_height, out_width,) in, mid, out, kernel, stride, expands
BlockSizes sizes(int64_t n, int64_t h, int64_t w, int64_t in, int64_t mid, int64_t out, int64_t k,
                 int64_t s, bool expands = true) {
  return {n, h, w, 0, 0, in, mid, out, k, s, expands};
}

}  // namespace

void test_inverted_residual(Results& results) {
  Random random;
  constexpr auto kNone = Activation::kNone, kRelu6 = Activation::kRelu6, kSilu = Activation::kSilu;
  // The biases make activations of zero differ from zero: a border must be zero nevertheless.
  const Case cases[] = {
      {sizes(1, 7, 7, 16, 32, 16, 3, 1), {7, 7}, 1, 1, 1, 1, kRelu6, kRelu6, kNone, true, true},
      {sizes(2, 9, 10, 24, 72, 40, 3, 2), {4, 5}, 1, 1, 1, 1, kSilu, kSilu, kNone, false, true},
      {sizes(1, 8, 9, 24, 48, 24, 5, 1), {4, 7}, 2, 2, 2, 2, kRelu6, kSilu, kNone, true, true},
      {sizes(1, 11, 7, 17, 35, 13, 3, 1),
       {4, 4},
       1,
       1,
       1,
       1,
       Activation::kHardswish,
       Activation::kHardswish,
       kNone,
       false,
       true},  // nothing is aligned
      {sizes(1, 9, 11, 18, 34, 70, 5, 2), {4, 5}, 1, 1, 2, 2, kRelu6, kRelu6, kNone, false, false},
      {sizes(1, 7, 7, 40, 64, 160, 3, 1), {7, 7}, 1, 1, 1, 1, kRelu6, kRelu6, kNone, false, true},
      {sizes(1, 14, 14, 16, 32, 96, 3, 1),
       {14, 14},
       1,
       1,
       1,
       1,
       kRelu6,
       kRelu6,
       kNone,
       false,
       true},
      {sizes(1, 6, 6, 8, 16, 8, 3, 2),
       {3, 3},
       0,
       0,
       1,
       1,
       Activation::kSigmoid,
       kRelu6,
       kNone,
       false,
       true},  // TensorFlow's padding
      // Depthwise-separable, with all three activations different.
      {sizes(1, 8, 8, 32, 32, 64, 3, 1, false),
       {8, 8},
       1,
       1,
       1,
       1,
       kNone,
       kRelu6,
       Activation::kRelu,
       false,
       true},
      {sizes(2, 9, 7, 21, 21, 33, 5, 2, false),
       {3, 4},
       2,
       2,
       2,
       2,
       kNone,
       Activation::kSigmoid,
       Activation::kHardsigmoid,
       true,
       true},
      // The first half of a squeeze-excite block.
      {sizes(2, 9, 10, 24, 72, 0, 5, 1), {4, 4}, 2, 2, 2, 2, kSilu, kSilu, kNone, false, true},
      {sizes(1, 9, 9, 12, 37, 0, 3, 2),
       {4, 5},
       1,
       1,
       1,
       1,
       kRelu6,
       Activation::kHardswish,
       kNone,
       false,
       true},
      {sizes(1, 7, 7, 40, 40, 0, 3, 1, false),
       {7, 7},
       1,
       1,
       1,
       1,
       kNone,
       kSilu,
       kNone,
       false,
       true},
  };
  for (const Case& k : cases) {
    run<__half>(results, random, k);
    run<__nv_bfloat16>(results, random, k);
  }

  // The choice of tiles.
  for (const int64_t shared : {64 << 10, 163 << 10, 227 << 10}) {
    BlockSizes s{256, 14, 14, 14, 14, 96, 576, 96, 3, 1, true};
    for (const Tile& tile : fastconv::tiles_for(s, shared)) {
      results.require("a tile that does not fit", fastconv::fits(s, tile, shared));
      results.require("a tile too small to pay", 4 * tile.height * tile.width > 192);
    }
  }
  const BlockSizes late{256, 7, 7, 7, 7, 160, 960, 320, 3, 1, true};
  results.require("a tile where none can pay", fastconv::tiles_for(late, 227 << 10).empty());
  const BlockSizes early{256, 56, 56, 56, 56, 24, 144, 24, 3, 1, true};
  results.require("no tile where fusion pays", !fastconv::tiles_for(early, 163 << 10).empty());
  BlockSizes seven = early;
  seven.kernel = 7;
  results.require("a tile for a kernel that is not there",
                  fastconv::tiles_for(seven, 1 << 20).empty());
}

}  // namespace fastconv_test
