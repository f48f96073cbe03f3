// What the threads of a block of train_depthwise_conv2d_backward.cu have at hand: constants of
// their channels, sums, and the way of the block down the rows.
#pragma once

#include "train_depthwise_conv2d.h"
#include "train_maps.cuh"

namespace fastconv {

struct BackwardKernelParams {
  CudaTrainDepthwiseConv2dBackwardParams p;
  TrainTiling tiling;
  int pixel;           // floats from one column of the ring to the next
  int columns, slots;  // of the ring
};

// What a block's channels need beside the maps: rows of a table in shared memory, since registers
// are for filters and sums. The gradient of the raw map is (grad * gate + offset) * slope + factor
// * raw + rest, with the first coefficient in gate and offset.
enum Constant {
  kScale,
  kShift,
  kGate,
  kOffset,
  kFactor,
  kRest,
  kInScale,
  kInShift,
  kMean,
  kConstants
};

template <int kVector>
class Constants {
 public:
  // After this comes a barrier, as after enter.
  __device__ Constants(const TrainDepthwiseConv2dBackwardParams& p, const TrainPlace& place,
                       const TrainTiling& t, float* table)
      : map_(p.gradient),
        table_(table + place.lane * kVector),
        row_(t.lanes * kVector),
        channel_(place.channel),
        channels_(p.window.channels),
        writes_(place.strip == 0 && place.active) {
    const float *affine = map_.affine, *c = map_.coefficients, *in = p.input.affine;
    put(kScale, affine, 1.0f);
    put(kShift, affine == nullptr ? affine : affine + channels_, 0.0f);
    put(kFactor, c == nullptr ? c : c + channels_, 0.0f);
    put(kRest, c == nullptr ? c : c + 3 * channels_, 0.0f);
    if (c != nullptr && writes_) {
      // The mean goes into the rest: apart it would cost registers that the sums need.
#pragma unroll 1
      for (int v = 0; v < kVector; ++v) {
        const float* k = c + channel_ + v;
        table_[kRest * row_ + v] -= k[channels_] * k[2 * channels_];
      }
    }
    put(kInScale, in, 1.0f);
    put(kInShift, in == nullptr ? in : in + channels_, 0.0f);
    put(kMean, p.mean, 0.0f);
    if (!by_image()) put_image(nullptr, nullptr);
  }

  // Whether there is something to change from image to image; the same for all threads.
  __device__ bool by_image() const { return map_.gate != nullptr || map_.offset != nullptr; }
  __device__ void enter(int64_t image) const {
    const int64_t at = image * channels_;
    put_image(map_.gate == nullptr ? nullptr : map_.gate + at,
              map_.offset == nullptr ? nullptr : map_.offset + at);
  }

  __device__ void get(int row, float (&x)[kVector]) const { load_shared(table_ + row * row_, x); }
  __device__ void put(int row, const float* from, float otherwise) const {
    if (!writes_) return;
#pragma unroll
    for (int v = 0; v < kVector; ++v)
      table_[row * row_ + v] = from == nullptr ? otherwise : from[channel_ + v];
  }

 private:
  __device__ void put_image(const float* gate, const float* offset) const {
    put(kGate, gate, 1.0f);
    put(kOffset, offset, 0.0f);
    if (map_.coefficients == nullptr || !writes_) return;
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      const float first = map_.coefficients[channel_ + v];
      table_[kGate * row_ + v] *= first;
      table_[kOffset * row_ + v] *= first;
    }
  }

  const GradientMap& map_;
  float* table_;
  int row_;
  int64_t channel_, channels_;
  bool writes_;
};

// x = x * scale + shift
template <int kPixels, int kVector>
__device__ void scale_all(const Constants<kVector>& constants, int scale_row, int shift_row,
                          float (&x)[kPixels][kVector]) {
  float scale[kVector], shift[kVector];
  constants.get(scale_row, scale);
  constants.get(shift_row, shift);
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
#pragma unroll
    for (int v = 0; v < kVector; ++v) x[p][v] = x[p][v] * scale[v] + shift[v];
  }
}

template <class T, int kPixels, int kVector>
__device__ void get_all(const Vec<T, kVector> (&from)[kPixels], float (&x)[kPixels][kVector]) {
#pragma unroll
  for (int p = 0; p < kPixels; ++p) from[p].get(x[p]);
}

// The gradient of the raw map.
template <class T, int kPixels, int kVector>
__device__ void make_gradient(const GradientMap& map, const Constants<kVector>& constants,
                              const Vec<T, kVector> (&grad)[kPixels],
                              const Vec<T, kVector> (&raw)[kPixels],
                              float (&result)[kPixels][kVector]) {
  get_all(grad, result);
  if (map.raw == nullptr) return;
  scale_all(constants, kGate, kOffset, result);
  float x[kPixels][kVector];
  get_all(raw, x);
  scale_all(constants, kScale, kShift, x);
  multiply_slopes<T>(map.activation, x, result);
  if (map.coefficients == nullptr) return;
  get_all(raw, x);
  scale_all(constants, kFactor, kRest, x);
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
#pragma unroll
    for (int v = 0; v < kVector; ++v) result[p][v] += x[p][v];
  }
}

// What a thread sums up over its pixels.
template <int kTaps, int kVector>
struct Sums {
  float weight[kTaps][kVector] = {}, bias[kVector] = {}, input[2][kVector] = {};

  // Adds up those of the block's strips, in their order, and stores the part.
  __device__ void store(const BackwardKernelParams& k, const TrainPlace& place) const {
    float* shared = shared_memory<float>();  // [rows, strips, lanes, kVector]
    const auto& p = k.p;
    const int lanes = k.tiling.lanes * kVector, all = k.tiling.strips * lanes;
    __syncthreads();  // the ring was here
    if (place.strip < k.tiling.strips) {
      float* to = shared + place.strip * lanes + place.lane * kVector;
      const auto put = [&](const float (&sum)[kVector]) {
        store_shared(sum, to);
        to += all;
      };
      if (p.conv.grad_weight != nullptr) {
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) put(weight[tap]);
      }
      if (p.conv.grad_bias != nullptr) put(bias);
      if (p.conv.sums != nullptr) {
        put(input[0]);
        put(input[1]);
      }
    }
    __syncthreads();
    const int64_t channels = p.conv.window.channels, rows = p.rows();
    const int64_t first = place.channel - place.lane * kVector;  // of the block
    float* part = p.partial + place.part * rows * channels + first;
    for (int i = static_cast<int>(threadIdx.x); i < rows * lanes; i += k.tiling.threads) {
      const int row = i / lanes, lane = i % lanes;
      if (first + lane >= channels) continue;
      float total = 0;
      for (int s = 0; s < k.tiling.strips; ++s) total += shared[row * all + s * lanes + lane];
      part[row * channels + lane] = total;
    }
  }
};

// The step that a block is at: of which image and tile, and which row of the gradient it makes.
// The first ones of an image's tile, or of the block's share, only fill the ring.
class Walk {
 public:
  __device__ Walk(const TrainTiling& t, const TrainPlace& place, int first, int steps, int live)
      : tiles_(t.tiles),
        first_(first),
        steps_(steps),
        live_(live),
        row_(place.begin),
        end_(place.end) {
    if (row_ < end_) enter();
  }
  __device__ bool done() const { return row_ >= end_; }
  __device__ void advance() {
    if (++step < end_step_) return;
    row_ += end_step_ - own_;
    if (row_ < end_) enter();
  }
  __device__ bool collects() const { return step < own_; }
  // Whether the row of the gradient counts in sums over it: also those above the first step's.
  __device__ bool owns_gradient() const { return step >= own_ || own_ == first_; }

  int64_t image = 0;
  int tile = 0, step = 0;

 private:
  __device__ void enter() {
    const int64_t run = row_ / steps_;
    own_ = first_ + static_cast<int>(row_ % steps_);
    end_step_ = static_cast<int>(min(static_cast<int64_t>(first_ + steps_), own_ + end_ - row_));
    step = max(0, own_ - (live_ - 1));
    image = run / tiles_;
    tile = static_cast<int>(run % tiles_);
  }

  int tiles_, first_, steps_, live_;
  int64_t row_, end_;
  int own_ = 0, end_step_ = 0;
};

// Any window, stride, dilation and number of channels.
const char* launch_generic_train_depthwise_conv2d_backward(
    const CudaTrainDepthwiseConv2dBackwardParams& p, const TrainTiling& tiling, void* stream);

}  // namespace fastconv
