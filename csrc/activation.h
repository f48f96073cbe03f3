// The activation functions that kernels apply in registers; one numbering for Python, CPU and CUDA.
#pragma once

namespace fastconv {

enum class Activation : int {
  kNone = 0,
  kRelu = 1,
  kRelu6 = 2,
  kHardswish = 3,
  kSilu = 4,
  kSigmoid = 5,
  kHardsigmoid = 6,
};

constexpr int kActivationCount = 7;

}  // namespace fastconv
