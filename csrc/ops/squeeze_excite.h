// A squeeze-excite's two 1x1 convolutions, shared by the op itself, the inverted residual and
// chains.
#pragma once

#include "check.h"

namespace fastconv {

struct SqueezeExciteTensors {
  const Tensor& reduce_weight;
  const OptionalTensor& reduce_bias;
  const Tensor& expand_weight;
  const OptionalTensor& expand_bias;
};

// All but the packed weights.
inline SqueezeExciteParams squeeze_excite_params(const char* op, int64_t channels,
                                                 const SqueezeExciteTensors& t, int64_t activation,
                                                 int64_t gate) {
  const int64_t squeezed =
      check_pointwise_weight(op, "squeeze-excite reduce_weight", t.reduce_weight, channels);
  const int64_t restored =
      check_pointwise_weight(op, "squeeze-excite expand_weight", t.expand_weight, squeezed);
  FASTCONV_CHECK(restored == channels, op, "squeeze-excite expand_weight",
                 text("have shape (", channels, ", ", squeezed, ", 1, 1)"),
                 shape_text(t.expand_weight));
  check_vector(op, "squeeze-excite reduce_bias", t.reduce_bias, squeezed);
  check_vector(op, "squeeze-excite expand_bias", t.expand_bias, channels);
  SqueezeExciteParams p{};
  p.channels = channels;
  p.squeezed = squeezed;
  p.activation = check_activation(op, "squeeze-excite activation", activation);
  p.gate = check_activation(op, "squeeze-excite gate", gate);
  return p;
}

// Sets the weights: the next two.
inline void set_packed(SqueezeExciteParams& p, PackedWeights& weights,
                       const SqueezeExciteTensors& t) {
  const float* begin = weights.position();
  p.reduce_packed = weights.pointwise(t.reduce_weight, t.reduce_bias);
  p.expand_packed = weights.pointwise(t.expand_weight, t.expand_bias);
  if (begin != nullptr) p.weights = {begin, weights.position() - begin};
}

inline void set_packed(SqueezeExciteParams& p, PackedWeights& weights) {
  const float* begin = weights.position();
  p.reduce_packed = weights.next(PackedKind::kPointwise, p.squeezed, p.channels);
  p.expand_packed = weights.next(PackedKind::kPointwise, p.channels, p.squeezed);
  p.weights = {begin, weights.position() - begin};
}

}  // namespace fastconv
