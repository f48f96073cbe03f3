// Dense convolution as a matrix product without im2col: some padded input rows, channels
// interleaved, lie one after the other; for one output pixel each kernel row is then KW * C
// contiguous floats, one segment of A. Rows are converted from any layout as they are needed, and
// every panel of the weight passes over all of them. Weights that L2 does not hold are read once
// for as many rows as it has room for. Memory moved per output pixel: K out, and the input once.
#include <algorithm>
#include <cstring>

#include "gemm.h"
#include "kernels.h"
#include "plan.h"
#include "winograd.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

// One padded row: [row_size]; zeros outside the image.
void load_row(const Conv2dBiasActParams& p, int64_t n, int64_t y, int64_t row_size, Element* out) {
  const int64_t channels = p.in_channels, left = p.pad_left * channels;
  if (y < 0 || y >= p.height) {
    std::fill(out, out + row_size, Element{});
    return;
  }
  const int64_t filled = left + p.width * channels;
  std::fill(out, out + left, Element{});
  if (filled < row_size) std::fill(out + filled, out + row_size, Element{});
  const Element* in = elements(p.input) + n * p.batch_stride + y * p.row_stride;
  Element* pixel = out + left;
  if (p.channel_stride == 1 && p.column_stride == channels) {
    std::memcpy(pixel, in, sizeof(Element) * p.width * channels);
  } else if (channels == 3) {
    const Element *c0 = in, *c1 = in + p.channel_stride, *c2 = in + 2 * p.channel_stride;
    for (int64_t x = 0; x < p.width; ++x, pixel += 3) {
      pixel[0] = c0[x * p.column_stride];
      pixel[1] = c1[x * p.column_stride];
      pixel[2] = c2[x * p.column_stride];
    }
  } else {
    for (int64_t x = 0; x < p.width; ++x) {
      for (int64_t c = 0; c < channels; ++c)
        *pixel++ = in[c * p.channel_stride + x * p.column_stride];
    }
  }
}

// How the rows of an image are cut into steps, and their panels into shares.
struct Steps {
  explicit Steps(const Conv2dBiasActParams& p, const Panels& panels, const Threads& threads)
      : row_size(
            std::max(p.pad_left + p.width, (p.out_width - 1) * p.stride_width + p.kernel_width) *
            p.in_channels),
        rows(std::min(kRows, p.out_height)) {
    const int64_t half = cache_sizes().l2 / 2, element = sizeof(Element);
    const int64_t weights =
        element * panels.vectors * kW * p.kernel_height * p.kernel_width * p.in_channels;
    far = weights > half;
    if (far) {
      const int64_t room = half / (element * std::max<int64_t>(1, row_size)) - p.kernel_height;
      rows = std::max(rows, std::min(room / p.stride_height + 1, p.out_height));
    }
    count = (p.out_height + rows - 1) / rows;
    // Rows that are hardly more than a tile of pixels would waste much of their last ones.
    const int64_t needed = (rows - 1) * p.stride_height + p.kernel_height;
    joint = rows > 1 && p.out_width < kNarrow && needed * row_size <= INT32_MAX;
    // What few pixels need most of the time for is reading the weights: each thread reads some.
    const bool fewer = far && element * p.batch * p.height * p.width * p.in_channels < weights;
    if (threads.count > 1 && fewer && panels.count >= threads.count)
      shares = std::min(panels.count, 2 * threads.count);
  }

  static constexpr int64_t kRows = 4, kNarrow = 16;
  int64_t row_size, rows, count;  // elements of a padded input row, output rows of a step, steps
  int64_t shares = 1;
  bool far;    // the weights come from beyond L2 at every step
  bool joint;  // all rows of a step are one matrix
};

// Where the inputs of the pixels of `count` output rows begin.
const int32_t* pixel_offsets(const Conv2dBiasActParams& p, int64_t count, int64_t row_size) {
  auto* offsets =
      static_cast<int32_t*>(scratch(Scratch::kTable, sizeof(int32_t) * count * p.out_width));
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t x = 0; x < p.out_width; ++x)
      offsets[r * p.out_width + x] =
          static_cast<int32_t>(r * p.stride_height * row_size + x * p.stride_width * p.in_channels);
  }
  return offsets;
}

// Output rows [y, y + count) of image n, of some panels.
void run_rows(const Conv2dBiasActParams& p, const Steps& steps, const Panels& panels,
              const Share& share, int64_t n, int64_t y, int64_t count) {
  const int64_t channels = p.in_channels, row_size = steps.row_size;
  const int64_t first_row = y * p.stride_height - p.pad_top;
  const int64_t needed = (count - 1) * p.stride_height + p.kernel_height;
  Element* rows = scratch_elements(Scratch::kSlab, needed * row_size);
  for (int64_t r = 0; r < needed; ++r) load_row(p, n, first_row + r, row_size, rows + r * row_size);
  const int64_t out_row = p.out_row == 0 ? p.out_channels : p.out_row;
  const int64_t pixel = (n * p.out_height + y) * p.out_width;
  GemmA a{rows, p.stride_width * channels, p.kernel_width * channels, row_size,
          p.kernel_height * p.kernel_width * channels};
  if (steps.joint) a.offsets = pixel_offsets(p, count, row_size);
  const int64_t matrices = steps.joint ? 1 : count, pixels = count * p.out_width / matrices;
  const int64_t lane_floats = 1 + a.steps();
  for (int64_t panel = share.begin; panel < share.end; ++panel) {
    const int64_t first = panels.first_vector(panel) * kW, width = panels.width(panel) * kW;
    const float* weight = p.packed + kPackedHeader + first * lane_floats;
    const bool follows = steps.far && panel + 1 < share.end;
    const int64_t next = follows ? panels.width(panel + 1) * kW * lane_floats : 0;
    for (int64_t r = 0; r < matrices; ++r) {
      const int64_t begin = pixel + r * pixels;
      a.data = rows + r * p.stride_height * row_size;
      const GemmC c{elements(p.output) + begin * out_row + first,
                    false,
                    out_row,
                    kW,
                    nullptr,
                    p.out_channels - first,
                    0};
      const Element* residual =
          p.residual == nullptr ? nullptr : elements(p.residual) + begin * p.out_channels + first;
      const Share part(next, matrices, r);
      const WeightRegion ahead{weight + width * lane_floats + part.begin, part.end - part.begin};
      gemm(a, {weight, /*cold=*/false, ahead}, Panels(width), pixels, c,
           {p.activation, residual, p.out_channels}, 0, 1);
    }
  }
}

}  // namespace

void conv2d_bias_act(const Conv2dBiasActParams& p, const Threads& threads) {
  if (p.batch == 0 || p.out_height == 0 || p.out_width == 0) return;
  if constexpr (kDataType == DataType::kFloat32) {
    if (p.winograd) return winograd_conv2d(p, threads);
  }
  const Panels panels(p.out_channels);
  const Steps steps(p, panels, threads);
  threads.parallel(p.batch * steps.count * steps.shares, [&](int64_t task) {
    const int64_t y = task / steps.shares % steps.count * steps.rows;
    run_rows(p, steps, panels, Share(panels.count, steps.shares, task % steps.shares),
             task / steps.shares / steps.count, y, std::min(steps.rows, p.out_height - y));
  });
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
