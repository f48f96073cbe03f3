#include "../cuda/inverted_residual.h"
#include "cuda_check.h"
#include "depthwise.h"

namespace fastconv {
namespace {

// A dense (K, channels, 1, 1) weight of the maps' dtype.
const void* check_gpu_pointwise(const char* op, const char* arg, const Tensor& weight,
                                const Tensor& input, int64_t k, int64_t channels) {
  check_same(op, arg, weight, input, input.scalar_type());
  check_sizes(op, arg, weight, {k, channels, 1, 1});
  FASTCONV_CHECK(weight.is_contiguous(), op, arg, "be dense", "other strides");
  return data(weight);
}

void cuda_inverted_residual(const Tensor& input, const OptionalTensor& expand_weight,
                            const OptionalTensor& expand_bias, const Tensor& depthwise_weight,
                            const OptionalTensor& depthwise_bias,
                            const OptionalTensor& project_weight,
                            const OptionalTensor& project_bias, const Ints& stride,
                            const Ints& padding, const Ints& activations,
                            const OptionalTensor& residual, const Ints& tile, const Tensor& output,
                            const OptionalTensor& sums, int64_t shared_bytes) {
  const char* op = "cuda_inverted_residual";
  CudaInvertedResidualParams p{};
  p.type = check_gpu_map(op, "input", input);
  FASTCONV_CHECK(p.type != DataType::kFloat32, op, "input", "be float16 or bfloat16", "float32");
  FASTCONV_CHECK(input.dim() == 4 && input.numel() > 0 && is_nhwc(input), op, "input",
                 "have 4 dimensions, something in it, and be dense channels_last",
                 shape_text(input));
  const Sizes image{input.size(0), input.size(1), input.size(2), input.size(3)};
  const int64_t mid = depthwise_weight.dim() == 4 ? depthwise_weight.size(0) : 0;
  FASTCONV_CHECK(expand_weight.has_value() || mid == image.channels, op, "depthwise_weight",
                 text("have shape (", image.channels, ", 1, KH, KW)"),
                 shape_text(depthwise_weight));
  p.depthwise_weight = check_filters(op, depthwise_weight, input, mid, true);
  const KernelSize kernel(depthwise_weight);
  const DepthwiseConv2dParams window =
      depthwise_window(op, image, mid, kernel, stride, padding, {1, 1});
  if (expand_weight.has_value())
    p.expand_weight =
        check_gpu_pointwise(op, "expand_weight", *expand_weight, input, mid, image.channels);
  int64_t out = 0;
  if (project_weight.has_value()) {
    out = project_weight->dim() == 4 ? project_weight->size(0) : 0;
    FASTCONV_CHECK(out > 0, op, "project_weight", "have shape (K, M, 1, 1)",
                   shape_text(*project_weight));
    p.project_weight = check_gpu_pointwise(op, "project_weight", *project_weight, input, out, mid);
  }
  p.expand_bias = check_gpu_vector(op, "expand_bias", expand_bias, input, mid);
  p.depthwise_bias = check_gpu_vector(op, "depthwise_bias", depthwise_bias, input, mid);
  p.project_bias = check_gpu_vector(op, "project_bias", project_bias, input, out);
  FASTCONV_CHECK(kernel.height == kernel.width && stride[0] == stride[1], op, "window", "be square",
                 "another");
  p.sizes = {image.batch,
             image.height,
             image.width,
             window.out_height,
             window.out_width,
             image.channels,
             mid,
             out,
             kernel.height,
             stride[0],
             expand_weight.has_value()};
  FASTCONV_CHECK(tile.size() == 2, op, "tile", "be (height, width)", tile.size());
  p.tile = {tile[0], tile[1]};
  FASTCONV_CHECK(fits(p.sizes, p.tile, shared_bytes), op, "tile",
                 text("be one of inverted_residual_tiles for ", shared_bytes, " bytes"),
                 text(tile[0], " x ", tile[1]));
  p.pad_top = padding[0];
  p.pad_left = padding[2];
  FASTCONV_CHECK(activations.size() == 3, op, "activations", "be three codes", activations.size());
  p.activation = check_activation(op, "activation", activations[0]);
  p.depthwise_activation = check_activation(op, "depthwise activation", activations[1]);
  p.project_activation = check_activation(op, "project activation", activations[2]);

  const int64_t oh = window.out_height, ow = window.out_width;
  const auto check_output = [&](const char* arg, const Tensor& t) {
    check_same(op, arg, t, input, input.scalar_type());
    check_sizes(op, arg, t, {image.batch, out ? out : mid, oh, ow});
    FASTCONV_CHECK(is_nhwc(t), op, arg, "be dense channels_last", "other strides");
  };
  check_output("output", output);
  if (residual.has_value()) {
    FASTCONV_CHECK(out > 0, op, "residual", "be None without a projection", "a tensor");
    check_output("residual", *residual);
    p.residual = data(*residual);
  }
  if (sums.has_value()) {
    const int64_t tiles = ((oh + tile[0] - 1) / tile[0]) * ((ow + tile[1] - 1) / tile[1]);
    FASTCONV_CHECK(out == 0, op, "sums", "be None beside a projection", "a tensor");
    check_same(op, "sums", *sums, input, ScalarType::Float);
    check_sizes(op, "sums", *sums, {image.batch, tiles, mid});
    FASTCONV_CHECK(sums->is_contiguous(), op, "sums", "be dense", "other strides");
    p.sums = sums->mutable_data_ptr<float>();
  }
  p.input = data(input);
  p.output = mutable_data(output);
  const OnGpu gpu(input);
  check_launch(op, launch_inverted_residual(p, gpu.stream()));
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  m.impl("cuda_inverted_residual", TORCH_BOX(&fastconv::cuda_inverted_residual));
}
