// Tiles of maps that are normalized on the way, and the ops that do nothing else.
#include <algorithm>

#include "kernels.h"
#include "train.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

// f(c, lanes) for every vector of channels; lanes < kW: the last one is not whole.
template <class F>
FASTCONV_INLINE void each_vector(int64_t count, const F& f) {
  int64_t c = 0;
  for (; c + kW <= count; c += kW) f(c, kW);
  if (c < count) f(c, static_cast<int>(count - c));
}

template <class T>
FASTCONV_INLINE Vec load_lanes(const T* p, int lanes) {
  return lanes == kW ? vload(p) : vload_first(p, lanes);
}

template <class T>
FASTCONV_INLINE void store_lanes(T* p, Vec x, int lanes) {
  if (lanes == kW) {
    vstore(p, x);
  } else {
    vstore_first(p, x, lanes);
  }
}

// Writes a whole vector, 0 in the lanes that do not exist.
FASTCONV_INLINE void store_padded(Element* p, Vec x, int lanes) {
  if (lanes < kW) vstore(p, vzero());
  store_lanes(p, x, lanes);
}

constexpr int64_t kMostPixels = 128;
constexpr int64_t kMostParts = 32;
// Sums over pixels are sums of sums of so many: a long one alone would lose digits.
constexpr int64_t kRun = 16;

}  // namespace

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

void normalized_tile(const NormalizedMap& map, const MapTile& tile, Element* out,
                     int64_t out_pixel) {
  const Element* in = elements(map.data) + tile.begin * tile.channels + tile.first;
  const float* scale = map.affine == nullptr ? nullptr : map.affine + tile.first;
  const float* shift = scale == nullptr ? nullptr : scale + tile.channels;
  const float* gate =
      map.gate == nullptr ? nullptr : map.gate + tile.image * tile.channels + tile.first;
  const Activation activation = scale == nullptr ? Activation::kNone : map.activation;
  with_activation(activation, [&](auto tag) __attribute__((always_inline)) {
    for (int64_t p = 0; p < tile.pixels; ++p) {
      each_vector(tile.count, [&](int64_t c, int lanes) __attribute__((always_inline)) {
        Vec x = load_lanes(in + c, lanes);
        if (scale != nullptr) {
          x = vfma(x, load_lanes(scale + c, lanes), load_lanes(shift + c, lanes));
          x = activate<decltype(tag)::kValue>(x);
        }
        if (gate != nullptr) x = vmul(x, load_lanes(gate + c, lanes));
        store_padded(out + c, x, lanes);
      });
      in += tile.channels;
      out += out_pixel;
    }
  });
}

namespace {

// A pixel's vector of the gradient of the map before the activation, and of the raw map.
struct GradientReader {
  GradientReader(const GradientMap& map, const MapTile& tile)
      : grad(elements(map.grad) + tile.begin * tile.channels + tile.first) {
    if (map.raw == nullptr) return;
    const int64_t c = tile.channels, at = tile.image * c + tile.first;
    raw = elements(map.raw) + tile.begin * c + tile.first;
    if (map.affine != nullptr) scale = map.affine + tile.first, shift = scale + c;
    if (map.gate != nullptr) gate = map.gate + at;
    if (map.offset != nullptr) offset = map.offset + at;
    if (map.coefficients != nullptr) coefficients = map.coefficients + tile.first;
    channels = c;
  }

  template <Activation kKind>
  FASTCONV_INLINE Vec before_activation(int64_t c, int lanes, Vec* x) const {
    Vec g = load_lanes(grad + c, lanes);
    if (raw == nullptr) return g;
    *x = load_lanes(raw + c, lanes);
    if (gate != nullptr) g = vmul(g, load_lanes(gate + c, lanes));
    if (offset != nullptr) g = vadd(g, load_lanes(offset + c, lanes));
    if (kKind == Activation::kNone) return g;
    Vec v = *x;
    if (scale != nullptr) v = vfma(v, load_lanes(scale + c, lanes), load_lanes(shift + c, lanes));
    return vmul(g, activation_slope<kKind>(v));
  }

  template <Activation kKind>
  FASTCONV_INLINE Vec of_raw(int64_t c, int lanes) const {
    Vec x = vzero();
    const Vec g = before_activation<kKind>(c, lanes, &x);
    if (coefficients == nullptr) return g;
    const float* k = coefficients + c;
    const Vec centered = vsub(x, load_lanes(k + 2 * channels, lanes));
    const Vec rest =
        vfma(centered, load_lanes(k + channels, lanes), load_lanes(k + 3 * channels, lanes));
    return vfma(g, load_lanes(k, lanes), rest);
  }

  FASTCONV_INLINE void next() {
    grad += channels;
    if (raw != nullptr) raw += channels;
  }

  const Element* grad;
  const Element* raw = nullptr;
  const float *scale = nullptr, *shift = nullptr, *gate = nullptr, *offset = nullptr;
  const float* coefficients = nullptr;
  int64_t channels = 0;
};

Activation activation_of(const GradientMap& map) {
  return map.raw == nullptr ? Activation::kNone : map.activation;
}

}  // namespace

void gradient_tile(const GradientMap& map, const MapTile& tile, Element* out, int64_t out_pixel) {
  with_activation(activation_of(map), [&](auto tag) __attribute__((always_inline)) {
    GradientReader reader(map, tile);
    reader.channels = tile.channels;
    for (int64_t p = 0; p < tile.pixels; ++p) {
      each_vector(tile.count, [&](int64_t c, int lanes) __attribute__((always_inline)) {
        store_padded(out + c, reader.of_raw<decltype(tag)::kValue>(c, lanes), lanes);
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
  const Activation activation = map.affine == nullptr ? Activation::kNone : map.activation;
  const bool keeps = map.gate != nullptr;  // d, whose activation is differentiated later
  with_activation(activation, [&](auto tag) __attribute__((always_inline)) {
    constexpr Activation kKind = decltype(tag)::kValue;
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
            if (g.products != nullptr) run_gated = vfma(value, activate<kKind>(v), run_gated);
            if (!keeps && kKind != Activation::kNone)
              value = vmul(value, activation_slope<kKind>(v));
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

void train_normalize(const TrainMapParams& p, const Threads& threads) {
  if (p.batch * p.pixels == 0) return;
  const Tiling tiling(p.batch, p.pixels, p.input.gate != nullptr, kMostPixels, kMostParts);
  const int64_t channels = p.channels;
  threads.parallel(tiling.parts, [&](int64_t part) {
    const Share share = tiling.part(part);
    for (int64_t i = share.begin; i < share.end; ++i) {
      const Tiling::Tile tile = tiling.tile(i);
      const int64_t at = tile.begin * channels;
      const Element* in = elements(p.input.data) + at;
      const Element* residual = p.residual == nullptr ? nullptr : elements(p.residual) + at;
      Element* out = elements(p.output) + at;
      const float* gate = p.input.gate == nullptr ? nullptr : p.input.gate + tile.image * channels;
      const float *scale = p.input.affine, *shift = scale + channels;
      with_activation(p.input.activation, [&](auto tag) __attribute__((always_inline)) {
        for (int64_t pixel = 0; pixel < tile.pixels; ++pixel) {
          each_vector(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
            Vec x = vfma(load_lanes(in + c, lanes), load_lanes(scale + c, lanes),
                         load_lanes(shift + c, lanes));
            x = activate<decltype(tag)::kValue>(x);
            if (gate != nullptr) x = vmul(x, load_lanes(gate + c, lanes));
            if (residual != nullptr) x = vadd(x, load_lanes(residual + c, lanes));
            store_lanes(out + c, x, lanes);
          });
          in += channels;
          out += channels;
          if (residual != nullptr) residual += channels;
        }
      });
    }
  });
}

void train_normalized_mean(const TrainMapParams& p, const Threads& threads) {
  const int64_t channels = p.channels;
  const float factor = 1.f / static_cast<float>(p.pixels);
  threads.parallel(p.batch, [&](int64_t image) {
    float* sums = p.results + image * channels;
    std::fill(sums, sums + channels, 0.f);
    float* tile = scratch_floats(Scratch::kSums, vectors_of(channels) * kW);
    const float *scale = p.input.affine, *shift = scale + channels;
    with_activation(p.input.activation, [&](auto tag) __attribute__((always_inline)) {
      for (int64_t begin = 0; begin < p.pixels; begin += kRun) {
        const int64_t end = std::min(p.pixels, begin + kRun);
        const Element* in = elements(p.input.data) + (image * p.pixels + begin) * channels;
        std::fill(tile, tile + vectors_of(channels) * kW, 0.f);
        for (int64_t pixel = begin; pixel < end; ++pixel, in += channels) {
          each_vector(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
            const Vec x = vfma(load_lanes(in + c, lanes), load_lanes(scale + c, lanes),
                               load_lanes(shift + c, lanes));
            vstore(tile + c, vadd(vload(tile + c), activate<decltype(tag)::kValue>(x)));
          });
        }
        each_vector(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
          store_lanes(sums + c, vadd(load_lanes(sums + c, lanes), vload(tile + c)), lanes);
        });
      }
    });
    each_vector(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
      store_lanes(sums + c, vmul(load_lanes(sums + c, lanes), vset(factor)), lanes);
    });
  });
}

void train_moments(const TrainMapParams& p, const Threads& threads) {
  const Tiling tiling(p.batch, p.pixels, false, kMostPixels, kMostParts);
  const Moments moments(
      p.channels, tiling.parts,
      scratch_floats(Scratch::kPartials, Moments::room(p.channels, tiling.parts)));
  threads.parallel(tiling.parts, [&](int64_t part) {
    const Share share = tiling.part(part);
    for (int64_t i = share.begin; i < share.end; ++i) {
      const Tiling::Tile tile = tiling.tile(i);
      moments.add(part, i == share.begin, elements(p.input.data) + tile.begin * p.channels,
                  p.channels, tile.pixels, 0, p.channels);
    }
  });
  moments.finish([&](int64_t part) { return tiling.part_pixels(part); }, p.results);
}

void train_gradient(const TrainMapParams& p, const Threads& threads) {
  if (p.batch * p.pixels == 0) return;
  const bool by_image = p.gradient.gate != nullptr || p.gradient.offset != nullptr;
  const Tiling tiling(p.batch, p.pixels, by_image, kMostPixels, kMostParts);
  const int64_t channels = p.channels;
  threads.parallel(tiling.parts, [&](int64_t part) {
    const Share share = tiling.part(part);
    for (int64_t i = share.begin; i < share.end; ++i) {
      const Tiling::Tile tile = tiling.tile(i);
      const MapTile all{channels, tile.image, tile.begin, tile.pixels, 0, channels};
      Element* out = elements(p.output) + tile.begin * channels;
      with_activation(activation_of(p.gradient), [&](auto tag) __attribute__((always_inline)) {
        GradientReader reader(p.gradient, all);
        reader.channels = channels;
        for (int64_t pixel = 0; pixel < tile.pixels; ++pixel, out += channels) {
          each_vector(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
            store_lanes(out + c, reader.of_raw<decltype(tag)::kValue>(c, lanes), lanes);
          });
          reader.next();
        }
      });
    }
  });
}

void train_gradient_sums(const TrainMapParams& p, const Threads& threads) {
  const bool by_image = p.gradient.gate != nullptr || p.gradient.offset != nullptr;
  const Tiling tiling(p.batch, p.pixels, by_image, kMostPixels, kMostParts);
  const int64_t channels = p.channels, padded = vectors_of(channels) * kW;
  float* partial = scratch_floats(Scratch::kPartials, tiling.parts * 2 * channels);
  threads.parallel(tiling.parts, [&](int64_t part) {
    float* sums = partial + part * 2 * channels;
    std::fill(sums, sums + 2 * channels, 0.f);
    float* tile_sums = scratch_floats(Scratch::kSums, 2 * padded);
    const Share share = tiling.part(part);
    for (int64_t i = share.begin; i < share.end; ++i) {
      const Tiling::Tile tile = tiling.tile(i);
      const MapTile all{channels, tile.image, tile.begin, tile.pixels, 0, channels};
      with_activation(activation_of(p.gradient), [&](auto tag) __attribute__((always_inline)) {
        GradientReader reader(p.gradient, all);
        for (int64_t begin = 0; begin < tile.pixels; begin += kRun) {
          const int64_t end = std::min(tile.pixels, begin + kRun);
          std::fill(tile_sums, tile_sums + 2 * padded, 0.f);
          for (int64_t pixel = begin; pixel < end; ++pixel) {
            each_vector(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
              Vec x = vzero();
              const Vec g = reader.before_activation<decltype(tag)::kValue>(c, lanes, &x);
              const Vec centered = vsub(x, load_lanes(p.mean + c, lanes));
              vstore(tile_sums + c, vadd(vload(tile_sums + c), g));
              vstore(tile_sums + padded + c, vfma(g, centered, vload(tile_sums + padded + c)));
            });
            reader.next();
          }
          for (int64_t half : {0, 1}) {
            each_vector(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
              float* to = sums + half * channels + c;
              store_lanes(to, vadd(load_lanes(to, lanes), vload(tile_sums + half * padded + c)),
                          lanes);
            });
          }
        }
      });
    }
  });
  sum_parts(partial, tiling.parts, 2 * channels, p.results, threads);
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
