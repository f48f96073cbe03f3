// What the depthwise kernels of training on a GPU are told, and their launches. Null, or what went
// wrong.
#pragma once

#include "../data_type.h"
#include "../train.h"

namespace fastconv {

struct CudaTrainDepthwiseConv2dParams {
  TrainDepthwiseConv2dParams conv;  // packed: float32 [KH, KW, C]
  float* partial;  // [parts, 3, C]: counts, means, sums of squared differences from them; or null
  int64_t parts;   // 0: as many as fill the GPU; partial is null then
  DataType type;
};

// Rows of partial sums: of the weight's gradient, the bias's, and the two sums, what is wanted.
struct CudaTrainDepthwiseConv2dBackwardParams {
  constexpr int64_t weight_rows() const {
    return conv.grad_weight == nullptr ? 0 : conv.window.kernel_height * conv.window.kernel_width;
  }
  constexpr int64_t rows() const {
    return weight_rows() + (conv.grad_bias == nullptr ? 0 : 1) + (conv.sums == nullptr ? 0 : 2);
  }

  TrainDepthwiseConv2dBackwardParams conv;  // packed: float32 [KH, KW, C], not turned
  float* partial;                           // [parts, rows, C]; null where there are no rows
  int64_t parts;                            // 0: as above
  DataType type;
};

const char* launch_train_depthwise_conv2d(const CudaTrainDepthwiseConv2dParams& p, void* stream);
const char* launch_train_depthwise_conv2d_backward(const CudaTrainDepthwiseConv2dBackwardParams& p,
                                                   void* stream);

}  // namespace fastconv
