// Depthwise convolution of rows: out[y, x, c] = act(bias[c] + sum_{i,j} in[y sh + i dh - ph, x sw +
// j dw - pw, c] w[i, j, c]).
//
// A tile is up to 7 output pixels of one row and one vector of channels. For each kernel row, the
// KW weights and the accumulators stay in registers and every input pixel is loaded once: (Q - 1) S
// + 2 KW loads for Q KW FMAs. With 32 registers, two output rows share what they read. Two layouts
// of input: planes of kW channels with the padding in memory (the slab of a fused block), and NHWC
// without.
#pragma once

#include "../activation.h"
#include "element.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

struct DepthwiseKernel {
  int64_t height, width;
  int64_t stride;    // along the width
  int64_t dilation;  // along the width
  Activation activation;
};

// Floats: ceil16(channels) * (1 + taps); [vector][bias, tap 0, tap 1, ...][kW].
void pack_depthwise(const float* weight, int64_t channels, int64_t taps, const float* bias,
                    float* packed);

// One plane, of floats whatever an element is. Output row r and kernel row i read the input row at
// input + rows[r * height + i]: out_width pixels' worth of taps, padding included. Output row r
// goes to out + r * out_width * kW. Adds every output to sum [kW], unless that is null.
void depthwise_plane(const DepthwiseKernel& kernel, const float* packed, const float* input,
                     const int32_t* rows, Element* out, int64_t out_rows, int64_t out_width,
                     float* sum);

// Output rows of NHWC. rows[r * height + i] points at pixel 0 under kernel row i of output row r,
// or is null where that is padding.
struct DepthwiseRows {
  const Element* const* rows;
  int64_t left;   // input column of tap 0 at output column 0: minus the left padding
  int64_t width;  // input columns that exist
  int64_t pixel;  // elements from one input pixel to the next
  int64_t out_width;
  int64_t out_pixel;  // elements from one output pixel to the next
  int64_t out_row;    // and from one output row to the next
  bool is_far;        // the rows are not in L2
};

// `count` rows, whole vectors [0, vectors) of channels; vector v goes to out + v * out_vector.
void depthwise_rows(const DepthwiseKernel& kernel, const float* packed, const DepthwiseRows& rows,
                    int64_t count, int64_t vectors, Element* out, int64_t out_vector);

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
