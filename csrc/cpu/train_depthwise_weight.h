// The weight's gradient of a depthwise convolution, from rows that are there.
#pragma once

#include "element.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

// Sums over some output rows: sums[tap][channel] += gradient[y][x] input[tap row of y][x stride +
// tap column dilation]. The taps of some kernel rows stay in registers, for a vector of channels
// after the other, while `rows` rows pass.
struct WindowSum {
  int64_t rows;
  const Element* const* gradients;  // by row
  const Element* const* inputs;     // by row and kernel row, their column 0
  int64_t gradient_pixel, input_pixel;
  int64_t kernel_height, kernel_width;
  int64_t first_column, stride, dilation;  // of the windows, in columns of the input
  int64_t input_width;
  int64_t width;                   // output columns
  int64_t whole_begin, whole_end;  // those whose windows lie inside
  int64_t vectors;
  float* sums;  // [tap][channels]
  int64_t channels;
};

// Adds to the sums of kernel rows [begin, end).
void sum_window(const WindowSum& sum, int64_t begin, int64_t end);

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
