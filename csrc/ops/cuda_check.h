// What the Torch halves of the CUDA kernels share. Their callers have brought all tensors into the
// form that the kernels read; this is only asked for here, so that no call can crash.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../data_type.h"
#include "check.h"

namespace fastconv {

inline DataType check_gpu_map(const char* op, const char* arg, const Tensor& t) {
  FASTCONV_CHECK(t.is_cuda(), op, arg, "be on a GPU", "a tensor elsewhere");
  const ScalarType type = t.scalar_type();
  const bool known =
      type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16;
  FASTCONV_CHECK(known, op, arg, "be float32, float16 or bfloat16", "another dtype");
  if (type == ScalarType::Half) return DataType::kFloat16;
  return type == ScalarType::Float ? DataType::kFloat32 : DataType::kBfloat16;
}

inline void check_same(const char* op, const char* arg, const Tensor& t, const Tensor& input,
                       ScalarType type) {
  FASTCONV_CHECK(t.is_cuda() && t.get_device_index() == input.get_device_index(), op, arg,
                 "be on the input's GPU", "a tensor elsewhere");
  FASTCONV_CHECK(t.scalar_type() == type, op, arg, "have the kernel's dtype", "another");
}

// Strides of a dense array with these sizes, the last dimension innermost; sizes of 1 have any.
inline bool is_dense(const Tensor& t, std::initializer_list<int64_t> order) {
  int64_t step = 1;
  for (auto d = std::rbegin(order); d != std::rend(order); ++d) {
    if (t.size(*d) != 1 && t.stride(*d) != step) return false;
    step *= t.size(*d);
  }
  return true;
}

inline bool is_nhwc(const Tensor& t) { return is_dense(t, {0, 2, 3, 1}); }
inline bool is_nchw(const Tensor& t) { return is_dense(t, {0, 1, 2, 3}); }

inline void check_sizes(const char* op, const char* arg, const Tensor& t,
                        std::initializer_list<int64_t> sizes) {
  bool ok = t.dim() == static_cast<int64_t>(sizes.size());
  int64_t i = 0;
  for (const int64_t size : sizes) ok = ok && t.size(i++) == size;
  FASTCONV_CHECK(ok, op, arg, "have the shape that the other arguments give it", shape_text(t));
}

// A dense float32 vector, or null.
inline const float* check_gpu_vector(const char* op, const char* arg, const OptionalTensor& t,
                                     const Tensor& input, int64_t size) {
  if (!t.has_value()) return nullptr;
  check_same(op, arg, *t, input, ScalarType::Float);
  check_sizes(op, arg, *t, {size});
  FASTCONV_CHECK(t->is_contiguous(), op, arg, "be dense", "other strides");
  return t->const_data_ptr<float>();
}

// Depthwise filters (C, 1, KH, KW), float32, in memory [KH, KW, C] or [C, KH, KW].
inline const float* check_filters(const char* op, const Tensor& weight, const Tensor& input,
                                  int64_t channels, bool innermost) {
  check_same(op, "depthwise weight", weight, input, ScalarType::Float);
  FASTCONV_CHECK(weight.dim() == 4 && weight.size(0) == channels && weight.size(1) == 1 &&
                     weight.size(2) > 0 && weight.size(3) > 0,
                 op, "depthwise weight", text("have shape (", channels, ", 1, KH, KW)"),
                 shape_text(weight));
  const bool dense = innermost ? is_dense(weight, {2, 3, 1, 0}) : weight.is_contiguous();
  FASTCONV_CHECK(dense, op, "depthwise weight", innermost ? "be [KH, KW, C] in memory" : "be dense",
                 "other strides");
  return weight.const_data_ptr<float>();
}

// Makes a tensor's GPU the current one, and knows the stream that work on it goes to.
class OnGpu {
 public:
  explicit OnGpu(const Tensor& t) : guard_(t.get_device_index()) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream_));
  }
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

inline void check_launch(const char* op, const char* error) {
  STD_TORCH_CHECK(error == nullptr, op, ": the launch failed: ", error);
}

}  // namespace fastconv
