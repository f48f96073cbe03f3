// Tiles of the maps of train.h: what a kernel reads of a map that is normalized on the way, and
// sums over pixels that do not depend on the number of threads.
#pragma once

#include "../parallel.h"
#include "../train.h"
#include "element.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

// How the pixels of a map are cut into tiles of about equal size, and the tiles into parts, each
// the work of one thread. It depends on the shape alone.
struct Tiling {
  // by_image: no tile has pixels of two images.
  Tiling(int64_t batch, int64_t pixels, bool by_image, int64_t most_pixels, int64_t most_parts);

  struct Tile {
    int64_t image, begin, pixels;
  };
  Tile tile(int64_t index) const;
  Share part(int64_t index) const { return Share(tiles, parts, index); }
  // Pixels of a part.
  int64_t part_pixels(int64_t index) const;

  int64_t run, tiles_per_run, tiles, parts;
};

// `pixels` pixels from `begin` on, counted through all images, channels [first, first + count) of
// a map: to out[pixel * out_pixel + channel]; padded: whole vectors, with 0 past the last channel.
struct MapTile {
  int64_t channels;
  int64_t image, begin, pixels;
  int64_t first, count;
};

// Whether the stores of a map of `bytes` bytes go past the caches.
inline bool streams(const void* map, int64_t bytes, int64_t channels) {
  constexpr int64_t kLarge = 12 << 20, kLine = 64;
  return kStreams && bytes >= kLarge && channels * sizeof(Element) % kLine == 0 &&
         reinterpret_cast<std::uintptr_t>(map) % kLine == 0;
}

inline int64_t map_bytes(int64_t pixels, int64_t channels) {
  return pixels * channels * static_cast<int64_t>(sizeof(Element));
}

// Pixels of scratch memory to a map, [pixel][channels].
void copy_pixels(const Element* from, int64_t from_pixel, int64_t pixels, int64_t count,
                 Element* to, int64_t to_pixel, bool streams);

void normalized_tile(const NormalizedMap& map, const MapTile& tile, Element* out, int64_t out_pixel,
                     bool padded = true, const Element* residual = nullptr);

void gradient_tile(const GradientMap& map, const MapTile& tile, Element* out, int64_t out_pixel,
                   bool padded = true);

// The tile's gradient `d` [pixel][d_pixel] of a normalized map becomes that of the map before the
// activation (where there is a gate, it stays what it is) plus the residual, and goes to out.
struct InputGradient {
  NormalizedMap map;
  const void* residual;
  const float* mean;
  void* out;
  bool streams;     // whether the stores go past the caches
  float* sums;      // [2][channels], or null
  float* products;  // [channels]: sum of d activation(map), or null
};
template <class T>
void finish_gradient(const InputGradient& gradient, const MapTile& tile, const T* d,
                     int64_t d_pixel);

// The two gradients of a tile in a step's lanes, for a sum of products over pixels: [step][channel]
// of kStep pixels each, 0 past the last one. Returns data itself where a step is one pixel.
const float* pixel_steps(const Element* data, int64_t pixel, int64_t pixels, int64_t vectors,
                         float* out);
constexpr int64_t pixel_steps_of(int64_t pixels) { return (pixels + kStep - 1) / kStep; }

// Means and variances of a map's channels, gathered from parts.
class Moments {
 public:
  // Floats that `parts` parts need.
  static int64_t room(int64_t channels, int64_t parts) {
    return 3 * parts * ((channels + kW - 1) / kW * kW);
  }
  Moments(int64_t channels, int64_t parts, float* memory)
      : channels_(channels),
        padded_((channels + kW - 1) / kW * kW),
        parts_(parts),
        memory_(memory) {}
  // Channels [first, first + count) of pixels of a part; `begins`: they are its first.
  void add(int64_t part, bool begins, const Element* data, int64_t pixel, int64_t pixels,
           int64_t first, int64_t count) const;
  // results: [2, C]; pixels(part) in each part.
  template <class F>
  void finish(const F& pixels, float* results) const;

 private:
  float* row(int64_t part, int64_t i) const { return memory_ + (3 * part + i) * padded_; }
  int64_t channels_, padded_, parts_;
  float* memory_;
};

// out[i] = sum over parts of partial[part * size + i]
void sum_parts(const float* partial, int64_t parts, int64_t size, float* out,
               const Threads& threads);

// Sums of a tile's channels are added to sums.
void add_pixels(const Element* data, int64_t pixel, int64_t pixels, int64_t channels, float* sums);

template <class F>
void Moments::finish(const F& pixels, float* results) const {
  for (int64_t c = 0; c < channels_; ++c) {
    double count = 0, mean = 0, squares = 0;
    for (int64_t part = 0; part < parts_; ++part) {
      const double n = static_cast<double>(pixels(part));
      if (n == 0) continue;
      const double sum = row(part, 1)[c];
      const double part_mean = row(part, 0)[c] + sum / n;
      const double delta = part_mean - mean, total = count + n;
      squares += row(part, 2)[c] - sum * sum / n + delta * delta * (count * n / total);
      mean += delta * (n / total);
      count = total;
    }
    results[c] = static_cast<float>(mean);
    results[channels_ + c] = static_cast<float>(squares < 0 ? 0 : squares / count);
  }
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
