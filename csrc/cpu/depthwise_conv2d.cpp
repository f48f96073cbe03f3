// Depthwise convolution of a channels_last tensor, row by row. Whole vectors of channels are read
// in place; the channels that do not fill a vector go through a small padded plane. Memory moved
// per output: one input, one output.
#include <algorithm>

#include "depthwise.h"
#include "kernels.h"
#include "plan.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

// The last channels % kW channels of one output row.
void tail_row(const DepthwiseConv2dParams& p, const DepthwiseKernel& kernel,
              const Element* const* rows, Element* out) {
  const int64_t first = p.channels / kW * kW;
  const int lanes = static_cast<int>(p.channels - first);
  const int64_t width =
      std::max(p.pad_left + p.width,
               (p.out_width - 1) * p.stride_width + (p.kernel_width - 1) * p.dilation_width + 1);
  float* slab = scratch_floats(Scratch::kSlab, p.kernel_height * width * kW);
  auto* offsets =
      static_cast<int32_t*>(scratch(Scratch::kTable, sizeof(int32_t) * p.kernel_height));
  std::fill(slab, slab + p.kernel_height * width * kW, 0.f);
  for (int64_t i = 0; i < p.kernel_height; ++i) {
    offsets[i] = static_cast<int32_t>(i * width * kW);
    if (rows[i] == nullptr) continue;
    for (int64_t x = 0; x < p.width; ++x) {
      vstore(slab + (i * width + p.pad_left + x) * kW,
             vload_first(rows[i] + x * p.channels + first, lanes));
    }
  }
  Element* tile = scratch_elements(Scratch::kTile, p.out_width * kW);
  const float* packed = p.packed + kPackedHeader + first * (1 + p.kernel_height * p.kernel_width);
  depthwise_plane(kernel, packed, slab, offsets, tile, 1, p.out_width, nullptr);
  for (int64_t x = 0; x < p.out_width; ++x)
    vstore_first(out + x * p.channels + first, vload(tile + x * kW), lanes);
}

// Output rows [index, index + count) of one image, counted through all images.
void output_rows(const DepthwiseConv2dParams& p, const DepthwiseKernel& kernel, int64_t index,
                 int64_t count) {
  const int64_t n = index / p.out_height, row_elements = p.out_width * p.channels;
  auto** rows = static_cast<const Element**>(
      scratch(Scratch::kSums, sizeof(Element*) * count * p.kernel_height));
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t i = 0; i < p.kernel_height; ++i) {
      const int64_t in_y =
          ((index + r) % p.out_height) * p.stride_height - p.pad_top + i * p.dilation_height;
      const bool inside = in_y >= 0 && in_y < p.height;
      rows[r * p.kernel_height + i] =
          inside ? elements(p.input) + (n * p.height + in_y) * p.width * p.channels : nullptr;
    }
  }
  Element* out = elements(p.output) + index * row_elements;
  if (p.channels >= kW) {
    const DepthwiseRows all{rows,        -p.pad_left, p.width,      p.channels,
                            p.out_width, p.channels,  row_elements, false};
    depthwise_rows(kernel, p.packed + kPackedHeader, all, count, p.channels / kW, out, kW);
  }
  if (p.channels % kW == 0) return;
  for (int64_t r = 0; r < count; ++r)
    tail_row(p, kernel, rows + r * p.kernel_height, out + r * row_elements);
}

}  // namespace

void depthwise_conv2d(const DepthwiseConv2dParams& p, const Threads& threads) {
  const int64_t rows = p.batch * p.out_height;
  if (rows == 0 || p.out_width == 0) return;
  const DepthwiseKernel kernel{p.kernel_height, p.kernel_width, p.stride_width, p.dilation_width,
                               p.activation};
  constexpr int64_t kTasksPerThread = 4;
  const int64_t parts = std::min(threads.count == 1 ? 1 : kTasksPerThread * threads.count, rows);
  threads.parallel(parts, [&](int64_t i) {
    const Share share(rows, parts, i);
    for (int64_t r = share.begin; r < share.end;) {
      const int64_t count = std::min({int64_t{2}, share.end - r, p.out_height - r % p.out_height});
      output_rows(p, kernel, r, count);
      r += count;
    }
  });
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
