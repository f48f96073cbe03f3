// How the training kernels of csrc/cuda/train_depthwise_conv2d.cu and _backward.cu cut their work;
// the host's half, free of CUDA, so that a caller can ask how many parts there are.
// A block has a group of channels and walks down the rows of one tile of columns after the other,
// of all images; its share of these rows is contiguous, and what it sums up over them is a part.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../data_type.h"
#include "../train.h"

namespace fastconv {

// Of a kernel for a window of kernel x kernel: channels and columns of a thread, most threads of a
// block, and blocks that a multiprocessor has registers for. Pairs of channels leave the filter and
// all sums in registers beside enough warps; narrow: one channel, for maps that have no pairs.
struct TrainKernelSizes {
  int vector, columns, threads, blocks;
};

// bytes: of an element.
constexpr TrainKernelSizes train_forward_sizes(int64_t kernel, int64_t stride, int64_t bytes,
                                               bool narrow) {
  const int vector = narrow ? 1 : 2, columns = kernel == 7 || stride == 2 ? 2 : 4;
  if (kernel == 3) return {vector, 4, 128, 4};
  return {vector, columns, 128, kernel == 5 && bytes == 2 ? 3 : 2};
}

// columns: of steps, which are stride x stride pixels of the input.
constexpr TrainKernelSizes train_backward_sizes(int64_t kernel, int64_t stride, int64_t bytes,
                                                bool narrow) {
  const int vector = narrow || kernel == 7 ? 1 : 2, columns = stride == 1 ? 4 : 2;
  if (kernel == 3) return {vector, columns, bytes == 2 ? 256 : 192, 2};
  if (kernel == 5 && !narrow && bytes == 4) return {vector, columns, 128, 2};
  if (kernel == 7 && narrow && bytes == 4) return {vector, columns, 128, 2};  // 3 would spill
  return {vector, columns, 128, 3};
}

// Rows of the filter that stay in registers beside the sums of its gradient; the others are read
// from shared memory.
constexpr int train_kept_rows(int kernel, const TrainKernelSizes& sizes) {
  if (kernel == 7) return 6;
  return kernel == 5 && sizes.vector == 2 && sizes.blocks == 3 ? 3 : kernel;
}

// Columns of the gradient that a thread makes at most: a strip's and a share of the halo.
constexpr int train_made_columns(const TrainKernelSizes& sizes) {
  return sizes.columns + (sizes.vector == 1 ? 2 : 1);
}

constexpr TrainKernelSizes kTrainGenericSizes{1, 1, 128, 4};

// The distance, in floats, of the columns of a ring in shared memory that puts what half a warp
// reads at once, a block's channels of every `columns`-th column, into all banks.
constexpr int train_ring_pixel(int channels, int vector, int columns) {
  for (int pixel = channels; pixel < channels + 32; pixel += vector)
    if (pixel * columns % 32 == channels % 32) return pixel;
  return channels;
}

struct TrainTiling {
  int kernel;         // of the specialised kernel; 0: the generic one
  bool narrow;        // as above
  int lanes, strips;  // channel vectors, and strips of columns, of a block
  int threads;        // lanes * strips in whole warps
  int groups;         // blocks for all channels
  int tiles;          // of strips * columns columns
  int64_t rows;       // of all tiles and images
  int64_t parts;      // blocks for all rows
};

namespace train_tiling {

inline int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The kernel size that there is a specialised kernel for, or 0.
inline int special(const TrainWindow& w) {
  const int64_t k = w.kernel_height, s = w.stride_height;
  const bool square =
      k == w.kernel_width && s == w.stride_width && w.dilation_height == 1 && w.dilation_width == 1;
  // Within a row these kernels count elements in 32 bits.
  const int64_t widest = std::max(w.width, w.out_width) + 1024;
  const bool counts = widest < (1 << 24) && widest * w.channels < (int64_t{1} << 31) &&
                      std::max(w.height, w.out_height) < (1 << 24) &&
                      std::max(w.pad_top, w.pad_left) < (1 << 24);
  return square && counts && (k == 3 || k == 5 || k == 7) && s <= 2 ? static_cast<int>(k) : 0;
}

// Whether every window has part of the input in it, and begins less than itself before it.
inline bool overlaps(const TrainWindow& w) {
  return w.pad_top < w.kernel_height && w.pad_left < w.kernel_width &&
         (w.out_height - 1) * w.stride_height < w.height + w.pad_top &&
         (w.out_width - 1) * w.stride_width < w.width + w.pad_left;
}

// halo: columns beside a tile that it reads, too, of `read` ones in all.
struct Row {
  int64_t channels, columns, halo, read;
};

// Chooses channels and columns of a block: few idle threads, few columns that two tiles read. It
// has whole pixels or a multiple of the 32 bytes that memory is read in, at least two of them if it
// can.
inline TrainTiling tiling(const Row& row, const TrainKernelSizes& sizes, int64_t bytes) {
  const int64_t vectors = row.channels / sizes.vector,
                all_strips = over(row.columns, sizes.columns);
  const int64_t sector = 32 / (sizes.vector * bytes);  // in vectors
  TrainTiling best{};
  double best_score = 0;
  for (int64_t n = sector; n < vectors + sector && n <= sizes.threads / 2; n += sector) {
    const int64_t lanes = std::min(n, vectors), groups = over(vectors, lanes);
    const int64_t tiles = over(all_strips, std::min(all_strips, sizes.threads / lanes));
    int64_t strips = over(all_strips, tiles);
    const auto columns = [&] { return std::min(row.read, strips * sizes.columns + row.halo); };
    while (strips * train_made_columns(sizes) < columns()) ++strips;
    if (lanes * strips > sizes.threads) continue;
    const int64_t warps = over(lanes * strips, 32);
    const double busy = static_cast<double>(vectors * row.columns) /
                        static_cast<double>(groups * tiles * warps * 32 * sizes.columns);
    const double twice = tiles == 1 ? 0 : static_cast<double>(row.halo) / (strips * sizes.columns);
    const double score = busy / (1 + twice) * (lanes > sector || groups == 1 ? 1 : 0.6);
    if (score <= best_score) continue;
    best_score = score;
    best.lanes = static_cast<int>(lanes);
    best.strips = static_cast<int>(strips);
    best.threads = static_cast<int>(warps * 32);
    best.groups = static_cast<int>(groups);
    best.tiles = static_cast<int>(over(all_strips, strips));
  }
  return best;
}

inline TrainTiling generic(const TrainWindow& w) {
  const int64_t lanes = std::min<int64_t>(32, w.channels);
  const int64_t strips = kTrainGenericSizes.threads / lanes;
  TrainTiling t{};
  t.lanes = static_cast<int>(lanes);
  t.strips = static_cast<int>(strips);
  t.threads = static_cast<int>(over(lanes * strips, 32) * 32);
  t.groups = static_cast<int>(over(w.channels, lanes));
  t.tiles = 1;
  return t;
}

// As many blocks as a GPU runs at once; a part has a few rows, since it reads those above its own.
inline void set_parts(TrainTiling& t, const TrainKernelSizes& sizes, int64_t rows,
                      int64_t multiprocessors) {
  constexpr int64_t kLeastRows = 4, kMost = 65535;
  t.rows = rows;
  const int64_t resident = std::min<int64_t>(16, sizes.threads * sizes.blocks / t.threads);
  t.parts = std::max<int64_t>(1, multiprocessors * resident / t.groups);
  t.parts = std::max<int64_t>(1, std::min({t.parts, over(rows, kLeastRows), kMost}));
}

}  // namespace train_tiling

// pairs: whether every map can be read two elements at a time.
inline TrainTiling train_forward_tiling(const TrainWindow& w, DataType type, bool pairs,
                                        int64_t multiprocessors) {
  using namespace train_tiling;
  const int kernel = special(w);
  const int64_t bytes = element_bytes(type);
  const TrainKernelSizes sizes = kernel == 0
                                     ? kTrainGenericSizes
                                     : train_forward_sizes(kernel, w.stride_height, bytes, !pairs);
  TrainTiling t = generic(w);
  if (kernel != 0) {
    t = tiling({w.channels, w.out_width, kernel - w.stride_width, 0}, sizes, bytes);
    t.kernel = kernel;
    t.narrow = !pairs;
  }
  set_parts(t, sizes, w.batch * t.tiles * w.out_height, multiprocessors);
  return t;
}

// Steps of stride pixels from one that begins with a window to the last in the input.
constexpr int64_t train_steps(int64_t size, int64_t pad, int64_t stride) {
  return (size + pad + stride - 1) / stride - pad / stride;
}

inline TrainTiling train_backward_tiling(const TrainWindow& w, DataType type, bool pairs,
                                         int64_t multiprocessors) {
  using namespace train_tiling;
  const int kernel = overlaps(w) ? special(w) : 0;
  const int64_t bytes = element_bytes(type);
  const TrainKernelSizes sizes = kernel == 0
                                     ? kTrainGenericSizes
                                     : train_backward_sizes(kernel, w.stride_height, bytes, !pairs);
  TrainTiling t = generic(w);
  int64_t rows = w.height;
  if (kernel != 0) {
    const int64_t live = over(kernel, w.stride_width);  // columns of the gradient over a pixel
    t = tiling(
        {w.channels, train_steps(w.width, w.pad_left, w.stride_width), live - 1, w.out_width},
        sizes, bytes);
    t.kernel = kernel;
    t.narrow = !pairs;
    rows = train_steps(w.height, w.pad_top, w.stride_height);
  }
  set_parts(t, sizes, w.batch * t.tiles * rows, multiprocessors);
  return t;
}

}  // namespace fastconv
