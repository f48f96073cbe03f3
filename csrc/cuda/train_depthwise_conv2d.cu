// output = depthwise(activation(input * scale + shift)), NHWC, and the moments of the output.
// A thread owns kVector neighbouring channels and kColumns output columns and goes down the rows,
// as in depthwise_conv2d.cu; the next input row is on its way while one is added up. A block goes
// from image to image, so the filter is loaded and the moments are written once for all of its
// rows. Bytes moved: input and output once each, (kColumns - 1 + K) / kColumns of the input
// through the L1 cache, where each of these reads normalizes again, in registers.
#include "dispatch.cuh"
#include "train_depthwise_conv2d.h"
#include "train_maps.cuh"

namespace fastconv {
namespace {

struct KernelParams {
  CudaTrainDepthwiseConv2dParams p;
  TrainTiling tiling;
};

// Moments of what a thread writes: sums of differences from the mean so far, at first from the
// first value, which a run of values then moves.
template <int kVector>
struct ThreadMoments {
  __device__ void add(const float (&x)[kVector]) {
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      if (count == 0 && run == 0) mean[v] = x[v];
      const float difference = x[v] - mean[v];
      sum[v] += difference;
      squares[v] += difference * difference;
    }
    ++run;
  }
  __device__ void end_run() {
    if (run == 0) return;
    const float n = static_cast<float>(run), before = static_cast<float>(count);
    const float weight = n / (n + before);
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      const float step = sum[v] / n, own = squares[v] - step * sum[v];
      rest[v] += (own < 0.0f ? 0.0f : own) + step * step * before * weight;  // NaN stays
      mean[v] += step * weight;
      sum[v] = squares[v] = 0.0f;
    }
    count += run;
    run = 0;
  }

  // Joins those of the block's strips, in their order, and stores them.
  __device__ void store(const TrainTiling& t, const TrainPlace& place, int64_t channels,
                        float* partial) const {
    float* shared = shared_memory<float>();  // [3, strips, lanes, kVector]
    const int row = t.lanes * kVector, all = t.strips * row;
    if (place.strip < t.strips) {
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        float* to = shared + place.strip * row + place.lane * kVector + v;
        to[0] = static_cast<float>(count);
        to[all] = mean[v];
        to[2 * all] = rest[v];
      }
    }
    __syncthreads();
    if (place.strip != 0 || !place.active) return;
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      const float* from = shared + place.lane * kVector + v;
      float total = 0, sums = 0, squared = 0;
      for (int s = 0; s < t.strips; ++s) {
        total += from[s * row];
        sums += from[s * row] * from[all + s * row];
      }
      const float joined = total == 0 ? 0.0f : sums / total;
      for (int s = 0; s < t.strips; ++s) {
        const float difference = from[all + s * row] - joined;
        squared += from[2 * all + s * row] + from[s * row] * difference * difference;
      }
      float* to = partial + place.part * 3 * channels + place.channel + v;
      to[0] = total;
      to[channels] = joined;
      to[2 * channels] = squared;
    }
  }

  int64_t count = 0;  // before this run
  int run = 0;
  float mean[kVector] = {}, rest[kVector] = {};  // of those; rest: squared differences from it
  float sum[kVector] = {}, squares[kVector] = {};
};

// Rows of one image that a thread has in one go.
struct Band {
  int64_t image;
  int y0, y1, x0;  // output rows, and the first column
};

template <class T, int K, int S, bool kNarrow>
class Strip {
 public:
  static constexpr TrainKernelSizes kSizes = train_forward_sizes(K, S, sizeof(T), kNarrow);
  static constexpr int kVector = kSizes.vector, kColumns = kSizes.columns;

  __device__ Strip(const TrainDepthwiseConv2dParams& c, const TrainPlace& place)
      : c_(c), w_(c.window), channel_(place.channel) {
    if (!place.active) return;
    affine_ = Affine<kVector>(c.input.affine, channel_, w_.channels);
#pragma unroll
    for (int tap = 0; tap < K * K; ++tap)
      load_channels(c.packed + tap * w_.channels, channel_, 0.0f, filter_[tap]);
  }

  __device__ void run(const Band& band, bool sums, ThreadMoments<kVector>& moments) {
    const int top = band.y0 * S - static_cast<int>(w_.pad_top);  // the first row that is read
    const int bottom =
        min(static_cast<int>(w_.height), (band.y1 - 1) * S - static_cast<int>(w_.pad_top) + K);
    left_ = band.x0 * S - static_cast<int>(w_.pad_left);
    input_ = static_cast<const T*>(c_.input.data) +
             band.image * w_.height * w_.width * w_.channels + channel_;
    T* output = static_cast<T*>(c_.output) +
                band.image * w_.out_height * w_.out_width * w_.channels + channel_;
    float total[kLive][kColumns][kVector] = {};
    int in_y = (band.y0 - (kLive - 1)) * S - static_cast<int>(w_.pad_top) + K - S;
    Row next;
    if (in_y >= max(0, top) && in_y < bottom) next = load(in_y);
    // Before the first row of the band come steps that only collect for it.
    for (int start = band.y0 - (kLive - 1); start < band.y1; start += kLive) {
#pragma unroll
      for (int phase = 0; phase < kLive; ++phase) {
        const int y = start + phase;  // whose last S input rows are added now
        if (y >= band.y1) break;
#pragma unroll
        for (int i = 0; i < S; ++i, ++in_y) {
          const Row row = next;
          if (in_y + 1 >= max(0, top) && in_y + 1 < bottom) next = load(in_y + 1);
          if (in_y >= max(0, top) && in_y < bottom) add(row, phase, i, total);
        }
        if (y >= band.y0) store(total[phase], output, band.x0, y, sums, moments);
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
#pragma unroll
          for (int v = 0; v < kVector; ++v) total[phase][column][v] = 0.0f;
        }
      }
    }
  }

 private:
  static constexpr int kLive = (K + S - 1) / S;  // output rows that an input row belongs to
  static constexpr int kLoaded = (kColumns - 1) * S + K;  // input columns of a strip
  struct Row {
    Vec<T, kVector> columns[kLoaded];
  };

  __device__ bool inside(int x) const { return left_ + x >= 0 && left_ + x < w_.width; }

  __device__ Row load(int in_y) const {
    const T* from = input_ + static_cast<int64_t>(in_y) * w_.width * w_.channels;
    Row row;
#pragma unroll
    for (int x = 0; x < kLoaded; ++x) {
      if (inside(x))
        row.columns[x] = Vec<T, kVector>::load(from + (left_ + x) * static_cast<int>(w_.channels));
    }
    return row;
  }

  // Row i of the last S ones of output row `phase`.
  __device__ void add(const Row& row, int phase, int i,
                      float (&total)[kLive][kColumns][kVector]) const {
    float value[kLoaded][kVector];
#pragma unroll
    for (int x = 0; x < kLoaded; ++x) row.columns[x].get(value[x]);
    if (c_.input.affine != nullptr) {
#pragma unroll
      for (int x = 0; x < kLoaded; ++x) {
#pragma unroll
        for (int v = 0; v < kVector; ++v)
          value[x][v] = value[x][v] * affine_.scale[v] + affine_.shift[v];
      }
      activate_all<T>(c_.input.activation, value);
    }
#pragma unroll
    for (int x = 0; x < kLoaded; ++x) {
      if (inside(x)) continue;  // the padding comes after the activation
#pragma unroll
      for (int v = 0; v < kVector; ++v) value[x][v] = 0.0f;
    }
#pragma unroll
    for (int x = 0; x < kLoaded; ++x) {
#pragma unroll
      for (int live = 0; live < kLive; ++live) {
        const int ky = K - S + i - S * live;
        if (ky < 0) continue;
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
          const int kx = x - column * S;
          if (kx < 0 || kx >= K) continue;
#pragma unroll
          for (int v = 0; v < kVector; ++v)
            total[(phase + live) % kLive][column][v] += value[x][v] * filter_[ky * K + kx][v];
        }
      }
    }
  }

  __device__ void store(const float (&total)[kColumns][kVector], T* output, int x0, int y,
                        bool sums, ThreadMoments<kVector>& moments) const {
    T* row = output + static_cast<int64_t>(y) * w_.out_width * w_.channels;
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      if (x0 + column >= w_.out_width) continue;
      const auto rounded = Vec<T, kVector>::of(total[column]);
      rounded.store(row + (x0 + column) * static_cast<int>(w_.channels));
      if (!sums) continue;
      float value[kVector];
      rounded.get(value);
      moments.add(value);
    }
  }

  const TrainDepthwiseConv2dParams& c_;
  const TrainWindow& w_;
  const int64_t channel_;
  int left_ = 0;  // the strip's first input column
  const T* input_ = nullptr;
  Affine<kVector> affine_;
  float filter_[K * K][kVector] = {};
};

template <class T, int K, int S, bool kNarrow>
__global__ void __launch_bounds__(train_forward_sizes(K, S, sizeof(T), kNarrow).threads,
                                  train_forward_sizes(K, S, sizeof(T), kNarrow).blocks)
    train_depthwise_kernel(const KernelParams k) {
  using Own = Strip<T, K, S, kNarrow>;
  constexpr int kVector = Own::kVector, kColumns = Own::kColumns;
  const TrainWindow& w = k.p.conv.window;
  const TrainPlace place = train_place(k.tiling, w.channels, kVector);
  Own strip(k.p.conv, place);
  ThreadMoments<kVector> moments;
  for (int64_t row = place.begin; place.active && row < place.end;) {
    const int64_t run = row / w.out_height;  // of rows of one image and tile
    const int y0 = static_cast<int>(row % w.out_height);
    const int y1 = static_cast<int>(min(w.out_height, y0 + place.end - row));
    const int tile = static_cast<int>(run % k.tiling.tiles);
    const int x0 = (tile * k.tiling.strips + place.strip) * kColumns;
    if (x0 < w.out_width)
      strip.run({run / k.tiling.tiles, y0, y1, x0}, k.p.partial != nullptr, moments);
    moments.end_run();
    row += y1 - y0;
  }
  if (k.p.partial != nullptr) moments.store(k.tiling, place, w.channels, k.p.partial);
}

// Any window, stride, dilation and number of channels, one output at a time.
template <class T>
__global__ void __launch_bounds__(kTrainGenericSizes.threads)
    generic_train_depthwise_kernel(const KernelParams k) {
  const TrainDepthwiseConv2dParams& c = k.p.conv;
  const TrainWindow& w = c.window;
  const TrainPlace place = train_place(k.tiling, w.channels, 1);
  Affine<1> affine;
  if (place.active) affine = Affine<1>(c.input.affine, place.channel, w.channels);
  ThreadMoments<1> moments;
  constexpr int kRun = 256;
  const T* input = static_cast<const T*>(c.input.data) + place.channel;
  T* output = static_cast<T*>(c.output) + place.channel;
  const int64_t end = place.end * w.out_width;
  for (int64_t pixel = place.begin * w.out_width + place.strip; place.active && pixel < end;
       pixel += k.tiling.strips) {
    const int64_t row = pixel / w.out_width, x = pixel % w.out_width;
    const int64_t image = row / w.out_height, y = row % w.out_height;
    float total = 0;
    for (int64_t ky = 0; ky < w.kernel_height; ++ky) {
      const int64_t in_y = y * w.stride_height - w.pad_top + ky * w.dilation_height;
      if (in_y < 0 || in_y >= w.height) continue;
      for (int64_t kx = 0; kx < w.kernel_width; ++kx) {
        const int64_t in_x = x * w.stride_width - w.pad_left + kx * w.dilation_width;
        if (in_x < 0 || in_x >= w.width) continue;
        float value = to_float(input[((image * w.height + in_y) * w.width + in_x) * w.channels]);
        if (c.input.affine != nullptr)
          value = activate<T>(c.input.activation, value * affine.scale[0] + affine.shift[0]);
        total += value * c.packed[(ky * w.kernel_width + kx) * w.channels + place.channel];
      }
    }
    const T rounded = from_float<T>(total);
    output[pixel * w.channels] = rounded;
    const float value[1] = {to_float(rounded)};
    moments.add(value);
    if (moments.run == kRun) moments.end_run();
  }
  moments.end_run();
  if (k.p.partial != nullptr) moments.store(k.tiling, place, w.channels, k.p.partial);
}

struct MomentsParams {
  const float* partial;  // [parts, 3, C]
  int64_t parts, channels;
  float* moments;  // [2, C]
};

constexpr int kJoinedChannels = 32, kJoiners = 8;

// A thread adds up every kJoiners-th part, and these sums are added in their order: first for the
// mean, then for the squares of the differences from it.
__global__ void __launch_bounds__(kJoinedChannels* kJoiners)
    join_moments_kernel(const MomentsParams m) {
  float* shared = shared_memory<float>();  // [2, kJoiners, kJoinedChannels]
  const int lane = static_cast<int>(threadIdx.x) % kJoinedChannels;
  const int joiner = static_cast<int>(threadIdx.x) / kJoinedChannels;
  constexpr int kAll = kJoiners * kJoinedChannels;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kJoinedChannels + lane;
  const bool active = channel < m.channels;
  const auto add_up = [&](float* sums) {
    float total = 0;
    for (int i = 0; i < kJoiners; ++i) total += sums[i * kJoinedChannels + lane];
    return total;
  };
  float count = 0, sum = 0;
  for (int64_t part = joiner; active && part < m.parts; part += kJoiners) {
    const float* from = m.partial + part * 3 * m.channels + channel;
    count += from[0];
    sum += from[0] * from[m.channels];
  }
  shared[threadIdx.x] = count;
  shared[kAll + threadIdx.x] = sum;
  __syncthreads();
  const float total = add_up(shared);
  const float mean = total == 0 ? 0.0f : add_up(shared + kAll) / total;
  __syncthreads();
  float squares = 0;
  for (int64_t part = joiner; active && part < m.parts; part += kJoiners) {
    const float* from = m.partial + part * 3 * m.channels + channel;
    const float difference = from[m.channels] - mean;
    squares += from[2 * m.channels] + from[0] * difference * difference;
  }
  shared[threadIdx.x] = squares;
  __syncthreads();
  if (joiner != 0 || !active) return;
  m.moments[channel] = mean;
  m.moments[m.channels + channel] = total == 0 ? 0.0f : add_up(shared) / total;
}

const char* launch_with(void (*kernel)(KernelParams), const KernelParams& k, int vector,
                        void* stream) {
  const std::size_t floats = k.p.partial == nullptr ? 0 : 3 * k.tiling.strips * k.tiling.lanes;
  return launch(kernel, train_grid(k.tiling), k.tiling.threads, floats * vector * sizeof(float),
                stream, k);
}

template <class T, int K, int S>
const char* launch_special(KernelParams k, void* stream) {
  const auto run = [&](auto kernel, const TrainKernelSizes& sizes) {
    return launch_with(kernel, k, sizes.vector, stream);
  };
  if (k.tiling.narrow)
    return run(train_depthwise_kernel<T, K, S, true>, Strip<T, K, S, true>::kSizes);
  return run(train_depthwise_kernel<T, K, S, false>, Strip<T, K, S, false>::kSizes);
}

template <class T>
const char* launch_typed(const CudaTrainDepthwiseConv2dParams& p, void* stream) {
  const TrainDepthwiseConv2dParams& c = p.conv;
  const bool pairs = are_pairs<T>(c.window.channels, {c.input.data, c.output});
  KernelParams k{p, train_forward_tiling(c.window, p.type, pairs, multiprocessors())};
  if (p.parts != 0) k.tiling.parts = p.parts;
  const bool single = c.window.stride_height == 1;
  if (k.tiling.kernel == 3)
    return single ? launch_special<T, 3, 1>(k, stream) : launch_special<T, 3, 2>(k, stream);
  if (k.tiling.kernel == 5)
    return single ? launch_special<T, 5, 1>(k, stream) : launch_special<T, 5, 2>(k, stream);
  if (k.tiling.kernel == 7)
    return single ? launch_special<T, 7, 1>(k, stream) : launch_special<T, 7, 2>(k, stream);
  return launch_with(generic_train_depthwise_kernel<T>, k, 1, stream);
}

}  // namespace

const char* launch_train_depthwise_conv2d(const CudaTrainDepthwiseConv2dParams& p, void* stream) {
  if (p.conv.window.batch == 0 && p.partial == nullptr) return nullptr;
  const char* error =
      with_type(p.type, [&](auto zero) { return launch_typed<decltype(zero)>(p, stream); });
  if (error != nullptr || p.conv.moments == nullptr) return error;
  const MomentsParams m{p.partial, p.parts, p.conv.window.channels, p.conv.moments};
  const dim3 grid(static_cast<unsigned>(divide_up(m.channels, kJoinedChannels)));
  return launch(join_moments_kernel, grid, kJoinedChannels * kJoiners,
                2 * kJoinedChannels * kJoiners * sizeof(float), stream, m);
}

}  // namespace fastconv
