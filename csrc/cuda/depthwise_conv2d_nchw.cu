// output = activation(depthwise(input) + bias), NCHW.
// A block owns some rows of one plane, or of several small ones, whose input with its border of
// zeros lies in shared memory as float32; a thread computes four neighbouring outputs at a time.
// Bytes moved: input and output once each, and the rows that two blocks share twice.
#include <algorithm>

#include "activation.cuh"
#include "depthwise_conv2d.h"
#include "dispatch.cuh"
#include "vec.cuh"

namespace fastconv {
namespace {

constexpr int kThreads = 128, kColumns = 4;
constexpr int64_t kSharedFloats = 10 << 10;  // 40 KB: two blocks on a multiprocessor of any GPU

struct KernelParams {
  CudaDepthwiseConv2dParams p;
  int planes, rows;      // of a block
  int in_rows, columns;  // of a plane's input in shared memory
};

// K, S: kernel and stride; 0 for any, which are read at run time.
template <class T, int K, int S>
__global__ void __launch_bounds__(kThreads) planes_kernel(const KernelParams k) {
  const DepthwiseConv2dParams& c = k.p.conv;
  const int kernel_h = K ? K : static_cast<int>(c.kernel_height);
  const int kernel_w = K ? K : static_cast<int>(c.kernel_width);
  const int stride_h = S ? S : static_cast<int>(c.stride_height);
  const int stride_w = S ? S : static_cast<int>(c.stride_width);
  const int dilation_h = K ? 1 : static_cast<int>(c.dilation_height);
  const int dilation_w = K ? 1 : static_cast<int>(c.dilation_width);
  const int64_t all_planes = c.batch * c.channels;
  const int64_t first_plane = static_cast<int64_t>(blockIdx.x) * k.planes;
  const int planes =
      static_cast<int>(min(static_cast<int64_t>(k.planes), all_planes - first_plane));
  const int64_t y0 = static_cast<int64_t>(blockIdx.y) * k.rows;
  const int rows = static_cast<int>(min(static_cast<int64_t>(k.rows), c.out_height - y0));

  float* tile = shared_memory<float>();  // [planes, in_rows, columns]
  const int tile_size = k.in_rows * k.columns;
  for (int i = threadIdx.x; i < planes * tile_size; i += kThreads) {
    const int64_t y = y0 * stride_h - c.pad_top + i % tile_size / k.columns;
    const int64_t x = i % k.columns - c.pad_left;
    const bool inside = y >= 0 && y < c.height && x >= 0 && x < c.width;
    const int64_t plane = first_plane + i / tile_size;
    tile[i] = inside
                  ? to_float(static_cast<const T*>(c.input)[(plane * c.height + y) * c.width + x])
                  : 0.0f;
  }
  __syncthreads();

  const int strips = static_cast<int>((c.out_width + kColumns - 1) / kColumns);
  for (int i = threadIdx.x; i < planes * rows * strips; i += kThreads) {
    const int plane = i / (rows * strips), row = i / strips % rows, x0 = i % strips * kColumns;
    const int64_t channel = (first_plane + plane) % c.channels;
    const float* filter = c.packed + channel * kernel_h * kernel_w;
    const float* from = tile + plane * tile_size + row * stride_h * k.columns;
    const int last = k.columns - 1;  // what lies beyond it belongs to no output
    float total[kColumns] = {};
#pragma unroll
    for (int ky = 0; ky < kernel_h; ++ky)
#pragma unroll
      for (int kx = 0; kx < kernel_w; ++kx) {
        const float factor = __ldg(filter + ky * kernel_w + kx);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const int x = (x0 + j) * stride_w + kx * dilation_w;
          total[j] += from[ky * dilation_h * k.columns + (x < last ? x : last)] * factor;
        }
      }
    const float bias = k.p.bias == nullptr ? 0.0f : k.p.bias[channel];
    const int64_t place = ((first_plane + plane) * c.out_height + y0 + row) * c.out_width + x0;
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      if (x0 + j < c.out_width)
        static_cast<T*>(c.output)[place + j] =
            from_float<T>(activate<T>(c.activation, total[j] + bias));
  }
}

template <class T>
const char* launch_typed(const CudaDepthwiseConv2dParams& p, void* stream) {
  const DepthwiseConv2dParams& c = p.conv;
  KernelParams k{};
  k.p = p;
  const auto in_rows = [&](int64_t rows) {
    return (rows - 1) * c.stride_height + c.dilation_height * (c.kernel_height - 1) + 1;
  };
  const int64_t columns =
      (c.out_width - 1) * c.stride_width + c.dilation_width * (c.kernel_width - 1) + 1;
  int64_t rows = std::min<int64_t>(c.out_height, 16);
  while (rows > 1 && in_rows(rows) * columns > kSharedFloats) rows /= 2;
  if (in_rows(rows) * columns > kSharedFloats) return "a row is too wide for shared memory";
  const int64_t strips = divide_up(c.out_width, kColumns);
  int64_t planes = std::max<int64_t>(1, kThreads / (rows * strips));
  while (planes > 1 && planes * in_rows(rows) * columns > kSharedFloats) --planes;
  k.planes = static_cast<int>(planes);
  k.rows = static_cast<int>(rows);
  k.in_rows = static_cast<int>(in_rows(rows));
  k.columns = static_cast<int>(columns);
  const dim3 grid(static_cast<unsigned>(divide_up(c.batch * c.channels, planes)),
                  static_cast<unsigned>(divide_up(c.out_height, rows)));
  const std::size_t shared = planes * in_rows(rows) * columns * sizeof(float);
  const int64_t size = c.kernel_height, stride = c.stride_height;
  const bool square = size == c.kernel_width && stride == c.stride_width &&
                      c.dilation_height == 1 && c.dilation_width == 1;
  void (*kernel)(KernelParams) = planes_kernel<T, 0, 0>;
  if (square && size == 3 && stride == 1) kernel = planes_kernel<T, 3, 1>;
  if (square && size == 3 && stride == 2) kernel = planes_kernel<T, 3, 2>;
  if (square && size == 5 && stride == 1) kernel = planes_kernel<T, 5, 1>;
  if (square && size == 5 && stride == 2) kernel = planes_kernel<T, 5, 2>;
  if (square && size == 7 && stride == 1) kernel = planes_kernel<T, 7, 1>;
  if (square && size == 7 && stride == 2) kernel = planes_kernel<T, 7, 2>;
  return launch(kernel, grid, kThreads, shared, stream, k);
}

}  // namespace

const char* launch_depthwise_conv2d_nchw(const CudaDepthwiseConv2dParams& p, void* stream) {
  if (p.conv.batch == 0) return nullptr;
  return with_type(p.type, [&](auto zero) { return launch_typed<decltype(zero)>(p, stream); });
}

}  // namespace fastconv
