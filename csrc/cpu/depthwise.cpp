#include "depthwise.h"

#include <utility>

#include "activate.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

// Widths that are common in networks map to full tiles: 7, 14, 28, 56, 112.
constexpr int kTileQ = kShortTiles ? 3 : 7;

alignas(64) const Element kZeros[kW] = {};

// How much of a tile's left and right lies in the padding, when it is nothing or exactly the usual
// (KW - 1) / 2 columns.
enum Edge : int { kInside = 0, kLeft = 1, kRight = 2, kBoth = 3, kAnyEdge = 4 };

// Tiles of a row: `count` of `q` columns; the last may overlap the one before it and write the same
// values again.
struct RowTiles {
  explicit RowTiles(int64_t out_width)
      : count((out_width + kTileQ - 1) / kTileQ),
        q((out_width + count - 1) / count),
        last(out_width - q) {}
  int64_t begin(int64_t t) const { return t + 1 < count ? t * q : last; }
  int64_t count, q, last;
};

// One kernel row of a tile whose tap 0 at output 0 is input column `column`, at p.
template <int KW, int S, int Q, int kEdge, class T>
FASTCONV_INLINE void accumulate_row(const T* p, int64_t pixel, int64_t column, int64_t width,
                                    const float* w, Vec (&acc)[Q]) {
  constexpr int kSpan = (Q - 1) * S + KW;
  constexpr int kPad = (KW - 1) / 2;
  constexpr int kBegin = kEdge == kLeft || kEdge == kBoth ? kPad : 0;
  constexpr int kEnd = kEdge == kRight || kEdge == kBoth ? kSpan - kPad : kSpan;
  Vec wv[KW];
  FASTCONV_UNROLL for (int j = 0; j < KW; ++j) wv[j] = vload(w + j * kW);
  FASTCONV_UNROLL for (int x = kBegin; x < kEnd; ++x) {
    const T* px = p + x * pixel;
    if constexpr (kEdge == kAnyEdge)
      px = static_cast<uint64_t>(column + x) < static_cast<uint64_t>(width) ? px : kZeros;
    const Vec in = vload(px);
    FASTCONV_UNROLL for (int q = 0; q < Q; ++q) {
      const int j = x - q * S;
      if (j >= 0 && j < KW) acc[q] = vfma(in, wv[j], acc[q]);
    }
  }
}

// Any kernel width, stride and dilation.
template <int Q, class T>
FASTCONV_INLINE void accumulate_row_generic(const DepthwiseKernel& k, const T* row, int64_t pixel,
                                            int64_t column, int64_t width, const float* w,
                                            Vec (&acc)[Q]) {
  for (int64_t j = 0; j < k.width; ++j, column += k.dilation) {
    const Vec wv = vload(w + j * kW);
    FASTCONV_UNROLL for (int q = 0; q < Q; ++q) {
      const int64_t x = column + q * k.stride;
      if (x >= 0 && x < width) acc[q] = vfma(vload(row + x * pixel), wv, acc[q]);
    }
  }
}

template <int Q>
FASTCONV_INLINE void store_tile(Activation activation, const ActivationBounds& bounds, Element* out,
                                int64_t pixel, Vec (&acc)[Q]) {
  activate_tile<Element>(activation, bounds, acc);
  FASTCONV_UNROLL for (int q = 0; q < Q; ++q) vstore(out + q * pixel, acc[q]);
}

// sum + the columns of a tile from the first one on that is not also in the tile before.
template <int Q>
FASTCONV_INLINE Vec add_tile(Vec sum, const RowTiles& tiles, int64_t t, const Vec (&acc)[Q]) {
  const int64_t first = t == 0 ? 0 : tiles.begin(t - 1) + Q - tiles.begin(t);
  FASTCONV_UNROLL for (int q = 0; q < Q; ++q) {
    if (q >= first) sum = vadd(sum, acc[q]);
  }
  return sum;
}

// Whether the input rows under one output row, from the S-th on, are those under the next one: with
// stride S and no dilation along the height.
template <int K, int S, class Row>
FASTCONV_INLINE bool rows_overlap(const Row* rows) {
  bool same = true;
  for (int i = 0; i + S < K; ++i) same = same && rows[K + i] == rows[i + S];
  return same;
}

// Two output rows at once, where registers allow: each input pixel is loaded once for both, and
// twice as many accumulators hide the FMA's latency. w: [K * K][kW].
template <int K, int S, int Q>
FASTCONV_INLINE void accumulate_two_rows(const float* input, const int32_t* rows, const float* w,
                                         Vec (&first)[Q], Vec (&second)[Q]) {
  FASTCONV_UNROLL for (int i = 0; i < K + S; ++i) {
    const float* p = input + (i < K ? rows[i] : rows[K + i - S]);
    FASTCONV_UNROLL for (int x = 0; x < (Q - 1) * S + K; ++x) {
      const Vec in = vload(p + x * kW);
      FASTCONV_UNROLL for (int q = 0; q < Q; ++q) {
        const int j = x - q * S;
        if (j < 0 || j >= K) continue;
        if (i < K) first[q] = vfma(in, vload(w + (i * K + j) * kW), first[q]);
        if (i >= S) second[q] = vfma(in, vload(w + ((i - S) * K + j) * kW), second[q]);
      }
    }
  }
}

// K x K kernels, K and S compile-time; K = 0: generic.
template <int K, int S, int Q>
void plane(const DepthwiseKernel& shared, const float* packed, const float* input,
           const int32_t* rows, Element* out, int64_t out_rows, int64_t out_width, float* sums) {
  const DepthwiseKernel k = shared;
  Vec sum = sums == nullptr ? vzero() : vload(sums);
  const ActivationBounds bounds = activation_bounds(k.activation);
  const bool later = activated_later<Element>(k.activation), sums_tiles = sums != nullptr && !later;
  const RowTiles tiles(out_width);
  const Vec bias = vload(packed);
  int64_t r = 0;
  if constexpr (K != 0 && kRegisters == 32) {
    for (; r + 2 <= out_rows && rows_overlap<K, S>(rows); r += 2, rows += 2 * K) {
      for (int64_t t = 0; t < tiles.count; ++t) {
        const int64_t x = tiles.begin(t);
        Vec first[Q], second[Q];
        FASTCONV_UNROLL for (int q = 0; q < Q; ++q) first[q] = second[q] = bias;
        accumulate_two_rows<K, S, Q>(input + x * S * kW, rows, packed + kW, first, second);
        store_tile<Q>(k.activation, bounds, out + x * kW, kW, first);
        store_tile<Q>(k.activation, bounds, out + (out_width + x) * kW, kW, second);
        if (sums_tiles) sum = add_tile<Q>(add_tile<Q>(sum, tiles, t, first), tiles, t, second);
      }
      if (later)
        sum = activate_memory<Element>(k.activation, {out, kW, nullptr, 2 * out_width}, sum);
      out += 2 * out_width * kW;
    }
  }
  for (; r < out_rows; ++r, rows += k.height, out += out_width * kW) {
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t x = tiles.begin(t);
      Vec acc[Q];
      FASTCONV_UNROLL for (int q = 0; q < Q; ++q) acc[q] = bias;
      if constexpr (K == 0) {
        constexpr int64_t kUnbounded = INT64_MAX;
        for (int64_t i = 0; i < k.height; ++i) {
          accumulate_row_generic<Q>(k, input + rows[i], kW, x * k.stride, kUnbounded,
                                    packed + (1 + i * k.width) * kW, acc);
        }
      } else {
        FASTCONV_UNROLL for (int i = 0; i < K; ++i) {
          accumulate_row<K, S, Q, kInside>(input + rows[i] + x * S * kW, kW, 0, 0,
                                           packed + (1 + i * K) * kW, acc);
        }
      }
      store_tile<Q>(k.activation, bounds, out + x * kW, kW, acc);
      if (sums_tiles) sum = add_tile<Q>(sum, tiles, t, acc);
    }
    if (later) sum = activate_memory<Element>(k.activation, {out, kW, nullptr, out_width}, sum);
  }
  if (sums != nullptr) vstore(sums, sum);
}

// Asks for what the next tile of a row will read that this one does not: the map is far away, and
// lines of one vector of channels lie too far apart for the hardware to see a stream.
template <int S, int Q>
FASTCONV_INLINE void prefetch_columns(const Element* p, int64_t pixel) {
  FASTCONV_UNROLL for (int x = 0; x < Q * S; ++x) __builtin_prefetch(p + x * pixel, 0, 3);
}

// Output columns [x, x + Q) of all vectors of one NHWC row. K > 0 needs every kernel row inside the
// image if kFullHeight.
template <int K, int S, int Q, int kEdge, bool kFullHeight>
void row_tile(const DepthwiseKernel& shared_kernel, const float* packed,
              const DepthwiseRows& shared_row, int64_t vectors, int64_t x, Element* out,
              int64_t out_vector) {
  const DepthwiseKernel k = shared_kernel;
  const DepthwiseRows d = shared_row;
  const ActivationBounds bounds = activation_bounds(k.activation);
  const int64_t column = x * (K != 0 ? S : k.stride) + d.left;
  const int64_t weights = kW * (1 + k.height * k.width);
  out += x * d.out_pixel;
  for (int64_t v = 0; v < vectors; ++v, packed += weights, out += out_vector) {
    Vec acc[Q];
    const Vec bias = vload(packed);
    FASTCONV_UNROLL for (int q = 0; q < Q; ++q) acc[q] = bias;
    if constexpr (K != 0 && kFullHeight) {
      FASTCONV_UNROLL for (int i = 0; i < K; ++i) {
        const Element* p = d.rows[i] + v * kW + column * d.pixel;
        if (i >= K - S && d.is_far)
          prefetch_columns<S, Q>(p + ((Q - 1) * S + K) * d.pixel, d.pixel);
        accumulate_row<K, S, Q, kEdge>(p, d.pixel, column, d.width, packed + (1 + i * K) * kW, acc);
      }
    } else {
      for (int64_t i = 0; i < k.height; ++i) {
        if (d.rows[i] == nullptr) continue;
        const Element* row = d.rows[i] + v * kW;
        const float* w = packed + (1 + i * k.width) * kW;
        if constexpr (K != 0) {
          accumulate_row<K, S, Q, kEdge>(row + column * d.pixel, d.pixel, column, d.width, w, acc);
        } else {
          accumulate_row_generic<Q>(k, row, d.pixel, column, d.width, w, acc);
        }
      }
    }
    store_tile<Q>(k.activation, bounds, out, d.out_pixel, acc);
  }
}

// The same for two output rows whose input rows overlap, all inside the image.
template <int K, int S, int Q, int kEdge>
void two_row_tile(const DepthwiseKernel& shared_kernel, const float* packed,
                  const DepthwiseRows& shared_rows, int64_t vectors, int64_t x, Element* out,
                  int64_t out_vector) {
  constexpr int kSpan = (Q - 1) * S + K, kPad = (K - 1) / 2;
  constexpr int kBegin = (kEdge & kLeft) != 0 ? kPad : 0;
  constexpr int kEnd = (kEdge & kRight) != 0 ? kSpan - kPad : kSpan;
  const DepthwiseKernel k = shared_kernel;
  const DepthwiseRows d = shared_rows;
  const ActivationBounds bounds = activation_bounds(k.activation);
  const int64_t offset = (x * S + d.left) * d.pixel;
  out += x * d.out_pixel;
  for (int64_t v = 0; v < vectors; ++v, packed += kW * (1 + K * K), out += out_vector) {
    const float* w = packed + kW;
    const Vec bias = vload(packed);
    Vec first[Q], second[Q];
    FASTCONV_UNROLL for (int q = 0; q < Q; ++q) first[q] = second[q] = bias;
    FASTCONV_UNROLL for (int i = 0; i < K + S; ++i) {
      const Element* p = d.rows[i < K ? i : K + i - S] + v * kW + offset;
      if (d.is_far) prefetch_columns<S, Q>(p + kSpan * d.pixel, d.pixel);
      FASTCONV_UNROLL for (int c = kBegin; c < kEnd; ++c) {
        const Vec in = vload(p + c * d.pixel);
        FASTCONV_UNROLL for (int q = 0; q < Q; ++q) {
          const int j = c - q * S;
          if (j < 0 || j >= K) continue;
          if (i < K) first[q] = vfma(in, vload(w + (i * K + j) * kW), first[q]);
          if (i >= S) second[q] = vfma(in, vload(w + ((i - S) * K + j) * kW), second[q]);
        }
      }
    }
    store_tile<Q>(k.activation, bounds, out, d.out_pixel, first);
    store_tile<Q>(k.activation, bounds, out + d.out_row, d.out_pixel, second);
  }
}

using PlaneFunction = void (*)(const DepthwiseKernel&, const float*, const float*, const int32_t*,
                               Element*, int64_t, int64_t, float*);
using RowFunction = void (*)(const DepthwiseKernel&, const float*, const DepthwiseRows&, int64_t,
                             int64_t, Element*, int64_t);

// Functions for tiles of 1 to kTileQ columns; entry i is for i + 1.
using Widths = std::make_integer_sequence<int, kTileQ>;

template <int K, int S, int... kMinusOne>
PlaneFunction plane_of_width(int64_t q, std::integer_sequence<int, kMinusOne...>) {
  static constexpr PlaneFunction kTable[] = {plane<K, S, kMinusOne + 1>...};
  return kTable[q - 1];
}

template <int K, int S, int kEdge, bool kFullHeight, int... kMinusOne>
RowFunction row_of_width(int64_t q, std::integer_sequence<int, kMinusOne...>) {
  static constexpr RowFunction kTable[] = {row_tile<K, S, kMinusOne + 1, kEdge, kFullHeight>...};
  return kTable[q - 1];
}

template <int K, int S>
RowFunction choose_row(int edge, bool full_height, int64_t q) {
  if (!full_height) return row_of_width<K, S, kAnyEdge, false>(q, Widths());
  switch (edge) {
    case kInside:
      return row_of_width<K, S, kInside, true>(q, Widths());
    case kLeft:
      return row_of_width<K, S, kLeft, true>(q, Widths());
    case kRight:
      return row_of_width<K, S, kRight, true>(q, Widths());
    case kBoth:
      return row_of_width<K, S, kBoth, true>(q, Widths());
    default:
      return row_of_width<K, S, kAnyEdge, true>(q, Widths());
  }
}

template <int S, int kEdge, int... kMinusOne>
RowFunction two_rows_of_width(int64_t q, std::integer_sequence<int, kMinusOne...>) {
  static constexpr RowFunction kTable[] = {two_row_tile<3, S, kMinusOne + 1, kEdge>...};
  return kTable[q - 1];
}

template <int S>
RowFunction choose_two_rows(int edge, int64_t q) {
  switch (edge) {
    case kInside:
      return two_rows_of_width<S, kInside>(q, Widths());
    case kLeft:
      return two_rows_of_width<S, kLeft>(q, Widths());
    case kRight:
      return two_rows_of_width<S, kRight>(q, Widths());
    default:
      return two_rows_of_width<S, kBoth>(q, Widths());
  }
}

// Compile-time kernels exist for 3x3 and 5x5, strides 1 and 2, undilated along the width.
int special_kernel(const DepthwiseKernel& k) {
  const bool square = k.height == k.width && (k.width == 3 || k.width == 5);
  return square && k.dilation == 1 && (k.stride == 1 || k.stride == 2)
             ? static_cast<int>(10 * k.width + k.stride)
             : 0;
}

}  // namespace

void pack_depthwise(const float* weight, int64_t channels, int64_t taps, const float* bias,
                    float* packed) {
  for (int64_t c = 0; c < channels; c += kW, packed += kW * (1 + taps)) {
    for (int64_t lane = 0; lane < kW; ++lane) {
      const bool real = c + lane < channels;
      packed[lane] = real && bias != nullptr ? bias[c + lane] : 0.f;
      for (int64_t t = 0; t < taps; ++t)
        packed[(1 + t) * kW + lane] = real ? weight[(c + lane) * taps + t] : 0.f;
    }
  }
}

void depthwise_plane(const DepthwiseKernel& k, const float* packed, const float* input,
                     const int32_t* rows, Element* out, int64_t out_rows, int64_t out_width,
                     float* sum) {
  const int64_t q = RowTiles(out_width).q;
  PlaneFunction function = nullptr;
  switch (special_kernel(k)) {
    case 31:
      function = plane_of_width<3, 1>(q, Widths());
      break;
    case 32:
      function = plane_of_width<3, 2>(q, Widths());
      break;
    case 51:
      function = plane_of_width<5, 1>(q, Widths());
      break;
    case 52:
      function = plane_of_width<5, 2>(q, Widths());
      break;
    default:
      function = plane_of_width<0, 0>(q, Widths());
  }
  function(k, packed, input, rows, out, out_rows, out_width, sum);
}

namespace {

void activate_rows(Activation kind, const DepthwiseRows& d, int64_t count, int64_t vectors,
                   Element* out, int64_t out_vector) {
  for (int64_t r = 0; r < count; ++r, out += d.out_row) {
    if (out_vector == kW) {
      for (int64_t x = 0; x < d.out_width; ++x)
        activate_memory<Element>(kind, {out + x * d.out_pixel, out_vector, nullptr, vectors},
                                 vzero());
    } else {
      for (int64_t v = 0; v < vectors; ++v)
        activate_memory<Element>(kind, {out + v * out_vector, d.out_pixel, nullptr, d.out_width},
                                 vzero());
    }
  }
}

bool full_height(const DepthwiseKernel& k, const Element* const* rows) {
  bool full = true;
  for (int64_t i = 0; i < k.height; ++i) full = full && rows[i] != nullptr;
  return full;
}

// How a tile at output column x meets the borders of the image.
int edge_of(const DepthwiseKernel& k, const DepthwiseRows& d, int64_t x, int64_t q) {
  const int64_t pad = (k.width - 1) / 2;
  const int64_t before = -(x * k.stride + d.left);
  const int64_t after = (x + q - 1) * k.stride + d.left + k.width - d.width;
  if ((before > 0 && before != pad) || (after > 0 && after != pad)) return kAnyEdge;
  return (before > 0 ? kLeft : 0) | (after > 0 ? kRight : 0);
}

// Whether the next two rows can be computed as a pair: 3x3 kernels, where registers allow.
bool is_pair(const DepthwiseKernel& k, const DepthwiseRows& d) {
  if (kRegisters != 32 || !full_height(k, d.rows) || !full_height(k, d.rows + k.height))
    return false;
  const int kind = special_kernel(k);
  return kind == 31 ? rows_overlap<3, 1>(d.rows) : kind == 32 && rows_overlap<3, 2>(d.rows);
}

RowFunction choose_function(const DepthwiseKernel& k, int edge, bool full, bool pair, int64_t q) {
  const int kind = special_kernel(k);
  if (kRegisters == 32 && pair && edge != kAnyEdge)
    return kind == 31 ? choose_two_rows<1>(edge, q) : choose_two_rows<2>(edge, q);
  switch (kind) {
    case 31:
      return choose_row<3, 1>(edge, full, q);
    case 32:
      return choose_row<3, 2>(edge, full, q);
    case 51:
      return choose_row<5, 1>(edge, full, q);
    case 52:
      return choose_row<5, 2>(edge, full, q);
    default:
      return row_of_width<0, 0, kAnyEdge, false>(q, Widths());
  }
}

}  // namespace

void depthwise_rows(const DepthwiseKernel& k, const float* packed, const DepthwiseRows& all,
                    int64_t count, int64_t vectors, Element* out, int64_t out_vector) {
  DepthwiseRows d = all;
  const RowTiles tiles(d.out_width);
  for (int64_t r = 0; r < count;) {
    const bool pair = r + 2 <= count && is_pair(k, d), full = full_height(k, d.rows);
    // Columns outside, channels inside: each cache line of the rows is used whole while it is near.
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t x = tiles.begin(t);
      const int edge = edge_of(k, d, x, tiles.q);
      choose_function(k, edge, full, pair, tiles.q)(k, packed, d, vectors, x, out, out_vector);
      if (!pair || edge != kAnyEdge) continue;
      DepthwiseRows second = d;
      second.rows += k.height;
      choose_function(k, edge, true, false, tiles.q)(k, packed, second, vectors, x, out + d.out_row,
                                                     out_vector);
    }
    const int64_t done = pair ? 2 : 1;
    if (activated_later<Element>(k.activation))
      activate_rows(k.activation, d, done, vectors, out, out_vector);
    r += done;
    d.rows += done * k.height;
    out += done * d.out_row;
  }
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
