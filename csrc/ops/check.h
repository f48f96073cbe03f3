// What the Torch halves share: checks in the one form of message, layouts, packed weights, torch's
// threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "../activation.h"
#include "../cpu/dispatch.h"
#include "../packed.h"

namespace fastconv {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// "<op>: <arg> must <rule>, got <value>"; rule and value are only written when the check fails.
#define FASTCONV_CHECK(condition, op, arg, rule, value) \
  STD_TORCH_CHECK(condition, op, ": ", arg, " must ", rule, ", got ", value)

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

inline std::string shape_text(const Tensor& t) {
  std::ostringstream out;
  out << "[";
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  out << "]";
  return out.str();
}

inline void check_cpu(const char* op, const char* arg, const Tensor& t) {
  FASTCONV_CHECK(t.is_cpu(), op, arg, "be on the CPU", "a tensor on another device");
}

// The kernels for the elements of a map.
inline const KernelTable& check_map(const char* op, const char* arg, const Tensor& t) {
  check_cpu(op, arg, t);
  const KernelTable* table = nullptr;
  if (t.scalar_type() == ScalarType::Float) table = kernels_for(DataType::kFloat32);
  if (t.scalar_type() == ScalarType::BFloat16) table = kernels_for(DataType::kBfloat16);
  FASTCONV_CHECK(
      table != nullptr, op, arg,
      text("be float32", kernels_for(DataType::kBfloat16) == nullptr ? "" : " or bfloat16"),
      "another dtype");
  return *table;
}

// Another map of the same op.
inline void check_like(const char* op, const char* arg, const Tensor& t, const Tensor& input) {
  check_cpu(op, arg, t);
  FASTCONV_CHECK(t.scalar_type() == input.scalar_type(), op, arg, "have the input's dtype",
                 "another");
}

// Weights are converted to what the kernels take.
inline void check_weights(const char* op, const char* arg, const Tensor& t) {
  check_cpu(op, arg, t);
  const ScalarType type = t.scalar_type();
  FASTCONV_CHECK(
      type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, op,
      arg, "be float32, bfloat16 or float16", "another dtype");
}

struct Sizes {
  int64_t batch, channels, height, width;
};

struct Image : Sizes {
  const KernelTable& kernels;
};

inline Image check_input(const char* op, const Tensor& input) {
  const KernelTable& kernels = check_map(op, "input", input);
  FASTCONV_CHECK(input.dim() == 4, op, "input", "have 4 dimensions", shape_text(input));
  const Image image{{input.size(0), input.size(1), input.size(2), input.size(3)}, kernels};
  FASTCONV_CHECK(image.channels > 0 && image.height > 0 && image.width > 0, op, "input",
                 "have shape (N, C, H, W) with C, H, W at least 1", shape_text(input));
  // Offsets inside a slab of rows are 32-bit.
  FASTCONV_CHECK(image.width <= (int64_t{1} << 20), op, "input", "be at most 2^20 wide",
                 shape_text(input));
  return image;
}

inline void check_vector(const char* op, const char* arg, const OptionalTensor& t, int64_t size) {
  if (!t.has_value()) return;
  check_weights(op, arg, *t);
  FASTCONV_CHECK(t->dim() == 1 && t->size(0) == size, op, arg, text("have shape (", size, ",)"),
                 shape_text(*t));
}

// A (K, channels, 1, 1) weight; returns K.
inline int64_t check_pointwise_weight(const char* op, const char* arg, const Tensor& weight,
                                      int64_t channels) {
  check_weights(op, arg, weight);
  FASTCONV_CHECK(weight.dim() == 4 && weight.size(0) > 0 && weight.size(1) == channels &&
                     weight.size(2) == 1 && weight.size(3) == 1,
                 op, arg, text("have shape (K, ", channels, ", 1, 1)"), shape_text(weight));
  return weight.size(0);
}

inline void check_depthwise_weight(const char* op, const char* arg, const Tensor& weight,
                                   int64_t channels) {
  check_weights(op, arg, weight);
  FASTCONV_CHECK(weight.dim() == 4 && weight.size(0) == channels && weight.size(1) == 1 &&
                     weight.size(2) > 0 && weight.size(3) > 0,
                 op, arg, text("have shape (", channels, ", 1, KH, KW)"), shape_text(weight));
}

inline Activation check_activation(const char* op, const char* arg, int64_t code) {
  FASTCONV_CHECK(code >= 0 && code < kActivationCount, op, arg,
                 text("be a code from 0 to ", kActivationCount - 1), code);
  return static_cast<Activation>(code);
}

using Ints = std::vector<int64_t>;

inline void check_ints(const char* op, const char* arg, const Ints& values, std::size_t count,
                       int64_t least) {
  bool ok = values.size() == count;
  for (int64_t v : values) ok = ok && v >= least && v <= (int64_t{1} << 20);
  FASTCONV_CHECK(ok, op, arg, text("be ", count, " ints from ", least, " to 2^20"),
                 text(values.size(), " ints"));
}

// Sizes of a convolution's window over `image`, all arguments checked. padding: top, bottom, left,
// right.
struct Window {
  int64_t out_height, out_width;
};

struct KernelSize {
  explicit KernelSize(const Tensor& weight) : height(weight.size(2)), width(weight.size(3)) {}
  KernelSize(int64_t h, int64_t w) : height(h), width(w) {}
  int64_t height, width;
};

inline Window check_window(const char* op, const Sizes& image, const KernelSize& kernel,
                           const Ints& stride, const Ints& padding, const Ints& dilation) {
  check_ints(op, "stride", stride, 2, 1);
  check_ints(op, "padding", padding, 4, 0);
  check_ints(op, "dilation", dilation, 2, 1);
  const int64_t spare_h =
      image.height + padding[0] + padding[1] - dilation[0] * (kernel.height - 1) - 1;
  const int64_t spare_w =
      image.width + padding[2] + padding[3] - dilation[1] * (kernel.width - 1) - 1;
  FASTCONV_CHECK(spare_h >= 0 && spare_w >= 0, op, "input",
                 "be, with its padding, at least as large as the kernel",
                 text(image.height, " x ", image.width));
  return {spare_h / stride[0] + 1, spare_w / stride[1] + 1};
}

// The fields that every convolution's params have for its window.
template <class Params>
void set_window(Params& p, const Sizes& image, const KernelSize& kernel, const Window& window,
                const Ints& stride, const Ints& padding) {
  p.batch = image.batch;
  p.height = image.height;
  p.width = image.width;
  p.out_height = window.out_height;
  p.out_width = window.out_width;
  p.kernel_height = kernel.height;
  p.kernel_width = kernel.width;
  p.stride_height = stride[0];
  p.stride_width = stride[1];
  p.pad_top = padding[0];
  p.pad_left = padding[2];
}

// The tensor itself if its memory is dense NHWC, else a copy that is.
inline Tensor channels_last(const Tensor& t) {
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  const bool dense = (c == 1 || t.stride(1) == 1) && (w == 1 || t.stride(3) == c) &&
                     (h == 1 || t.stride(2) == w * c) &&
                     (t.size(0) == 1 || t.stride(0) == h * w * c);
  return dense ? t : torch::stable::contiguous(t, MemoryFormat::ChannelsLast);
}

inline Tensor dense(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline Tensor dense_float(const Tensor& t) {
  if (t.scalar_type() == ScalarType::Float) return dense(t);
  return dense(torch::stable::to(t, ScalarType::Float));
}

inline Tensor empty_channels_last(const Tensor& like, std::array<int64_t, 4> sizes) {
  return torch::stable::empty({sizes.data(), sizes.size()}, like.scalar_type(), std::nullopt,
                              like.device(), std::nullopt, MemoryFormat::ChannelsLast);
}

inline Tensor empty_2d(const Tensor& like, int64_t rows, int64_t columns) {
  const std::array<int64_t, 2> sizes{rows, columns};
  return torch::stable::empty({sizes.data(), sizes.size()}, like.scalar_type(), std::nullopt,
                              like.device());
}

// Of a map.
inline const void* data(const Tensor& t) { return t.const_data_ptr(); }

inline void* mutable_data(const Tensor& t) { return t.mutable_data_ptr(); }

// Of weights.
inline const float* floats(const Tensor& t) { return t.const_data_ptr<float>(); }

inline float* mutable_floats(const Tensor& t) { return t.mutable_data_ptr<float>(); }

// A residual of the output's shape, dense NHWC; keeps the tensor alive.
inline OptionalTensor check_residual(const char* op, const OptionalTensor& residual,
                                     const Tensor& input, std::array<int64_t, 4> sizes) {
  if (!residual.has_value()) return std::nullopt;
  check_like(op, "residual", *residual, input);
  bool ok = residual->dim() == 4;
  for (int64_t i = 0; ok && i < 4; ++i) ok = residual->size(i) == sizes[i];
  FASTCONV_CHECK(
      ok, op, "residual",
      text("have shape [", sizes[0], ", ", sizes[1], ", ", sizes[2], ", ", sizes[3], "]"),
      shape_text(*residual));
  return channels_last(*residual);
}

inline const void* data_or_null(const OptionalTensor& t) {
  return t.has_value() ? data(*t) : nullptr;
}

inline Threads torch_threads() {
  const auto run = [](void*, int64_t tasks, Threads::Body body, void* context) {
    torch::stable::parallel_for(0, tasks, 1,
                                [&](int64_t begin, int64_t end) { body(context, begin, end); });
  };
  return {static_cast<int64_t>(torch::stable::get_num_threads()), run, nullptr};
}

// type: of the maps, as a DataType.
Tensor pack_pointwise(const Tensor& weight, const OptionalTensor& bias, int64_t type);
Tensor pack_conv2d(const Tensor& weight, const OptionalTensor& bias, const Ints& stride,
                   int64_t type);
Tensor pack_depthwise(const Tensor& weight, const OptionalTensor& bias, int64_t type);

// Its kind of tensor; what it holds is checked by PackedWeights.
void check_packed(const char* op, const Tensor& packed);

// Walks the segments of an op's packed weights, checking each header; packs for this call where
// there is none.
class PackedWeights {
 public:
  PackedWeights(const char* op, const OptionalTensor& packed, const KernelTable& kernels);
  const float* pointwise(const Tensor& weight, const OptionalTensor& bias);
  const float* depthwise(const Tensor& weight, const OptionalTensor& bias);
  // Of a dense convolution; sets its packed and winograd.
  void dense(Conv2dBiasActParams& p, const Tensor& weight, const OptionalTensor& bias);
  void next_dense(Conv2dBiasActParams& p);
  // The next weights: `channels` outputs of `depth` inputs each, in equal segments.
  const float* next(PackedKind kind, int64_t channels, int64_t depth, int64_t segments = 1);
  void check_end() const;
  // Where the next weights begin; null without packed ones.
  const float* position() const { return cursor_; }

 private:
  const char* op_;
  const KernelTable& kernels_;
  const float* cursor_ = nullptr;
  int64_t left_ = 0;
  OptionalTensor packed_;
  std::array<OptionalTensor, 5> owned_;
  std::size_t owned_count_ = 0;
};

}  // namespace fastconv
