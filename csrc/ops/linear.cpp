#include "check.h"

namespace fastconv {
namespace {

Tensor linear_cpu(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& packed) {
  const char* op = "linear";
  const KernelTable& kernels = check_map(op, "input", input);
  FASTCONV_CHECK(input.dim() == 2 && input.size(1) > 0, op, "input", "have shape (N, C)",
                 shape_text(input));
  check_weights(op, "weight", weight);
  FASTCONV_CHECK(weight.dim() == 2 && weight.numel() > 0 && weight.size(1) == input.size(1), op,
                 "weight", text("have shape (K, ", input.size(1), ")"), shape_text(weight));
  check_vector(op, "bias", bias, weight.size(0));
  PackedWeights weights(op, packed, kernels);
  const Tensor dense_input = dense(input);
  Tensor output = empty_2d(input, input.size(0), weight.size(0));
  LinearParams p{};
  p.activation = Activation::kNone;
  p.batch = input.size(0);
  p.in_features = input.size(1);
  p.out_features = weight.size(0);
  p.packed = weights.pointwise(weight, bias);
  weights.check_end();
  p.input = data(dense_input);
  p.output = mutable_data(output);
  kernels.linear(p, torch_threads());
  return output;
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("linear", TORCH_BOX(&fastconv::linear_cpu));
  m.impl("linear_infer", TORCH_BOX(&fastconv::linear_cpu));
}
