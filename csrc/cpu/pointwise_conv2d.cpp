// 1x1 convolution: the matrix product of gemm.h over pixels. A block of pixels stays in L2 while
// every panel of the weight passes over it. Memory moved per pixel: C in, K out (and K of the
// residual).
#include <algorithm>

#include "gemm.h"
#include "kernels.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

constexpr int64_t kBlock = 128 * 1024 / sizeof(Element);
constexpr int64_t kMinPixels = 24;

// Runs of pixels that are equally spaced in the input: everything, or an output row where the
// stride or the scale demands.
struct Runs {
  int64_t count, pixels;
};

// Pixels [begin, end) of one run.
void run_pixels(const PointwiseConv2dParams& p, const Panels& panels, int64_t run,
                int64_t run_pixels, int64_t begin, int64_t end, int64_t panel_begin,
                int64_t panel_end) {
  const int64_t in = p.in_channels, out = p.out_channels;
  const int64_t n = run / p.out_height, y = run % p.out_height;
  const bool by_row = p.stride_height > 1 || p.stride_width > 1 || p.input_scale != nullptr;
  const Element* a_data = elements(p.input);
  int64_t a_row = in;
  if (by_row) {
    a_data += ((n * p.height + y * p.stride_height) * p.width) * in;
    a_row = p.stride_width * in;
  }
  a_data += begin * a_row;
  if (p.input_scale != nullptr) {
    Element* scaled = scratch_elements(Scratch::kTile, (end - begin) * in);
    const Element* scale = elements(p.input_scale) + n * in;
    for (int64_t m = 0; m < end - begin; ++m) {
      const Element* x = a_data + m * a_row;
      for (int64_t c = 0; c < in; c += kW) {
        const int lanes = static_cast<int>(std::min<int64_t>(kW, in - c));
        vstore_first(scaled + m * in + c,
                     vmul(vload_first(x + c, lanes), vload_first(scale + c, lanes)), lanes);
      }
    }
    a_data = scaled;
    a_row = in;
  }
  const int64_t first = run * run_pixels + begin;
  const GemmA a{a_data, a_row, in, 0, in};
  const GemmEpilogue epilogue{p.activation,
                              p.residual ? elements(p.residual) + first * out : nullptr, out};
  GemmC c = gemm_map(elements(p.output), out);
  if (p.out_row != 0) c.row = p.out_row;
  c.data = elements(p.output) + first * c.row;
  gemm(a, {p.packed + kPackedHeader, /*cold=*/begin == 0, {}}, panels, end - begin, c, epilogue,
       panel_begin, panel_end);
}

}  // namespace

void pointwise_conv2d(const PointwiseConv2dParams& p, const Threads& threads) {
  const bool dense = p.stride_height == 1 && p.stride_width == 1 && p.input_scale == nullptr;
  const int64_t total = p.batch * p.out_height * p.out_width;
  if (total == 0) return;
  const Runs runs = dense ? Runs{1, total} : Runs{p.batch * p.out_height, p.out_width};
  const Panels panels(p.out_channels);
  const int64_t block = std::max(kMinPixels, kBlock / std::max<int64_t>(1, p.in_channels));
  const int64_t blocks_per_run = (runs.pixels + block - 1) / block;

  if (total < 2 * kMinPixels * threads.count && panels.count >= threads.count) {
    threads.parallel(threads.count, [&](int64_t i) {
      const Share share(panels.count, threads.count, i);
      for (int64_t r = 0; r < runs.count; ++r) {
        run_pixels(p, panels, r, runs.pixels, 0, runs.pixels, share.begin, share.end);
      }
    });
    return;
  }
  // Equal blocks; where one run is all there is, some for each thread.
  int64_t blocks = blocks_per_run;
  if (runs.count == 1 && threads.count > 1) {
    blocks =
        std::max<int64_t>(1, std::max(blocks, std::min(2 * threads.count, total / kMinPixels)));
  }
  threads.parallel(runs.count * blocks, [&](int64_t task) {
    const Share pixels(runs.pixels, blocks, task % blocks);
    run_pixels(p, panels, task / blocks, runs.pixels, pixels.begin, pixels.end, 0, panels.count);
  });
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
