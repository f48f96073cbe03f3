// What the depthwise kernels on a GPU are told, and their launches. Null, or what went wrong.
#pragma once

#include "../data_type.h"
#include "../depthwise_conv2d.h"

namespace fastconv {

struct CudaDepthwiseConv2dParams {
  DepthwiseConv2dParams conv;  // packed: float32 [KH, KW, C], or [C, KH, KW] where maps are NCHW
  const float* bias;           // [C] or null
  float* sums;                 // [N, bands, C] or null; NHWC only
  int64_t bands;               // of output rows; 0: as many as fill the GPU
  DataType type;
};

const char* launch_depthwise_conv2d(const CudaDepthwiseConv2dParams& p, void* stream);
const char* launch_depthwise_conv2d_nchw(const CudaDepthwiseConv2dParams& p, void* stream);

}  // namespace fastconv
