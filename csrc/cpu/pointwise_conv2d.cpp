// 1x1 convolutions of one input: the matrix product of gemm.h over pixels. A block of pixels stays
// in L2 while every panel of all the weights passes over it. Weights that L2 does not hold are read
// once a block, which is then as large as L2 allows. Memory moved per pixel: C in, K out (and K of
// the residual).
#include <algorithm>
#include <cstring>

#include "gemm.h"
#include "kernels.h"
#include "plan.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

constexpr int64_t kMinPixels = 24;

// Some pixels of the output, and the inputs that they need: pixel m at data + m * row.
struct Pixels {
  int64_t begin, count;
  const Element* data;
  int64_t row;
};

// Where pixels are left out or scaled, a copy.
Pixels read_pixels(const PointwiseConv2dParams& p, int64_t begin, int64_t end) {
  const int64_t in = p.in_channels, image = p.out_height * p.out_width;
  const Element* data = elements(p.input);
  if (p.stride_height == 1 && p.stride_width == 1 && p.input_scale == nullptr)
    return {begin, end - begin, data + begin * in, in};
  Element* copy = scratch_elements(Scratch::kTile, (end - begin) * in);
  for (int64_t m = begin; m < end; ++m) {
    const int64_t n = m / image, y = m / p.out_width % p.out_height, x = m % p.out_width;
    const Element* from =
        data + ((n * p.height + y * p.stride_height) * p.width + x * p.stride_width) * in;
    Element* to = copy + (m - begin) * in;
    if (p.input_scale == nullptr) {
      std::memcpy(to, from, sizeof(Element) * in);
      continue;
    }
    const Element* scale = elements(p.input_scale) + n * in;
    for (int64_t c = 0; c < in; c += kW) {
      const int lanes = static_cast<int>(std::min<int64_t>(kW, in - c));
      vstore_first(to + c, vmul(vload_first(from + c, lanes), vload_first(scale + c, lanes)),
                   lanes);
    }
  }
  return {begin, end - begin, copy, in};
}

// The memory of some pixels, if it is worth asking for. What lies in one row after the other, or
// near, the CPU finds by itself.
WeightRegion region_of(const PointwiseConv2dParams& p, const Share& pixels) {
  constexpr int64_t kLongRow = 512;
  const int64_t row = p.in_channels * sizeof(Element);
  const bool far = p.batch * p.height * p.width * row > cache_sizes().l2;
  if (p.stride_height != 1 || p.stride_width != 1 || !far || row < kLongRow) return {};
  const int64_t bytes = (pixels.end - pixels.begin) * row;
  return {reinterpret_cast<const float*>(elements(p.input) + pixels.begin * p.in_channels),
          bytes / static_cast<int64_t>(sizeof(float))};
}

// Panels [begin, end) of one of the convolutions. far: each panel comes from beyond L2. ahead: what
// is worth asking for, evenly over all panels.
void run_panels(const PointwiseConv2dParams& p, const Panels& panels, const Pixels& pixels,
                int64_t begin, int64_t end, bool far, const WeightRegion& ahead) {
  const int64_t in = p.in_channels, out = p.out_channels;
  const GemmA a{pixels.data, pixels.row, in, 0, in};
  const Element* residual =
      p.residual == nullptr ? nullptr : elements(p.residual) + pixels.begin * out;
  GemmC c = gemm_map(elements(p.output), out);
  if (p.out_row != 0) c.row = p.out_row;
  c.data = elements(p.output) + pixels.begin * c.row;
  gemm(a, {p.packed + kPackedHeader, far, ahead}, panels, pixels.count, c,
       {p.activation, residual, out}, begin, end);
}

}  // namespace

void pointwise_conv2d(const PointwiseConv2dParams* parts, int64_t count, const Threads& threads) {
  const PointwiseConv2dParams& first = parts[0];
  const int64_t total = first.batch * first.out_height * first.out_width;
  if (total == 0) return;
  int64_t panels = 0, vectors = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Panels own(parts[i].out_channels);
    panels += own.count;
    vectors += own.vectors;
  }
  constexpr int64_t kBlock = 128 * 1024;
  const int64_t pixel_bytes = sizeof(Element) * std::max<int64_t>(1, first.in_channels);
  const int64_t weight_bytes = vectors * kW * pixel_bytes, half = cache_sizes().l2 / 2;
  const bool far = weight_bytes > half;
  const int64_t block = std::max(kMinPixels, (far ? std::max(half, kBlock) : kBlock) / pixel_bytes);
  int64_t blocks = (total + block - 1) / block;

  // Share `index` of `shares` of the weights on block `i`. next: the block that follows on this
  // thread, or none.
  const auto run = [&](int64_t i, int64_t next, int64_t shares, int64_t index) {
    const Share pixels(total, blocks, i);
    const Pixels block_pixels = read_pixels(first, pixels.begin, pixels.end);
    const Share share(panels, shares, index);
    WeightRegion ahead{};
    if (next < blocks) ahead = region_of(first, Share(total, blocks, next));
    int64_t before = 0;
    for (int64_t j = 0; j < count; ++j) {
      const Panels own(parts[j].out_channels);
      const int64_t begin = std::max<int64_t>(0, share.begin - before);
      const int64_t end = std::min(own.count, share.end - before);
      const int64_t from = ahead.floats * before / panels;
      before += own.count;
      const int64_t to = ahead.floats * before / panels;
      if (begin < end)
        run_panels(parts[j], own, block_pixels, begin, end, far || pixels.begin == 0,
                   {ahead.data + from, to - from});
    }
  };

  // Few pixels, or fewer of them than weights: each thread reads some of the weights.
  const bool few = total < 2 * kMinPixels * threads.count;
  const bool fewer = far && total * pixel_bytes < weight_bytes;
  if (threads.count > 1 && (few || fewer) && panels >= threads.count) {
    const int64_t shares = std::min(panels, 2 * threads.count);
    threads.parallel(shares, [&](int64_t i) {
      for (int64_t j = 0; j < blocks; ++j) run(j, blocks, shares, i);
    });
    return;
  }
  int64_t tasks = 1;
  if (threads.count > 1) {
    constexpr int64_t kTasksPerThread = 4;
    const int64_t least = std::max<int64_t>(1, total / kMinPixels);
    const int64_t rounds = std::max<int64_t>(2, (blocks + threads.count - 1) / threads.count);
    blocks = std::min(rounds * threads.count, least);
    tasks = std::min(blocks, kTasksPerThread * threads.count);
  }
  threads.parallel(tasks, [&](int64_t i) {
    const Share own(blocks, tasks, i);
    for (int64_t j = own.begin; j < own.end; ++j) run(j, j + 1 < own.end ? j + 1 : blocks, 1, 0);
  });
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
