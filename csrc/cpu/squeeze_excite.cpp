// Squeeze-excite: channel means -> reduce -> activation -> expand -> gate, and the input times the
// gates. The two matrices are tiny (C x C/4): a dot product a row, on the calling thread. The map
// is read twice and written once.
#include <algorithm>
#include <cstring>

#include "activate.h"
#include "kernels.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

float dot(const float* a, const float* b, int64_t n) {
  Vec sum = vzero();
  int64_t i = 0;
  for (; i + kW <= n; i += kW) sum = vfma(vload(a + i), vload(b + i), sum);
  if (i < n) {
    const int tail = static_cast<int>(n - i);
    sum = vfma(vload_first(a + i, tail), vload_first(b + i, tail), sum);
  }
  float lanes[kW], total = 0.f;
  vstore(lanes, sum);
  for (float lane : lanes) total += lane;
  return total;
}

// out = activation(weight [rows, depth] x + bias); out has room for whole vectors.
void dense(const float* weight, const float* bias, int64_t rows, int64_t depth, const float* x,
           Activation activation, float* out) {
  for (int64_t r = 0; r < rows; ++r)
    out[r] = dot(weight + r * depth, x, depth) + (bias != nullptr ? bias[r] : 0.f);
  std::fill(out + rows, out + vectors_of(rows) * kW, 0.f);
  const ActivationBounds bounds = activation_bounds(activation);
  for (int64_t i = 0; i < rows; i += kW) {
    Vec v = vload(out + i);
    if (bounds.is_clamp) {
      v = clamp(v, vset(bounds.low), vset(bounds.high));
    } else {
      activate_registers<1>(activation, &v);
    }
    vstore(out + i, v);
  }
}

// sums[c] over the pixels of an NHWC image, for the channels [first, last).
void sum_pixels(const float* image, int64_t channels, int64_t pixels, int64_t first, int64_t last,
                float* sums) {
  for (int64_t c = first; c < last; c += kW) {
    const int lanes = static_cast<int>(std::min<int64_t>(kW, channels - c));
    Vec sum = vzero();
    for (int64_t m = 0; m < pixels; ++m) {
      const float* x = image + m * channels + c;
      sum = vadd(sum, lanes == kW ? vload(x) : vload_first(x, lanes));
    }
    vstore(sums + c, sum);
  }
}

// Pixels [first, last) of the image times the gates.
void scale_pixels(const float* in, int64_t channels, int64_t first, int64_t last,
                  const float* gates, float* out) {
  for (int64_t m = first; m < last; ++m) {
    const float* x = in + m * channels;
    float* y = out + m * channels;
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
                          float* gates) {
  const int64_t vectors = vectors_of(p.channels);
  float* means = scratch_floats(Scratch::kTable, (vectors + vectors_of(p.squeezed)) * kW);
  float* squeezed = means + vectors * kW;
  const Vec scale = vset(1.f / static_cast<float>(pixels));
  for (int64_t v = 0; v < vectors; ++v) vstore(means + v * kW, vmul(vload(sums + v * kW), scale));
  dense(p.reduce_weight, p.reduce_bias, p.squeezed, p.channels, means, p.activation, squeezed);
  dense(p.expand_weight, p.expand_bias, p.channels, p.squeezed, squeezed, p.gate, gates);
}

void squeeze_excite(const SqueezeExciteConv2dParams& p, const Threads& threads) {
  if (p.batch == 0 || p.pixels == 0) return;
  const int64_t channels = p.weights.channels, vectors = vectors_of(channels);
  float* sums = scratch_floats(Scratch::kSums, 2 * vectors * kW);
  float* gates = sums + vectors * kW;
  for (int64_t n = 0; n < p.batch; ++n) {
    const float* image = p.input + n * p.pixels * channels;
    float* out = p.output + n * p.pixels * channels;
    const int64_t sum_parts = std::min(threads.count, vectors);
    threads.parallel(sum_parts, [&](int64_t i) {
      const Share share(vectors, sum_parts, i);
      sum_pixels(image, channels, p.pixels, share.begin * kW, std::min(share.end * kW, channels),
                 sums);
    });
    squeeze_excite_gates(p.weights, sums, p.pixels, gates);
    const int64_t parts = std::min(threads.count, p.pixels);
    threads.parallel(parts, [&](int64_t i) {
      const Share share(p.pixels, parts, i);
      scale_pixels(image, channels, share.begin, share.end, gates, out);
    });
  }
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
