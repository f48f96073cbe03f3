// Ops of training on maps alone: the last normalization, its gradient, statistics.
#include <algorithm>

#include "kernels.h"
#include "train_vectors.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

constexpr int64_t kMostPixels = 128;
constexpr int64_t kMostParts = 32;

}  // namespace

void train_normalize(const TrainMapParams& p, const Threads& threads) {
  if (p.batch * p.pixels == 0) return;
  const Tiling tiling(p.batch, p.pixels, p.input.gate != nullptr, kMostPixels, kMostParts);
  const int64_t channels = p.channels;
  threads.parallel(tiling.parts, [&](int64_t part) {
    const Share share = tiling.part(part);
    for (int64_t i = share.begin; i < share.end; ++i) {
      const Tiling::Tile tile = tiling.tile(i);
      const int64_t at = tile.begin * channels;
      const Element* residual = p.residual == nullptr ? nullptr : elements(p.residual) + at;
      normalized_tile(p.input, {channels, tile.image, tile.begin, tile.pixels, 0, channels},
                      elements(p.output) + at, channels, false, residual);
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
    with_map_activation(
        p.input.activation, [&](const auto& activation) __attribute__((always_inline)) {
          for (int64_t begin = 0; begin < p.pixels; begin += kRun) {
            const int64_t end = std::min(p.pixels, begin + kRun);
            const Element* in = elements(p.input.data) + (image * p.pixels + begin) * channels;
            std::fill(tile, tile + vectors_of(channels) * kW, 0.f);
            for (int64_t pixel = begin; pixel < end; ++pixel, in += channels) {
              each_vector(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
                const Vec x = vfma(load_lanes(in + c, lanes), load_lanes(scale + c, lanes),
                                   load_lanes(shift + c, lanes));
                vstore(tile + c, vadd(vload(tile + c), activation.value(x)));
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
      gradient_tile(p.gradient, {channels, tile.image, tile.begin, tile.pixels, 0, channels},
                    elements(p.output) + tile.begin * channels, channels, false);
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
      with_map_activation(
          activation_of(p.gradient), [&](const auto& activation) __attribute__((always_inline)) {
            GradientReader reader(p.gradient, all);
            for (int64_t begin = 0; begin < tile.pixels; begin += kRun) {
              const int64_t end = std::min(tile.pixels, begin + kRun);
              std::fill(tile_sums, tile_sums + 2 * padded, 0.f);
              for (int64_t pixel = begin; pixel < end; ++pixel) {
                each_vector(channels, [&](int64_t c, int lanes) __attribute__((always_inline)) {
                  Vec x = vzero();
                  const Vec g = reader.before_activation(activation, c, lanes, &x);
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
