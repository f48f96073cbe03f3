// Checks of a squeeze-excite's two 1x1 convolutions, shared by the op itself and the inverted
// residual.
#pragma once

#include "check.h"

namespace fastconv {

// Dense copies where the user's tensors are not dense; the params point into them.
struct SqueezeExciteTensors {
  OptionalTensor reduce_weight, reduce_bias, expand_weight, expand_bias;
};

inline SqueezeExciteParams squeeze_excite_params(const char* op, int64_t channels,
                                                 const Tensor& reduce_weight,
                                                 const OptionalTensor& reduce_bias,
                                                 const Tensor& expand_weight,
                                                 const OptionalTensor& expand_bias,
                                                 int64_t activation, int64_t gate,
                                                 SqueezeExciteTensors* tensors) {
  const int64_t squeezed =
      check_pointwise_weight(op, "squeeze-excite reduce_weight", reduce_weight, channels);
  const int64_t restored =
      check_pointwise_weight(op, "squeeze-excite expand_weight", expand_weight, squeezed);
  FASTCONV_CHECK(restored == channels, op, "squeeze-excite expand_weight",
                 text("have shape (", channels, ", ", squeezed, ", 1, 1)"),
                 shape_text(expand_weight));
  check_vector(op, "squeeze-excite reduce_bias", reduce_bias, squeezed);
  check_vector(op, "squeeze-excite expand_bias", expand_bias, channels);
  tensors->reduce_weight = dense(reduce_weight);
  tensors->expand_weight = dense(expand_weight);
  if (reduce_bias.has_value()) tensors->reduce_bias = dense(*reduce_bias);
  if (expand_bias.has_value()) tensors->expand_bias = dense(*expand_bias);
  SqueezeExciteParams p{};
  p.channels = channels;
  p.squeezed = squeezed;
  p.activation = check_activation(op, "squeeze-excite activation", activation);
  p.gate = check_activation(op, "squeeze-excite gate", gate);
  p.reduce_weight = data(*tensors->reduce_weight);
  p.reduce_bias = data_or_null(tensors->reduce_bias);
  p.expand_weight = data(*tensors->expand_weight);
  p.expand_bias = data_or_null(tensors->expand_bias);
  return p;
}

}  // namespace fastconv
