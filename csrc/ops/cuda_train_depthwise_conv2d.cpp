#include "../cuda/train_depthwise_conv2d.h"
#include "cuda_check.h"

namespace fastconv {
namespace {

// Dense NHWC like the input, with these sizes.
void check_map(const char* op, const char* arg, const Tensor& t, const Tensor& input,
               const Sizes& sizes) {
  check_same(op, arg, t, input, input.scalar_type());
  check_sizes(op, arg, t, {sizes.batch, sizes.channels, sizes.height, sizes.width});
  FASTCONV_CHECK(is_nhwc(t), op, arg, "be dense channels_last", "other strides");
}

// Dense float32, or null.
const Tensor* check_dense(const char* op, const char* arg, const OptionalTensor& t,
                          const Tensor& input, std::initializer_list<int64_t> sizes) {
  if (!t.has_value()) return nullptr;
  check_same(op, arg, *t, input, ScalarType::Float);
  check_sizes(op, arg, *t, sizes);
  FASTCONV_CHECK(t->is_contiguous(), op, arg, "be dense", "other strides");
  return &*t;
}
const float* read(const Tensor* t) { return t == nullptr ? nullptr : t->const_data_ptr<float>(); }
float* written(const Tensor* t) { return t == nullptr ? nullptr : t->mutable_data_ptr<float>(); }

// The partial sums' buffer (P, rows, C), which is there just where it is needed; returns P.
int64_t check_partial(const char* op, const OptionalTensor& partial, const Tensor& input,
                      int64_t rows, int64_t channels) {
  FASTCONV_CHECK(partial.has_value() == (rows > 0), op, "partial",
                 "be given where, and only where, something is summed up",
                 partial.has_value() ? "a tensor" : "None");
  if (!partial.has_value()) return 0;
  const bool fits = partial->dim() == 3 && partial->size(0) > 0 && partial->size(0) <= 65535;
  FASTCONV_CHECK(fits, op, "partial",
                 text("have shape (P, ", rows, ", ", channels, ") with P from 1 to 65535"),
                 shape_text(*partial));
  check_dense(op, "partial", partial, input, {partial->size(0), rows, channels});
  return partial->size(0);
}

// The convolution's input and window, with all that is asked of both.
struct Problem {
  Problem(const char* op, const Tensor& input, const OptionalTensor& affine, int64_t activation,
          const Tensor& weight, const Ints& stride, const Ints& padding, const Ints& dilation)
      : type(check_gpu_map(op, "input", input)) {
    FASTCONV_CHECK(input.dim() == 4 && input.size(1) > 0 && input.size(2) > 0 && input.size(3) > 0,
                   op, "input", "have shape (N, C, H, W) with C, H, W at least 1",
                   shape_text(input));
    image = {input.size(0), input.size(1), input.size(2), input.size(3)};
    FASTCONV_CHECK(is_nhwc(input), op, "input", "be dense channels_last", "other strides");
    packed = check_filters(op, weight, input, image.channels, true);
    const KernelSize kernel(weight);
    const Window over = check_window(op, image, kernel, stride, padding, dilation);
    set_window(window, image, kernel, over, stride, padding);
    window.channels = image.channels;
    window.dilation_height = dilation[0];
    window.dilation_width = dilation[1];
    map = {data(input), read(check_dense(op, "affine", affine, input, {2, image.channels})),
           nullptr, check_activation(op, "activation", activation)};
    FASTCONV_CHECK(affine.has_value() || map.activation == Activation::kNone, op, "activation",
                   "be 0 without affine", activation);
  }
  Sizes output() const {
    return {image.batch, image.channels, window.out_height, window.out_width};
  }

  DataType type;
  Sizes image{};
  TrainWindow window{};
  const float* packed = nullptr;
  NormalizedMap map{};
};

void cuda_train_depthwise_conv2d(const Tensor& input, const OptionalTensor& affine,
                                 int64_t activation, const Tensor& weight, const Ints& stride,
                                 const Ints& padding, const Ints& dilation, const Tensor& output,
                                 const OptionalTensor& partial, const OptionalTensor& moments) {
  const char* op = "cuda_train_depthwise_conv2d";
  const Problem problem(op, input, affine, activation, weight, stride, padding, dilation);
  const int64_t c = problem.image.channels;
  check_map(op, "output", output, input, problem.output());
  CudaTrainDepthwiseConv2dParams p{};
  p.type = problem.type;
  p.parts = check_partial(op, partial, input, moments.has_value() ? 3 : 0, c);
  p.partial = partial.has_value() ? written(&*partial) : nullptr;
  p.conv = {problem.window, problem.map, problem.packed, mutable_data(output),
            written(check_dense(op, "moments", moments, input, {2, c}))};
  const OnGpu gpu(input);
  check_launch(op, launch_train_depthwise_conv2d(p, gpu.stream()));
}

GradientMap check_gradient(const char* op, const Tensor& input, const Sizes& sizes,
                           const Tensor& grad, const OptionalTensor& raw,
                           const std::array<const OptionalTensor*, 4>& rest, int64_t activation) {
  const int64_t n = sizes.batch, k = sizes.channels;
  check_map(op, "grad", grad, input, sizes);
  if (raw.has_value()) check_map(op, "raw", *raw, input, sizes);
  const GradientMap map{data(grad),
                        data_or_null(raw),
                        read(check_dense(op, "raw_affine", *rest[0], input, {2, k})),
                        read(check_dense(op, "raw_gate", *rest[1], input, {n, k})),
                        read(check_dense(op, "offset", *rest[2], input, {n, k})),
                        read(check_dense(op, "coefficients", *rest[3], input, {4, k})),
                        check_activation(op, "raw_activation", activation)};
  bool bare = map.activation == Activation::kNone;
  for (const OptionalTensor* t : rest) bare = bare && !t->has_value();
  FASTCONV_CHECK(raw.has_value() || bare, op, "raw", "be given with what belongs to it", "None");
  return map;
}

void cuda_train_depthwise_conv2d_backward(
    const Tensor& grad, const OptionalTensor& raw, const OptionalTensor& raw_affine,
    const OptionalTensor& raw_gate, const OptionalTensor& offset, int64_t raw_activation,
    const OptionalTensor& coefficients, const Tensor& input, const OptionalTensor& affine,
    int64_t activation, const OptionalTensor& mean, const Tensor& weight, const Ints& stride,
    const Ints& padding, const Ints& dilation, const OptionalTensor& residual,
    const OptionalTensor& partial, const OptionalTensor& grad_input,
    const OptionalTensor& grad_weight, const OptionalTensor& grad_bias,
    const OptionalTensor& sums) {
  const char* op = "cuda_train_depthwise_conv2d_backward";
  const Problem problem(op, input, affine, activation, weight, stride, padding, dilation);
  const int64_t c = problem.image.channels;
  const std::array<const OptionalTensor*, 4> rest{&raw_affine, &raw_gate, &offset, &coefficients};
  const GradientMap gradient =
      check_gradient(op, input, problem.output(), grad, raw, rest, raw_activation);
  if (residual.has_value()) check_map(op, "residual", *residual, input, problem.image);
  if (grad_input.has_value()) check_map(op, "grad_input", *grad_input, input, problem.image);
  const bool wants_sums = sums.has_value();
  FASTCONV_CHECK(!wants_sums || grad_input.has_value(), op, "sums", "be given with grad_input only",
                 "both");
  FASTCONV_CHECK(!wants_sums || (affine.has_value() && mean.has_value()), op, "mean",
                 "be given, with affine, for sums", "None");
  CudaTrainDepthwiseConv2dBackwardParams p{};
  p.conv = {problem.window,
            problem.map,
            gradient,
            problem.packed,
            check_gpu_vector(op, "mean", mean, input, c),
            data_or_null(residual),
            grad_input.has_value() ? mutable_data(*grad_input) : nullptr,
            written(check_dense(op, "grad_weight", grad_weight, input,
                                {c, 1, problem.window.kernel_height, problem.window.kernel_width})),
            written(check_dense(op, "grad_bias", grad_bias, input, {c})),
            written(check_dense(op, "sums", sums, input, {2, c}))};
  p.type = problem.type;
  p.parts = check_partial(op, partial, input, p.rows(), c);
  p.partial = partial.has_value() ? written(&*partial) : nullptr;
  const OnGpu gpu(input);
  check_launch(op, launch_train_depthwise_conv2d_backward(p, gpu.stream()));
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CUDA, m) {
  m.impl("cuda_train_depthwise_conv2d", TORCH_BOX(&fastconv::cuda_train_depthwise_conv2d));
  m.impl("cuda_train_depthwise_conv2d_backward",
         TORCH_BOX(&fastconv::cuda_train_depthwise_conv2d_backward));
}
