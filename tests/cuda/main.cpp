// The CUDA kernels on the CPU, by the emulator beside this file.
#include "harness.h"

int main() {
  fastconv_test::Results results;
  fastconv_test::test_depthwise(results);
  fastconv_test::test_depthwise_nchw(results);
  fastconv_test::test_mma(results);
  fastconv_test::test_inverted_residual(results);
  fastconv_test::test_train_depthwise(results);
  return results.report();
}
