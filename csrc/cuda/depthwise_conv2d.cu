// output = activation(depthwise(input) + bias), NHWC.
// A thread owns kVector neighbouring channels and kColumns output columns, and goes down the rows
// of a band: every input row is loaded once and added to all the output rows that it belongs to,
// whose sums wait in registers beside the filter. A warp reads neighbouring channels. Bytes moved:
// input and output once each, (kColumns - 1 + K) / kColumns of the input through the L1 cache.
#include <algorithm>

#include "activation.cuh"
#include "depthwise_conv2d.h"
#include "dispatch.cuh"
#include "vec.cuh"

namespace fastconv {
namespace {

constexpr int kThreads = 128;

// The threads of a block: `lanes` channel vectors times `rows` strips of columns (or pixels).
struct Layout {
  int lanes, rows;
  int channel_groups;  // blocks for all channels
  int64_t band_rows;   // output rows of a band
};

struct KernelParams {
  CudaDepthwiseConv2dParams p;
  Layout layout;
};

// Adds up what the threads with the same channels have, in a fixed order, and stores it.
template <int kVector>
__device__ void store_sums(const KernelParams& k, const float (&sum)[kVector], int64_t image,
                           int64_t band, int64_t channel) {
  float* shared = shared_memory<float>();  // [rows, lanes, kVector]
  const int lane = threadIdx.x % k.layout.lanes, row = threadIdx.x / k.layout.lanes;
#pragma unroll
  for (int v = 0; v < kVector; ++v) shared[threadIdx.x * kVector + v] = sum[v];
  __syncthreads();
  if (row == 0) {
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      if (channel + v >= k.p.conv.channels) continue;
      float total = 0;
      for (int r = 0; r < k.layout.rows; ++r)
        total += shared[(r * k.layout.lanes + lane) * kVector + v];
      k.p.sums[(image * k.p.bands + band) * k.p.conv.channels + channel + v] = total;
    }
  }
  __syncthreads();  // before the next image
}

template <class T, int K, int S, int kVector, int kColumns>
__global__ void __launch_bounds__(kThreads) depthwise_kernel(const KernelParams k) {
  constexpr int kLive = (K + S - 1) / S;           // output rows that an input row belongs to
  constexpr int kLoaded = (kColumns - 1) * S + K;  // input columns of a strip
  const DepthwiseConv2dParams& c = k.p.conv;
  const int group = blockIdx.x % k.layout.channel_groups;
  const int first_strip = blockIdx.x / k.layout.channel_groups * k.layout.rows;
  const int strip_step = gridDim.x / k.layout.channel_groups * k.layout.rows;
  const int64_t channel =
      (static_cast<int64_t>(group) * k.layout.lanes + threadIdx.x % k.layout.lanes) * kVector;
  const bool active = channel < c.channels;
  const int64_t band = blockIdx.y;
  const int y0 = static_cast<int>(band * k.layout.band_rows);
  const int y1 = static_cast<int>(min(c.out_height, (band + 1) * k.layout.band_rows));

  float filter[K * K][kVector], bias[kVector];
#pragma unroll
  for (int v = 0; v < kVector; ++v) {
    bias[v] = active && k.p.bias != nullptr ? k.p.bias[channel + v] : 0.0f;
#pragma unroll
    for (int tap = 0; tap < K * K; ++tap)
      filter[tap][v] = active ? c.packed[tap * c.channels + channel + v] : 0.0f;
  }

  for (int64_t image = blockIdx.z; image < c.batch; image += gridDim.z) {
    const T* input = static_cast<const T*>(c.input) + image * c.height * c.width * c.channels;
    T* output = static_cast<T*>(c.output) + image * c.out_height * c.out_width * c.channels;
    float sum[kVector] = {};
    for (int strip = first_strip + threadIdx.x / k.layout.lanes;
         active && strip * kColumns < c.out_width; strip += strip_step) {
      const int x0 = strip * kColumns;
      const int left = x0 * S - static_cast<int>(c.pad_left);
      float total[kLive][kColumns][kVector] = {};
      // Before the first row of the band come steps that only collect for it.
      for (int start = y0 - (kLive - 1); start < y1; start += kLive) {
#pragma unroll
        for (int phase = 0; phase < kLive; ++phase) {
          const int y = start + phase;  // whose last S input rows are loaded now
          if (y >= y1) break;
#pragma unroll
          for (int i = 0; i < S; ++i) {
            const int in_y = y * S - static_cast<int>(c.pad_top) + K - S + i;
            if (in_y < 0 || in_y >= c.height) continue;
            const T* row = input + static_cast<int64_t>(in_y) * c.width * c.channels + channel;
            Vec<T, kVector> loaded[kLoaded];
#pragma unroll
            for (int x = 0; x < kLoaded; ++x) {
              const bool inside = left + x >= 0 && left + x < c.width;
              if (inside) loaded[x] = Vec<T, kVector>::load(row + (left + x) * c.channels);
            }
#pragma unroll
            for (int x = 0; x < kLoaded; ++x) {
              float value[kVector];
              loaded[x].get(value);
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
                    total[(phase + live) % kLive][column][v] += value[v] * filter[ky * K + kx][v];
                }
              }
            }
          }
#pragma unroll
          for (int column = 0; column < kColumns; ++column) {
            if (y >= y0 && x0 + column < c.out_width) {
              float value[kVector];
#pragma unroll
              for (int v = 0; v < kVector; ++v) {
                value[v] = activate<T>(c.activation, total[phase][column][v] + bias[v]);
                sum[v] += value[v];
              }
              const int64_t pixel = static_cast<int64_t>(y) * c.out_width + x0 + column;
              Vec<T, kVector>::of(value).store(output + pixel * c.channels + channel);
            }
#pragma unroll
            for (int v = 0; v < kVector; ++v) total[phase][column][v] = 0.0f;
          }
        }
      }
    }
    if (k.p.sums != nullptr) store_sums<kVector>(k, sum, image, band, channel);
  }
}

// Any window, stride, dilation and number of channels, one output at a time.
template <class T>
__global__ void __launch_bounds__(kThreads) generic_depthwise_kernel(const KernelParams k) {
  const DepthwiseConv2dParams& c = k.p.conv;
  const int group = blockIdx.x % k.layout.channel_groups;
  const int64_t channel =
      static_cast<int64_t>(group) * k.layout.lanes + threadIdx.x % k.layout.lanes;
  const bool active = channel < c.channels;
  const int64_t band = blockIdx.y;
  const int64_t y0 = band * k.layout.band_rows;
  const int64_t y1 = min(c.out_height, y0 + k.layout.band_rows);
  const int64_t pixels = y1 > y0 ? (y1 - y0) * c.out_width : 0;
  const int64_t step = static_cast<int64_t>(gridDim.x / k.layout.channel_groups) * k.layout.rows;
  const float bias = active && k.p.bias != nullptr ? k.p.bias[channel] : 0.0f;
  for (int64_t image = blockIdx.z; image < c.batch; image += gridDim.z) {
    const T* input = static_cast<const T*>(c.input) + image * c.height * c.width * c.channels;
    T* output = static_cast<T*>(c.output) + image * c.out_height * c.out_width * c.channels;
    float sum[1] = {};
    for (int64_t pixel =
             blockIdx.x / k.layout.channel_groups * k.layout.rows + threadIdx.x / k.layout.lanes;
         active && pixel < pixels; pixel += step) {
      const int64_t y = y0 + pixel / c.out_width, x = pixel % c.out_width;
      float total = bias;
      for (int64_t ky = 0; ky < c.kernel_height; ++ky) {
        const int64_t in_y = y * c.stride_height - c.pad_top + ky * c.dilation_height;
        if (in_y < 0 || in_y >= c.height) continue;
        for (int64_t kx = 0; kx < c.kernel_width; ++kx) {
          const int64_t in_x = x * c.stride_width - c.pad_left + kx * c.dilation_width;
          if (in_x < 0 || in_x >= c.width) continue;
          total += to_float(input[(in_y * c.width + in_x) * c.channels + channel]) *
                   c.packed[(ky * c.kernel_width + kx) * c.channels + channel];
        }
      }
      total = activate<T>(c.activation, total);
      sum[0] += total;
      output[(y * c.out_width + x) * c.channels + channel] = from_float<T>(total);
    }
    if (k.p.sums != nullptr) store_sums<1>(k, sum, image, band, channel);
  }
}

// strips: what the rows of threads share out among them, in one row or band.
template <int kVector>
const char* launch_with(void (*kernel)(KernelParams), CudaDepthwiseConv2dParams p, int64_t columns,
                        void* stream) {
  const DepthwiseConv2dParams& c = p.conv;
  KernelParams k{};
  const int64_t vectors = divide_up(c.channels, kVector);
  k.layout.lanes = static_cast<int>(std::min<int64_t>(32, power_of_two_from(vectors)));
  k.layout.rows = kThreads / k.layout.lanes;
  k.layout.channel_groups = static_cast<int>(divide_up(vectors, k.layout.lanes));
  // All strips of a band in one block where their sums are wanted.
  const int64_t strips = divide_up(c.out_width, columns);
  const int64_t strip_groups = p.sums != nullptr ? 1 : divide_up(strips, k.layout.rows);
  const int64_t images = std::min<int64_t>(c.batch, kMostBlocks);
  if (p.bands == 0) {
    // Two waves of four blocks on each multiprocessor; every band loads a few rows more.
    constexpr int64_t kLeastRows = 4;
    const int64_t there = images * k.layout.channel_groups * strip_groups;
    p.bands = std::max<int64_t>(1, divide_up(8 * multiprocessors(), there));
    p.bands = std::min(p.bands, divide_up(c.out_height, kLeastRows));
  }
  k.layout.band_rows = divide_up(c.out_height, p.bands);
  k.p = p;
  const dim3 grid(static_cast<unsigned>(k.layout.channel_groups * strip_groups),
                  static_cast<unsigned>(p.bands), static_cast<unsigned>(images));
  const std::size_t shared = p.sums != nullptr ? kThreads * kVector * sizeof(float) : 0;
  return launch(kernel, grid, kThreads, shared, stream, k);
}

// Channels of a thread, and columns: as many as leave the filter in registers.
template <class T, int K, int S>
const char* launch_sized(const CudaDepthwiseConv2dParams& p, void* stream) {
  constexpr int kVector = K == 3 ? 4 : 2, kColumns = K == 7 ? 2 : 4;
  return launch_with<kVector>(depthwise_kernel<T, K, S, kVector, kColumns>, p, kColumns, stream);
}

template <class T>
bool is_aligned(const DepthwiseConv2dParams& c, int64_t vector) {
  const auto address =
      reinterpret_cast<std::uintptr_t>(c.input) | reinterpret_cast<std::uintptr_t>(c.output);
  return c.channels % vector == 0 && address % (vector * sizeof(T)) == 0;
}

template <class T>
const char* launch_typed(const CudaDepthwiseConv2dParams& p, void* stream) {
  const DepthwiseConv2dParams& c = p.conv;
  const int64_t size = c.kernel_height, stride = c.stride_height;
  // Within an image the kernels count pixels and their rows' elements in 32 bits.
  const bool counts = c.width * c.channels < (int64_t{1} << 31) && c.out_height < (1 << 24);
  const bool square = size == c.kernel_width && stride == c.stride_width && stride <= 2 &&
                      c.dilation_height == 1 && c.dilation_width == 1;
  if (square && counts && is_aligned<T>(c, size == 3 ? 4 : 2)) {
    if (size == 3)
      return stride == 1 ? launch_sized<T, 3, 1>(p, stream) : launch_sized<T, 3, 2>(p, stream);
    if (size == 5)
      return stride == 1 ? launch_sized<T, 5, 1>(p, stream) : launch_sized<T, 5, 2>(p, stream);
    if (size == 7)
      return stride == 1 ? launch_sized<T, 7, 1>(p, stream) : launch_sized<T, 7, 2>(p, stream);
  }
  return launch_with<1>(generic_depthwise_kernel<T>, p, 1, stream);
}

}  // namespace

const char* launch_depthwise_conv2d(const CudaDepthwiseConv2dParams& p, void* stream) {
  if (p.conv.batch == 0) return nullptr;
  return with_type(p.type, [&](auto zero) { return launch_typed<decltype(zero)>(p, stream); });
}

}  // namespace fastconv
