// Winograd's F(4x4, 3x3) (https://arxiv.org/abs/1509.09308): a patch of 6x6 inputs is evaluated at
// 36 points, where the convolution is one product a channel, and 4x4 outputs are interpolated. At
// every point the tiles of a map are a matrix [tiles, C], multiplied by one of the weights [C, K].
//
// The points are 0, +-5/8, +-3/2 and infinity. With those of the paper, 0, +-1, +-2, rounding
// errors are 5 to 10 times those of the direct sum; with these, which were searched for on a grid
// of sixteenths, 1.5 to 2 times.
//
// A block of tiles, small enough that its evaluated inputs stay near, goes through all panels of
// output channels: 36 products of a panel, then the interpolation. Memory moved: input and output
// once, the weights, 4 times as many as the filter's, once a block. Where a map has few tiles all
// threads share one block, each with some of the panels, so that a weight is read by one of them.
#include "winograd.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "activate.h"
#include "gemm.h"
#include "kernels.h"
#include "plan.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

#if !defined(FASTCONV_BFLOAT16)
namespace {

constexpr int kTile = 4, kPatch = 6, kTaps = 3, kPoints = kPatch * kPatch;
static_assert(kPoints == kWinogradPoints && kTaps * kTaps == kWinogradTaps);
constexpr double kA = 5. / 8, kB = 3. / 2;
constexpr float kA1 = kA, kA2 = kA * kA, kA3 = kA * kA * kA;
constexpr float kB1 = kB, kB2 = kB * kB, kB3 = kB * kB * kB;

// Values at the points, of which every one is the polynomial's remainder: the product over the
// other points q of (x - q), applied to the inputs as coefficients.
FASTCONV_INLINE void evaluate_inputs(Vec (&d)[kPatch]) {
  const Vec minus_a2 = vset(-kA2), minus_b2 = vset(-kB2);
  const Vec both = vset(kA2 * kB2), minus_sum = vset(-(kA2 + kB2));
  const Vec even_a = vfma(minus_b2, d[2], d[4]), odd_a = vfma(minus_b2, d[1], d[3]);
  const Vec even_b = vfma(minus_a2, d[2], d[4]), odd_b = vfma(minus_a2, d[1], d[3]);
  d[0] = vfma(both, d[0], vfma(minus_sum, d[2], d[4]));
  d[5] = vfma(both, d[1], vfma(minus_sum, d[3], d[5]));
  d[1] = vfma(vset(kA1), odd_a, even_a);
  d[2] = vfma(vset(-kA1), odd_a, even_a);
  d[3] = vfma(vset(kB1), odd_b, even_b);
  d[4] = vfma(vset(-kB1), odd_b, even_b);
}

// Outputs i < 4: the sum over the points x of x^i times the value there.
FASTCONV_INLINE void interpolate(const Vec (&m)[kPatch], Vec (&y)[kTile]) {
  const Vec sum_a = vadd(m[1], m[2]), minus_a = vsub(m[1], m[2]);
  const Vec sum_b = vadd(m[3], m[4]), minus_b = vsub(m[3], m[4]);
  y[0] = vadd(vadd(m[0], sum_a), sum_b);
  y[1] = vfma(vset(kB1), minus_b, vmul(vset(kA1), minus_a));
  y[2] = vfma(vset(kB2), sum_b, vmul(vset(kA2), sum_a));
  y[3] = vfma(vset(kB3), minus_b, vfma(vset(kA3), minus_a, m[5]));
}

// A row of a filter at the points, over what the inputs' polynomials leave out.
void evaluate_filter(const double (&g)[kTaps], double (&u)[kPatch]) {
  const auto at = [&](double x, double divisor) {
    return (g[0] + x * (g[1] + x * g[2])) / divisor;
  };
  const double a = 2 * kA * kA * (kA * kA - kB * kB), b = 2 * kB * kB * (kB * kB - kA * kA);
  u[0] = at(0, kA * kA * kB * kB);
  u[1] = at(kA, a);
  u[2] = at(-kA, a);
  u[3] = at(kB, b);
  u[4] = at(-kB, b);
  u[5] = g[2];
}

// out[point * stride] of one filter [3, 3].
void evaluate_filter(const float* filter, int64_t stride, float* out) {
  double rows[kTaps][kPatch];
  for (int i = 0; i < kTaps; ++i) {
    const double g[] = {filter[3 * i], filter[3 * i + 1], filter[3 * i + 2]};
    evaluate_filter(g, rows[i]);
  }
  for (int j = 0; j < kPatch; ++j) {
    const double g[] = {rows[0][j], rows[1][j], rows[2][j]};
    double u[kPatch];
    evaluate_filter(g, u);
    for (int i = 0; i < kPatch; ++i) out[(i * kPatch + j) * stride] = static_cast<float>(u[i]);
  }
}

int64_t panel_floats(int64_t width, int64_t channels) {
  return kPoints * (1 + channels) * width * kW;
}

// The tiles of all images, in the order of their rows.
struct Tiles {
  explicit Tiles(const Conv2dBiasActParams& p)
      : rows((p.out_height + kTile - 1) / kTile),
        columns((p.out_width + kTile - 1) / kTile),
        count(p.batch * rows * columns) {}

  int64_t image(int64_t tile) const { return tile / (rows * columns); }
  int64_t y(int64_t tile) const { return tile / columns % rows * kTile; }  // of the output
  int64_t x(int64_t tile) const { return tile % columns * kTile; }

  int64_t rows, columns, count;
};

// Some tiles, and where their values are.
struct Block {
  int64_t begin, end;
  float* values;   // [points, tiles, depth]
  int64_t stride;  // between points
  int64_t depth;   // channels, rounded up to whole vectors
};

// A padded copy of a patch: [6, 6, depth].
void copy_patch(const Conv2dBiasActParams& p, const float* image, int64_t top, int64_t left,
                int64_t depth, float* out) {
  for (int64_t y = top; y < top + kPatch; ++y) {
    for (int64_t x = left; x < left + kPatch; ++x, out += depth) {
      const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
      const float* pixel = image + y * p.row_stride + x * p.column_stride;
      int64_t c = 0;
      if (inside && p.channel_stride == 1) {
        std::memcpy(out, pixel, sizeof(float) * p.in_channels);
        c = p.in_channels;
      } else if (inside) {
        for (; c < p.in_channels; ++c) out[c] = pixel[c * p.channel_stride];
      }
      std::fill(out + c, out + depth, 0.f);
    }
  }
}

void evaluate_tile(const Conv2dBiasActParams& p, const Tiles& tiles, const Block& block,
                   int64_t tile) {
  const float* input = static_cast<const float*>(p.input) + tiles.image(tile) * p.batch_stride;
  const int64_t top = tiles.y(tile) - p.pad_top, left = tiles.x(tile) - p.pad_left;
  const bool inside = top >= 0 && left >= 0 && top + kPatch <= p.height && left + kPatch <= p.width;
  int64_t row = p.row_stride, column = p.column_stride;
  if (inside && p.channel_stride == 1 && block.depth == p.in_channels) {
    input += top * row + left * column;
  } else {
    float* patch = scratch_floats(Scratch::kTile, kPoints * block.depth);
    copy_patch(p, input, top, left, block.depth, patch);
    input = patch;
    column = block.depth;
    row = kPatch * column;
  }
  float* out = block.values + (tile - block.begin) * block.depth;
  for (int64_t c = 0; c < block.depth; c += kW) {
    Vec rows[kPatch][kPatch];
    FASTCONV_UNROLL for (int j = 0; j < kPatch; ++j) {
      Vec d[kPatch];
      FASTCONV_UNROLL for (int i = 0; i < kPatch; ++i) d[i] =
          vload(input + i * row + j * column + c);
      evaluate_inputs(d);
      FASTCONV_UNROLL for (int i = 0; i < kPatch; ++i) rows[i][j] = d[i];
    }
    FASTCONV_UNROLL for (int i = 0; i < kPatch; ++i) {
      evaluate_inputs(rows[i]);
      FASTCONV_UNROLL for (int j = 0; j < kPatch; ++j)
          vstore(out + (i * kPatch + j) * block.stride + c, rows[i][j]);
    }
  }
}

// What the outputs of a panel have in common.
struct Outputs {
  const Conv2dBiasActParams& p;
  const float* bias;
  int64_t first, width;  // vectors
  ActivationBounds bounds;
};

// One vector of output channels of a tile; sums: where it begins.
void interpolate_tile(const Outputs& o, const Tiles& tiles, int64_t tile, int64_t vector,
                      const float* sums, int64_t stride) {
  const Conv2dBiasActParams& p = o.p;
  Vec rows[kTile][kPatch];
  FASTCONV_UNROLL for (int j = 0; j < kPatch; ++j) {
    Vec m[kPatch], y[kTile];
    FASTCONV_UNROLL for (int i = 0; i < kPatch; ++i) m[i] = vload(sums + (i * kPatch + j) * stride);
    interpolate(m, y);
    FASTCONV_UNROLL for (int i = 0; i < kTile; ++i) rows[i][j] = y[i];
  }
  const int64_t top = tiles.y(tile), left = tiles.x(tile), first = vector * kW;
  const int64_t pixel = (tiles.image(tile) * p.out_height + top) * p.out_width + left;
  const int64_t out_row = p.out_row == 0 ? p.out_channels : p.out_row;
  float* out = static_cast<float*>(p.output) + pixel * out_row + first;
  const auto* residual = static_cast<const float*>(p.residual);
  if (residual != nullptr) residual += pixel * p.out_channels + first;
  const int64_t high = std::min<int64_t>(kTile, p.out_height - top);
  const int64_t wide = std::min<int64_t>(kTile, p.out_width - left);
  const int lanes = static_cast<int>(std::min<int64_t>(kW, p.out_channels - first));
  const Vec bias = vload(o.bias + first);
  FASTCONV_UNROLL for (int i = 0; i < kTile; ++i) {
    if (i >= high) break;
    Vec y[kTile];
    interpolate(rows[i], y);
    FASTCONV_UNROLL for (int j = 0; j < kTile; ++j) y[j] = vadd(y[j], bias);
    const int64_t row = i * p.out_width;
    if (residual != nullptr) {
      FASTCONV_UNROLL for (int j = 0; j < kTile; ++j) {
        if (j < wide) y[j] = vadd(y[j], vload_first(residual + (row + j) * p.out_channels, lanes));
      }
    }
    if (o.bounds.is_clamp) {
      FASTCONV_UNROLL for (int j = 0; j < kTile; ++j) y[j] =
          clamp(y[j], vset(o.bounds.low), vset(o.bounds.high));
    } else {
      activate_vectors(p.activation, y, kTile);
    }
    FASTCONV_UNROLL for (int j = 0; j < kTile; ++j) {
      if (j >= wide) break;
      float* at = out + (row + j) * out_row;
      if (lanes == kW) {
        vstore(at, y[j]);
      } else {
        vstore_first(at, y[j], lanes);
      }
    }
  }
}

// One panel of output channels of a block.
void run_panel(const Conv2dBiasActParams& p, const Tiles& tiles, const Block& block,
               const Panels& panels, int64_t panel) {
  const int64_t first = panels.first_vector(panel), width = panels.width(panel);
  const int64_t count = block.end - block.begin, row = width * kW;
  const int64_t stride = plane_stride<float>(count * row);
  float* sums = scratch_floats(Scratch::kSums, kPoints * stride);
  const float* weight = p.packed + kPackedHeader + vectors_of(p.out_channels) * kW +
                        panel_floats(first, p.in_channels);
  const Panels alone(row);
  const int64_t matrix = (1 + p.in_channels) * row;
  for (int64_t point = 0; point < kPoints; ++point, weight += matrix) {
    const WeightRegion ahead{weight + matrix, point + 1 < kPoints ? matrix : 0};
    const GemmA a{block.values + point * block.stride, block.depth, p.in_channels, 0,
                  p.in_channels};
    const GemmC c{sums + point * stride, true, row, kW, nullptr, row, 0};
    gemm(a, {weight, /*cold=*/false, ahead}, alone, count, c, {Activation::kNone, nullptr, 0}, 0,
         1);
  }
  const Outputs outputs{p, p.packed + kPackedHeader, first, width, activation_bounds(p.activation)};
  for (int64_t tile = block.begin; tile < block.end; ++tile) {
    const float* at = sums + (tile - block.begin) * row;
    for (int64_t v = 0; v < width; ++v)
      interpolate_tile(outputs, tiles, tile, first + v, at + v * kW, stride);
  }
}

Block allocate_block(int64_t begin, int64_t end, int64_t channels) {
  const int64_t depth = vectors_of(channels) * kW;
  const int64_t stride = plane_stride<float>((end - begin) * depth);
  return {begin, end, scratch_floats(Scratch::kSlab, kPoints * stride), stride, depth};
}

// Tiles of a block: their values stay in L2, but a weight that was read serves several.
int64_t tiles_of_block(int64_t channels) {
  constexpr int64_t kLeast = 12, kMost = 32;
  const int64_t bytes = sizeof(float) * kPoints * channels;
  return std::max(kLeast, std::min(kMost, cache_sizes().l2 / 2 / bytes));
}

}  // namespace

void pack_winograd(const float* weight, int64_t n, int64_t channels, const float* bias,
                   float* packed) {
  const Panels panels(n);
  const int64_t lanes = panels.vectors * kW;
  std::fill(packed, packed + lanes, 0.f);
  if (bias != nullptr) std::copy(bias, bias + n, packed);
  packed += lanes;
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t first = panels.first_vector(panel) * kW, width = panels.width(panel) * kW;
    const int64_t real = std::min(width, n - first), matrix = width * channels;
    std::vector<float> values(kPoints * matrix);
    for (int64_t i = 0; i < real * channels; ++i)
      evaluate_filter(weight + (first * channels + i) * kTaps * kTaps, matrix, values.data() + i);
    for (int64_t point = 0; point < kPoints; ++point, packed += width + matrix)
      pack_gemm(values.data() + point * matrix, width, channels, 1, 1, nullptr, packed);
  }
}

void winograd_conv2d(const Conv2dBiasActParams& p, const Threads& threads) {
  const Tiles tiles(p);
  const Panels panels(p.out_channels);
  const int64_t most = tiles_of_block(p.in_channels);
  if (threads.count > 1 && tiles.count < 2 * most * threads.count) {
    const Block block = allocate_block(0, tiles.count, p.in_channels);
    threads.parallel(tiles.count, [&](int64_t tile) { evaluate_tile(p, tiles, block, tile); });
    threads.parallel(panels.count,
                     [&](int64_t panel) { run_panel(p, tiles, block, panels, panel); });
    return;
  }
  const int64_t least = (tiles.count + most - 1) / most;
  const int64_t blocks = (least + threads.count - 1) / threads.count * threads.count;
  threads.parallel(blocks, [&](int64_t i) {
    const Share share(tiles.count, blocks, i);
    const Block block = allocate_block(share.begin, share.end, p.in_channels);
    for (int64_t tile = share.begin; tile < share.end; ++tile) evaluate_tile(p, tiles, block, tile);
    for (int64_t panel = 0; panel < panels.count; ++panel)
      run_panel(p, tiles, block, panels, panel);
  });
}

#endif

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
