#include "../train.h"

#include "../cpu/scratch.h"
#include "check.h"

namespace fastconv {
namespace {

// float32 [sizes], dense; keeps the tensor alive.
OptionalTensor check_floats(const char* op, const char* arg, const OptionalTensor& t,
                            std::array<int64_t, 2> sizes) {
  if (!t.has_value()) return std::nullopt;
  check_cpu(op, arg, *t);
  FASTCONV_CHECK(t->scalar_type() == ScalarType::Float, op, arg, "be float32", "another dtype");
  FASTCONV_CHECK(t->dim() == 2 && t->size(0) == sizes[0] && t->size(1) == sizes[1], op, arg,
                 text("have shape (", sizes[0], ", ", sizes[1], ")"), shape_text(*t));
  return dense(*t);
}

OptionalTensor check_mean(const char* op, const OptionalTensor& t, int64_t channels) {
  if (!t.has_value()) return std::nullopt;
  check_cpu(op, "mean", *t);
  FASTCONV_CHECK(t->scalar_type() == ScalarType::Float && t->dim() == 1 && t->size(0) == channels,
                 op, "mean", text("be float32 of shape (", channels, ",)"), shape_text(*t));
  return dense(*t);
}

const float* floats_or_null(const OptionalTensor& t) {
  return t.has_value() ? floats(*t) : nullptr;
}

OptionalTensor check_map_like(const char* op, const char* arg, const OptionalTensor& t,
                              const Tensor& like, std::array<int64_t, 4> sizes) {
  if (!t.has_value()) return std::nullopt;
  check_like(op, arg, *t, like);
  bool ok = t->dim() == 4;
  for (int64_t i = 0; ok && i < 4; ++i) ok = t->size(i) == sizes[i];
  FASTCONV_CHECK(
      ok, op, arg,
      text("have shape [", sizes[0], ", ", sizes[1], ", ", sizes[2], ", ", sizes[3], "]"),
      shape_text(*t));
  return channels_last(*t);
}

// A NormalizedMap and the tensors behind it.
struct Normalized {
  Normalized(const char* op, const Tensor& input, const Sizes& image,
             const OptionalTensor& affine_or_not, const OptionalTensor& gate_or_not,
             int64_t activation)
      : map(channels_last(input)),
        affine(check_floats(op, "affine", affine_or_not, {2, image.channels})),
        gate(check_floats(op, "gate", gate_or_not, {image.batch, image.channels})),
        params{data(map), floats_or_null(affine), floats_or_null(gate),
               check_activation(op, "activation", activation)} {
    FASTCONV_CHECK(affine.has_value() || params.activation == Activation::kNone, op, "activation",
                   "be 0 without affine", activation);
  }
  Tensor map;
  OptionalTensor affine, gate;
  NormalizedMap params;
};

// A GradientMap and the tensors behind it.
struct Gradient {
  Gradient(const char* op, const Tensor& grad_map, const OptionalTensor& raw_map,
           const OptionalTensor& affine_or_not, const OptionalTensor& gate_or_not,
           const OptionalTensor& offset_or_not, int64_t activation,
           const OptionalTensor& coefficients_or_not)
      : image(check_input(op, grad_map)),
        grad(channels_last(grad_map)),
        raw(check_map_like(op, "raw", raw_map, grad_map,
                           {image.batch, image.channels, image.height, image.width})),
        affine(check_floats(op, "raw_affine", affine_or_not, {2, image.channels})),
        gate(check_floats(op, "raw_gate", gate_or_not, {image.batch, image.channels})),
        offset(check_floats(op, "offset", offset_or_not, {image.batch, image.channels})),
        coefficients(check_floats(op, "coefficients", coefficients_or_not, {4, image.channels})),
        params{data(grad),
               data_or_null(raw),
               floats_or_null(affine),
               floats_or_null(gate),
               floats_or_null(offset),
               floats_or_null(coefficients),
               check_activation(op, "raw_activation", activation)} {
    const bool bare = !affine.has_value() && !gate.has_value() && !offset.has_value() &&
                      !coefficients.has_value() && params.activation == Activation::kNone;
    FASTCONV_CHECK(raw.has_value() || bare, op, "raw", "be given with what belongs to it", "None");
  }
  const Image image;
  Tensor grad;
  OptionalTensor raw, affine, gate, offset, coefficients;
  GradientMap params;
};

template <std::size_t kCount>
Tensor new_floats(const Tensor& like, std::array<int64_t, kCount> sizes) {
  return torch::stable::empty({sizes.data(), sizes.size()}, ScalarType::Float, std::nullopt,
                              like.device());
}

Tensor nothing(const Tensor& like) { return new_floats<1>(like, {0}); }

// Results of sums are zero where there is nothing to sum.
template <std::size_t kCount>
Tensor wanted_floats(const Tensor& like, bool wanted, bool empty,
                     std::array<int64_t, kCount> sizes) {
  if (!wanted) return nothing(like);
  Tensor result = new_floats(like, sizes);
  if (empty) torch::stable::zero_(result);
  return result;
}

// Large maps are written once and read a few times: with small pages the system would spend as
// long on handing them out.
Tensor new_map(const Tensor& like, std::array<int64_t, 4> sizes) {
  Tensor map = empty_channels_last(like, sizes);
  const int64_t bytes =
      sizes[0] * sizes[1] * sizes[2] * sizes[3] * (like.scalar_type() == ScalarType::Float ? 4 : 2);
  if (bytes >= static_cast<int64_t>(2 * kHugePage)) prefer_huge_pages(mutable_data(map), bytes);
  return map;
}

std::array<int64_t, 4> sizes_of(const Sizes& image) {
  return {image.batch, image.channels, image.height, image.width};
}

float* floats_if(bool wanted, Tensor& t) { return wanted ? mutable_floats(t) : nullptr; }

int64_t data_type(const Tensor& map) {
  return static_cast<int64_t>(map.scalar_type() == ScalarType::BFloat16 ? DataType::kBfloat16
                                                                        : DataType::kFloat32);
}

std::tuple<Tensor, Tensor> train_pointwise_conv2d_cpu(const Tensor& input,
                                                      const OptionalTensor& affine,
                                                      const OptionalTensor& gate,
                                                      int64_t activation, const Tensor& weight,
                                                      bool wants_moments) {
  const char* op = "train_pointwise_conv2d";
  const Image image = check_input(op, input);
  const int64_t k = check_pointwise_weight(op, "weight", weight, image.channels);
  const Normalized normalized(op, input, image, affine, gate, activation);
  const bool empty = image.batch == 0;
  Tensor output = new_map(input, {image.batch, k, image.height, image.width});
  Tensor moments = wanted_floats<2>(input, wants_moments, empty, {2, k});
  const Tensor matrix = dense_float(weight);
  const TrainPointwiseConv2dParams p{image.batch,          image.height * image.width,
                                     image.channels,       k,
                                     normalized.params,    floats(matrix),
                                     mutable_data(output), floats_if(wants_moments, moments)};
  if (!empty) image.kernels.train_pointwise_conv2d(p, torch_threads());
  return {output, moments};
}

TrainWindow train_window(const char* op, const Sizes& image, const Tensor& weight,
                         const Ints& stride, const Ints& padding, const Ints& dilation) {
  check_depthwise_weight(op, "weight", weight, image.channels);
  const KernelSize kernel(weight);
  const Window window = check_window(op, image, kernel, stride, padding, dilation);
  TrainWindow w{};
  set_window(w, image, kernel, window, stride, padding);
  w.channels = image.channels;
  w.dilation_height = dilation[0];
  w.dilation_width = dilation[1];
  return w;
}

std::tuple<Tensor, Tensor> train_depthwise_conv2d_cpu(const Tensor& input,
                                                      const OptionalTensor& affine,
                                                      int64_t activation, const Tensor& weight,
                                                      const Ints& stride, const Ints& padding,
                                                      const Ints& dilation, bool wants_moments) {
  const char* op = "train_depthwise_conv2d";
  const Image image = check_input(op, input);
  const TrainWindow window = train_window(op, image, weight, stride, padding, dilation);
  const Normalized normalized(op, input, image, affine, std::nullopt, activation);
  const bool empty = image.batch == 0;
  Tensor output =
      new_map(input, {image.batch, image.channels, window.out_height, window.out_width});
  Tensor moments = wanted_floats<2>(input, wants_moments, empty, {2, image.channels});
  const Tensor packed = pack_depthwise(weight, std::nullopt, data_type(input));
  const TrainDepthwiseConv2dParams p{window, normalized.params, floats(packed),
                                     mutable_data(output), floats_if(wants_moments, moments)};
  if (!empty) image.kernels.train_depthwise_conv2d(p, torch_threads());
  return {output, moments};
}

void check_wanted(const char* op, const std::vector<bool>& wanted) {
  FASTCONV_CHECK(wanted.size() == 4, op, "wanted", "be 4 bools", text(wanted.size(), " bools"));
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Gradients train_pointwise_conv2d_backward_cpu(
    const Tensor& grad, const OptionalTensor& raw, const OptionalTensor& raw_affine,
    const OptionalTensor& raw_gate, const OptionalTensor& offset, int64_t raw_activation,
    const OptionalTensor& coefficients, const Tensor& input, const OptionalTensor& affine,
    const OptionalTensor& gate, int64_t activation, const OptionalTensor& mean,
    const Tensor& weight, const OptionalTensor& residual, const std::vector<bool>& wanted) {
  const char* op = "train_pointwise_conv2d_backward";
  check_wanted(op, wanted);
  const Gradient gradient(op, grad, raw, raw_affine, raw_gate, offset, raw_activation,
                          coefficients);
  const Image image = check_input(op, input);
  check_like(op, "input", input, grad);
  const int64_t c = image.channels, k = check_pointwise_weight(op, "weight", weight, c);
  const Image& out = gradient.image;
  const bool fits = out.batch == image.batch && out.channels == k && out.height == image.height &&
                    out.width == image.width;
  FASTCONV_CHECK(
      fits, op, "grad",
      text("have shape [", image.batch, ", ", k, ", ", image.height, ", ", image.width, "]"),
      shape_text(grad));
  const Normalized normalized(op, input, image, affine, gate, activation);
  const OptionalTensor means = check_mean(op, mean, c);
  const OptionalTensor dense_residual =
      check_map_like(op, "residual", residual, input, sizes_of(image));
  const bool gates = wanted[3] && gate.has_value(), sums = wanted[3] && !gates;
  FASTCONV_CHECK(!wanted[3] || wanted[0], op, "wanted", "ask for sums with grad_input only",
                 "both");
  FASTCONV_CHECK(!sums || (affine.has_value() && means.has_value()), op, "mean",
                 "be given, with affine, for sums", "None");
  const bool empty = image.batch == 0;
  Tensor grad_input = wanted[0] ? new_map(input, sizes_of(image)) : nothing(input);
  Tensor grad_weight = wanted_floats<4>(input, wanted[1], empty, {k, c, 1, 1});
  Tensor grad_bias = wanted_floats<1>(input, wanted[2], empty, {k});
  Tensor results = wanted_floats<2>(input, wanted[3], empty, {gates ? image.batch : 2, c});
  const Tensor matrix = dense_float(weight);
  const TrainPointwiseConv2dBackwardParams p{image.batch,
                                             image.height * image.width,
                                             c,
                                             k,
                                             normalized.params,
                                             gradient.params,
                                             floats(matrix),
                                             floats_or_null(means),
                                             data_or_null(dense_residual),
                                             wanted[0] ? mutable_data(grad_input) : nullptr,
                                             floats_if(wanted[1], grad_weight),
                                             floats_if(wanted[2], grad_bias),
                                             floats_if(sums, results),
                                             floats_if(gates, results)};
  if (!empty) image.kernels.train_pointwise_conv2d_backward(p, torch_threads());
  return {grad_input, grad_weight, grad_bias, results};
}

Gradients train_depthwise_conv2d_backward_cpu(
    const Tensor& grad, const OptionalTensor& raw, const OptionalTensor& raw_affine,
    const OptionalTensor& raw_gate, const OptionalTensor& offset, int64_t raw_activation,
    const OptionalTensor& coefficients, const Tensor& input, const OptionalTensor& affine,
    int64_t activation, const OptionalTensor& mean, const Tensor& weight, const Ints& stride,
    const Ints& padding, const Ints& dilation, const OptionalTensor& residual,
    const std::vector<bool>& wanted) {
  const char* op = "train_depthwise_conv2d_backward";
  check_wanted(op, wanted);
  const Gradient gradient(op, grad, raw, raw_affine, raw_gate, offset, raw_activation,
                          coefficients);
  const Image image = check_input(op, input);
  check_like(op, "input", input, grad);
  const int64_t c = image.channels;
  const TrainWindow window = train_window(op, image, weight, stride, padding, dilation);
  const Image& out = gradient.image;
  const bool fits = out.batch == image.batch && out.channels == c &&
                    out.height == window.out_height && out.width == window.out_width;
  FASTCONV_CHECK(fits, op, "grad",
                 text("have shape [", image.batch, ", ", c, ", ", window.out_height, ", ",
                      window.out_width, "]"),
                 shape_text(grad));
  const Normalized normalized(op, input, image, affine, std::nullopt, activation);
  const OptionalTensor means = check_mean(op, mean, c);
  const OptionalTensor dense_residual =
      check_map_like(op, "residual", residual, input, sizes_of(image));
  FASTCONV_CHECK(!wanted[3] || wanted[0], op, "wanted", "ask for sums with grad_input only",
                 "both");
  FASTCONV_CHECK(!wanted[3] || (affine.has_value() && means.has_value()), op, "mean",
                 "be given, with affine, for sums", "None");
  const bool empty = image.batch == 0;
  Tensor grad_input = wanted[0] ? new_map(input, sizes_of(image)) : nothing(input);
  Tensor grad_weight =
      wanted_floats<4>(input, wanted[1], empty, {c, 1, window.kernel_height, window.kernel_width});
  Tensor grad_bias = wanted_floats<1>(input, wanted[2], empty, {c});
  Tensor sums = wanted_floats<2>(input, wanted[3], empty, {2, c});
  OptionalTensor packed;
  if (wanted[0]) {
    Tensor turned = torch::stable::clone(dense_float(weight));
    float* taps = mutable_floats(turned);
    const int64_t count = window.kernel_height * window.kernel_width;
    for (int64_t i = 0; i < c; ++i, taps += count) std::reverse(taps, taps + count);
    packed = pack_depthwise(turned, std::nullopt, data_type(input));
  }
  const TrainDepthwiseConv2dBackwardParams p{window,
                                             normalized.params,
                                             gradient.params,
                                             floats_or_null(packed),
                                             floats_or_null(means),
                                             data_or_null(dense_residual),
                                             wanted[0] ? mutable_data(grad_input) : nullptr,
                                             floats_if(wanted[1], grad_weight),
                                             floats_if(wanted[2], grad_bias),
                                             floats_if(wanted[3], sums)};
  if (!empty) image.kernels.train_depthwise_conv2d_backward(p, torch_threads());
  return {grad_input, grad_weight, grad_bias, sums};
}

TrainMapParams map_params(const Sizes& image) {
  TrainMapParams p{};
  p.batch = image.batch;
  p.pixels = image.height * image.width;
  p.channels = image.channels;
  return p;
}

Tensor train_normalize_cpu(const Tensor& input, const Tensor& affine, const OptionalTensor& gate,
                           int64_t activation, const OptionalTensor& residual) {
  const char* op = "train_normalize";
  const Image image = check_input(op, input);
  const Normalized normalized(op, input, image, affine, gate, activation);
  const OptionalTensor dense_residual =
      check_map_like(op, "residual", residual, input, sizes_of(image));
  Tensor output = new_map(input, sizes_of(image));
  TrainMapParams p = map_params(image);
  p.input = normalized.params;
  p.residual = data_or_null(dense_residual);
  p.output = mutable_data(output);
  image.kernels.train_normalize(p, torch_threads());
  return output;
}

Tensor train_normalized_mean_cpu(const Tensor& input, const Tensor& affine, int64_t activation) {
  const char* op = "train_normalized_mean";
  const Image image = check_input(op, input);
  const Normalized normalized(op, input, image, affine, std::nullopt, activation);
  Tensor output = new_floats<2>(input, {image.batch, image.channels});
  TrainMapParams p = map_params(image);
  p.input = normalized.params;
  p.results = mutable_floats(output);
  image.kernels.train_normalized_mean(p, torch_threads());
  return output;
}

Tensor train_moments_cpu(const Tensor& input) {
  const char* op = "train_moments";
  const Image image = check_input(op, input);
  const Tensor map = channels_last(input);
  Tensor output = wanted_floats<2>(input, true, image.batch == 0, {2, image.channels});
  TrainMapParams p = map_params(image);
  p.input.data = data(map);
  p.results = mutable_floats(output);
  if (image.batch > 0) image.kernels.train_moments(p, torch_threads());
  return output;
}

Tensor train_gradient_cpu(const Tensor& grad, const Tensor& raw, const OptionalTensor& raw_affine,
                          const OptionalTensor& raw_gate, const OptionalTensor& offset,
                          int64_t raw_activation, const OptionalTensor& coefficients) {
  const Gradient gradient("train_gradient", grad, raw, raw_affine, raw_gate, offset, raw_activation,
                          coefficients);
  Tensor output = new_map(grad, sizes_of(gradient.image));
  TrainMapParams p = map_params(gradient.image);
  p.gradient = gradient.params;
  p.output = mutable_data(output);
  gradient.image.kernels.train_gradient(p, torch_threads());
  return output;
}

Tensor train_gradient_sums_cpu(const Tensor& grad, const Tensor& raw,
                               const OptionalTensor& raw_affine, const OptionalTensor& raw_gate,
                               const OptionalTensor& offset, int64_t raw_activation,
                               const Tensor& mean) {
  const char* op = "train_gradient_sums";
  const Gradient gradient(op, grad, raw, raw_affine, raw_gate, offset, raw_activation,
                          std::nullopt);
  const Image& image = gradient.image;
  const OptionalTensor means = check_mean(op, mean, image.channels);
  Tensor output = wanted_floats<2>(grad, true, image.batch == 0, {2, image.channels});
  TrainMapParams p = map_params(image);
  p.gradient = gradient.params;
  p.mean = floats(*means);
  p.results = mutable_floats(output);
  if (image.batch > 0) image.kernels.train_gradient_sums(p, torch_threads());
  return output;
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("train_pointwise_conv2d", TORCH_BOX(&fastconv::train_pointwise_conv2d_cpu));
  m.impl("train_depthwise_conv2d", TORCH_BOX(&fastconv::train_depthwise_conv2d_cpu));
  m.impl("train_pointwise_conv2d_backward",
         TORCH_BOX(&fastconv::train_pointwise_conv2d_backward_cpu));
  m.impl("train_depthwise_conv2d_backward",
         TORCH_BOX(&fastconv::train_depthwise_conv2d_backward_cpu));
  m.impl("train_normalize", TORCH_BOX(&fastconv::train_normalize_cpu));
  m.impl("train_normalized_mean", TORCH_BOX(&fastconv::train_normalized_mean_cpu));
  m.impl("train_moments", TORCH_BOX(&fastconv::train_moments_cpu));
  m.impl("train_gradient", TORCH_BOX(&fastconv::train_gradient_cpu));
  m.impl("train_gradient_sums", TORCH_BOX(&fastconv::train_gradient_sums_cpu));
}
