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
  kTanh = 7,
  kGelu = 8,  // x times the normal distribution's function, not its approximation by tanh
};

constexpr int kActivationCount = 9;

}  // namespace fastconv
