// Working memory of the kernels: one buffer per thread and purpose, grown on demand and kept for
// the thread's life, so that the steady state allocates nothing. Contents are not kept between
// calls.
#pragma once

#include <cstddef>

namespace fastconv {

enum class Scratch : int {
  kSlab,    // expanded rows of one thread, or the depthwise output that all threads of an op write
  kTile,    // depthwise output of one thread, or expanded rows of a few of its channels
  kTable,   // offsets of one thread
  kRows,    // offsets of rows of one thread
  kPlan,    // what one thread does, step by step
  kSums,    // channel sums and gates
  kPixels,  // depthwise output of one thread, pixel by pixel
  // Of training:
  kPartials,   // sums of every part of the pixels
  kInputs,     // a tile of the normalized input
  kGradients,  // a tile of the gradient
  kSteps,      // the same, by steps of pixels
  kWeights,    // packed for this call
  // Of a chain of ops:
  kBand,  // of the first op's map
  kMaps,  // between two ops
  kOtherMaps,
  kThirdMaps,
  kFourthMaps,
  kFifthMaps,
  kJointMaps,  // of a group of images, where they join
  kFeatures,   // of the whole batch
  kCount
};
constexpr int kScratchCount = static_cast<int>(Scratch::kCount);

// At least `bytes` bytes, 64-byte aligned, of the calling thread's buffer. Throws std::bad_alloc.
void* scratch(Scratch purpose, std::size_t bytes);

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// Asks the system to back untouched memory with huge pages, as far as it covers whole ones. A
// network's weights are read once per image: with small pages their address translations are missed
// as often as their data (measured: 3 % of MobileNetV2).
void prefer_huge_pages(void* data, std::size_t bytes);

}  // namespace fastconv
