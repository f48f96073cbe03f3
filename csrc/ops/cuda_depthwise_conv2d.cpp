#include "../cuda/depthwise_conv2d.h"
#include "cuda_check.h"
#include "depthwise.h"

namespace fastconv {
namespace {

void cuda_depthwise_conv2d(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                           const Ints& stride, const Ints& padding, const Ints& dilation,
                           int64_t activation, const Tensor& output, const OptionalTensor& sums) {
  const char* op = "cuda_depthwise_conv2d";
  CudaDepthwiseConv2dParams p{};
  p.type = check_gpu_map(op, "input", input);
  FASTCONV_CHECK(input.dim() == 4 && input.numel() > 0, op, "input",
                 "have 4 dimensions and something in it", shape_text(input));
  const int64_t n = input.size(0), c = input.size(1), h = input.size(2), w = input.size(3);
  check_same(op, "output", output, input, input.scalar_type());
  FASTCONV_CHECK(output.dim() == 4, op, "output", "have 4 dimensions", shape_text(output));
  const bool nhwc = is_nhwc(input) && is_nhwc(output);
  FASTCONV_CHECK(nhwc || (is_nchw(input) && is_nchw(output)), op, "input and output",
                 "both be dense channels_last, or both dense contiguous", "other strides");
  p.bias = check_gpu_vector(op, "bias", bias, input, c);
  const float* filters = check_filters(op, weight, input, c, nhwc);
  const Sizes image{n, c, h, w};
  p.conv = depthwise_window(op, image, c, KernelSize(weight), stride, padding, dilation);
  check_sizes(op, "output", output, {n, c, p.conv.out_height, p.conv.out_width});
  p.conv.packed = filters;
  p.conv.activation = check_activation(op, "activation", activation);
  p.conv.input = data(input);
  p.conv.output = mutable_data(output);
  if (sums.has_value()) {
    FASTCONV_CHECK(nhwc && sums->dim() == 3 && sums->size(1) > 0 && sums->size(1) <= 65535, op,
                   "sums", "have shape (N, P, C) with P from 1 to 65535, beside channels_last maps",
                   shape_text(*sums));
    p.bands = sums->size(1);
    check_same(op, "sums", *sums, input, ScalarType::Float);
    check_sizes(op, "sums", *sums, {n, p.bands, c});
    FASTCONV_CHECK(sums->is_contiguous(), op, "sums", "be dense", "other strides");
    p.sums = sums->mutable_data_ptr<float>();
  }
  const OnGpu gpu(input);
  const auto run = nhwc ? launch_depthwise_conv2d : launch_depthwise_conv2d_nchw;
  check_launch(op, run(p, gpu.stream()));
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  m.impl("cuda_depthwise_conv2d", TORCH_BOX(&fastconv::cuda_depthwise_conv2d));
}
