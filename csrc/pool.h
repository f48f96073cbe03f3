// Pooling of a map's windows: output = the largest value of each, or the sum over the window's
// size.
#pragma once

#include <cstdint>

namespace fastconv {

struct PoolParams {
  int64_t batch, height, width, channels;
  int64_t out_height, out_width;
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t pad_top, pad_left;
  const void* input;  // [N, H, W, C]
  void* output;       // [N, OH, OW, C]
  int64_t out_row;    // elements between pixels of the output; 0: C
};

}  // namespace fastconv
