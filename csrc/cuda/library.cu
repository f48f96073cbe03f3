// What the CUDA library was built with, for fastconv.info().

#include <cuda_runtime.h>

extern "C" __attribute__((visibility("default"))) const char* fastconv_cuda_build_info() {
  return FASTCONV_CUDA_INFO;
}
