// The CUDA library holds no kernels in this version: it says what it was built with, and proves
// that the build works.

#include <cuda_runtime.h>

extern "C" __attribute__((visibility("default"))) const char* fastconv_cuda_build_info() {
  return FASTCONV_CUDA_INFO;
}
