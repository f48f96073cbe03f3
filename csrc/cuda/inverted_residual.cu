// See inverted_residual.h for the formula.
// A block of threads owns a tile of output pixels of one image. The input under it, with the border
// that the filters need, lies in shared memory; kChunk expanded channels at a time are computed by
// the tensor cores, convolved by the ordinary ones, and multiplied into the sums of all output
// channels, which stay in registers; the next chunk's weights arrive meanwhile. Pixels outside of
// the image are zero after the activation, as the depthwise convolution's padding is. Bytes moved:
// the input once and its borders again, the output once, all weights from the L2 cache for every
// tile; the expanded maps never.
#include "activation.cuh"
#include "dispatch.cuh"
#include "inverted_residual.h"
#include "mma.cuh"

namespace fastconv {
namespace {

constexpr int kStrip = 4;           // output columns of a thread at a time
constexpr int kPairs = kChunk / 2;  // threads beside each other, two channels each
constexpr int kGroups = kBlockThreads / kPairs;

struct KernelParams {
  CudaInvertedResidualParams p;
  SharedLayout layout;
  int64_t tiles_down, tiles_across;
  bool vector_input, vector_expand, vector_project;  // whether 16-byte loads are aligned
};

// Copies rows into shared memory, 16 bytes at a time while the threads go on where the source
// allows it, and zeros where `row` gives null and behind `columns`. row(i): where the i-th row
// begins.
template <class T, class Row>
__device__ void copy_rows(T* to, int pitch, int rows, int padded_columns, int columns, bool vectors,
                          Row row) {
  constexpr int kWide = 8;
  const int steps = padded_columns / kWide;
  for (int i = threadIdx.x; i < rows * steps; i += kBlockThreads) {
    const int r = i / steps, c = i % steps * kWide;
    const T* from = row(r);
    T* place = to + r * pitch + c;
    const bool zero = from == nullptr || c >= columns;
    if (vectors && !zero) {
      copy_ahead<16>(place, from + c);
      continue;
    }
    float x[kWide];
#pragma unroll
    for (int j = 0; j < kWide; ++j) x[j] = !zero && c + j < columns ? to_float(from[c + j]) : 0.0f;
    Vec<T, kWide>::of(x).store(place);
  }
}

// Where the tile of this block lies.
struct Position {
  int64_t image, tile;
  int y0, x0;        // its first output pixel
  int in_y0, in_x0;  // the input pixel above and left of it that its first filter begins at
};

__device__ Position position_of(const KernelParams& k) {
  const BlockSizes& s = k.p.sizes;
  Position at;
  const int64_t tiles = k.tiles_down * k.tiles_across;
  at.image = blockIdx.x / tiles;
  at.tile = blockIdx.x % tiles;
  at.y0 = static_cast<int>(at.tile / k.tiles_across * k.p.tile.height);
  at.x0 = static_cast<int>(at.tile % k.tiles_across * k.p.tile.width);
  at.in_y0 = static_cast<int>(at.y0 * s.stride - k.p.pad_top);
  at.in_x0 = static_cast<int>(at.x0 * s.stride - k.p.pad_left);
  return at;
}

// Whether a pixel of the input tile is one of the image.
__device__ bool is_inside(const KernelParams& k, const Position& at, int pixel) {
  const int width = static_cast<int>(k.layout.in_width);
  const int y = at.in_y0 + pixel / width, x = at.in_x0 + pixel % width;
  return pixel < k.layout.in_pixels && y >= 0 && y < k.p.sizes.height && x >= 0 &&
         x < k.p.sizes.width;
}

// expanded[in_rows, kChunk] = activation(input * weight + bias), zero outside of the image.
template <class T>
__device__ void expand_chunk(const KernelParams& k, const Position& at, const T* input,
                             const T* weight, const float* bias, T* expanded) {
  const int pitch = static_cast<int>(k.layout.input_pitch);
  const int depth = static_cast<int>(round_up(k.p.sizes.in_channels, 16));
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr int kTiles = kChunk / 8;
  for (int row = warp * 16; row < k.layout.in_rows; row += kBlockWarps * 16) {
    FragmentD sum[kTiles] = {};
    for (int c = 0; c < depth; c += 16) {
      const FragmentA a = load_a(input + row * pitch + c, pitch);
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        FragmentB first, second;
        load_b(first, second, weight + n * 8 * pitch + c, pitch);
        multiply<T>(sum[n], a, first);
        multiply<T>(sum[n + 1], a, second);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pixel = row + lane / 4 + half * 8;
      const bool inside = is_inside(k, at, pixel);
      float x[kTiles][2];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j)
          x[n][j] = sum[n].r[half * 2 + j] + bias[n * 8 + lane % 4 * 2 + j];
      }
      activate_all<T>(k.p.activation, x);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) x[n][j] = inside ? x[n][j] : 0.0f;
        const int channel = n * 8 + lane % 4 * 2;
        Vec<T, 2>::of(x[n]).store(expanded + pixel * (kChunk + kPadding) + channel);
      }
    }
  }
}

// One chunk of the depthwise convolution. emit(pixel, channel, value[2]) gets every output pixel of
// the tile, with `channel` the first of two inside the chunk.
template <class T, int K, int S, class Emit>
__device__ void depthwise_chunk(const KernelParams& k, const T* expanded, int pitch,
                                const float* filters, Emit emit) {
  const int channel = threadIdx.x % kPairs * 2;
  const int width = static_cast<int>(k.p.tile.width);
  const int strips = (width + kStrip - 1) / kStrip;
  const int in_width = static_cast<int>(k.layout.in_width);
  const float* bias = filters + K * K * kChunk;
  constexpr int kLoaded = (kStrip - 1) * S + K;
  for (int i = threadIdx.x / kPairs; i < k.p.tile.height * strips; i += kGroups) {
    const int y = i / strips, x0 = i % strips * kStrip;
    float sum[kStrip][2];
#pragma unroll
    for (int j = 0; j < kStrip; ++j)
#pragma unroll
      for (int c = 0; c < 2; ++c) sum[j][c] = bias[channel + c];
#pragma unroll
    for (int ky = 0; ky < K; ++ky) {
      const T* row = expanded + (y * S + ky) * in_width * pitch + channel;
      float value[kLoaded][2];
#pragma unroll
      for (int x = 0; x < kLoaded; ++x) {
        // Behind the tile's last column nothing is needed, but something must be read.
        const int from = min(x0 * S + x, in_width - 1);
        Vec<T, 2> pair;
        pair.raw = *reinterpret_cast<const typename Vec<T, 2>::Raw*>(row + from * pitch);
        pair.get(value[x]);
      }
#pragma unroll
      for (int kx = 0; kx < K; ++kx) {
        const float2 factor =
            *reinterpret_cast<const float2*>(filters + (ky * K + kx) * kChunk + channel);
#pragma unroll
        for (int j = 0; j < kStrip; ++j) {
          sum[j][0] += value[j * S + kx][0] * factor.x;
          sum[j][1] += value[j * S + kx][1] * factor.y;
        }
      }
    }
    activate_all<T>(k.p.depthwise_activation, sum);
#pragma unroll
    for (int j = 0; j < kStrip; ++j) {
      if (x0 + j < width) emit(y, x0 + j, channel, sum[j]);
    }
  }
}

// The filters of a chunk, then the biases of depthwise convolution and expansion; zeros behind the
// last channel.
__device__ void load_filters(const KernelParams& k, int64_t first, float* to) {
  const int taps = static_cast<int>(k.p.sizes.kernel * k.p.sizes.kernel);
  const int64_t mid = k.p.sizes.mid_channels;
  for (int i = threadIdx.x; i < (taps + 2) * kChunk; i += kBlockThreads) {
    const int row = i / kChunk;
    const int64_t channel = first + i % kChunk;
    const float* from = k.p.depthwise_weight + row * mid;
    if (row == taps) from = k.p.depthwise_bias;
    if (row == taps + 1) from = k.p.expand_bias;
    if (from != nullptr && channel < mid) {
      copy_ahead<4>(to + i, from + channel);
    } else {
      to[i] = 0.0f;
    }
  }
}

// What has been computed by all warps: sums of 16 pixels x 8 channels, with their bias, activation
// and residual, to memory.
template <class T, int kMTiles, int kNTiles>
__device__ void store_output(const KernelParams& k, const Position& at,
                             const FragmentD (&sum)[kMTiles][kNTiles], int row0, int column0) {
  const BlockSizes& s = k.p.sizes;
  const int lane = threadIdx.x % 32, width = static_cast<int>(k.p.tile.width);
  const T* residual = static_cast<const T*>(k.p.residual);
  T* output = static_cast<T*>(k.p.output);
  const bool pairs = s.out_channels % 2 == 0;
#pragma unroll
  for (int m = 0; m < kMTiles; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int pixel = row0 + m * 16 + lane / 4 + half * 8;
      const int64_t y = at.y0 + pixel / width, x = at.x0 + pixel % width;
      if (pixel >= k.layout.out_pixels || y >= s.out_height || x >= s.out_width) continue;
      const int64_t place = ((at.image * s.out_height + y) * s.out_width + x) * s.out_channels;
      float value[kNTiles][2];
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
        const int channel = column0 + n * 8 + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          value[n][j] = sum[m][n].r[half * 2 + j];
          if (channel + j >= s.out_channels) continue;
          if (k.p.project_bias != nullptr) value[n][j] += k.p.project_bias[channel + j];
          if (residual != nullptr) value[n][j] += to_float(residual[place + channel + j]);
        }
      }
      activate_all<T>(k.p.project_activation, value);
#pragma unroll
      for (int n = 0; n < kNTiles; ++n) {
        const int channel = column0 + n * 8 + lane % 4 * 2;
        if (pairs && channel < s.out_channels) {
          Vec<T, 2>::of(value[n]).store(output + place + channel);
          continue;
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if (channel + j < s.out_channels)
            output[place + channel + j] = from_float<T>(value[n][j]);
        }
      }
    }
}

// Where a chunk's weights lie in shared memory.
template <class T>
struct ChunkWeights {
  __device__ ChunkWeights(const KernelParams& k, unsigned char* shared, int chunk) {
    unsigned char* base = shared + chunk % 2 * k.layout.next_weights;
    expand = reinterpret_cast<T*>(base + k.layout.expand_weight);
    project = reinterpret_cast<T*>(base + k.layout.project_weight);
    filters = reinterpret_cast<float*>(base + k.layout.filters);
  }
  T *expand, *project;
  float* filters;
};

// Begins to load the weights of the chunk of channels that begins at `first`.
template <class T>
__device__ void load_weights(const KernelParams& k, const ChunkWeights<T>& to, int first) {
  const BlockSizes& s = k.p.sizes;
  const int mid = static_cast<int>(s.mid_channels), in = static_cast<int>(s.in_channels);
  load_filters(k, first, to.filters);
  if (s.expands) {
    const int pitch = static_cast<int>(k.layout.input_pitch);
    copy_rows(
        to.expand, pitch, kChunk, pitch - kPadding, in, k.vector_expand, [&](int row) -> const T* {
          if (first + row >= mid) return nullptr;
          return static_cast<const T*>(k.p.expand_weight) + static_cast<int64_t>(first + row) * in;
        });
  }
  if (s.out_channels > 0)
    copy_rows(to.project, kChunk + kPadding, static_cast<int>(k.layout.warps.columns()), kChunk,
              mid - first, k.vector_project, [&](int row) -> const T* {
                if (row >= s.out_channels) return nullptr;
                return static_cast<const T*>(k.p.project_weight) + static_cast<int64_t>(row) * mid +
                       first;
              });
}

// kMTiles 0: without projection.
template <class T, int K, int S, int kMTiles, int kNTiles>
__global__ void __launch_bounds__(kBlockThreads, kMTiles > 0 ? 1 : 2)
    block_kernel(const KernelParams k) {
  constexpr bool kProjects = kMTiles > 0;
  constexpr int kM = kProjects ? kMTiles : 1, kN = kProjects ? kNTiles : 2;
  constexpr int kChunkPitch = kChunk + kPadding;
  const BlockSizes& s = k.p.sizes;
  const Position at = position_of(k);
  unsigned char* shared = shared_memory<unsigned char>();
  T* input = reinterpret_cast<T*>(shared + k.layout.input);
  T* expanded = reinterpret_cast<T*>(shared + k.layout.expanded);
  T* depthwise = reinterpret_cast<T*>(shared + k.layout.depthwise);
  const int mid = static_cast<int>(s.mid_channels), in = static_cast<int>(s.in_channels);
  const int all_chunks = static_cast<int>(round_up(mid, kChunk));
  const int input_pitch =
      s.expands ? static_cast<int>(k.layout.input_pitch) : all_chunks + kPadding;

  const T* image = static_cast<const T*>(k.p.input) + at.image * s.height * s.width * in;
  copy_rows(input, input_pitch, static_cast<int>(k.layout.in_rows), input_pitch - kPadding, in,
            k.vector_input, [&](int pixel) -> const T* {
              if (!is_inside(k, at, pixel)) return nullptr;
              const int width = static_cast<int>(k.layout.in_width);
              const int64_t y = at.in_y0 + pixel / width, x = at.in_x0 + pixel % width;
              return image + (y * s.width + x) * in;
            });
  load_weights(k, ChunkWeights<T>(k, shared, 0), 0);

  FragmentD sum[kM][kN] = {};
  const int warp = threadIdx.x / 32, warps_n = k.layout.warps.warps_n;
  const int row0 = warp / warps_n * kM * 16, column0 = warp % warps_n * kN * 8;
  for (int first = 0; first < mid; first += kChunk) {
    const int chunk = first / kChunk;
    const ChunkWeights<T> weights(k, shared, chunk);
    const float* filters = weights.filters;
    wait_for_copies();
    __syncthreads();  // they are there for all, and nobody still reads the chunk before
    if (first + kChunk < mid)
      load_weights(k, ChunkWeights<T>(k, shared, chunk + 1), first + kChunk);
    if (s.expands) {
      expand_chunk(k, at, input, weights.expand, filters + (K * K + 1) * kChunk, expanded);
      __syncthreads();
    }
    const T* maps = s.expands ? expanded : input + first;
    const int pitch = s.expands ? kChunkPitch : input_pitch;
    if constexpr (kProjects) {
      const int width = static_cast<int>(k.p.tile.width);
      depthwise_chunk<T, K, S>(
          k, maps, pitch, filters, [&](int y, int x, int channel, float (&value)[2]) {
            // Channels that do not exist must not be infinite: they meet weights of zero.
            for (int j = 0; j < 2; ++j)
              if (first + channel + j >= mid) value[j] = 0.0f;
            Vec<T, 2>::of(value).store(depthwise + (y * width + x) * kChunkPitch + channel);
          });
      __syncthreads();
#pragma unroll
      for (int c = 0; c < kChunk; c += 16) {
        FragmentA a[kM];
#pragma unroll
        for (int m = 0; m < kM; ++m)
          a[m] = load_a(depthwise + (row0 + m * 16) * kChunkPitch + c, kChunkPitch);
#pragma unroll
        for (int n = 0; n < kN; n += 2) {
          FragmentB first_b, second_b;
          load_b(first_b, second_b, weights.project + (column0 + n * 8) * kChunkPitch + c,
                 kChunkPitch);
#pragma unroll
          for (int m = 0; m < kM; ++m) {
            multiply<T>(sum[m][n], a[m], first_b);
            multiply<T>(sum[m][n + 1], a[m], second_b);
          }
        }
      }
    } else {
      float part[2] = {};
      depthwise_chunk<T, K, S>(
          k, maps, pitch, filters, [&](int y, int x, int channel, float (&value)[2]) {
            const int64_t out_y = at.y0 + y, out_x = at.x0 + x;
            if (out_y >= s.out_height || out_x >= s.out_width) return;
            T* to = static_cast<T*>(k.p.output) +
                    ((at.image * s.out_height + out_y) * s.out_width + out_x) * mid + first;
            for (int j = 0; j < 2; ++j) part[j] += value[j];
            if (mid % 2 == 0 && first + channel < mid) {
              Vec<T, 2>::of(value).store(to + channel);
            } else {
              for (int j = 0; j < 2; ++j)
                if (first + channel + j < mid) to[channel + j] = from_float<T>(value[j]);
            }
          });
      if (k.p.sums != nullptr) {
        float* parts = reinterpret_cast<float*>(depthwise);  // [kGroups, kChunk]
        for (int j = 0; j < 2; ++j) parts[threadIdx.x * 2 + j] = part[j];
        __syncthreads();
        if (threadIdx.x < kChunk && first + static_cast<int>(threadIdx.x) < mid) {
          float total = 0;
          for (int group = 0; group < kGroups; ++group)
            total += parts[group * kChunk + threadIdx.x];
          const int64_t tiles = k.tiles_down * k.tiles_across;
          k.p.sums[(at.image * tiles + at.tile) * mid + first + threadIdx.x] = total;
        }
      }
    }
  }
  if constexpr (kProjects) store_output<T>(k, at, sum, row0, column0);
}

bool is_aligned(const void* address, int64_t elements) {
  return reinterpret_cast<std::uintptr_t>(address) % 16 == 0 && elements % 8 == 0;
}

template <class T, int K, int S>
void (*kernel_for(const WarpTiles& w))(KernelParams) {
  if (w.m_tiles == 2 && w.n_tiles == 4) return block_kernel<T, K, S, 2, 4>;
  if (w.m_tiles == 2) return block_kernel<T, K, S, 2, 8>;
  return block_kernel<T, K, S, 4, 8>;
}

template <class T, int K, int S>
const char* launch_sized(const KernelParams& k, void* stream) {
  const auto kernel =
      k.p.sizes.out_channels ? kernel_for<T, K, S>(k.layout.warps) : block_kernel<T, K, S, 0, 0>;
  const int64_t blocks = k.p.sizes.batch * k.tiles_down * k.tiles_across;
  if (blocks >= int64_t{1} << 31) return "more tiles than a grid can have";
  const dim3 grid(static_cast<unsigned>(blocks));
  return launch(kernel, grid, kBlockThreads, k.layout.bytes, stream, k);
}

template <class T>
const char* launch_typed(const CudaInvertedResidualParams& p, void* stream) {
  const BlockSizes& s = p.sizes;
  KernelParams k{p,
                 SharedLayout(s, p.tile),
                 divide_up(s.out_height, p.tile.height),
                 divide_up(s.out_width, p.tile.width),
                 is_aligned(p.input, s.in_channels),
                 is_aligned(p.expand_weight, s.in_channels),
                 is_aligned(p.project_weight, s.mid_channels)};
  if (s.kernel == 3)
    return s.stride == 1 ? launch_sized<T, 3, 1>(k, stream) : launch_sized<T, 3, 2>(k, stream);
  return s.stride == 1 ? launch_sized<T, 5, 1>(k, stream) : launch_sized<T, 5, 2>(k, stream);
}

}  // namespace

const char* launch_inverted_residual(const CudaInvertedResidualParams& p, void* stream) {
  if (p.sizes.batch == 0) return nullptr;
  return p.type == DataType::kFloat16 ? launch_typed<__half>(p, stream)
                                      : launch_typed<__nv_bfloat16>(p, stream);
}

}  // namespace fastconv
