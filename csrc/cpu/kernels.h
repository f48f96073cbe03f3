// The kernels of this level, one per op: what table.cpp collects.
#pragma once

#include "../packed.h"
#include "dispatch.h"
#include "element.h"
#include "scratch.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

// Convolutions that differ in their weights, activations, residuals and outputs only.
void pointwise_conv2d(const PointwiseConv2dParams* parts, int64_t count, const Threads& threads);
void depthwise_conv2d(const DepthwiseConv2dParams& p, const Threads& threads);
void inverted_residual(const InvertedResidualParams& p, const Threads& threads);
void squeeze_excite(const SqueezeExciteConv2dParams& p, const Threads& threads);
void conv2d_bias_act(const Conv2dBiasActParams& p, const Threads& threads);
void pointwise_conv2d_pool(const PointwiseConv2dPoolParams& p, const Threads& threads);
void linear(const LinearParams& p, const Threads& threads);
void max_pool(const PoolParams& p, const Threads& threads);
void average_pool(const PoolParams& p, const Threads& threads);
void train_pointwise_conv2d(const TrainPointwiseConv2dParams& p, const Threads& threads);
void train_pointwise_conv2d_backward(const TrainPointwiseConv2dBackwardParams& p,
                                     const Threads& threads);
void train_depthwise_conv2d(const TrainDepthwiseConv2dParams& p, const Threads& threads);
void train_depthwise_conv2d_backward(const TrainDepthwiseConv2dBackwardParams& p,
                                     const Threads& threads);
// output = input normalized + residual
void train_normalize(const TrainMapParams& p, const Threads& threads);
// results[n, c] = mean over the pixels of input normalized
void train_normalized_mean(const TrainMapParams& p, const Threads& threads);
// results: means and biased variances of input.data
void train_moments(const TrainMapParams& p, const Threads& threads);
// output = gradient
void train_gradient(const TrainMapParams& p, const Threads& threads);
// results: sums over all pixels of G, and of G (raw - mean)
void train_gradient_sums(const TrainMapParams& p, const Threads& threads);

// GFLOP/s of one thread that does nothing but FMAs for `seconds`: the best of many short runs.
double fma_peak(double seconds);

// gates[c] of one image from the sums of its channels over `pixels` pixels; both padded to whole
// vectors.
void squeeze_excite_gates(const SqueezeExciteParams& p, const float* sums, int64_t pixels,
                          float* gates, const Threads& threads);

FASTCONV_INLINE float* scratch_floats(Scratch purpose, int64_t count) {
  return static_cast<float*>(scratch(purpose, static_cast<std::size_t>(count) * sizeof(float)));
}

FASTCONV_INLINE Element* scratch_elements(Scratch purpose, int64_t count) {
  return elements(scratch(purpose, static_cast<std::size_t>(count) * sizeof(Element)));
}

FASTCONV_INLINE int64_t vectors_of(int64_t channels) { return (channels + kW - 1) / kW; }

// Size of a plane of T, rounded up to an odd number of cache lines: planes then start in different
// sets of the L1 cache.
template <class T>
FASTCONV_INLINE int64_t plane_stride(int64_t size) {
  constexpr int64_t kLine = 64 / sizeof(T);
  return ((size + kLine - 1) / kLine | 1) * kLine;
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
