// Elements of maps, alone and several at a time, as float32.
#pragma once

#include <cstring>

#include "device.cuh"

namespace fastconv {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// The word that is loaded and stored at once.
template <std::size_t kBytes>
struct Word;
template <>
struct Word<2> {
  using type = unsigned short;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};

// kCount neighbouring elements, as they lie in memory; addresses are multiples of their size.
template <class T, int kCount>
struct Vec {
  using Raw = typename Word<sizeof(T) * kCount>::type;
  Raw raw{};

  __device__ static Vec load(const T* from) { return {__ldg(reinterpret_cast<const Raw*>(from))}; }
  __device__ void store(T* to) const { *reinterpret_cast<Raw*>(to) = raw; }
  __device__ void get(float (&x)[kCount]) const {
    T elements[kCount];
    memcpy(static_cast<void*>(elements), &raw, sizeof(raw));
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = to_float(elements[i]);
  }
  __device__ static Vec of(const float (&x)[kCount]) {
    T elements[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) elements[i] = from_float<T>(x[i]);
    Vec v;
    memcpy(&v.raw, elements, sizeof(v.raw));
    return v;
  }
};

// Copies 4 or 16 bytes from memory to shared memory while the thread goes on. They are there for
// all after wait_for_copies and a barrier.
template <int kBytes>
__device__ void copy_ahead(void* shared, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(from) : "memory");
  }
#else
  using Raw = typename Word<kBytes>::type;
  *static_cast<Raw*>(shared) = *static_cast<const Raw*>(from);
#endif
}

__device__ inline void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace fastconv
