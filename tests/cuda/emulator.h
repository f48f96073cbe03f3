// Runs CUDA kernels on the CPU, for their arithmetic: every thread of a block is a fiber, which
// runs until it waits for others; blocks run one after the other. Shared memory is allocated for
// each block in the size that the launch asks for, so that AddressSanitizer sees what goes beyond
// it, and holds NaN until it is written to. Built with ThreadSanitizer it finds accesses that no
// barrier orders. Nothing here knows of time, nor of the order in which a GPU runs threads.
#pragma once

#include <cuda_runtime.h>
#include <math.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

// Of the fiber that runs.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulator {

constexpr unsigned kWarp = 32;
// Of a grid in y and z: few, so that small tests go beyond it.
constexpr std::int64_t kMostBlocks = 24;

class Barrier {
 public:
  explicit Barrier(unsigned threads) : expected_(threads) {}
  void wait();
  // The thread that runs is not waited for any more.
  void drop();

 private:
  unsigned expected_, arrived_ = 0, passed_ = 0;
  // Addresses that stand for the order of threads here: for ThreadSanitizer, one now and the other
  // one the next time.
  std::uint64_t orders_[2] = {};
};

struct Lane {
  alignas(16) unsigned char bytes[64];
};

// The threads of a warp that are still running, and what they show each other.
struct Warp {
  explicit Warp(unsigned threads) : barrier(threads), lanes(kWarp) {}
  Barrier barrier;
  std::vector<Lane> lanes;
};

struct Block {
  Block(unsigned threads, std::size_t shared_bytes);
  Barrier barrier;
  std::vector<std::unique_ptr<Warp>> warps;
  std::unique_ptr<unsigned char[]> shared;
};

inline std::unique_ptr<Block> block;

inline Warp& warp() { return *block->warps[threadIdx.x / kWarp]; }

template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(block->shared.get());
}

// What every lane of the warp gives: lanes[i] of lane i. All of its threads must call it.
template <class T>
std::array<T, kWarp> exchange(const T& value) {
  static_assert(sizeof(T) <= sizeof(Lane));
  Warp& own = warp();
  std::memcpy(own.lanes[threadIdx.x % kWarp].bytes, &value, sizeof(T));
  own.barrier.wait();
  std::array<T, kWarp> values;
  for (unsigned i = 0; i < kWarp; ++i) std::memcpy(&values[i], own.lanes[i].bytes, sizeof(T));
  own.barrier.wait();  // before anybody shows the next
  return values;
}

// Calls `thread` for every thread of every block.
void run(dim3 grid, unsigned threads, std::size_t shared_bytes,
         const std::function<void()>& thread);

template <class Params>
const char* launch(void (*kernel)(Params), dim3 grid, unsigned threads, std::size_t shared_bytes,
                   void*, const Params& params) {
  if (threads > 1024 || threads % kWarp != 0 || grid.y > kMostBlocks || grid.z > kMostBlocks)
    return "invalid configuration argument";
  run(grid, threads, shared_bytes, [&] { kernel(params); });
  return nullptr;
}

inline int multiprocessors() { return 4; }  // few, so that small tests have several blocks each

}  // namespace emulator

#define __launch_bounds__(...)

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

inline void __syncthreads() { emulator::block->barrier.wait(); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulator::warp().barrier.wait(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulator::exchange(value)[(threadIdx.x % emulator::kWarp) ^ static_cast<unsigned>(mask)];
}

template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}
