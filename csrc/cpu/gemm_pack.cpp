// How the weights of gemm.h's products lie in memory.
#include <algorithm>

#include "gemm.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

Panels::Panels(int64_t n) : vectors((n + kW - 1) / kW) {
  if (kRegisters == 32) {
    constexpr int64_t kMaxPanel = 4;
    count = (vectors + kMaxPanel - 1) / kMaxPanel;
    // Many panels are what threads share: an even number of them, as equal as can be.
    constexpr int64_t kMany = 5;
    if (count >= kMany) count += count % 2;
  } else {
    count = vectors / 2 + (vectors == 1 ? 1 : 0);  // pairs; an odd count ends in a triple
  }
}

int64_t Panels::first_vector(int64_t panel) const {
  if (panel == count) return vectors;
  if (kRegisters != 32) return 2 * panel;
  return panel * (vectors / count) + (panel < vectors % count ? panel : vectors % count);
}

void pack_panel(const float* weight, int64_t n_stride, int64_t k_stride, int64_t n, int64_t depth,
                const Panels& panels, int64_t panel, float* packed) {
  // Of inputs that lie next to each other, so many at a time that all their rows stay in L1.
  constexpr int64_t kBlock = 32;
  const int64_t steps = steps_of(kDataType, depth, 1);
  const int64_t first = panels.first_vector(panel) * kW, width = panels.width(panel) * kW;
  const int64_t real = std::min(width, n - first);
  float* out = packed + first * (1 + steps);
  std::fill(out, out + width, 0.f);
  out += width;
  weight += first * n_stride;
  const auto lane = [&](int64_t j, int64_t step) {
    float inputs[kStep] = {};
    const int64_t count = std::min(kStep, depth - step * kStep);
    for (int64_t l = 0; l < count; ++l)
      inputs[l] = weight[j * n_stride + (step * kStep + l) * k_stride];
    return packed_step(inputs);
  };
  for (int64_t begin = 0; begin < steps; begin += kBlock) {
    const int64_t end = std::min(steps, begin + kBlock);
    for (int64_t i = begin; i < end; ++i)
      std::fill(out + i * width + real, out + (i + 1) * width, 0.f);
    if (n_stride == 1) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t j = 0; j < real; ++j) out[i * width + j] = lane(j, i);
    } else {
      for (int64_t j = 0; j < real; ++j)
        for (int64_t i = begin; i < end; ++i) out[i * width + j] = lane(j, i);
    }
  }
}

void pack_gemm(const float* weight, int64_t n, int64_t channels, int64_t segments, int64_t taps,
               const float* bias, float* packed) {
  const Panels panels(n);
  const int64_t depth = channels * segments * taps, length = channels * taps;
  const int64_t steps = steps_of(kDataType, length, 1);
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t first = panels.first_vector(p) * kW, width = panels.width(p) * kW;
    const int64_t real = std::min(width, n - first);
    float* out = packed + first * (1 + segments * steps);
    if (segments * taps == 1) {
      pack_panel(weight, depth, 1, n, depth, panels, p, packed);
    } else {
      std::fill(out, out + width * (1 + segments * steps), 0.f);
      for (int64_t j = 0; j < real; ++j) {
        float* step = out + width + j;
        for (int64_t segment = 0; segment < segments; ++segment) {
          const float* row = weight + (first + j) * depth + segment * taps;
          int64_t channel = 0, tap = 0;
          for (int64_t i = 0; i < steps; ++i, step += width) {
            float inputs[kStep] = {};
            for (int64_t l = 0; l < kStep && tap < taps; ++l) {
              inputs[l] = row[channel * segments * taps + tap];
              if (++channel == channels) channel = 0, ++tap;
            }
            *step = packed_step(inputs);
          }
        }
      }
    }
    if (bias != nullptr) std::copy(bias + first, bias + first + real, out);
  }
}

void scale_inputs(const float* packed, const Panels& panels, int64_t depth, const float* factors,
                  float* out) {
  const int64_t steps = steps_of(kDataType, depth, 1);
  for (int64_t p = 0; p < panels.count; ++p) {
    const int64_t width = panels.width(p) * kW;
    std::copy(packed, packed + width, out);
    packed += width;
    out += width;
    for (int64_t k = 0; k < steps; ++k) {
      for (int64_t j = 0; j < width; j += kW)
        vstore(out + j, vscale_step(vload(packed + j), factors + k * kStep));
      packed += width;
      out += width;
    }
  }
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
