// Packed weights: what pack_pointwise and pack_depthwise return and the ops take. A 64-byte header
// says what follows and for which instruction set, so that a kernel never reads weights laid out
// for another level or another shape.
#pragma once

#include <cstdint>

namespace fastconv {

constexpr int64_t kPackedHeader = 16;  // floats

enum class PackedKind : int32_t { kPointwise = 1, kDepthwise = 2 };

struct PackedHeader {
  int32_t magic;
  PackedKind kind;
  int32_t isa;
  int32_t reserved;
  int64_t channels;  // output channels
  int64_t depth;     // inputs per output: C * KH * KW, or KH * KW for depthwise
  int64_t padding[4];
};
static_assert(sizeof(PackedHeader) == kPackedHeader * sizeof(float),
              "the header is one cache line");

constexpr int32_t kPackedMagic = 0x46435031;

// Some weights in memory.
struct WeightRegion {
  const float* data;
  int64_t floats;
};

inline int64_t packed_size(int64_t channels, int64_t depth) {
  return kPackedHeader + (channels + 15) / 16 * 16 * (1 + depth);
}

}  // namespace fastconv
