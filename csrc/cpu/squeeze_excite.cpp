// Squeeze-excite: channel means -> reduce -> activation -> expand -> gate, and the input times the
// gates. The two matrices (C x C/4) are products with one pixel, bound by reading them. The map is
// read twice and written once.
#include <algorithm>

#include "gemm.h"
#include "kernels.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

// c = activation(weight x + bias), the weight shared by the threads if it is large enough.
void multiply_vector(const float* packed, int64_t outputs, int64_t depth, const Element* x,
                     Activation activation, const GemmC& c, const Threads& threads) {
  constexpr int64_t kWorthwhile = 16 * 1024;
  const Panels panels(outputs);
  const int64_t parts = outputs * depth < kWorthwhile ? 1 : std::min(threads.count, panels.count);
  threads.parallel(parts, [&](int64_t i) {
    const Share share(panels.count, parts, i);
    gemm({x, depth, depth, 0, depth}, {packed + kPackedHeader, /*cold=*/false, {}}, panels, 1, c,
         {activation, nullptr, 0}, share.begin, share.end, /*single_pixel=*/true);
  });
}

// sums[c] over the pixels of an NHWC image, for the channels [first, last).
void sum_pixels(const Element* image, int64_t channels, int64_t pixels, int64_t first, int64_t last,
                float* sums) {
  for (int64_t c = first; c < last; c += kW) {
    const int lanes = static_cast<int>(std::min<int64_t>(kW, channels - c));
    Vec sum = vzero();
    for (int64_t m = 0; m < pixels; ++m) {
      const Element* x = image + m * channels + c;
      sum = vadd(sum, lanes == kW ? vload(x) : vload_first(x, lanes));
    }
    vstore(sums + c, sum);
  }
}

// Pixels [first, last) of the image times the gates.
void scale_pixels(const Element* in, int64_t channels, int64_t first, int64_t last,
                  const float* gates, Element* out) {
  for (int64_t m = first; m < last; ++m) {
    const Element* x = in + m * channels;
    Element* y = out + m * channels;
    int64_t c = 0;
    for (; c + kW <= channels; c += kW) vstore(y + c, vmul(vload(x + c), vload(gates + c)));
    if (c < channels) {
      const int tail = static_cast<int>(channels - c);
      vstore_first(y + c, vmul(vload_first(x + c, tail), vload(gates + c)), tail);
    }
  }
}

}  // namespace

void squeeze_excite_gates(const SqueezeExciteParams& p, const float* sums, int64_t pixels,
                          float* gates, const Threads& threads) {
  const int64_t vectors = vectors_of(p.channels);
  Element* means = scratch_elements(Scratch::kTable, (vectors + vectors_of(p.squeezed)) * kW);
  Element* squeezed = means + vectors * kW;
  const Vec scale = vset(1.f / static_cast<float>(pixels));
  for (int64_t v = 0; v < vectors; ++v) vstore(means + v * kW, vmul(vload(sums + v * kW), scale));
  multiply_vector(p.reduce_packed, p.squeezed, p.channels, means, p.activation,
                  gemm_map(squeezed, p.squeezed), threads);
  multiply_vector(p.expand_packed, p.channels, p.squeezed, squeezed, p.gate,
                  {gates, true, 0, kW, nullptr, vectors * kW, 0}, threads);
}

void squeeze_excite(const SqueezeExciteConv2dParams& p, const Threads& threads) {
  if (p.batch == 0 || p.pixels == 0) return;
  const int64_t channels = p.weights.channels, vectors = vectors_of(channels);
  float* sums = scratch_floats(Scratch::kSums, 2 * vectors * kW);
  float* gates = sums + vectors * kW;
  for (int64_t n = 0; n < p.batch; ++n) {
    const Element* image = elements(p.input) + n * p.pixels * channels;
    Element* out = elements(p.output) + n * p.pixels * channels;
    const int64_t sum_parts = std::min(threads.count, vectors);
    threads.parallel(sum_parts, [&](int64_t i) {
      const Share share(vectors, sum_parts, i);
      sum_pixels(image, channels, p.pixels, share.begin * kW, std::min(share.end * kW, channels),
                 sums);
    });
    squeeze_excite_gates(p.weights, sums, p.pixels, gates, threads);
    const int64_t parts = std::min(threads.count, p.pixels);
    threads.parallel(parts, [&](int64_t i) {
      const Share share(p.pixels, parts, i);
      scale_pixels(image, channels, share.begin, share.end, gates, out);
    });
  }
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
