// What kernels include in the place of CUDA's headers. Compiled by a plain C++ compiler it brings
// an emulator instead (tests/cuda/emulator.h), which runs the same kernels on the CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#ifndef __CUDACC__
#include "tests/cuda/emulator.h"
#endif

namespace fastconv {

#ifdef __CUDACC__

constexpr int64_t kMostBlocks = 65535;  // of a grid in y, and in z

// The dynamic shared memory of a block, aligned for every access.
template <class T>
__device__ T* shared_memory() {
  extern __shared__ __align__(128) unsigned char fastconv_shared[];
  return reinterpret_cast<T*>(fastconv_shared);
}

// Launches on a stream; null, or what went wrong.
template <class Params>
const char* launch(void (*kernel)(Params), dim3 grid, unsigned threads, std::size_t shared_bytes,
                   void* stream, const Params& params) {
  constexpr std::size_t kWithoutAsking = 48 << 10;
  if (shared_bytes > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(params);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Of the current device.
inline int multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

#else

using emulator::kMostBlocks;
using emulator::launch;
using emulator::multiprocessors;
using emulator::shared_memory;

#endif

}  // namespace fastconv
