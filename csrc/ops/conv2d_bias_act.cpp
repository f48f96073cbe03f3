#include "conv2d_bias_act.h"

namespace fastconv {
namespace {

Tensor conv2d_bias_act_cpu(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                           const Ints& stride, const Ints& padding, int64_t activation,
                           const OptionalTensor& packed) {
  const char* op = "conv2d_bias_act";
  const Image image = check_input(op, input);
  check_weights(op, "weight", weight);
  FASTCONV_CHECK(weight.dim() == 4 && weight.numel() > 0 && weight.size(1) == image.channels, op,
                 "weight", text("have shape (K, ", image.channels, ", KH, KW)"),
                 shape_text(weight));
  const int64_t k = weight.size(0);
  check_vector(op, "bias", bias, k);
  Conv2dBiasActParams p = conv2d_window(op, image, k, KernelSize(weight), stride, padding);
  p.activation = check_activation(op, "activation", activation);
  PackedWeights weights(op, packed, image.kernels);
  weights.dense(p, weight, bias);
  weights.check_end();
  Tensor output = empty_channels_last(input, {image.batch, k, p.out_height, p.out_width});
  set_strided_input(p, input);
  p.output = mutable_data(output);
  image.kernels.conv2d_bias_act(p, torch_threads());
  return output;
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("conv2d_bias_act", TORCH_BOX(&fastconv::conv2d_bias_act_cpu));
  m.impl("conv2d_bias_act_infer", TORCH_BOX(&fastconv::conv2d_bias_act_cpu));
}
