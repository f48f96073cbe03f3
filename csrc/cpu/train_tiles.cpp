// Tiles of maps that are normalized on the way, and what is gathered from them.
#include <algorithm>

#include "train_vectors.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

// What is left of a vector past the last channel becomes 0, or stays what it was.
FASTCONV_INLINE void store_tile(Element* p, Vec x, int lanes, bool padded) {
  if (lanes < kW && padded) vstore(p, vzero());
  store_lanes(p, x, lanes);
}

}  // namespace

__attribute__((noinline)) Vec activated(Activation kind, Vec x) {
  Vec y = x;
  with_activation(kind, [&](auto tag) { y = activate<decltype(tag)::kValue>(x); });
  return y;
}

__attribute__((noinline)) Vec activated_slope(Activation kind, Vec x) {
  Vec y = x;
  with_activation(kind, [&](auto tag) { y = activation_slope<decltype(tag)::kValue>(x); });
  return y;
}

Tiling::Tiling(int64_t batch, int64_t pixels, bool by_image, int64_t most_pixels,
               int64_t most_parts)
    : run(by_image ? pixels : batch * pixels),
      tiles_per_run((run + most_pixels - 1) / most_pixels),
      tiles(by_image ? batch * tiles_per_run : tiles_per_run),
      parts(1) {
  // A power of two: equal shares for as many threads.
  while (2 * parts <= std::min(tiles, most_parts)) parts *= 2;
}

Tiling::Tile Tiling::tile(int64_t index) const {
  const int64_t image = index / tiles_per_run;
  const Share share(run, tiles_per_run, index % tiles_per_run);
  return {image, image * run + share.begin, share.end - share.begin};
}

int64_t Tiling::part_pixels(int64_t index) const {
  const Share share = part(index);
  if (share.begin == share.end) return 0;
  const Tile first = tile(share.begin), last = tile(share.end - 1);
  return last.begin + last.pixels - first.begin;
}

void normalized_tile(const NormalizedMap& map, const MapTile& tile, Element* out, int64_t out_pixel,
                     bool padded, const Element* residual) {
  const Element* in = elements(map.data) + tile.begin * tile.channels + tile.first;
  const float* scale = map.affine == nullptr ? nullptr : map.affine + tile.first;
  const float* shift = scale == nullptr ? nullptr : scale + tile.channels;
  const float* gate =
      map.gate == nullptr ? nullptr : map.gate + tile.image * tile.channels + tile.first;
  with_map_activation(
      activation_of(map), [&](const auto& activation) __attribute__((always_inline)) {
        for (int64_t p = 0; p < tile.pixels; ++p) {
          each_vector(tile.count, [&](int64_t c, int lanes) __attribute__((always_inline)) {
            Vec x = load_lanes(in + c, lanes);
            if (scale != nullptr) {
              x = vfma(x, load_lanes(scale + c, lanes), load_lanes(shift + c, lanes));
              x = activation.value(x);
            }
            if (gate != nullptr) x = vmul(x, load_lanes(gate + c, lanes));
            if (residual != nullptr) x = vadd(x, load_lanes(residual + c, lanes));
            store_tile(out + c, x, lanes, padded);
          });
          in += tile.channels;
          out += out_pixel;
          if (residual != nullptr) residual += tile.channels;
        }
      });
}

void gradient_tile(const GradientMap& map, const MapTile& tile, Element* out, int64_t out_pixel,
                   bool padded) {
  with_map_activation(
      activation_of(map), [&](const auto& activation) __attribute__((always_inline)) {
        GradientReader reader(map, tile);
        for (int64_t p = 0; p < tile.pixels; ++p) {
          each_vector(tile.count, [&](int64_t c, int lanes) __attribute__((always_inline)) {
            store_tile(out + c, reader.of_raw(activation, c, lanes), lanes, padded);
          });
          reader.next();
          out += out_pixel;
        }
      });
}

template <class T>
void finish_gradient(const InputGradient& g, const MapTile& tile, const T* d, int64_t d_pixel) {
  const NormalizedMap& map = g.map;
  const int64_t channels = tile.channels, at = tile.begin * channels + tile.first;
  const bool keeps = map.gate != nullptr;  // d, whose activation is differentiated later
  with_map_activation(
      activation_of(map), [&](const auto& activation) __attribute__((always_inline)) {
        constexpr bool kIsNone = std::decay_t<decltype(activation)>::kIsNone;
        each_vector(tile.count, [&](int64_t c, int lanes) __attribute__((always_inline)) {
          const Element* in = elements(map.data) + at + c;
          const Element* residual = g.residual == nullptr ? nullptr : elements(g.residual) + at + c;
          Element* out = elements(g.out) + at + c;
          Vec scale = vzero(), shift = vzero(), mean = vzero();
          if (map.affine != nullptr) {
            scale = load_lanes(map.affine + tile.first + c, lanes);
            shift = load_lanes(map.affine + channels + tile.first + c, lanes);
          }
          if (g.mean != nullptr) mean = load_lanes(g.mean + tile.first + c, lanes);
          Vec sum = vzero(), product = vzero(), gated = vzero();
          for (int64_t begin = 0; begin < tile.pixels; begin += kRun) {
            const int64_t end = std::min(tile.pixels, begin + kRun);
            Vec run_sum = vzero(), run_product = vzero(), run_gated = vzero();
            for (int64_t p = begin; p < end; ++p) {
              Vec value = load_lanes(d + p * d_pixel + c, lanes);
              if (map.affine != nullptr) {
                const Vec x = load_lanes(in, lanes);
                const Vec v = vfma(x, scale, shift);
                if (g.products != nullptr) run_gated = vfma(value, activation.value(v), run_gated);
                if (!keeps && !kIsNone) value = vmul(value, activation.slope(v));
                if (g.sums != nullptr) {
                  run_sum = vadd(run_sum, value);
                  run_product = vfma(value, vsub(x, mean), run_product);
                }
              } else if (g.products != nullptr) {
                run_gated = vfma(value, load_lanes(in, lanes), run_gated);
              }
              if (residual != nullptr) {
                value = vadd(value, load_lanes(residual, lanes));
                residual += channels;
              }
              if (g.streams) {
                vstream(out, value);
              } else {
                store_lanes(out, value, lanes);
              }
              in += channels;
              out += channels;
            }
            sum = vadd(sum, run_sum);
            product = vadd(product, run_product);
            gated = vadd(gated, run_gated);
          }
          const int64_t to = tile.first + c;
          if (g.sums != nullptr) {
            for (int i : {0, 1}) {
              float* target = g.sums + i * channels + to;
              store_lanes(target, vadd(load_lanes(target, lanes), i == 0 ? sum : product), lanes);
            }
          }
          if (g.products != nullptr) {
            float* target = g.products + to;
            store_lanes(target, vadd(load_lanes(target, lanes), gated), lanes);
          }
        });
      });
  if (g.streams) vfence();
}

void copy_pixels(const Element* from, int64_t from_pixel, int64_t pixels, int64_t count,
                 Element* to, int64_t to_pixel, bool streams) {
  for (int64_t x = 0; x < pixels; ++x) {
    if (streams) {
      for (int64_t c = 0; c < count; c += kW) vstream(to + c, vload(from + c));
    } else {
      each_vector(count, [&](int64_t c, int lanes) __attribute__((always_inline)) {
        store_lanes(to + c, vload(from + c), lanes);
      });
    }
    from += from_pixel;
    to += to_pixel;
  }
  if (streams) vfence();
}

template void finish_gradient<float>(const InputGradient&, const MapTile&, const float*, int64_t);
#if defined(FASTCONV_BFLOAT16)
template void finish_gradient<Element>(const InputGradient&, const MapTile&, const Element*,
                                       int64_t);
#endif

const float* pixel_steps(const Element* data, int64_t pixel, int64_t pixels, int64_t vectors,
                         float* out) {
#if defined(FASTCONV_BFLOAT16)
  for (int64_t p = 0; p < pixels; p += kStep) {
    const bool paired = p + 1 < pixels;
    for (int64_t v = 0; v < vectors; ++v) {
      vstore(out, vpair(data + v * kW, paired ? data + pixel + v * kW : nullptr));
      out += kW;
    }
    data += kStep * pixel;
  }
  return out - pixel_steps_of(pixels) * vectors * kW;
#else
  (void)pixel, (void)pixels, (void)vectors, (void)out;
  return data;
#endif
}

void Moments::add(int64_t part, bool begins, const Element* data, int64_t pixel, int64_t pixels,
                  int64_t first, int64_t count) const {
  each_vector(count, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    float *shifts = row(part, 0) + first + c, *sums = row(part, 1) + first + c,
          *squares = row(part, 2) + first + c;
    const Element* x = data + c;
    if (begins) {
      Vec total = vzero();
      for (int64_t p = 0; p < pixels; ++p) total = vadd(total, load_lanes(x + p * pixel, lanes));
      vstore(shifts, vmul(total, vset(1.f / static_cast<float>(pixels))));
      vstore(sums, vzero());
      vstore(squares, vzero());
    }
    const Vec shift = vload(shifts);
    // In runs, as above: additions to a long sum round too much of each number away, and of numbers
    // that share their last bits, as those of bfloat16 less the shift, all in the same direction.
    Vec total_sum = vload(sums), total_square = vload(squares);
    for (int64_t begin = 0; begin < pixels; begin += kRun) {
      const int64_t end = std::min(pixels, begin + kRun);
      // Two sums each: one alone would wait for its last addition.
      Vec sum = vzero(), square = vzero(), sum_odd = vzero(), square_odd = vzero();
      int64_t p = begin;
      for (; p + 2 <= end; p += 2) {
        const Vec even = vsub(load_lanes(x + p * pixel, lanes), shift);
        const Vec odd = vsub(load_lanes(x + (p + 1) * pixel, lanes), shift);
        sum = vadd(sum, even);
        square = vfma(even, even, square);
        sum_odd = vadd(sum_odd, odd);
        square_odd = vfma(odd, odd, square_odd);
      }
      if (p < end) {
        const Vec last = vsub(load_lanes(x + p * pixel, lanes), shift);
        sum = vadd(sum, last);
        square = vfma(last, last, square);
      }
      total_sum = vadd(total_sum, vadd(sum, sum_odd));
      total_square = vadd(total_square, vadd(square, square_odd));
    }
    vstore(sums, total_sum);
    vstore(squares, total_square);
  });
}

void sum_parts(const float* partial, int64_t parts, int64_t size, float* out,
               const Threads& threads) {
  constexpr int64_t kBlock = 4096, kTotals = 64;
  threads.parallel((size + kBlock - 1) / kBlock, [&](int64_t i) {
    const int64_t last = std::min(size, (i + 1) * kBlock);
    for (int64_t begin = i * kBlock; begin < last; begin += kTotals) {
      const int64_t count = std::min(kTotals, last - begin);
      double totals[kTotals] = {};
      for (int64_t part = 0; part < parts; ++part) {
        const float* from = partial + part * size + begin;
        for (int64_t c = 0; c < count; ++c) totals[c] += from[c];
      }
      for (int64_t c = 0; c < count; ++c) out[begin + c] = static_cast<float>(totals[c]);
    }
  });
}

void add_pixels(const Element* data, int64_t pixel, int64_t pixels, int64_t channels, float* sums) {
  each_vector(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
    Vec total = load_lanes(sums + c, lanes);
    for (int64_t begin = 0; begin < pixels; begin += kRun) {
      const int64_t end = std::min(pixels, begin + kRun);
      Vec sum = vzero();
      for (int64_t p = begin; p < end; ++p)
        sum = vadd(sum, load_lanes(data + p * pixel + c, lanes));
      total = vadd(total, sum);
    }
    store_lanes(sums + c, total, lanes);
  });
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
