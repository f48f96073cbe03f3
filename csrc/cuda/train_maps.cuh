// What the training kernels do with maps (csrc/train.h) in registers, and the parts that their
// blocks work on.
#pragma once

#include <initializer_list>

#include "activation.cuh"
#include "train_depthwise_tiling.h"
#include "vec.cuh"

namespace fastconv {

// A thread's channels and strip, and the rows of its block.
struct TrainPlace {
  int lane, strip;
  int64_t channel;  // its first
  bool active;      // whether it has any
  int64_t part, begin, end;
};

__device__ inline TrainPlace train_place(const TrainTiling& t, int64_t channels, int vector) {
  TrainPlace place;
  const int group = static_cast<int>(blockIdx.x % t.groups);
  place.lane = static_cast<int>(threadIdx.x) % t.lanes;
  place.strip = static_cast<int>(threadIdx.x) / t.lanes;
  place.channel = (static_cast<int64_t>(group) * t.lanes + place.lane) * vector;
  place.active = place.channel < channels && place.strip < t.strips;
  place.part = blockIdx.x / t.groups;
  const int64_t least = t.rows / t.parts, more = t.rows % t.parts;
  place.begin = place.part * least + min(place.part, more);
  place.end = place.begin + least + (place.part < more ? 1 : 0);
  return place;
}

inline dim3 train_grid(const TrainTiling& t) {
  return dim3(static_cast<unsigned>(t.groups * t.parts));
}

// Whether maps at these addresses, null or not, can be read two elements at a time.
template <class T>
bool are_pairs(int64_t channels, std::initializer_list<const void*> maps) {
  bool aligned = channels % 2 == 0;
  for (const void* map : maps)
    aligned = aligned && reinterpret_cast<std::uintptr_t>(map) % (2 * sizeof(T)) == 0;
  return aligned;
}

// Channels [channel, channel + kVector) of a vector, or `otherwise`.
template <int kVector>
__device__ void load_channels(const float* from, int64_t channel, float otherwise,
                              float (&to)[kVector]) {
#pragma unroll
  for (int v = 0; v < kVector; ++v) to[v] = from == nullptr ? otherwise : from[channel + v];
}

// Neighbouring floats of shared memory at once; addresses are multiples of their size.
template <int kCount>
__device__ void load_shared(const float* from, float (&to)[kCount]) {
  const auto raw = *reinterpret_cast<const typename Word<4 * kCount>::type*>(from);
  memcpy(to, &raw, sizeof(raw));
}
template <int kCount>
__device__ void store_shared(const float (&from)[kCount], float* to) {
  typename Word<4 * kCount>::type raw;
  memcpy(&raw, from, sizeof(raw));
  *reinterpret_cast<typename Word<4 * kCount>::type*>(to) = raw;
}

// Scales and shifts of a thread's channels; 1 and 0 without.
template <int kVector>
struct Affine {
  __device__ Affine(const float* affine, int64_t channel, int64_t channels) {
    load_channels(affine, channel, 1.0f, scale);
    load_channels(affine == nullptr ? nullptr : affine + channels, channel, 0.0f, shift);
  }
  __device__ Affine() : scale{}, shift{} {}
  float scale[kVector], shift[kVector];
};

// y *= activation'(x)
template <class T, int kPixels, int kVector>
__device__ void multiply_slopes(Activation activation, const float (&x)[kPixels][kVector],
                                float (&y)[kPixels][kVector]) {
  with_activation(activation, [&](auto tag) {
    if constexpr (decltype(tag)::kValue != Activation::kNone) {
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
#pragma unroll
        for (int v = 0; v < kVector; ++v)
          y[p][v] *= activation_slope<T>(decltype(tag)::kValue, x[p][v]);
      }
    }
  });
}

}  // namespace fastconv
