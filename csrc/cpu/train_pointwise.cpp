// 1x1 convolution in training. Forward: a tile of pixels is normalized into L2, multiplied, and
// its results' sums are taken while they are still there. Backward: of a tile the gradient is made
// once, [P, K]; then, for one panel of input channels after the other, the normalized input [P,
// panel], its product with the gradient over the pixels (the weight's gradient), and the
// gradient's product with the weight (the input's), whose activation is differentiated on the way
// out. Memory moved per pixel, backward: grad and raw 2 K in, input C in, its gradient C out.
#include <algorithm>
#include <utility>

#include "gemm.h"
#include "kernels.h"
#include "train.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

constexpr int64_t kMostParts = 32;

int64_t between(int64_t low, int64_t value, int64_t high) {
  return std::max(low, std::min(value, high));
}

// Pixels of a tile that has this many floats for each.
int64_t tile_pixels(int64_t floats, int64_t most) {
  constexpr int64_t kRoom = 384 * 1024 / sizeof(float);
  return between(24, kRoom / floats, most);
}

// A matrix of n outputs of `depth` inputs, packed for this call.
const float* packed_matrix(const float* weight, int64_t n_stride, int64_t k_stride, int64_t n,
                           int64_t depth, const Panels& panels, const Threads& threads) {
  float* packed =
      scratch_floats(Scratch::kWeights, panels.vectors * kW * (1 + steps_of(kDataType, depth, 1)));
  threads.parallel(panels.count, [&](int64_t panel) {
    pack_panel(weight, n_stride, k_stride, n, depth, panels, panel, packed);
  });
  return packed;
}

// Asks for some memory, a part after the other, while other work goes on.
struct Region {
  static Region of(const void* map, int64_t begin, int64_t pixels, int64_t channels) {
    if (map == nullptr) return {nullptr, 0};
    const Element* at = elements(map) + begin * channels;
    return {reinterpret_cast<const char*>(at),
            static_cast<int64_t>(pixels * channels * sizeof(Element))};
  }
  const char* data;
  int64_t bytes;
};

// out[k, c] (+)= sum over steps of a[step, k] b[step, c]: MR of a's channels, NV vectors of b's.
// a's rows are read as broadcasts, b's as vectors, both as they lie.
struct PixelSum {
  const float* a;
  int64_t a_step;
  const float* b;
  int64_t b_step;
  int64_t steps;
  float* out;
  int64_t out_row;
  int64_t lanes;  // of out that exist
  bool adds;
  // Memory that is read next: a cache line at each step, from where the tile before has left off.
  mutable const char* ahead;
  const char* ahead_end;
};

template <int MR, int NV>
void sum_tile(const PixelSum& s, int64_t k) {
  Vec acc[MR * NV];
  FASTCONV_UNROLL for (int i = 0; i < MR * NV; ++i) acc[i] = vzero();
  const float *a = s.a + k, *b = s.b;
  const char* ahead = s.ahead;
  for (int64_t step = 0; step < s.steps; ++step) {
    if (ahead < s.ahead_end) {
      __builtin_prefetch(ahead, 0, 2);
      ahead += 64;
    }
    Vec bv[NV];
    FASTCONV_UNROLL for (int j = 0; j < NV; ++j) bv[j] = vload(b + j * kW);
    FASTCONV_UNROLL for (int i = 0; i < MR; ++i) {
      const Vec av = vset_lane(a + i);
      FASTCONV_UNROLL for (int j = 0; j < NV; ++j) acc[i * NV + j] =
          vdot(av, bv[j], acc[i * NV + j]);
    }
    a += s.a_step;
    b += s.b_step;
  }
  s.ahead = ahead;
  const int tail = static_cast<int>(s.lanes - (NV - 1) * kW);
  FASTCONV_UNROLL for (int i = 0; i < MR; ++i) {
    float* out = s.out + (k + i) * s.out_row;
    FASTCONV_UNROLL for (int j = 0; j < NV; ++j) {
      float* to = out + j * kW;
      if (j == NV - 1 && tail < kW) {
        vstore_first(to, s.adds ? vadd(vload_first(to, tail), acc[i * NV + j]) : acc[i * NV + j],
                     tail);
      } else {
        vstore(to, s.adds ? vadd(vload(to), acc[i * NV + j]) : acc[i * NV + j]);
      }
    }
  }
}

constexpr int max_rows(int nv) {
  if (kRegisters == 32) return nv == 4 ? 6 : nv == 3 ? 8 : nv == 2 ? 12 : 14;
  return nv == 3 ? 4 : nv == 2 ? 6 : 8;
}

using SumFunction = void (*)(const PixelSum&, int64_t);

template <int NV, int... kMinusOne>
SumFunction sum_of_height(int64_t rows, std::integer_sequence<int, kMinusOne...>) {
  static constexpr SumFunction kTable[] = {sum_tile<kMinusOne + 1, NV>...};
  return kTable[rows - 1];
}

// All of `count` channels of a, in the fewest tiles, as equal as possible.
template <int NV>
void sum_rows(const PixelSum& s, int64_t count) {
  using Heights = std::make_integer_sequence<int, max_rows(NV)>;
  const int64_t most = max_rows(NV), tiles = (count + most - 1) / most;
  for (int64_t t = 0; t < tiles; ++t) {
    const Share share(count, tiles, t);
    sum_of_height<NV>(share.end - share.begin, Heights())(s, share.begin);
  }
}

void sum_panel(const PixelSum& s, int64_t vectors, int64_t count) {
  switch (vectors) {
    case 1:
      return sum_rows<1>(s, count);
    case 2:
      return sum_rows<2>(s, count);
    case 3:
      return sum_rows<3>(s, count);
#if defined(FASTCONV_ISA_AVX512) || defined(FASTCONV_ISA_NEON) || defined(FASTCONV_ISA_WIDE)
    case 4:
      return sum_rows<4>(s, count);
#endif
  }
}

// What the parts of a backward pass add to, each for itself.
struct Partials {
  float *weight, *bias, *sums;
};

class Backward {
 public:
  Backward(const TrainPointwiseConv2dBackwardParams& p)
      : p_(p),
        k_(p.out_channels),
        c_(p.in_channels),
        by_image_(p.input.gate != nullptr || p.gradient.gate != nullptr ||
                  p.gradient.offset != nullptr),
        panels_(c_),
        dy_pixel_(plane_stride<Element>(vectors_of(k_) * kW)),
        u_pixel_(plane_stride<Element>(kPanel)),
        tiling_(p.batch, p.pixels, by_image_, tile_pixels(k_ + 3 * kPanel, 128), most_parts(p)),
        streams_(streams(p.grad_input, map_bytes(p.batch * p.pixels, c_), c_)) {}

  void run(const Threads& threads) const {
    const int64_t parts = tiling_.parts, weight = k_ * c_;
    const int64_t room = (p_.grad_weight != nullptr ? weight : 0) + k_ + 2 * c_;
    const int64_t products = p_.grad_gate == nullptr ? 0 : tiling_.tiles * c_;
    float* memory = scratch_floats(Scratch::kPartials, parts * room + products);
    // By kind: the parts of one are summed over whole arrays.
    float* bias = memory + (p_.grad_weight != nullptr ? parts * weight : 0);
    float* sums = bias + parts * k_;
    float* gated = sums + parts * 2 * c_;
    std::fill(bias, gated + products, 0.f);
    const float* packed = p_.grad_input == nullptr
                              ? nullptr
                              : packed_matrix(p_.weight, 1, c_, c_, k_, panels_, threads);
    threads.parallel(parts, [&](int64_t part) {
      const Partials partials{memory + part * weight, bias + part * k_, sums + part * 2 * c_};
      const Share share = tiling_.part(part);
      for (int64_t i = share.begin; i < share.end; ++i)
        tile(i, i == share.begin, i + 1 < share.end, packed, partials, gated + i * c_);
    });
    if (p_.grad_weight != nullptr) sum_parts(memory, parts, weight, p_.grad_weight, threads);
    if (p_.grad_bias != nullptr) sum_parts(bias, parts, k_, p_.grad_bias, threads);
    if (p_.sums != nullptr) sum_parts(sums, parts, 2 * c_, p_.sums, threads);
    if (p_.grad_gate == nullptr) return;
    const int64_t tiles = tiling_.tiles_per_run;
    for (int64_t n = 0; n < p_.batch; ++n)
      sum_parts(gated + n * tiles * c_, tiles, c_, p_.grad_gate + n * c_, kAlone);
  }

 private:
  static constexpr int64_t kPanel = 4 * kW;

  // Each part has a weight's gradient of its own, which must not cost more than its pixels.
  static int64_t most_parts(const TrainPointwiseConv2dBackwardParams& p) {
    constexpr int64_t kFloats = 4 << 20, kPixels = 192;
    const int64_t weights = p.in_channels * p.out_channels;
    const int64_t pixels = p.batch * p.pixels;
    return between(1, std::min(kFloats / weights, pixels / kPixels), kMostParts);
  }

  void tile(int64_t index, bool begins, bool continues, const float* packed,
            const Partials& partials, float* gated) const {
    const Tiling::Tile at = tiling_.tile(index);
    const int64_t pixels = at.pixels;
    // What the next tile reads first comes while this one is multiplied.
    Region grad{nullptr, 0}, raw = grad;
    if (continues) {
      const Tiling::Tile next = tiling_.tile(index + 1);
      grad = Region::of(p_.gradient.grad, next.begin, next.pixels, k_);
      raw = Region::of(p_.gradient.raw, next.begin, next.pixels, k_);
    }
    Element* dy = scratch_elements(Scratch::kGradients, pixels * dy_pixel_);
    gradient_tile(p_.gradient, {k_, at.image, at.begin, pixels, 0, k_}, dy, dy_pixel_);
    if (p_.grad_bias != nullptr) add_pixels(dy, dy_pixel_, pixels, k_, partials.bias);
    const int64_t k_vectors = vectors_of(k_), steps = pixel_steps_of(pixels);
    const float* dy_steps = nullptr;
    Element* u = nullptr;
    float *u_room = nullptr, *d = nullptr;
    if (p_.grad_weight != nullptr) {
      // Of bfloat16 there is a second copy, by pairs of pixels, of both.
      const int64_t dy_room = kStep == 1 ? 0 : steps * k_vectors * kW;
      float* room = scratch_floats(Scratch::kSteps, dy_room + steps * kPanel);
      dy_steps = pixel_steps(dy, dy_pixel_, pixels, k_vectors, room);
      u_room = room + dy_room;
      u = scratch_elements(Scratch::kInputs, pixels * u_pixel_);
    }
    const int64_t d_pixel = plane_stride<float>(kPanel);
    if (p_.grad_input != nullptr) d = scratch_floats(Scratch::kTile, pixels * d_pixel);

    for (int64_t panel = 0; panel < panels_.count; ++panel) {
      const int64_t first = panels_.first_vector(panel), vectors = panels_.width(panel);
      const MapTile part{c_,     at.image,   at.begin,
                         pixels, first * kW, std::min(vectors * kW, c_ - first * kW)};
      const Share ahead(grad.bytes, panels_.count, panel);
      if (p_.grad_weight != nullptr) {
        normalized_tile(p_.input, part, u, u_pixel_);
        const float* u_steps = pixel_steps(u, u_pixel_, pixels, vectors, u_room);
        const PixelSum sum{dy_steps,
                           kStep == 1 ? dy_pixel_ : k_vectors * kW,
                           u_steps,
                           kStep == 1 ? u_pixel_ : vectors * kW,
                           steps,
                           partials.weight + part.first,
                           c_,
                           part.count,
                           !begins,
                           grad.data + ahead.begin,
                           grad.data + ahead.end};
        sum_panel(sum, vectors, k_);
      }
      if (p_.grad_input == nullptr) continue;
      const GemmC out{d, true, d_pixel, kW, nullptr, (first + vectors) * kW, first};
      const WeightRegion next{reinterpret_cast<const float*>(raw.data),
                              raw.bytes / static_cast<int64_t>(sizeof(float))};
      gemm({dy, dy_pixel_, k_, 0, k_}, {packed, false, next}, panels_, pixels, out,
           {Activation::kNone, nullptr, 0}, panel, panel + 1);
      const InputGradient finish{p_.input,
                                 p_.residual,
                                 p_.mean,
                                 p_.grad_input,
                                 streams_,
                                 p_.sums == nullptr ? nullptr : partials.sums,
                                 p_.grad_gate == nullptr ? nullptr : gated};
      finish_gradient(finish, part, d, d_pixel);
    }
  }

  const TrainPointwiseConv2dBackwardParams& p_;
  const int64_t k_, c_;
  const bool by_image_;
  const Panels panels_;
  const int64_t dy_pixel_, u_pixel_;
  const Tiling tiling_;
  const bool streams_;
};

}  // namespace

void train_pointwise_conv2d(const TrainPointwiseConv2dParams& p, const Threads& threads) {
  if (p.batch * p.pixels == 0) return;
  const int64_t in = p.in_channels, out = p.out_channels;
  const Tiling tiling(p.batch, p.pixels, p.input.gate != nullptr, tile_pixels(in + out, 512),
                      kMostParts);
  const Panels panels(out);
  const bool plain = p.input.is_plain();
  const bool streaming = streams(p.output, map_bytes(p.batch * p.pixels, out), out);
  const int64_t pixel = plain ? in : plane_stride<Element>(vectors_of(in) * kW);
  float* memory = p.moments == nullptr
                      ? nullptr
                      : scratch_floats(Scratch::kPartials, Moments::room(out, tiling.parts));
  const Moments moments(out, tiling.parts, memory);
  const float* packed = packed_matrix(p.weight, in, 1, out, in, panels, threads);
  threads.parallel(tiling.parts, [&](int64_t part) {
    const Share share = tiling.part(part);
    for (int64_t i = share.begin; i < share.end; ++i) {
      const Tiling::Tile tile = tiling.tile(i);
      const Element* a = elements(p.input.data) + tile.begin * in;
      if (!plain) {
        Element* normalized = scratch_elements(Scratch::kInputs, tile.pixels * pixel);
        normalized_tile(p.input, {in, tile.image, tile.begin, tile.pixels, 0, in}, normalized,
                        pixel);
        a = normalized;
      }
      Element* c = elements(p.output) + tile.begin * out;
      Region next{nullptr, 0};
      if (i + 1 < share.end) {
        const Tiling::Tile following = tiling.tile(i + 1);
        next = Region::of(p.input.data, following.begin, following.pixels, in);
      }
      const WeightRegion ahead{reinterpret_cast<const float*>(next.data),
                               next.bytes / static_cast<int64_t>(sizeof(float))};
      // What does not stay in the caches is written to a tile that does, and from there.
      Element* written = streaming ? scratch_elements(Scratch::kTile, tile.pixels * out) : c;
      gemm({a, pixel, in, 0, in}, {packed, false, ahead}, panels, tile.pixels,
           gemm_map(written, out), {Activation::kNone, nullptr, 0}, 0, panels.count);
      if (memory != nullptr) moments.add(part, i == share.begin, written, out, tile.pixels, 0, out);
      if (streaming) copy_pixels(written, out, tile.pixels, out, c, out, true);
    }
  });
  if (memory != nullptr)
    moments.finish([&](int64_t part) { return tiling.part_pixels(part); }, p.moments);
}

void train_pointwise_conv2d_backward(const TrainPointwiseConv2dBackwardParams& p,
                                     const Threads& threads) {
  if (p.batch * p.pixels > 0) Backward(p).run(threads);
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
