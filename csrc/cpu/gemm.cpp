#include "gemm.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "../parallel.h"
#include "activate.h"
#include "gemm_multiply.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

// Registers: MR * NV accumulators + NV of B + one broadcast. AVX2 6x2, 4x3; AVX-512 and NEON 6x4,
// 8x3, 12x2.
constexpr int max_rows(int nv) {
  if (kShortTiles) return nv == 4 ? 2 : nv == 3 ? 3 : 4;
  if (kRegisters == 32) return nv == 4 ? 6 : nv == 3 ? 8 : nv == 2 ? 12 : 14;
  return nv == 3 ? 4 : nv == 2 ? 6 : 8;
}

// The largest tile that is worth it. A short tile ends before the CPU has looked past it: the
// stores at its end then overlap with the next one only if it is small (16 or 24 deep: 86-90 % of
// peak with 8x3, 91-94 % with 5x3).
int64_t best_rows(int nv, int64_t steps, bool half) {
  constexpr int64_t kShort = 32;
  if (kHasHalf && half && nv == 2) return 4;
  if (kRegisters == 32 && steps <= kShort && nv >= 3)
    return std::min(nv == 4 ? 4 : 5, max_rows(nv));
  return max_rows(nv);
}

constexpr int64_t kLine = 16;  // floats of a cache line

// Memory to ask for in equal portions, one for so many segments of a tile.
struct Prefetch {
  // All of a region within `portions` portions.
  void start(const WeightRegion& region, int64_t portions) {
    at = region.data;
    end = at + region.floats;
    portion = (region.floats / std::max<int64_t>(1, portions) + kLine - 1) / kLine * kLine;
  }
  FASTCONV_INLINE void next() {
    if (at >= end) return;
    for (int64_t i = 0; i < portion; i += kLine) __builtin_prefetch(at + i, 0, 2);
    at += portion;
  }
  FASTCONV_INLINE void skip(int64_t portions) { at += portions * portion; }

  const float *at, *end;
  int64_t portion;  // floats
};

// What a column of tiles shares. Passed by value: the compiler may then keep it in registers across
// the stores.
struct Column {
  GemmA a;
  GemmC c;
  GemmEpilogue epilogue;
  const float* panel;
  ActivationBounds bounds;
  int64_t lanes;  // output channels of this panel that exist
  int64_t steps;  // of the product
  bool activated_later;
  Prefetch panel_ahead, ahead;
  bool asks;         // for any of it
  int64_t segments;  // whole ones, if they are multiplied by fours of k, otherwise none
  int64_t fours;     // of a segment
  int64_t together;  // segments between two requests for memory
};

FASTCONV_INLINE void prefetch_next(Column& s) {
  if (!s.asks) return;
  s.panel_ahead.next();
  s.ahead.next();
}

// The whole segments of a product, of which `left` inputs remain.
template <int MR, int NV>
FASTCONV_INLINE void multiply_fours(Column& s, EqualRows& a, int64_t& left, const float*& b,
                                    Vec (&acc)[MR * NV]) {
  Vec sum[MR * NV];
  FASTCONV_UNROLL for (int i = 0; i < MR * NV; ++i) sum[i] = acc[i];
  Fours fours(a.row, s.a.segment, s.fours);
  for (int64_t segments = s.segments; segments > 0; segments -= fours.segments) {
    prefetch_next(s);
    fours.segments = std::min(segments, s.together);
    MultiplyFours<MR, NV>::run(fours, a.first, b, sum);
  }
  left -= 4 * s.fours * s.segments;
  FASTCONV_UNROLL for (int i = 0; i < MR * NV; ++i) acc[i] = sum[i];
}

template <int MR, int NV, class T>
FASTCONV_INLINE void finish_any(const Column& s, int64_t m, T* const (&out)[MR],
                                Vec (&acc)[MR * NV]) {
  const bool partial = s.lanes < NV * kW;
  const int tail = static_cast<int>(s.lanes - (NV - 1) * kW);
  if (s.epilogue.residual != nullptr) {
    const Element* residual = s.epilogue.residual + m * s.epilogue.residual_row;
    FASTCONV_UNROLL for (int i = 0; i < MR; ++i) {
      FASTCONV_UNROLL for (int j = 0; j < NV; ++j) {
        const Element* r = residual + i * s.epilogue.residual_row + j * kW;
        const Vec rv = partial && j == NV - 1 ? vload_first(r, tail) : vload(r);
        acc[i * NV + j] = vadd(acc[i * NV + j], rv);
      }
    }
  }
  activate_tile<T>(s.epilogue.activation, s.bounds, acc);
  FASTCONV_UNROLL for (int i = 0; i < MR; ++i) {
    FASTCONV_UNROLL for (int j = 0; j < NV - 1; ++j)
        vstore(out[i] + j * s.c.vector, acc[i * NV + j]);
    T* last = out[i] + (NV - 1) * s.c.vector;
    if (partial) {
      vstore_first(last, acc[i * NV + NV - 1], tail);
    } else {
      vstore(last, acc[i * NV + NV - 1]);
    }
  }
}

// kPlain: whole vectors, a clamp, no residual; the epilogue is then as short as the stores. kHalf:
// at most half of the last vector exists. kOffsets: the pixels are not equally far from each other.
enum TileKind { kAny, kPlain, kHalf, kOffsets };

// Activation and store of a tile, to elements or floats.
template <int MR, int NV, TileKind kKind, class T>
FASTCONV_INLINE void finish(const Column& s, int64_t m, T* data, Vec (&acc)[MR * NV]) {
  T* out[MR];
  if (s.c.offsets != nullptr) {
    FASTCONV_UNROLL for (int i = 0; i < MR; ++i) out[i] = data + s.c.offsets[m + i];
  } else {
    FASTCONV_UNROLL for (int i = 0; i < MR; ++i) out[i] = data + (m + i) * s.c.row;
  }
  if (kKind == kPlain) {
    // Read from memory here: held in registers through the product, they would push an accumulator
    // out. Hiding the address is enough; a copy would wait for its own store.
    const ActivationBounds* bounds = &s.bounds;
    asm volatile("" : "+r"(bounds) : "m"(s.bounds));
    const Vec low = vset(bounds->low), high = vset(bounds->high);
    FASTCONV_UNROLL for (int i = 0; i < MR; ++i) {
      FASTCONV_UNROLL for (int j = 0; j < NV; ++j) {
        vstore(out[i] + j * s.c.vector, clamp(acc[i * NV + j], low, high));
      }
    }
  } else {
    finish_any<MR, NV>(s, m, out, acc);
  }
}

// Calls f with where C begins, as what it consists of.
template <class F>
FASTCONV_INLINE void with_output(const GemmC& c, const F& f) {
  if (kDataType == DataType::kFloat32 || c.in_floats) {
    f(static_cast<float*>(c.data));
  } else {
    f(elements(c.data));
  }
}

template <int MR, int NV, TileKind kKind>
FASTCONV_INLINE void tile(Column& s, int64_t m) {
  Vec acc[MR * NV];
  FASTCONV_UNROLL for (int j = 0; j < NV; ++j) {
    const Vec bias = vload(s.panel + j * kW);
    FASTCONV_UNROLL for (int i = 0; i < MR; ++i) acc[i * NV + j] = bias;
  }
  std::conditional_t<kKind == kOffsets, AnyRows<MR>, EqualRows> a;
  if constexpr (kKind == kOffsets) {
    FASTCONV_UNROLL for (int i = 0; i < MR; ++i) a.rows[i] = s.a.data + s.a.offsets[m + i];
  } else {
    a = {s.a.data + m * s.a.row, s.a.row};
  }
  const float* b = s.panel + NV * kW;
  int64_t left = s.a.depth;
  if constexpr (kKind != kOffsets && MultiplyFours<MR, NV>::kExists) {
    multiply_fours<MR, NV>(s, a, left, b, acc);
  }
  const auto each_segment = [&](const auto& multiply_segment) {
    for (; left > s.a.segment_length; left -= s.a.segment_length) {
      prefetch_next(s);
      b = multiply_segment(s.a.segment_length);
      a.advance(s.a.segment);
    }
    if (left == 0) return;
    prefetch_next(s);
    multiply_segment(left);
  };
  if constexpr (kKind == kHalf) {
    HalfTile<MR, NV> half(acc);
    each_segment([&](int64_t length)
                     __attribute__((always_inline)) { return half.multiply(a, length, b); });
    half.store(acc);
  } else {
    each_segment([&](int64_t length) __attribute__((always_inline)) {
      return multiply<MR, NV>(a, length, b, acc);
    });
  }
  with_output(s.c, [&](auto* data)
                       __attribute__((always_inline)) { finish<MR, NV, kKind>(s, m, data, acc); });
}

// `tiles` tiles of MR pixels from pixel m on.
template <int MR, int NV>
void tile_column(const Column& shared, int64_t m, int64_t tiles) {
  Column s = shared;
  const int64_t last_lanes = s.lanes - (NV - 1) * kW;
  if (s.a.offsets != nullptr) {
    for (int64_t t = 0; t < tiles; ++t) tile<MR, NV, kOffsets>(s, m + t * MR);
  } else if (kHasHalf && last_lanes <= kW / 2) {
    for (int64_t t = 0; t < tiles; ++t) tile<MR, NV, kHalf>(s, m + t * MR);
  } else if (s.epilogue.residual == nullptr && s.bounds.is_clamp && last_lanes >= kW) {
    for (int64_t t = 0; t < tiles; ++t) tile<MR, NV, kPlain>(s, m + t * MR);
  } else {
    for (int64_t t = 0; t < tiles; ++t) tile<MR, NV, kAny>(s, m + t * MR);
  }
}

// One pixel against one panel is bound by FMA latency: four accumulators a vector, each with every
// fourth step.
template <int NV>
void vector_tile(const Column& s) {
  constexpr int kSplit = 4;
  const Element* a = s.a.data;
  const float* b = s.panel;
  Vec acc[kSplit * NV];
  FASTCONV_UNROLL for (int i = 0; i < kSplit * NV; ++i) acc[i] =
      i < NV ? vload(b + i * kW) : vzero();
  b += NV * kW;
  int64_t k = 0;
  for (; k + kSplit * kStep <= s.a.depth; k += kSplit * kStep) {
    // The weight is a stream from memory, too fast for the hardware's prefetcher to cross pages in
    // time.
    constexpr int kAhead = 1024;
    FASTCONV_UNROLL for (int l = 0; l < kSplit * NV * kW; l += kLine)
        __builtin_prefetch(b + kAhead + l, 0, 2);
    FASTCONV_UNROLL for (int u = 0; u < kSplit; ++u) {
      const Vec av = vset_step(a + k + u * kStep);
      FASTCONV_UNROLL for (int j = 0; j < NV; ++j) {
        acc[u * NV + j] = vdot(av, vload(b + (u * NV + j) * kW), acc[u * NV + j]);
      }
    }
    b += kSplit * NV * kW;
  }
  Vec first[NV];
  FASTCONV_UNROLL for (int j = 0; j < NV; ++j) first[j] = acc[j];
  multiply<1, NV>(EqualRows{a + k, 0}, s.a.depth - k, b, first);
  Vec sum[NV];
  FASTCONV_UNROLL for (int j = 0; j < NV; ++j) {
    sum[j] = vadd(vadd(first[j], acc[NV + j]), vadd(acc[2 * NV + j], acc[3 * NV + j]));
  }
  with_output(s.c, [&](auto* data) {
    decltype(data) const out[1] = {data};
    finish_any<1, NV>(s, 0, out, sum);
  });
}

// Of `vectors` vectors of `count` pixels from pixel m on.
void activate_pixels(const Column& s, int64_t vectors, int64_t m, int64_t count) {
  const int64_t whole = s.lanes < vectors * kW ? vectors - 1 : vectors;
  const int tail = static_cast<int>(s.lanes - whole * kW);
  const Activation kind = s.epilogue.activation;
  with_output(s.c, [&](auto* data) {
    if constexpr (std::is_same_v<decltype(data), float*>) {
      const int32_t* offsets = s.c.offsets == nullptr ? nullptr : s.c.offsets + m;
      float* first = data + (offsets == nullptr ? m * s.c.row : 0);
      for (int64_t v = 0; v < whole; ++v, first += s.c.vector)
        activate_memory<float>(kind, {first, s.c.row, offsets, count}, vzero());
      // What is left of a pixel is not all ours to write: a few pixels at a time in a copy.
      constexpr int kTogether = 16;
      Vec last[kTogether];
      const auto at = [&](int64_t i) {
        return first + (offsets == nullptr ? i * s.c.row : offsets[i]);
      };
      for (int64_t i = 0; whole < vectors && i < count; i += kTogether) {
        const int some = static_cast<int>(std::min<int64_t>(kTogether, count - i));
        for (int j = 0; j < some; ++j) last[j] = vload_first(at(i + j), tail);
        activate_vectors(kind, last, some);
        for (int j = 0; j < some; ++j) vstore_first(at(i + j), last[j], tail);
      }
    }
  });
}

using ColumnFunction = void (*)(const Column&, int64_t, int64_t);

// Entry i: columns of tiles of i + 1 pixels.
template <int NV, int... kMinusOne>
ColumnFunction column_of_height(int64_t rows, std::integer_sequence<int, kMinusOne...>) {
  static constexpr ColumnFunction kTable[] = {tile_column<kMinusOne + 1, NV>...};
  return kTable[rows - 1];
}

// m rows are cut into the fewest tiles, as equal as possible: a one-row remainder would cost most
// of a full tile.
template <int NV>
void panel_rows(Column& s, int64_t m, const WeightRegion (&ahead)[2], bool single_pixel) {
  if (single_pixel) {
    vector_tile<NV>(s);
    if (s.activated_later) activate_pixels(s, NV, 0, 1);
    return;
  }
  constexpr int64_t kActivated = 64;  // pixels
  using Heights = std::make_integer_sequence<int, max_rows(NV)>;
  const bool half = s.lanes - (NV - 1) * kW <= kW / 2;
  const int64_t most = best_rows(NV, s.steps, half);
  const int64_t tiles = (m + most - 1) / most;
  const int64_t rows = m / tiles, longer = m % tiles;
  const int64_t inputs = s.together * s.a.segment_length;
  const int64_t requests = (s.a.depth + inputs - 1) / inputs;
  s.panel_ahead.start(ahead[0], tiles * requests);
  s.ahead.start(ahead[1], tiles * requests);
  s.asks = ahead[0].floats > 0 || ahead[1].floats > 0;
  // So many tiles at a time that they are still in L1 when they are activated.
  const int64_t together = s.activated_later ? std::max<int64_t>(1, kActivated / most) : tiles;
  const auto run = [&](int64_t first, int64_t end, int64_t begin, int64_t height) {
    for (int64_t t = first, count; t < end; t += count) {
      count = std::min(together, end - t);
      column_of_height<NV>(height, Heights())(s, begin, count);
      s.panel_ahead.skip(count * requests);
      s.ahead.skip(count * requests);
      if (s.activated_later) activate_pixels(s, NV, begin, count * height);
      begin += count * height;
    }
  };
  run(0, longer, 0, rows + 1);
  run(longer, tiles, longer * (rows + 1), rows);
}

}  // namespace

void gemm(const GemmA& a, const GemmWeight& weight, const Panels& panels, int64_t m, const GemmC& c,
          const GemmEpilogue& epilogue, int64_t panel_begin, int64_t panel_end, bool single_pixel) {
  if (m == 0) return;
  // A pixel-major A is cut into segments as well: they pace the prefetching.
  constexpr int64_t kSegment = 32 * kStep;
  const bool one_segment = a.segment_length >= a.depth;
  const GemmA cut{a.data,
                  a.row,
                  one_segment ? kSegment : a.segment_length,
                  one_segment ? kSegment : a.segment,
                  a.depth,
                  a.offsets};
  const int64_t steps = cut.steps();
  const bool in_fours = kHasFours && a.offsets == nullptr && cut.segment_length % 4 == 0;
  const int64_t segments = in_fours ? cut.depth / cut.segment_length : 0;
  bool later = false;
  with_output(c, [&](auto* data) {
    later = activated_later<std::remove_pointer_t<decltype(data)>>(epilogue.activation);
  });
  Column s{cut,
           c,
           epilogue,
           nullptr,
           activation_bounds(later ? Activation::kNone : epilogue.activation),
           0,
           steps,
           later,
           {},
           {},
           false,
           segments,
           cut.segment_length / 4,
           segments > 0 ? std::max<int64_t>(1, kSegment / cut.segment_length) : 1};
  const auto panel_floats = [&](int64_t p) { return panels.width(p) * kW * (1 + steps); };
  for (int64_t p = panel_begin; p < panel_end; ++p) {
    const int64_t first = panels.first_vector(p);
    s.panel = weight.packed + first * kW * (1 + steps);
    const int64_t offset = (first - c.first_vector) * c.vector;
    with_output(c, [&](auto* data) { s.c.data = data + offset; });
    s.epilogue.residual = epilogue.residual == nullptr ? nullptr : epilogue.residual + first * kW;
    s.lanes = c.channels - first * kW;
    const bool follows = weight.cold && p + 1 < panels.count;
    const Share part(weight.ahead.floats, panels.count, p);
    const WeightRegion ahead[] = {{s.panel + panel_floats(p), follows ? panel_floats(p + 1) : 0},
                                  {weight.ahead.data + part.begin, part.end - part.begin}};
    switch (panels.width(p)) {
      case 1:
        panel_rows<1>(s, m, ahead, single_pixel);
        break;
      case 2:
        panel_rows<2>(s, m, ahead, single_pixel);
        break;
      case 3:
        panel_rows<3>(s, m, ahead, single_pixel);
        break;
#if defined(FASTCONV_ISA_AVX512) || defined(FASTCONV_ISA_NEON) || defined(FASTCONV_ISA_WIDE)
      case 4:
        panel_rows<4>(s, m, ahead, single_pixel);
        break;
#endif
    }
  }
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
