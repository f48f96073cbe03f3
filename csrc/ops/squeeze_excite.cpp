#include "squeeze_excite.h"

namespace fastconv {
namespace {

Tensor squeeze_excite_cpu(const Tensor& input, const Tensor& reduce_weight,
                          const OptionalTensor& reduce_bias, const Tensor& expand_weight,
                          const OptionalTensor& expand_bias, int64_t activation, int64_t gate,
                          const OptionalTensor& packed) {
  const char* op = "squeeze_excite";
  const Image image = check_input(op, input);
  const SqueezeExciteTensors tensors{reduce_weight, reduce_bias, expand_weight, expand_bias};
  SqueezeExciteConv2dParams p{};
  p.weights = squeeze_excite_params(op, image.channels, tensors, activation, gate);
  PackedWeights weights(op, packed, image.kernels);
  set_packed(p.weights, weights, tensors);
  weights.check_end();
  p.batch = image.batch;
  p.pixels = image.height * image.width;
  const Tensor dense_input = channels_last(input);
  Tensor output =
      empty_channels_last(input, {image.batch, image.channels, image.height, image.width});
  p.input = data(dense_input);
  p.output = mutable_data(output);
  image.kernels.squeeze_excite(p, torch_threads());
  return output;
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("squeeze_excite", TORCH_BOX(&fastconv::squeeze_excite_cpu));
  m.impl("squeeze_excite_infer", TORCH_BOX(&fastconv::squeeze_excite_cpu));
}
