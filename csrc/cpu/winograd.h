// Dense 3x3 convolution of stride 1 by Winograd's minimal filtering: 4x4 outputs of a channel cost
// 36 multiplications instead of 144.
#pragma once

#include "../conv2d_bias_act.h"
#include "../parallel.h"
#include "vec.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

// Of float32 only.

// What follows the header: the bias, then for every panel of output channels 36 matrices, each
// packed as pack_gemm does.
void pack_winograd(const float* weight, int64_t n, int64_t channels, const float* bias,
                   float* packed);

// p.packed is pack_winograd's; the window is 3x3 of stride 1.
void winograd_conv2d(const Conv2dBiasActParams& p, const Threads& threads);

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
