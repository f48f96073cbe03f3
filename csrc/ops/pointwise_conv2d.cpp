#include "check.h"

namespace fastconv {
namespace {

Tensor pointwise_conv2d_cpu(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                            const Ints& stride, int64_t activation, const OptionalTensor& residual,
                            const OptionalTensor& input_scale, const OptionalTensor& packed) {
  const char* op = "pointwise_conv2d";
  const Image image = check_input(op, input);
  const int64_t k = check_pointwise_weight(op, "weight", weight, image.channels);
  check_vector(op, "bias", bias, k);
  check_ints(op, "stride", stride, 2, 1);
  const int64_t out_height = (image.height - 1) / stride[0] + 1,
                out_width = (image.width - 1) / stride[1] + 1;
  const OptionalTensor dense_residual =
      check_residual(op, residual, input, {image.batch, k, out_height, out_width});
  OptionalTensor dense_scale;
  if (input_scale.has_value()) {
    check_like(op, "input_scale", *input_scale, input);
    const bool ok = input_scale->dim() == 2 && input_scale->size(0) == image.batch &&
                    input_scale->size(1) == image.channels;
    FASTCONV_CHECK(ok, op, "input_scale",
                   text("have shape (", image.batch, ", ", image.channels, ")"),
                   shape_text(*input_scale));
    dense_scale = dense(*input_scale);
  }
  PackedWeights weights(op, packed, image.kernels);
  const Tensor dense_input = channels_last(input);
  Tensor output = empty_channels_last(input, {image.batch, k, out_height, out_width});
  PointwiseConv2dParams p{};
  p.batch = image.batch;
  p.height = image.height;
  p.width = image.width;
  p.in_channels = image.channels;
  p.out_height = out_height;
  p.out_width = out_width;
  p.out_channels = k;
  p.stride_height = stride[0];
  p.stride_width = stride[1];
  p.activation = check_activation(op, "activation", activation);
  p.packed = weights.pointwise(weight, bias);
  weights.check_end();
  p.input = data(dense_input);
  p.residual = data_or_null(dense_residual);
  p.input_scale = data_or_null(dense_scale);
  p.output = mutable_data(output);
  image.kernels.pointwise_conv2d(&p, 1, torch_threads());
  return output;
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("pointwise_conv2d", TORCH_BOX(&fastconv::pointwise_conv2d_cpu));
  m.impl("pointwise_conv2d_infer", TORCH_BOX(&fastconv::pointwise_conv2d_cpu));
}
