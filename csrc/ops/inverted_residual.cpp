#include "depthwise.h"
#include "squeeze_excite.h"

namespace fastconv {
namespace {

Tensor inverted_residual_cpu(const Tensor& input, const OptionalTensor& expand_weight,
                             const OptionalTensor& expand_bias, const Tensor& depthwise_weight,
                             const OptionalTensor& depthwise_bias, const Tensor& project_weight,
                             const OptionalTensor& project_bias, const Ints& stride,
                             const Ints& padding, const Ints& dilation, int64_t activation,
                             const std::vector<Tensor>& squeeze_excite,
                             int64_t squeeze_excite_activation, int64_t squeeze_excite_gate,
                             const OptionalTensor& residual, const OptionalTensor& packed) {
  const char* op = "inverted_residual";
  const Image image = check_input(op, input);
  int64_t mid = image.channels;
  if (expand_weight.has_value())
    mid = check_pointwise_weight(op, "expand_weight", *expand_weight, image.channels);
  FASTCONV_CHECK(expand_weight.has_value() || !expand_bias.has_value(), op, "expand_bias",
                 "be None where expand_weight is", "a tensor");
  check_vector(op, "expand_bias", expand_bias, mid);
  InvertedResidualParams p{};
  p.depthwise = depthwise_params(op, "depthwise_weight", image, mid, depthwise_weight, stride,
                                 padding, dilation);
  check_vector(op, "depthwise_bias", depthwise_bias, mid);
  const int64_t k = check_pointwise_weight(op, "project_weight", project_weight, mid);
  check_vector(op, "project_bias", project_bias, k);
  const std::array<int64_t, 4> sizes{image.batch, k, p.depthwise.out_height, p.depthwise.out_width};
  const OptionalTensor dense_residual = check_residual(op, residual, input, sizes);
  p.in_channels = image.channels;
  p.out_channels = k;
  p.expand_activation = p.depthwise.activation = check_activation(op, "activation", activation);
  p.project_activation = Activation::kNone;
  const bool excites = !squeeze_excite.empty();
  FASTCONV_CHECK(!excites || squeeze_excite.size() == 4, op, "squeeze_excite",
                 "have 0 or 4 tensors", squeeze_excite.size());
  OptionalTensor biases[2];
  for (int i = 0; excites && i < 2; ++i) biases[i] = squeeze_excite[2 * i + 1];
  const auto tensors = [&]() -> SqueezeExciteTensors {
    return {squeeze_excite[0], biases[0], squeeze_excite[2], biases[1]};
  };
  if (excites) {
    p.squeeze_excite =
        squeeze_excite_params(op, mid, tensors(), squeeze_excite_activation, squeeze_excite_gate);
  }
  PackedWeights weights(op, packed, image.kernels);
  if (expand_weight.has_value()) p.expand_packed = weights.pointwise(*expand_weight, expand_bias);
  p.depthwise.packed = weights.depthwise(depthwise_weight, depthwise_bias);
  if (excites) set_packed(p.squeeze_excite, weights, tensors());
  p.project_packed = weights.pointwise(project_weight, project_bias);
  weights.check_end();
  const Tensor dense_input = channels_last(input);
  Tensor output = empty_channels_last(input, sizes);
  p.residual = data_or_null(dense_residual);
  p.depthwise.input = data(dense_input);
  p.depthwise.output = mutable_data(output);
  image.kernels.inverted_residual(p, torch_threads());
  return output;
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("inverted_residual", TORCH_BOX(&fastconv::inverted_residual_cpu));
  m.impl("inverted_residual_infer", TORCH_BOX(&fastconv::inverted_residual_cpu));
}
