#include <cstdint>
#include <cstring>

#include "../cpu/scratch.h"
#include "check.h"

namespace fastconv {
namespace {

// Uninitialized floats, on huge pages where there are enough of them.
Tensor allocate_floats(const Tensor& like, int64_t size) {
  constexpr int64_t kHugeFloats = kHugePage / sizeof(float);
  const int64_t slack = size < kHugeFloats ? 0 : kHugeFloats;
  const std::array<int64_t, 1> sizes{size + slack};
  Tensor floats =
      torch::stable::empty({sizes.data(), 1}, ScalarType::Float, std::nullopt, like.device());
  if (slack == 0) return floats;
  const auto address = reinterpret_cast<std::uintptr_t>(floats.mutable_data_ptr());
  const int64_t skipped = (kHugePage - address % kHugePage) % kHugePage / sizeof(float);
  Tensor aligned = torch::stable::narrow(floats, 0, skipped, size);
  prefer_huge_pages(mutable_floats(aligned), sizeof(float) * size);
  return aligned;
}

// The header, and zeros.
Tensor allocate_packed(const Tensor& like, PackedKind kind, const KernelTable& kernels,
                       int64_t channels, int64_t depth, int64_t segments) {
  const int64_t size = packed_size(kind, kernels.type, channels, depth, segments);
  Tensor packed = allocate_floats(like, size);
  std::memset(mutable_floats(packed), 0, sizeof(float) * size);
  PackedHeader header{};
  header.magic = kPackedMagic;
  header.kind = kind;
  header.isa = static_cast<int32_t>(kernels.isa);
  header.type = kernels.type;
  header.channels = channels;
  header.depth = depth;
  header.segments = segments;
  std::memcpy(mutable_floats(packed), &header, sizeof(header));
  return packed;
}

OptionalTensor dense_bias(const OptionalTensor& bias) {
  return bias.has_value() ? OptionalTensor(dense_float(*bias)) : std::nullopt;
}

const float* floats_or_null(const OptionalTensor& t) {
  return t.has_value() ? floats(*t) : nullptr;
}

const KernelTable& check_type(const char* op, int64_t type) {
  const bool known = type >= 0 && type < kDataTypeCount;
  const KernelTable* table = known ? kernels_for(static_cast<DataType>(type)) : nullptr;
  FASTCONV_CHECK(table != nullptr, op, "type",
                 "be 0 for float32, or 1 for bfloat16 where the CPU has instructions for it", type);
  return *table;
}

}  // namespace

Tensor pack_pointwise(const Tensor& weight, const OptionalTensor& bias, int64_t type) {
  const char* op = "pack_pointwise";
  check_weights(op, "weight", weight);
  FASTCONV_CHECK((weight.dim() == 2 || weight.dim() == 4) && weight.numel() > 0, op, "weight",
                 "have shape (K, C) or (K, C, KH, KW)", shape_text(weight));
  const KernelTable& table = check_type(op, type);
  const int64_t k = weight.size(0), c = weight.size(1);
  const int64_t segments = weight.dim() == 4 ? weight.size(2) : 1;
  const int64_t taps = weight.dim() == 4 ? weight.size(3) : 1;
  check_vector(op, "bias", bias, k);
  Tensor packed =
      allocate_packed(weight, PackedKind::kPointwise, table, k, c * segments * taps, segments);
  const Tensor dense_weight = dense_float(weight);
  const OptionalTensor b = dense_bias(bias);
  table.pack_pointwise(floats(dense_weight), k, c, segments, taps, floats_or_null(b),
                       mutable_floats(packed) + kPackedHeader);
  return packed;
}

Tensor pack_conv2d(const Tensor& weight, const OptionalTensor& bias, const Ints& stride,
                   int64_t type) {
  const char* op = "pack_conv2d";
  check_weights(op, "weight", weight);
  FASTCONV_CHECK(weight.dim() == 4 && weight.numel() > 0, op, "weight", "have shape (K, C, KH, KW)",
                 shape_text(weight));
  check_ints(op, "stride", stride, 2, 1);
  const KernelTable& table = check_type(op, type);
  const int64_t k = weight.size(0), c = weight.size(1);
  if (!suits_winograd(table.type, k, c, weight.size(2), weight.size(3), stride[0], stride[1]))
    return pack_pointwise(weight, bias, type);
  check_vector(op, "bias", bias, k);
  Tensor packed =
      allocate_packed(weight, PackedKind::kWinograd, table, k, c * kWinogradTaps, weight.size(2));
  const Tensor dense_weight = dense_float(weight);
  const OptionalTensor b = dense_bias(bias);
  table.pack_winograd(floats(dense_weight), k, c, floats_or_null(b),
                      mutable_floats(packed) + kPackedHeader);
  return packed;
}

Tensor pack_depthwise(const Tensor& weight, const OptionalTensor& bias, int64_t type) {
  const char* op = "pack_depthwise";
  check_weights(op, "weight", weight);
  FASTCONV_CHECK(weight.dim() == 4 && weight.size(1) == 1 && weight.numel() > 0, op, "weight",
                 "have shape (C, 1, KH, KW)", shape_text(weight));
  const KernelTable& table = check_type(op, type);
  const int64_t channels = weight.size(0), taps = weight.size(2) * weight.size(3);
  check_vector(op, "bias", bias, channels);
  Tensor packed = allocate_packed(weight, PackedKind::kDepthwise, table, channels, taps, 1);
  const Tensor dense_weight = dense_float(weight);
  const OptionalTensor b = dense_bias(bias);
  table.pack_depthwise(floats(dense_weight), channels, taps, floats_or_null(b),
                       mutable_floats(packed) + kPackedHeader);
  return packed;
}

Tensor pack_buffer(const Tensor& like, int64_t size) {
  const char* op = "pack_buffer";
  check_weights(op, "like", like);
  FASTCONV_CHECK(size >= 0 && size < int64_t{1} << 40, op, "size", "be from 0 to 2^40", size);
  return allocate_floats(like, size);
}

void check_packed(const char* op, const Tensor& packed) {
  check_cpu(op, "packed", packed);
  FASTCONV_CHECK(packed.scalar_type() == ScalarType::Float, op, "packed", "be float32",
                 "another dtype");
  FASTCONV_CHECK(packed.dim() == 1 && packed.is_contiguous(), op, "packed",
                 "be contiguous and have 1 dimension", shape_text(packed));
}

PackedWeights::PackedWeights(const char* op, const OptionalTensor& packed,
                             const KernelTable& kernels)
    : op_(op), kernels_(kernels), packed_(packed) {
  if (!packed.has_value()) return;
  check_packed(op, *packed);
  cursor_ = floats(*packed);
  left_ = packed->numel();
}

const float* PackedWeights::next(PackedKind kind, int64_t channels, int64_t depth,
                                 int64_t segments) {
  const int64_t size = packed_size(kind, kernels_.type, channels, depth, segments);
  PackedHeader header{};
  if (left_ >= size) std::memcpy(&header, cursor_, sizeof(header));
  const bool ok = left_ >= size && header.magic == kPackedMagic && header.kind == kind &&
                  header.channels == channels && header.depth == depth &&
                  header.segments == segments && header.type == kernels_.type &&
                  header.isa == static_cast<int32_t>(kernels_.isa);
  FASTCONV_CHECK(ok, op_, "packed",
                 text("hold ", channels, " x ", depth, " weights packed for ",
                      kernels_.type == DataType::kFloat32 ? "float32" : "bfloat16", " on ",
                      isa_name(kernels_.isa)),
                 text("something else of ", left_, " floats"));
  const float* segment = cursor_;
  cursor_ += size;
  left_ -= size;
  return segment;
}

const float* PackedWeights::pointwise(const Tensor& weight, const OptionalTensor& bias) {
  if (packed_.has_value()) {
    const int64_t outputs = weight.size(0), segments = weight.dim() == 4 ? weight.size(2) : 1;
    return next(PackedKind::kPointwise, outputs, weight.numel() / outputs, segments);
  }
  return floats(*(owned_[owned_count_++] =
                      pack_pointwise(weight, bias, static_cast<int64_t>(kernels_.type))));
}

const float* PackedWeights::depthwise(const Tensor& weight, const OptionalTensor& bias) {
  if (packed_.has_value())
    return next(PackedKind::kDepthwise, weight.size(0), weight.numel() / weight.size(0));
  return floats(*(owned_[owned_count_++] =
                      pack_depthwise(weight, bias, static_cast<int64_t>(kernels_.type))));
}

void PackedWeights::dense(Conv2dBiasActParams& p, const Tensor& weight,
                          const OptionalTensor& bias) {
  if (packed_.has_value()) return next_dense(p);
  // For one call the form that costs least to make.
  p.packed = pointwise(weight, bias);
}

void PackedWeights::next_dense(Conv2dBiasActParams& p) {
  p.winograd = suits_winograd(kernels_.type, p.out_channels, p.in_channels, p.kernel_height,
                              p.kernel_width, p.stride_height, p.stride_width);
  p.packed = next(p.winograd ? PackedKind::kWinograd : PackedKind::kPointwise, p.out_channels,
                  p.in_channels * p.kernel_height * p.kernel_width, p.kernel_height);
}

void PackedWeights::check_end() const {
  FASTCONV_CHECK(left_ == 0, op_, "packed", "end with the last weight",
                 text(left_, " floats more"));
}

}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("pack_pointwise", TORCH_BOX(&fastconv::pack_pointwise));
  m.impl("pack_conv2d", TORCH_BOX(&fastconv::pack_conv2d));
  m.impl("pack_depthwise", TORCH_BOX(&fastconv::pack_depthwise));
  m.impl("pack_buffer", TORCH_BOX(&fastconv::pack_buffer));
}
