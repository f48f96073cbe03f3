#include "check.h"

namespace fastconv {
namespace {

Tensor conv2d_bias_act_cpu(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                           const Ints& stride, const Ints& padding, int64_t activation,
                           const OptionalTensor& packed) {
  const char* op = "conv2d_bias_act";
  const Image image = check_input(op, input);
  check_float_cpu(op, "weight", weight);
  FASTCONV_CHECK(weight.dim() == 4 && weight.numel() > 0 && weight.size(1) == image.channels, op,
                 "weight", text("have shape (K, ", image.channels, ", KH, KW)"),
                 shape_text(weight));
  const Window window = check_window(op, image, weight, stride, padding, {1, 1});
  const int64_t k = weight.size(0);
  check_vector(op, "bias", bias, k);
  PackedWeights weights(op, packed);
  Tensor output = empty_channels_last(input, {image.batch, k, window.out_height, window.out_width});
  Conv2dBiasActParams p{};
  p.batch = image.batch;
  p.height = image.height;
  p.width = image.width;
  p.in_channels = image.channels;
  p.out_height = window.out_height;
  p.out_width = window.out_width;
  p.out_channels = k;
  p.kernel_height = weight.size(2);
  p.kernel_width = weight.size(3);
  p.stride_height = stride[0];
  p.stride_width = stride[1];
  p.pad_top = padding[0];
  p.pad_left = padding[2];
  p.activation = check_activation(op, "activation", activation);
  p.packed = weights.pointwise(weight, bias);
  weights.check_end();
  p.input = data(input);
  p.batch_stride = input.stride(0);
  p.channel_stride = input.stride(1);
  p.row_stride = input.stride(2);
  p.column_stride = input.stride(3);
  p.output = mutable_data(output);
  kernels().conv2d_bias_act(p, torch_threads());
  return output;
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("conv2d_bias_act", TORCH_BOX(&fastconv::conv2d_bias_act_cpu));
  m.impl("conv2d_bias_act_infer", TORCH_BOX(&fastconv::conv2d_bias_act_cpu));
}
