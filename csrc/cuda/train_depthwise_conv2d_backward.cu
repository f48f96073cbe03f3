// The gradients of output = depthwise(activation(input * scale + shift)), NHWC, where `gradient` is
// that of the output (csrc/train.h), made on the way:
//   d[y, x] = sum of weight[ky, kx] gradient[(y + top - ky) / S, (x + left - kx) / S], over the
//   taps that divide; grad_input = d activation'(input * scale + shift) + residual;
//   grad_weight[ky, kx] = sum of normalized[y, x] and the same elements of the gradient.
// Both sums belong to the pixels of the input and read one window of the gradient, so the input is
// needed without a halo, and stays in registers. A block has a tile of columns and goes down its
// rows: a step makes one row of the gradient in a ring of K / S + 1 rows in shared memory, float32
// [column, channel], which then serves the S rows of the input over it. A thread owns kVector
// channels and kColumns x S columns of these. What the next step reads is on its way, in
// registers, while a step computes: so there is one barrier a step, and no staging.
// Bytes moved, stride 1, elements per pixel: grad, raw, input in and grad_input out, 4 (stride 2:
// 2 + 2 / 4); more only for the columns beside a tile, where an image has several, and K / S - 1
// rows above a block's first. Sums stay in registers over all rows of a block and leave it as one
// part, which a second kernel adds up in a fixed order.
#include "dispatch.cuh"
#include "train_depthwise_conv2d_backward.cuh"

namespace fastconv {
namespace {

template <class T, int K, int S, bool kNarrow>
class Backward {
 public:
  static constexpr TrainKernelSizes kSizes = train_backward_sizes(K, S, sizeof(T), kNarrow);
  static constexpr int kVector = kSizes.vector, kLive = (K + S - 1) / S;
  static constexpr int kKept = train_kept_rows(K, kSizes) * K;  // taps in registers
  // Rows of the table in shared memory.
  static constexpr int kTable = kConstants + K * K - kKept;

  __device__ Backward(const BackwardKernelParams& k, const TrainPlace& place)
      : k_(k),
        c_(k.p.conv),
        w_(k.p.conv.window),
        place_(place),
        constants_(c_, place, k.tiling, shared_memory<float>() + k.slots * k.columns * k.pixel),
        first_column_(static_cast<int>(w_.pad_left) / S) {
    if (!place.active || c_.grad_input == nullptr) return;
#pragma unroll
    for (int tap = 0; tap < kKept; ++tap)
      load_channels(c_.packed + tap * w_.channels, place.channel, 0.0f, filter_[tap]);
    for (int tap = kKept; tap < K * K; ++tap)
      constants_.put(kConstants + tap - kKept, c_.packed + tap * w_.channels, 0.0f);
  }

  __device__ void run() {
    const int first = static_cast<int>(w_.pad_top) / S;
    const int steps = static_cast<int>(train_steps(w_.height, w_.pad_top, S));
    Walk walk(k_.tiling, place_, first, steps, kLive);
    int64_t image = -1;
    int tile = -1, slot = 0;
    if (!walk.done()) fetch(walk);
    while (!walk.done()) {
      if (walk.tile != tile || (walk.image != image && constants_.by_image())) {
        __syncthreads();  // the last step may still be read
        if (constants_.by_image()) constants_.enter(walk.image);
        if (walk.tile != tile) clear();
        __syncthreads();
      }
      image = walk.image;
      tile = walk.tile;
      make_row(walk, slot);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) now_[i] = input_[i];
      __syncthreads();
      const Walk current = walk;
      walk.advance();
      if (!walk.done()) fetch(walk);
      if (place_.active && !current.collects()) compute(current, slot);
      slot = slot + 1 == kLive + 1 ? 0 : slot + 1;
    }
    if (k_.p.partial != nullptr) sums_.store(k_, place_);
  }

 private:
  using Vector = Vec<T, kVector>;
  static constexpr int kSteps = kSizes.columns, kWide = kSteps * S;  // a thread's columns
  static constexpr int kPixels = S * kWide, kMade = train_made_columns(kSizes);
  static constexpr int kWindow = kSteps + kLive - 1;  // columns of the gradient over a strip

  __device__ float* ring(int slot) const {
    return shared_memory<float>() + slot * k_.columns * k_.pixel + place_.lane * kVector;
  }
  __device__ int tile_columns() const { return k_.tiling.strips * kSteps; }
  // The gradient's column that is the ring's first.
  __device__ int ring_begin(int tile) const {
    return tile * tile_columns() + first_column_ - (kLive - 1);
  }
  // Columns of the image: of the thread's first pixel.
  __device__ int left(int tile) const {
    return (tile * tile_columns() + place_.strip * kSteps + first_column_) * S -
           static_cast<int>(w_.pad_left);
  }
  __device__ bool inside(int x) const { return x >= 0 && x < w_.width; }
  __device__ int offset(int x) const { return x * static_cast<int>(w_.channels); }

  // Columns outside the image stay zero.
  __device__ void clear() const {
    float* all = shared_memory<float>();
    for (int i = static_cast<int>(threadIdx.x); i < k_.slots * k_.columns * k_.pixel;
         i += k_.tiling.threads)
      all[i] = 0.0f;
  }

  __device__ int made_begin(int tile) const { return max(0, ring_begin(tile)) + place_.strip; }
  __device__ int made_end(int tile) const {
    return min(static_cast<int>(w_.out_width), ring_begin(tile) + k_.columns);
  }

  // Asks for all that a step reads.
  __device__ void fetch(const Walk& walk) {
    if (!place_.active) return;
    if (walk.step < w_.out_height) {
      const int64_t row =
          (walk.image * w_.out_height + walk.step) * w_.out_width * w_.channels + place_.channel;
      const T *grad = static_cast<const T*>(c_.gradient.grad),
              *raw = static_cast<const T*>(c_.gradient.raw);
      const int begin = made_begin(walk.tile), end = made_end(walk.tile);
#pragma unroll
      for (int i = 0; i < kMade; ++i) {
        const int x = begin + i * k_.tiling.strips;
        if (x >= end) continue;
        grad_[i] = Vector::load(grad + row + offset(x));
        if (c_.gradient.raw != nullptr) raw_[i] = Vector::load(raw + row + offset(x));
      }
    }
    const bool reads = c_.grad_weight != nullptr || c_.input.affine != nullptr;
    if (walk.collects() || !reads) return;
    const int x0 = left(walk.tile), y0 = walk.step * S - static_cast<int>(w_.pad_top);
#pragma unroll
    for (int j = 0; j < S; ++j) {
      if (y0 + j < 0 || y0 + j >= w_.height) continue;
      const T* row = static_cast<const T*>(c_.input.data) +
                     (walk.image * w_.height + y0 + j) * w_.width * w_.channels + place_.channel;
#pragma unroll
      for (int i = 0; i < kWide; ++i)
        if (inside(x0 + i)) input_[j * kWide + i] = Vector::load(row + offset(x0 + i));
    }
  }

  __device__ void make_row(const Walk& walk, int slot) {
    if (!place_.active || walk.step >= w_.out_height) return;
    float made[kMade][kVector];
    make_gradient(c_.gradient, constants_, grad_, raw_, made);
    // Of the columns beside the tile only those count that no tile has for its own.
    const int begin = made_begin(walk.tile), end = made_end(walk.tile);
    const int own = walk.tile == 0 ? 0 : ring_begin(walk.tile) + kLive - 1;
    float* row = ring(slot);
#pragma unroll
    for (int i = 0; i < kMade; ++i) {
      const int x = begin + i * k_.tiling.strips;
      if (x >= end) continue;
      store_shared(made[i], row + (x - ring_begin(walk.tile)) * k_.pixel);
      if (!walk.owns_gradient() || x < own) continue;
#pragma unroll
      for (int v = 0; v < kVector; ++v) sums_.bias[v] += made[i][v];
    }
  }

  // The S rows of the input over a row of the gradient and the kLive - 1 before it.
  __device__ void compute(const Walk& walk, int slot) {
    const int x0 = left(walk.tile), y0 = walk.step * S - static_cast<int>(w_.pad_top);
    float x[kPixels][kVector], d[kPixels][kVector] = {};
    const bool weight = c_.grad_weight != nullptr, input = c_.grad_input != nullptr;
    // For stride 2 these are too many to have both at once.
    if (S == 1 && weight) normalize(x0, y0, x);
    each_row(walk, slot, [&](int m, const float (&g)[kWindow][kVector]) {
      if (input) add_input(m, g, d);
      if (S == 1 && weight) add_weight(m, g, x);
    });
    if (input) finish(walk.image, x0, y0, d);
    if (S == 1 || !weight) return;
    normalize(x0, y0, x);
    each_row(walk, slot, [&](int m, const float (&g)[kWindow][kVector]) { add_weight(m, g, x); });
  }

  // f(m, columns of the row of the gradient made m steps before)
  template <class F>
  __device__ void each_row(const Walk& walk, int slot, const F& f) const {
#pragma unroll
    for (int m = 0; m < kLive; ++m) {
      if (walk.step - m < 0 || walk.step - m >= w_.out_height) continue;
      const float* row =
          ring(slot >= m ? slot - m : slot - m + kLive + 1) + place_.strip * kSteps * k_.pixel;
      float g[kWindow][kVector];
#pragma unroll
      for (int i = 0; i < kWindow; ++i) load_shared(row + i * k_.pixel, g[i]);
      f(m, g);
    }
  }
  __device__ void add_input(int m, const float (&g)[kWindow][kVector],
                            float (&d)[kPixels][kVector]) const {
    each_tap(m, [&](int tap) {
      float weight[kVector];
      if (tap >= kKept) constants_.get(kConstants + tap - kKept, weight);
#pragma unroll
      for (int v = 0; v < kVector; ++v)
        if (tap < kKept) weight[v] = filter_[tap % kKept][v];
      each_product(tap, [&](int pixel, int column) {
#pragma unroll
        for (int v = 0; v < kVector; ++v) d[pixel][v] += weight[v] * g[column][v];
      });
    });
  }
  __device__ void add_weight(int m, const float (&g)[kWindow][kVector],
                             const float (&x)[kPixels][kVector]) {
    each_tap(m, [&](int tap) {
      each_product(tap, [&](int pixel, int column) {
#pragma unroll
        for (int v = 0; v < kVector; ++v) sums_.weight[tap][v] += x[pixel][v] * g[column][v];
      });
    });
  }

  // f(tap) for those that meet the row of the gradient made m steps before.
  template <class F>
  __device__ static void each_tap(int m, const F& f) {
#pragma unroll
    for (int tap = 0; tap < K * K; ++tap)
      if (tap / K / S == m) f(tap);
  }
  // f(pixel, column of the gradient) for all products of a tap.
  template <class F>
  __device__ static void each_product(int tap, const F& f) {
    const int j = tap / K % S, kx = tap % K;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) f(j * kWide + i * S + kx % S, i + kLive - 1 - kx / S);
  }

  // 0 outside the image: the padding comes after the activation.
  __device__ void normalize(int x0, int y0, float (&x)[kPixels][kVector]) const {
    get_all(now_, x);
    if (c_.input.affine != nullptr) {
      scale_all(constants_, kInScale, kInShift, x);
      activate_all<T>(c_.input.activation, x);
    }
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int y = y0 + i / kWide;
      if (inside(x0 + i % kWide) && y >= 0 && y < w_.height) continue;
#pragma unroll
      for (int v = 0; v < kVector; ++v) x[i][v] = 0.0f;
    }
  }

  __device__ void finish(int64_t image, int x0, int y0, float (&d)[kPixels][kVector]) {
    if (c_.input.affine != nullptr) {
      float x[kPixels][kVector];
      get_all(now_, x);
      scale_all(constants_, kInScale, kInShift, x);
      multiply_slopes<T>(c_.input.activation, x, d);
    }
    float mean[kVector];
    constants_.get(kMean, mean);
#pragma unroll
    for (int j = 0; j < S; ++j) {
      const int y = y0 + j;
      if (y < 0 || y >= w_.height) continue;
      const int64_t row = (image * w_.height + y) * w_.width * w_.channels + place_.channel;
#pragma unroll
      for (int i = 0; i < kWide; ++i) {
        if (!inside(x0 + i)) continue;
        const int64_t at = row + offset(x0 + i);
        float (&value)[kVector] = d[j * kWide + i];
        if (c_.sums != nullptr) {
          float x[kVector];
          now_[j * kWide + i].get(x);
#pragma unroll
          for (int v = 0; v < kVector; ++v) {
            sums_.input[0][v] += value[v];
            sums_.input[1][v] += value[v] * (x[v] - mean[v]);
          }
        }
        if (c_.residual != nullptr) {
          float more[kVector];
          Vector::load(static_cast<const T*>(c_.residual) + at).get(more);
#pragma unroll
          for (int v = 0; v < kVector; ++v) value[v] += more[v];
        }
        Vector::of(value).store(static_cast<T*>(c_.grad_input) + at);
      }
    }
  }

  const BackwardKernelParams& k_;
  const TrainDepthwiseConv2dBackwardParams& c_;
  const TrainWindow& w_;
  const TrainPlace& place_;
  const Constants<kVector> constants_;
  const int first_column_;
  float filter_[kKept][kVector] = {};
  Vector grad_[kMade], raw_[kMade], input_[kPixels], now_[kPixels];  // of the next step; of this
  Sums<K * K, kVector> sums_;
};

template <class T, int K, int S, bool kNarrow>
__global__ void __launch_bounds__(train_backward_sizes(K, S, sizeof(T), kNarrow).threads,
                                  train_backward_sizes(K, S, sizeof(T), kNarrow).blocks)
    train_depthwise_backward_kernel(const BackwardKernelParams k) {
  const TrainPlace place = train_place(k.tiling, k.p.conv.window.channels,
                                       train_backward_sizes(K, S, sizeof(T), kNarrow).vector);
  Backward<T, K, S, kNarrow>(k, place).run();
}

constexpr int kJoinedChannels = 32, kJoiners = 8;

// Rows of all parts added up: a thread has every kJoiners-th part, and these sums are added in
// their order.
__global__ void __launch_bounds__(kJoinedChannels* kJoiners)
    join_parts_kernel(const CudaTrainDepthwiseConv2dBackwardParams p) {
  float* shared = shared_memory<float>();  // [kJoiners, kJoinedChannels]
  const int64_t channels = p.conv.window.channels, rows = p.rows();
  const int64_t row = blockIdx.x % rows;
  const int lane = static_cast<int>(threadIdx.x) % kJoinedChannels;
  const int joiner = static_cast<int>(threadIdx.x) / kJoinedChannels;
  const int64_t channel = blockIdx.x / rows * kJoinedChannels + lane;
  float sum = 0;
  for (int64_t part = joiner; channel < channels && part < p.parts; part += kJoiners)
    sum += p.partial[(part * rows + row) * channels + channel];
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (joiner != 0 || channel >= channels) return;
  float total = 0;
  for (int i = 0; i < kJoiners; ++i) total += shared[i * kJoinedChannels + lane];
  const int64_t taps = p.weight_rows(), bias = p.conv.grad_bias == nullptr ? 0 : 1;
  if (row < taps) {
    p.conv.grad_weight[channel * taps + row] = total;
  } else if (row < taps + bias) {
    p.conv.grad_bias[channel] = total;
  } else {
    p.conv.sums[(row - taps - bias) * channels + channel] = total;
  }
}

template <class T, int K, int S, bool kNarrow>
const char* launch_special(BackwardKernelParams k, void* stream) {
  using Own = Backward<T, K, S, kNarrow>;
  const int lanes = k.tiling.lanes * Own::kVector;
  k.pixel = train_ring_pixel(lanes, Own::kVector, Own::kSizes.columns);
  k.columns = k.tiling.strips * Own::kSizes.columns + Own::kLive - 1;
  k.slots = Own::kLive + 1;
  const int64_t floats = std::max<int64_t>(k.slots * k.columns * k.pixel + Own::kTable * lanes,
                                           k.p.rows() * k.tiling.strips * lanes);
  return launch(train_depthwise_backward_kernel<T, K, S, kNarrow>, train_grid(k.tiling),
                k.tiling.threads, floats * sizeof(float), stream, k);
}

template <class T, int K, int S>
const char* launch_sized(const BackwardKernelParams& k, void* stream) {
  if constexpr (train_backward_sizes(K, S, sizeof(T), false).vector > 1)
    if (!k.tiling.narrow) return launch_special<T, K, S, false>(k, stream);
  return launch_special<T, K, S, true>(k, stream);
}

template <class T>
const char* launch_typed(const CudaTrainDepthwiseConv2dBackwardParams& p, void* stream) {
  const auto& c = p.conv;
  const bool pairs = are_pairs<T>(
      c.window.channels, {c.input.data, c.gradient.grad, c.gradient.raw, c.residual, c.grad_input});
  BackwardKernelParams k{p, train_backward_tiling(c.window, p.type, pairs, multiprocessors()), 0, 0,
                         0};
  if (p.parts != 0) k.tiling.parts = p.parts;
  const bool single = c.window.stride_height == 1;
  if (k.tiling.kernel == 3)
    return single ? launch_sized<T, 3, 1>(k, stream) : launch_sized<T, 3, 2>(k, stream);
  if (k.tiling.kernel == 5)
    return single ? launch_sized<T, 5, 1>(k, stream) : launch_sized<T, 5, 2>(k, stream);
  if (k.tiling.kernel == 7)
    return single ? launch_sized<T, 7, 1>(k, stream) : launch_sized<T, 7, 2>(k, stream);
  return launch_generic_train_depthwise_conv2d_backward(p, k.tiling, stream);
}

}  // namespace

const char* launch_train_depthwise_conv2d_backward(const CudaTrainDepthwiseConv2dBackwardParams& p,
                                                   void* stream) {
  const int64_t rows = p.rows();
  if (p.conv.window.batch == 0 && rows == 0) return nullptr;
  const char* error =
      with_type(p.type, [&](auto zero) { return launch_typed<decltype(zero)>(p, stream); });
  if (error != nullptr || rows == 0) return error;
  const int64_t blocks = divide_up(p.conv.window.channels, kJoinedChannels) * rows;
  return launch(join_parts_kernel, dim3(static_cast<unsigned>(blocks)), kJoinedChannels * kJoiners,
                kJoinedChannels * kJoiners * sizeof(float), stream, p);
}

}  // namespace fastconv
