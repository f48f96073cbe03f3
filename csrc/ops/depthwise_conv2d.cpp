#include "depthwise.h"

namespace fastconv {
namespace {

Tensor depthwise_conv2d_cpu(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                            const Ints& stride, const Ints& padding, const Ints& dilation,
                            int64_t activation, const OptionalTensor& packed) {
  const char* op = "depthwise_conv2d";
  const Image image = check_input(op, input);
  DepthwiseConv2dParams p =
      depthwise_params(op, "weight", image, image.channels, weight, stride, padding, dilation);
  check_vector(op, "bias", bias, image.channels);
  p.activation = check_activation(op, "activation", activation);
  PackedWeights weights(op, packed, image.kernels);
  p.packed = weights.depthwise(weight, bias);
  weights.check_end();
  const Tensor dense_input = channels_last(input);
  Tensor output =
      empty_channels_last(input, {image.batch, image.channels, p.out_height, p.out_width});
  p.input = data(dense_input);
  p.output = mutable_data(output);
  image.kernels.depthwise_conv2d(p, torch_threads());
  return output;
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&fastconv::depthwise_conv2d_cpu));
  m.impl("depthwise_conv2d_infer", TORCH_BOX(&fastconv::depthwise_conv2d_cpu));
}
