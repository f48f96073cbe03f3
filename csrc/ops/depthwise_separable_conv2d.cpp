// The depthwise-separable convolution is the inverted residual without its expansion: the kernel is
// that one's.
#include "depthwise.h"

namespace fastconv {
namespace {

Tensor depthwise_separable_conv2d_cpu(
    const Tensor& input, const Tensor& depthwise_weight, const OptionalTensor& depthwise_bias,
    const Tensor& pointwise_weight, const OptionalTensor& pointwise_bias, const Ints& stride,
    const Ints& padding, const Ints& dilation, int64_t depthwise_activation, int64_t activation,
    const OptionalTensor& residual, const OptionalTensor& packed) {
  const char* op = "depthwise_separable_conv2d";
  const Image image = check_input(op, input);
  InvertedResidualParams p{};
  p.depthwise = depthwise_params(op, "depthwise_weight", image, image.channels, depthwise_weight,
                                 stride, padding, dilation);
  check_vector(op, "depthwise_bias", depthwise_bias, image.channels);
  const int64_t k =
      check_pointwise_weight(op, "pointwise_weight", pointwise_weight, image.channels);
  check_vector(op, "pointwise_bias", pointwise_bias, k);
  const std::array<int64_t, 4> sizes{image.batch, k, p.depthwise.out_height, p.depthwise.out_width};
  const OptionalTensor dense_residual = check_residual(op, residual, input, sizes);
  p.in_channels = image.channels;
  p.out_channels = k;
  p.depthwise.activation = check_activation(op, "depthwise_activation", depthwise_activation);
  p.project_activation = check_activation(op, "activation", activation);
  PackedWeights weights(op, packed, image.kernels);
  p.depthwise.packed = weights.depthwise(depthwise_weight, depthwise_bias);
  p.project_packed = weights.pointwise(pointwise_weight, pointwise_bias);
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
  m.impl("depthwise_separable_conv2d", TORCH_BOX(&fastconv::depthwise_separable_conv2d_cpu));
  m.impl("depthwise_separable_conv2d_infer", TORCH_BOX(&fastconv::depthwise_separable_conv2d_cpu));
}
