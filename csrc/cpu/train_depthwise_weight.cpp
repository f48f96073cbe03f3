// See train_depthwise_weight.h. Products and loads: each vector of the input meets the gradients of
// all windows that it belongs to (kernel width FMAs for a load, or half as many) where windows lie
// one or two columns apart; elsewhere each of the gradient meets its whole window.
#include "train_depthwise_weight.h"

#include <algorithm>

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

// Elements to the channels that follow: those of another line of the cache.
constexpr int64_t kAhead = 2 * kW;

// Columns [from, to) of the taps of one output column.
template <int KH, int KW>
FASTCONV_INLINE void add_column(Vec gradient, const Element* const (&in)[KH], int64_t tap, int from,
                                int to, Vec (&acc)[KH * KW]) {
  FASTCONV_UNROLL for (int j = 0; j < KW; ++j) {
    if (j < from || j >= to) continue;
    FASTCONV_UNROLL for (int i = 0; i < KH; ++i) acc[i * KW + j] =
        vfma(gradient, vload(in[i] + j * tap), acc[i * KW + j]);
  }
}

// One output row, column by column. gradient, rows: at the first vector's column 0.
template <int KH, int KW>
FASTCONV_INLINE void add_row(const WindowSum& s, int64_t column, const Element* gradient,
                             const Element* const (&rows)[KH], Vec (&acc)[KH * KW]) {
  const int64_t step = s.stride * s.input_pixel, tap = s.dilation * s.input_pixel;
  const int64_t first = s.first_column + column * s.dilation;
  const Element* in[KH];
  const auto at_edge = [&](int64_t x) __attribute__((always_inline)) {
    const int64_t at = first + x * s.stride;
    FASTCONV_UNROLL for (int i = 0; i < KH; ++i) in[i] = rows[i] + at * s.input_pixel;
    int from = 0, to = KW;
    while (from < KW && at + from * s.dilation < 0) ++from;
    while (to > from && at + (to - 1) * s.dilation >= s.input_width) --to;
    add_column<KH, KW>(vload(gradient + x * s.gradient_pixel), in, tap, from, to, acc);
  };
  for (int64_t x = 0; x < s.whole_begin; ++x) at_edge(x);
  const Element* g = gradient + s.whole_begin * s.gradient_pixel;
  FASTCONV_UNROLL for (int i = 0; i < KH; ++i) in[i] =
      rows[i] + (first + s.whole_begin * s.stride) * s.input_pixel;
  for (int64_t x = s.whole_begin; x < s.whole_end; ++x) {
    __builtin_prefetch(g + kAhead, 0, 3);
    __builtin_prefetch(in[KH - 1] + kAhead, 0, 3);
    add_column<KH, KW>(vload(g), in, tap, 0, KW, acc);
    FASTCONV_UNROLL for (int i = 0; i < KH; ++i) in[i] += step;
    g += s.gradient_pixel;
  }
  for (int64_t x = s.whole_end; x < s.width; ++x) at_edge(x);
}

// The same for windows next to each other: each column of the input is read once, and the
// gradients of the windows that it belongs to stay in registers.
template <int KH, int KW>
FASTCONV_INLINE void add_dense_row(const WindowSum& s, int64_t column, const Element* gradient,
                                   const Element* const (&rows)[KH], Vec (&acc)[KH * KW]) {
  const int64_t first = s.first_column + column;
  const int64_t begin = std::max<int64_t>(0, first);
  const int64_t end = std::min(s.input_width, first + s.width + KW - 1);
  Vec window[KW];  // the gradient at tap j
  FASTCONV_UNROLL for (int j = 1; j < KW; ++j) {
    const int64_t x = begin - first - j;
    window[j - 1] = x >= 0 && x < s.width ? vload(gradient + x * s.gradient_pixel) : vzero();
  }
  const Element* g = gradient + (begin - first) * s.gradient_pixel;
  const Element* in[KH];
  FASTCONV_UNROLL for (int i = 0; i < KH; ++i) in[i] = rows[i] + begin * s.input_pixel;
  const auto take = [&](Vec next) __attribute__((always_inline)) {
    FASTCONV_UNROLL for (int j = KW - 1; j > 0; --j) window[j] = window[j - 1];
    window[0] = next;
    FASTCONV_UNROLL for (int i = 0; i < KH; ++i) {
      const Vec x = vload(in[i]);
      FASTCONV_UNROLL for (int j = 0; j < KW; ++j) acc[i * KW + j] =
          vfma(x, window[j], acc[i * KW + j]);
      in[i] += s.input_pixel;
    }
  };
  const int64_t last = std::min(end, first + s.width);
  int64_t c = begin;
  for (; c < last; ++c) {
    __builtin_prefetch(g + kAhead, 0, 3);
    __builtin_prefetch(in[KH - 1] + kAhead, 0, 3);
    take(vload(g));
    g += s.gradient_pixel;
  }
  for (; c < end; ++c) take(vzero());
}

// The same for windows two columns apart: a pair of columns of the input is read once. The first of
// pair c meets, at tap 2 j, the gradient of window c - j, and the second one at tap 2 j + 1.
template <int KH, int KW>
FASTCONV_INLINE void add_pairs_row(const WindowSum& s, int64_t column, const Element* gradient,
                                   const Element* const (&rows)[KH], Vec (&acc)[KH * KW]) {
  constexpr int kPairs = (KW + 1) / 2;
  const int64_t first = s.first_column + column;
  Vec window[kPairs];  // the gradient at taps 2 j and 2 j + 1
  FASTCONV_UNROLL for (int j = 0; j < kPairs; ++j) window[j] = vzero();
  const Element* in[KH];
  FASTCONV_UNROLL for (int i = 0; i < KH; ++i) in[i] = rows[i] + first * s.input_pixel;
  const auto take = [&](Vec next, bool has_first, bool has_second) __attribute__((always_inline)) {
    FASTCONV_UNROLL for (int j = kPairs - 1; j > 0; --j) window[j] = window[j - 1];
    window[0] = next;
    FASTCONV_UNROLL for (int i = 0; i < KH; ++i) {
      if (has_first) {
        const Vec x = vload(in[i]);
        FASTCONV_UNROLL for (int j = 0; j < KW; j += 2) acc[i * KW + j] =
            vfma(x, window[j / 2], acc[i * KW + j]);
      }
      if (has_second) {
        const Vec x = vload(in[i] + s.input_pixel);
        FASTCONV_UNROLL for (int j = 1; j < KW; j += 2) acc[i * KW + j] =
            vfma(x, window[j / 2], acc[i * KW + j]);
      }
      in[i] += 2 * s.input_pixel;
    }
  };
  const auto at_edge = [&](int64_t c) __attribute__((always_inline)) {
    const int64_t at = first + 2 * c;
    take(c < s.width ? vload(gradient + c * s.gradient_pixel) : vzero(),
         at >= 0 && at < s.input_width, at + 1 >= 0 && at + 1 < s.input_width);
  };
  const int64_t begin = std::min(s.width, first < 0 ? (1 - first) / 2 : 0);
  const int64_t end = std::max(begin, std::min(s.width, (s.input_width - first) / 2));
  int64_t c = 0;
  for (; c < begin; ++c) at_edge(c);
  const Element* g = gradient + c * s.gradient_pixel;
  for (; c < end; ++c, g += s.gradient_pixel) {
    __builtin_prefetch(g + kAhead, 0, 3);
    __builtin_prefetch(in[KH - 1] + kAhead, 0, 3);
    __builtin_prefetch(in[KH - 1] + s.input_pixel + kAhead, 0, 3);
    take(vload(g), true, true);
  }
  for (; c < s.width + kPairs - 1; ++c) at_edge(c);
}

enum class Windows { kAdjacent, kEverySecond, kAny };

// Kernel rows from `row` and columns from `column` on.
template <int KH, int KW, Windows kWindows>
__attribute__((noinline)) void sum_taps(const WindowSum& shared, int64_t row, int64_t column) {
  const WindowSum s = shared;
  for (int64_t v = 0; v < s.vectors; ++v) {
    Vec acc[KH * KW];
    float* sums = s.sums + (row * s.kernel_width + column) * s.channels + v * kW;
    FASTCONV_UNROLL for (int i = 0; i < KH; ++i) {
      FASTCONV_UNROLL for (int j = 0; j < KW; ++j) acc[i * KW + j] =
          vload(sums + (i * s.kernel_width + j) * s.channels);
    }
    for (int64_t y = 0; y < s.rows; ++y) {
      const Element* rows[KH];
      FASTCONV_UNROLL for (int i = 0; i < KH; ++i) rows[i] =
          s.inputs[y * s.kernel_height + row + i] + v * kW;
      if constexpr (kWindows == Windows::kAdjacent) {
        add_dense_row<KH, KW>(s, column, s.gradients[y] + v * kW, rows, acc);
      } else if constexpr (kWindows == Windows::kEverySecond) {
        add_pairs_row<KH, KW>(s, column, s.gradients[y] + v * kW, rows, acc);
      } else {
        add_row<KH, KW>(s, column, s.gradients[y] + v * kW, rows, acc);
      }
    }
    FASTCONV_UNROLL for (int i = 0; i < KH; ++i) {
      FASTCONV_UNROLL for (int j = 0; j < KW; ++j)
          vstore(sums + (i * s.kernel_width + j) * s.channels, acc[i * KW + j]);
    }
  }
}

// Kernel rows [begin, end), as many at a time as registers hold of `KW` columns from `column` on.
template <int KW, Windows kWindows>
void sum_kernel_rows(const WindowSum& s, int64_t begin, int64_t end, int64_t column) {
  constexpr int kMost = kRegisters == 32 ? 5 : KW <= 3 ? 3 : 2;
  if constexpr (kMost >= 5) {
    for (; begin + 5 <= end; begin += 5) sum_taps<5, KW, kWindows>(s, begin, column);
  }
  if constexpr (kMost >= 3) {
    for (; begin + 3 <= end; begin += 3) sum_taps<3, KW, kWindows>(s, begin, column);
  }
  for (; begin + 2 <= end; begin += 2) sum_taps<2, KW, kWindows>(s, begin, column);
  if (begin < end) sum_taps<1, KW, kWindows>(s, begin, column);
}

template <Windows kWindows>
void sum_columns(const WindowSum& s, int64_t begin, int64_t end) {
  int64_t j = 0;
  if constexpr (kWindows != Windows::kAny) {
    for (; j + 5 <= s.kernel_width; j += 5) sum_kernel_rows<5, kWindows>(s, begin, end, j);
  }
  for (; j + 3 <= s.kernel_width; j += 3) sum_kernel_rows<3, kWindows>(s, begin, end, j);
  for (; j < s.kernel_width; ++j) sum_kernel_rows<1, Windows::kAny>(s, begin, end, j);
}

}  // namespace

void sum_window(const WindowSum& s, int64_t begin, int64_t end) {
  if (s.dilation == 1 && s.stride == 1) {
    sum_columns<Windows::kAdjacent>(s, begin, end);
  } else if (s.dilation == 1 && s.stride == 2) {
    sum_columns<Windows::kEverySecond>(s, begin, end);
  } else {
    sum_columns<Windows::kAny>(s, begin, end);
  }
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
