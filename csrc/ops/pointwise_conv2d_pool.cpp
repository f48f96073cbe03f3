#include "check.h"

namespace fastconv {
namespace {

Tensor pointwise_conv2d_pool_cpu(const Tensor& input, const Tensor& weight,
                                 const OptionalTensor& bias, int64_t activation,
                                 const OptionalTensor& packed) {
  const char* op = "pointwise_conv2d_pool";
  const Image image = check_input(op, input);
  const int64_t k = check_pointwise_weight(op, "weight", weight, image.channels);
  check_vector(op, "bias", bias, k);
  PackedWeights weights(op, packed, image.kernels);
  const Tensor dense_input = channels_last(input);
  Tensor output = empty_2d(input, image.batch, k);
  PointwiseConv2dPoolParams p{};
  p.batch = image.batch;
  p.pixels = image.height * image.width;
  p.in_channels = image.channels;
  p.out_channels = k;
  p.activation = check_activation(op, "activation", activation);
  p.packed = weights.pointwise(weight, bias);
  weights.check_end();
  p.input = data(dense_input);
  p.output = mutable_data(output);
  image.kernels.pointwise_conv2d_pool(p, torch_threads());
  return output;
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("pointwise_conv2d_pool", TORCH_BOX(&fastconv::pointwise_conv2d_pool_cpu));
  m.impl("pointwise_conv2d_pool_infer", TORCH_BOX(&fastconv::pointwise_conv2d_pool_cpu));
}
