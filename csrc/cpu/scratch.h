// Working memory of the kernels: one buffer per thread and purpose, grown on demand and kept for
// the thread's life, so that the steady state allocates nothing. Contents are not kept between
// calls.
#pragma once

#include <cstddef>

namespace fastconv {

enum class Scratch : int {
  kSlab = 0,    // expanded rows of one thread
  kTile = 1,    // depthwise output of one thread
  kTable = 2,   // offsets of one thread
  kShared = 3,  // depthwise output that all threads of an op write
  kSums = 4,    // channel sums and gates
  kRows = 5,    // offsets of rows of one thread
  // Of a chain of ops:
  kMaps = 6,  // between two ops
  kOtherMaps = 7,
  kJointMaps = 8,  // of a group of images, where they join
  kFeatures = 9,   // of the whole batch
};
constexpr int kScratchCount = 10;

// At least `bytes` bytes, 64-byte aligned, of the calling thread's buffer. Throws std::bad_alloc.
void* scratch(Scratch purpose, std::size_t bytes);

}  // namespace fastconv
