// Packed weights: what pack_pointwise and its like return and the ops take. A 64-byte header
// says what follows and for which instruction set, so that a kernel never reads weights laid out
// for another level or another shape.
#pragma once

#include <cstdint>

#include "data_type.h"

namespace fastconv {

constexpr int64_t kPackedHeader = 16;  // floats

enum class PackedKind : int32_t { kPointwise = 1, kDepthwise = 2, kWinograd = 3 };

struct PackedHeader {
  int32_t magic;
  PackedKind kind;
  int32_t isa;
  DataType type;
  int64_t channels;  // output channels
  int64_t depth;     // inputs per output: C * KH * KW, or KH * KW for depthwise
  int64_t segments;  // of the depth: KH of a dense kernel, else 1
  int64_t padding[3];
};
static_assert(sizeof(PackedHeader) == kPackedHeader * sizeof(float),
              "the header is one cache line");

constexpr int32_t kPackedMagic = 0x46435032;

// Some weights in memory.
struct WeightRegion {
  const float* data;
  int64_t floats;
};

// Steps of the matrix product over `depth` inputs: each of the segments ends with a whole step.
inline int64_t steps_of(DataType type, int64_t depth, int64_t segments) {
  const int64_t length = depth / segments, step = inputs_per_step(type);
  return segments * ((length + step - 1) / step);
}

constexpr int64_t kWinogradPoints = 36, kWinogradTaps = 9;

// Whether a dense convolution's weights [K, C, KH, KW] are packed for Winograd's algorithm. With
// fewer channels the transforms cost as much as they save; with more, to read four times the
// weights takes longer than the products, because such layers have small maps.
inline bool suits_winograd(DataType type, int64_t k, int64_t c, int64_t kernel_height,
                           int64_t kernel_width, int64_t stride_height, int64_t stride_width) {
  constexpr int64_t kLeast = 16, kMostWeights = int64_t{1} << 17;
  return type == DataType::kFloat32 && kernel_height == 3 && kernel_width == 3 &&
         stride_height == 1 && stride_width == 1 && k >= kLeast && c >= kLeast &&
         k * c <= kMostWeights;
}

// Floats, header included. type: of the elements; a depthwise weight is float32 always.
inline int64_t packed_size(PackedKind kind, DataType type, int64_t channels, int64_t depth,
                           int64_t segments = 1) {
  const int64_t lanes = (channels + 15) / 16 * 16;
  if (kind == PackedKind::kWinograd)
    return kPackedHeader + lanes + kWinogradPoints * lanes * (1 + depth / kWinogradTaps);
  const int64_t steps = kind == PackedKind::kDepthwise ? depth : steps_of(type, depth, segments);
  return kPackedHeader + lanes * (1 + steps);
}

}  // namespace fastconv
