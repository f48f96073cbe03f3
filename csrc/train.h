// What training needs beside the kernels of inference. A convolution's result is kept raw, as it
// was before BatchNorm and activation; who reads such a map normalizes it on the way, and who
// reads the gradient of one turns it into that of the raw map on the way. All maps dense NHWC, of
// one type of element; everything else is float32.
#pragma once

#include <cstdint>

#include "activation.h"

namespace fastconv {

// activation(data * scale + shift) * gate
struct NormalizedMap {
  bool is_plain() const { return affine == nullptr && gate == nullptr; }

  const void* data;
  const float* affine;  // [2, C]: scales, shifts; null: 1, 0, and no activation
  const float* gate;    // [N, C] or null
  Activation activation;
};

// With G = (grad * gate + offset) * activation'(raw * scale + shift), the gradient of the map
// between a BatchNorm and what follows it: coefficients[0] G + coefficients[1] (raw -
// coefficients[2]) + coefficients[3]. With the mean apart, the last one, whose rounding adds up
// over all pixels, is small.
struct GradientMap {
  const void* grad;
  const void* raw;            // null: grad is the result, and nothing below is there
  const float* affine;        // [2, C]; null: 1, 0
  const float* gate;          // [N, C] or null
  const float* offset;        // [N, C] or null
  const float* coefficients;  // [4, C]; null: 1, 0, 0, 0
  Activation activation;
};

// output = conv1x1(input)
struct TrainPointwiseConv2dParams {
  int64_t batch, pixels;  // pixels of an image
  int64_t in_channels, out_channels;
  NormalizedMap input;
  const float* weight;  // [K, C]; it is another one at each step, so the kernel packs it itself
  void* output;         // [N, pixels, K]
  float* moments;       // [2, K]: means and biased variances of the output; or null
};

// Null results are not computed. With d = conv1x1(gradient, weight transposed):
struct TrainPointwiseConv2dBackwardParams {
  int64_t batch, pixels, in_channels, out_channels;
  NormalizedMap input;
  GradientMap gradient;
  const float* weight;   // [K, C]
  const float* mean;     // [C] of the raw input; for sums
  const void* residual;  // [N, pixels, C], is added to a grad_input without input.affine; or null
  // [N, pixels, C]: d activation'(input); where the input has a gate, d alone.
  void* grad_input;
  float* grad_weight;  // [K, C]
  float* grad_bias;    // [K]: the gradient's sum
  float* sums;         // [2, C]: of grad_input, of grad_input (raw - mean)
  float* grad_gate;    // [N, C]: sum of d activation(input)
};

struct TrainWindow {
  int64_t batch, height, width, channels;
  int64_t out_height, out_width;
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t pad_top, pad_left;
  int64_t dilation_height, dilation_width;
};

// output = depthwise(input); the input has no gate.
struct TrainDepthwiseConv2dParams {
  TrainWindow window;
  NormalizedMap input;
  const float* packed;  // pack_depthwise's result
  void* output;         // [N, OH, OW, C]
  float* moments;       // [2, C] or null
};

// As above, with d = the transposed depthwise convolution of the gradient.
struct TrainDepthwiseConv2dBackwardParams {
  TrainWindow window;
  NormalizedMap input;
  GradientMap gradient;
  const float* packed;  // of the weight turned by 180 degrees
  const float* mean;
  const void* residual;
  void* grad_input;    // [N, H, W, C]
  float* grad_weight;  // [C, KH, KW]
  float* grad_bias;    // [C]
  float* sums;         // [2, C]
};

// Maps alone, [N, pixels, C].
struct TrainMapParams {
  int64_t batch, pixels, channels;
  NormalizedMap input;
  GradientMap gradient;
  const void* residual;  // is added to the output; or null
  const float* mean;
  void* output;
  float* results;
};

}  // namespace fastconv
