// Matrix multiplication at the heart of every 1x1 convolution: C[m, n] = act(sum_k A[m, k] B[k, n]
// + bias[n] + residual). Rows m are pixels, k input channels, n output channels.
//
// B is packed once into panels of 1..4 vectors: [panel][bias][k][panel width]. A tile of MR
// pixels x one panel lives in registers for all of k; per k it loads the panel row and broadcasts
// MR values of A: (MR + NV) loads for MR * NV FMAs. Every output is one chain of FMAs over k in
// order: neither tile shape nor thread count changes a bit of the result. With bfloat16 a k is a
// step of two inputs, of which each FMA adds both products; below, k counts inputs.
#pragma once

#include "../activation.h"
#include "../packed.h"
#include "element.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

// A: pixel m, channel k at data[(offsets ? offsets[m] : m * row) + (k / segment_length) * segment +
// k % segment_length], k < depth. A pixel-major (NHWC) matrix is one segment; channel planes are
// segments of kW; a dense kernel's rows are segments too.
struct GemmA {
  int64_t steps() const {
    const int64_t whole = depth / segment_length, rest = depth % segment_length;
    return whole * steps_of(kDataType, segment_length, 1) + steps_of(kDataType, rest, 1);
  }

  const Element* data;
  int64_t row;
  int64_t segment_length;
  int64_t segment;
  int64_t depth;
  const int32_t* offsets = nullptr;
};

// C: pixel m, vector v of output channels at data[(offsets ? offsets[m] : m * row) + (v -
// first_vector) * vector]. Elements, or floats whatever an element is.
struct GemmC {
  void* data;
  bool in_floats;
  int64_t row;
  int64_t vector;
  const int32_t* offsets;
  int64_t channels;  // lanes past this are not written; a multiple of kW where whole vectors may be
                     // stored
  int64_t first_vector;
};

// A pixel-major map.
FASTCONV_INLINE GemmC gemm_map(Element* data, int64_t channels) {
  return {data, false, channels, kW, nullptr, channels, 0};
}

struct GemmEpilogue {
  Activation activation;
  const Element* residual;  // same rows and vectors as a pixel-major C, or null
  int64_t residual_row;
};

// Panels of a weight with n output channels. The vectors are dealt so that no panel is a sliver.
struct Panels {
  explicit Panels(int64_t n);
  int64_t first_vector(int64_t panel) const;
  int64_t width(int64_t panel) const { return first_vector(panel + 1) - first_vector(panel); }
  int64_t vectors;
  int64_t count;
};

// Packs weight [n, channels, segments, taps] with k = (segment * taps + tap) * channels + channel;
// each segment ends with a whole step. At most ceil16(n) * (1 + steps) floats.
void pack_gemm(const float* weight, int64_t n, int64_t channels, int64_t segments, int64_t taps,
               const float* bias, float* packed);

// One panel of a matrix whose input k of output n is at weight[n * n_stride + k * k_stride],
// without a bias, at its place in packed.
void pack_panel(const float* weight, int64_t n_stride, int64_t k_stride, int64_t n, int64_t depth,
                const Panels& panels, int64_t panel, float* packed);

// Packed weights of a whole number of steps, those of input k times factors[k]; out may not
// overlap.
void scale_inputs(const float* packed, const Panels& panels, int64_t depth, const float* factors,
                  float* out);

// At batch 1 a weight is in no cache when it is needed, and its way from memory is hidden only by
// asking for it early.
struct GemmWeight {
  const float* packed;  // panel 0
  bool cold;            // this is the first use: each panel's time brings the next one
  WeightRegion ahead;   // and, evenly over all panels, this: the next matrix product's weight
};

// Rows [0, m) of panels [panel_begin, panel_end). `single_pixel` (only with m == 1 and one segment)
// uses more accumulators for the same output, in another order of summation: it must depend on the
// op's shape alone.
void gemm(const GemmA& a, const GemmWeight& weight, const Panels& panels, int64_t m, const GemmC& c,
          const GemmEpilogue& epilogue, int64_t panel_begin, int64_t panel_end,
          bool single_pixel = false);

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
