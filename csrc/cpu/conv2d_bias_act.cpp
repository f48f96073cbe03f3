// Dense convolution as a matrix product without im2col: a few padded input rows, channels
// interleaved, lie one after the other; for one output pixel each kernel row is then KW * C
// contiguous floats, one segment of A. Rows are converted from any layout as they are needed.
// Memory moved per output pixel: K out, and the input once.
#include <algorithm>
#include <cstring>

#include "gemm.h"
#include "kernels.h"
#include "winograd.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

constexpr int64_t kRowsPerStep = 4;

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

// Output rows [y, y + count) of image n, count <= kRowsPerStep.
void rows_of_step(const Conv2dBiasActParams& p, const Panels& panels, int64_t n, int64_t y,
                  int64_t count) {
  const int64_t channels = p.in_channels, out = p.out_channels;
  const int64_t width =
      std::max(p.pad_left + p.width, (p.out_width - 1) * p.stride_width + p.kernel_width);
  const int64_t row_size = width * channels;
  const int64_t first = y * p.stride_height - p.pad_top;
  const int64_t needed = (count - 1) * p.stride_height + p.kernel_height;
  Element* rows = scratch_elements(Scratch::kSlab, needed * row_size);
  for (int64_t r = 0; r < needed; ++r) load_row(p, n, first + r, row_size, rows + r * row_size);
  for (int64_t r = 0; r < count; ++r) {
    const GemmA a{rows + r * p.stride_height * row_size, p.stride_width * channels,
                  p.kernel_width * channels, row_size, p.kernel_height * p.kernel_width * channels};
    const int64_t pixel = (n * p.out_height + y + r) * p.out_width;
    GemmC c = gemm_map(elements(p.output), out);
    if (p.out_row != 0) c.row = p.out_row;
    c.data = elements(p.output) + pixel * c.row;
    const Element* residual = p.residual == nullptr ? nullptr : elements(p.residual) + pixel * out;
    gemm(a, {p.packed + kPackedHeader, /*cold=*/false, {}}, panels, p.out_width, c,
         {p.activation, residual, out}, 0, panels.count);
  }
}

}  // namespace

void conv2d_bias_act(const Conv2dBiasActParams& p, const Threads& threads) {
  if (p.batch == 0 || p.out_height == 0 || p.out_width == 0) return;
  if constexpr (kDataType == DataType::kFloat32) {
    if (p.winograd) return winograd_conv2d(p, threads);
  }
  const Panels panels(p.out_channels);
  const int64_t steps = (p.out_height + kRowsPerStep - 1) / kRowsPerStep;
  threads.parallel(p.batch * steps, [&](int64_t task) {
    const int64_t y = task % steps * kRowsPerStep;
    rows_of_step(p, panels, task / steps, y, std::min(kRowsPerStep, p.out_height - y));
  });
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
