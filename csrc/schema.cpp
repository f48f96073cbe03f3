// The table of contents of the library. Every op exists twice with one schema: `x` gets its
// derivative in Python; `x_infer` has none, and with it none of the cost of looking for one.
// padding: top, bottom, left, right. packed: the weights as pack_pointwise and pack_depthwise
// return them, one after the other; without it the op packs for the call.
#include <string>

#include "ops/check.h"

namespace fastconv {
namespace {

void define(torch::stable::detail::StableLibrary& m, const char* name, const char* arguments) {
  for (const char* suffix : {"", "_infer"})
    m.def((std::string(name) + suffix + arguments + " -> Tensor").c_str());
}

int64_t isa(int64_t level) {
  if (level >= 0) {
    const bool known = level <= static_cast<int64_t>(Isa::kNeon);
    FASTCONV_CHECK(known && select_isa(static_cast<Isa>(level)), "isa", "level",
                   text("be -1 or a level that this CPU and this build have: ", isa_level_names()),
                   level);
  }
  return static_cast<int64_t>(kernels().isa);
}

bool has_kernels(int64_t type) {
  return type >= 0 && type < kDataTypeCount && kernels_for(static_cast<DataType>(type)) != nullptr;
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY(fastconv, m) {
  using fastconv::define;
  define(m, "pointwise_conv2d",
         "(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int activation, Tensor? "
         "residual, "
         "Tensor? input_scale, Tensor? packed=None)");
  define(m, "depthwise_conv2d",
         "(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[4] padding, int[2] "
         "dilation, int activation, "
         "Tensor? packed=None)");
  define(m, "depthwise_separable_conv2d",
         "(Tensor input, Tensor depthwise_weight, Tensor? depthwise_bias, Tensor pointwise_weight, "
         "Tensor? pointwise_bias, int[2] stride, int[4] padding, int[2] dilation, int "
         "depthwise_activation, "
         "int activation, Tensor? residual, Tensor? packed=None)");
  define(m, "inverted_residual",
         "(Tensor input, Tensor? expand_weight, Tensor? expand_bias, Tensor depthwise_weight, "
         "Tensor? depthwise_bias, "
         "Tensor project_weight, Tensor? project_bias, int[2] stride, int[4] padding, int[2] "
         "dilation, int activation, "
         "Tensor[] squeeze_excite, int squeeze_excite_activation, int squeeze_excite_gate, Tensor? "
         "residual, "
         "Tensor? packed=None)");
  define(m, "squeeze_excite",
         "(Tensor input, Tensor reduce_weight, Tensor? reduce_bias, Tensor expand_weight, Tensor? "
         "expand_bias, "
         "int activation, int gate, Tensor? packed=None)");
  define(
      m, "conv2d_bias_act",
      "(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[4] padding, int activation, "
      "Tensor? packed=None)");
  define(m, "pointwise_conv2d_pool",
         "(Tensor input, Tensor weight, Tensor? bias, int activation, Tensor? packed=None)");
  define(m, "linear", "(Tensor input, Tensor weight, Tensor? bias, Tensor? packed=None)");
  // type: of the maps, 0 for float32, 1 for bfloat16.
  m.def("pack_pointwise(Tensor weight, Tensor? bias, int type=0) -> Tensor");
  // Of a dense convolution, in the form that suits it.
  m.def("pack_conv2d(Tensor weight, Tensor? bias, int[2] stride, int type=0) -> Tensor");
  m.def("pack_depthwise(Tensor weight, Tensor? bias, int type=0) -> Tensor");
  // Whether the level in use has kernels for this type.
  m.def("has_kernels(int type) -> bool");
  // Uninitialized room for the packed weights of several ops, one after the other.
  m.def("pack_buffer(Tensor like, int size) -> Tensor");
  // A chain of inference ops, each on what the one before it wrote. steps: 21 numbers for each, as
  // csrc/ops/sequential.cpp reads them, in one string, which comes here faster than a list; packed:
  // the weights of all, one after the other.
  m.def("sequential(Tensor input, str steps, Tensor packed) -> Tensor");
  // The same, and what each step took, int64 (steps,), in nanoseconds of all threads together;
  // steps that run as one have theirs in the first, the others 0.
  m.def(
      "sequential_times(Tensor input, str steps, Tensor packed) -> (Tensor output, Tensor "
      "nanoseconds)");
  // Training, csrc/train.h. A normalized map: input, its affine (2, C), gate (N, C), activation. A
  // gradient: grad, and where it is that of a normalized map's value: raw, its affine, gate, offset
  // (N, K), activation; coefficients (4, K). What is not wanted is an empty tensor.
  m.def(
      "train_pointwise_conv2d(Tensor input, Tensor? affine, Tensor? gate, int activation, Tensor "
      "weight, bool wants_moments) -> (Tensor output, Tensor moments)");
  m.def(
      "train_depthwise_conv2d(Tensor input, Tensor? affine, int activation, Tensor weight, int[2] "
      "stride, int[4] padding, int[2] dilation, bool wants_moments) -> (Tensor output, Tensor "
      "moments)");
  // wanted: gradients of input, weight, bias and of the sums or the gate.
  m.def(
      "train_pointwise_conv2d_backward(Tensor grad, Tensor? raw, Tensor? raw_affine, Tensor? "
      "raw_gate, Tensor? offset, int raw_activation, Tensor? coefficients, Tensor input, Tensor? "
      "affine, Tensor? gate, int activation, Tensor? mean, Tensor weight, Tensor? residual, "
      "bool[4] "
      "wanted) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias, Tensor sums)");
  m.def(
      "train_depthwise_conv2d_backward(Tensor grad, Tensor? raw, Tensor? raw_affine, Tensor? "
      "raw_gate, Tensor? offset, int raw_activation, Tensor? coefficients, Tensor input, Tensor? "
      "affine, int activation, Tensor? mean, Tensor weight, int[2] stride, int[4] padding, int[2] "
      "dilation, Tensor? residual, bool[4] wanted) -> (Tensor grad_input, Tensor grad_weight, "
      "Tensor grad_bias, Tensor sums)");
  m.def(
      "train_normalize(Tensor input, Tensor affine, Tensor? gate, int activation, Tensor? "
      "residual) "
      "-> Tensor");
  m.def("train_normalized_mean(Tensor input, Tensor affine, int activation) -> Tensor");
  m.def("train_moments(Tensor input) -> Tensor");
  m.def(
      "train_gradient(Tensor grad, Tensor raw, Tensor? raw_affine, Tensor? raw_gate, Tensor? "
      "offset, "
      "int raw_activation, Tensor? coefficients) -> Tensor");
  m.def(
      "train_gradient_sums(Tensor grad, Tensor raw, Tensor? raw_affine, Tensor? raw_gate, Tensor? "
      "offset, int raw_activation, Tensor mean) -> Tensor");
  // Kernels of the CUDA library, which write to tensors that are there. Depthwise filters and all
  // biases are float32, the filters in memory [KH, KW, C], beside contiguous maps [C, KH, KW].
  // sums: (N, P, C), of P bands of the output's rows, before rounding.
  m.def(
      "cuda_depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[4] "
      "padding, int[2] dilation, int activation, Tensor(a!) output, Tensor(b!)? sums) -> ()");
  // A fused block, float16 or bfloat16; without the projection its depthwise result, and the sums
  // (N, P, C) of P tiles of an image. activations: behind the expansion, the depthwise convolution
  // and the projection. tile: one of those below; shared_bytes: that a block of threads may have.
  m.def(
      "cuda_inverted_residual(Tensor input, Tensor? expand_weight, Tensor? expand_bias, Tensor "
      "depthwise_weight, Tensor? depthwise_bias, Tensor? project_weight, Tensor? project_bias, "
      "int[2] stride, int[4] padding, int[3] activations, Tensor? residual, int[2] tile, "
      "Tensor(a!) output, Tensor(b!)? sums, int shared_bytes) -> ()");
  // Heights and widths of the tiles that can pay, the best first. problem: batch, height, width,
  // output height and width, input, expanded and output channels (0: no projection), kernel,
  // stride, whether there is an expansion.
  m.def("inverted_residual_tiles(int[] problem, int shared_bytes) -> int[]");
  // Training, as train_depthwise_conv2d and its backward above, weight in memory [KH, KW, C]; what
  // is not wanted is not there. partial: room for the sums of P parts of the rows, (P, 3, C) beside
  // moments, (P, R, C) backward: KH * KW rows for grad_weight, 1 for grad_bias, 2 for sums.
  m.def(
      "cuda_train_depthwise_conv2d(Tensor input, Tensor? affine, int activation, Tensor weight, "
      "int[2] stride, int[4] padding, int[2] dilation, Tensor(a!) output, Tensor(b!)? partial, "
      "Tensor(c!)? moments) -> ()");
  m.def(
      "cuda_train_depthwise_conv2d_backward(Tensor grad, Tensor? raw, Tensor? raw_affine, Tensor? "
      "raw_gate, Tensor? offset, int raw_activation, Tensor? coefficients, Tensor input, Tensor? "
      "affine, int activation, Tensor? mean, Tensor weight, int[2] stride, int[4] padding, int[2] "
      "dilation, Tensor? residual, Tensor(a!)? partial, Tensor(b!)? grad_input, Tensor(c!)? "
      "grad_weight, Tensor(d!)? grad_bias, Tensor(e!)? sums) -> ()");
  // How many parts fill a GPU, forward and backward; any number is right. sizes: N, C, H, W; type:
  // 0 for float32, 1 for bfloat16, 2 for float16.
  m.def(
      "train_depthwise_conv2d_parts(int[4] sizes, int[2] kernel, int[2] stride, int[4] padding, "
      "int[2] dilation, int type, int multiprocessors) -> int[]");
  // -1 asks for the level in use; 0, 1, 2, 3 select scalar, avx2, avx512, neon. Weights packed
  // before belong to the old level.
  m.def("isa(int level) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(fastconv, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&fastconv::isa));
  m.impl("has_kernels", TORCH_BOX(&fastconv::has_kernels));
}
