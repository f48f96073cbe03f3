// output = activation(input weight^T + bias): the classifier.
#pragma once

#include <cstdint>

#include "activation.h"

namespace fastconv {

struct LinearParams {
  int64_t batch, in_features, out_features;
  const void* input;    // [N, C]
  const float* packed;  // pack_pointwise's result
  void* output;         // [N, K]
  Activation activation;
};

}  // namespace fastconv
