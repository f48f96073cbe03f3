// The shapes and settings from which the cases are drawn, and how a failing one is described.
#pragma once

#include "harness.h"

namespace fastconv::test {

// One file of cases each.
void test_isa();
void test_parallel(Draw& draw);
void test_convolutions(Draw& draw);
void test_blocks(Draw& draw);
void test_sequential(Draw& draw);
void test_train(Draw& draw);

constexpr int64_t kChannels[] = {1, 3, 7, 8, 9, 16, 17, 24, 33};
constexpr int64_t kKernels[][2] = {{1, 1}, {2, 2}, {3, 3}, {5, 5}, {7, 7},
                                   {1, 3}, {3, 1}, {5, 2}, {3, 7}};
constexpr int64_t kStrides[][2] = {{1, 1}, {2, 2}, {3, 3}, {1, 2}, {3, 1}};
constexpr int64_t kDilations[][2] = {{1, 1}, {2, 2}, {1, 2}, {2, 1}};
constexpr int64_t kBatches[] = {1, 2, 3, 1, 2, 3, 1, 0};

template <class T>
const int64_t (&pick(Draw& draw, const T& pairs))[2] {
  return pairs[draw.below(std::size(pairs))];
}

inline int64_t draw_size(Draw& draw) { return 1 + draw.below(19); }

inline Window window(const int64_t (&kernel)[2], const int64_t (&stride)[2],
                     const int64_t (&dilation)[2]) {
  return {kernel[0], kernel[1], stride[0], stride[1], dilation[0], dilation[1]};
}

// The padding that keeps the size, or any, up to rows of taps that never meet the image.
inline void draw_padding(Draw& draw, int64_t size, int64_t reach, int64_t* before, int64_t* after) {
  const bool same = draw.chance();
  *before = same ? reach / 2 : draw.below(reach + 2);
  *after = same ? reach / 2 : draw.below(reach + 2);
  *after += std::max<int64_t>(0, reach + 1 - (*before + size + *after));
}

inline Window with_padding(Draw& draw, Window s, int64_t height, int64_t width) {
  draw_padding(draw, height, s.dilation_height * (s.kernel_height - 1), &s.top, &s.bottom);
  draw_padding(draw, width, s.dilation_width * (s.kernel_width - 1), &s.left, &s.right);
  return s;
}

inline Map draw_map(Draw& draw, int64_t n, int64_t h, int64_t w, int64_t c, Floats* memory) {
  *memory = draw.floats(n * h * w * c, 3);
  return Map(n, h, w, c, *memory);
}

inline std::string describe(const Map& x) {
  return text("input", x.batch, x.height, x.width, x.channels);
}

inline std::string describe(const Window& s) {
  return text("kernel", s.kernel_height, s.kernel_width, "stride", s.stride_height, s.stride_width,
              "dilation", s.dilation_height, s.dilation_width, "padding", s.top, s.bottom, s.left,
              s.right);
}

inline std::string describe(Activation activation) {
  return text("activation", static_cast<int>(activation));
}

inline DepthwiseConv2dParams depthwise_params(const Map& image, int64_t channels, const Window& s,
                                              Activation activation) {
  return {image.batch,
          image.height,
          image.width,
          channels,
          s.out_height(image.height),
          s.out_width(image.width),
          s.kernel_height,
          s.kernel_width,
          s.stride_height,
          s.stride_width,
          s.top,
          s.left,
          s.dilation_height,
          s.dilation_width,
          activation,
          nullptr,
          nullptr,
          nullptr};
}

}  // namespace fastconv::test
