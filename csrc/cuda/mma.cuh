// The tensor cores' product of one warp: D[16, 8] += A[16, 16] * B[8, 16]^T, 16-bit inputs, float32
// sums. Which thread has which element is the PTX manual's (mma.m16n8k16, ldmatrix); the emulator's
// half is written from the same tables.
#pragma once

#include <cstring>

#include "vec.cuh"

namespace fastconv {

// A's registers: rows 0-7 and 8-15 of columns 0-7, then of columns 8-15; each two elements.
struct FragmentA {
  unsigned r[4];
};
// B's: columns 0-7, then 8-15, of its 8 rows.
struct FragmentB {
  unsigned r[2];
};
// D's: elements (row, column) = (lane / 4, lane % 4 * 2 + {0, 1}), then the same of row + 8.
struct FragmentD {
  float r[4];
};

// Four 8 x 8 matrices of 16-bit elements: lane i gives the address of row i % 8 of matrix i / 8,
// and gets of every matrix the elements (lane / 4, lane % 4 * 2 + {0, 1}).
__device__ inline void load_matrices(unsigned (&r)[4], const void* row) {
#ifdef __CUDACC__
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#else
  const auto rows = emulator::exchange(row);
  const unsigned lane = threadIdx.x % 32;
  for (unsigned m = 0; m < 4; ++m)
    std::memcpy(&r[m], static_cast<const char*>(rows[m * 8 + lane / 4]) + lane % 4 * 4, 4);
#endif
}

// A[16, 16] that begins at `tile`, rows `pitch` elements apart, every row 16-byte aligned.
template <class T>
__device__ FragmentA load_a(const T* tile, int pitch) {
  const int lane = threadIdx.x % 32;
  FragmentA a;
  load_matrices(a.r, tile + lane % 16 * pitch + lane / 16 * 8);
  return a;
}

// Two B[8, 16], the second of the 8 rows after the first's.
template <class T>
__device__ void load_b(FragmentB& first, FragmentB& second, const T* tile, int pitch) {
  const int lane = threadIdx.x % 32;
  unsigned r[4];
  load_matrices(r, tile + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 8);
  first = {{r[0], r[1]}};
  second = {{r[2], r[3]}};
}

#ifndef __CUDACC__
template <class T>
float element_of(unsigned pair, int which) {
  T both[2];
  std::memcpy(static_cast<void*>(both), &pair, sizeof(pair));
  return to_float(both[which]);
}
#endif

template <class T>
__device__ void multiply(FragmentD& d, const FragmentA& a, const FragmentB& b) {
#ifndef __CUDACC__
  const auto as = emulator::exchange(a);
  const auto bs = emulator::exchange(b);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const unsigned left = as[row % 8 * 4 + k % 8 / 2].r[row / 8 + k / 8 * 2];
      const unsigned right = bs[column * 4 + k % 8 / 2].r[k / 8];
      d.r[i] += element_of<T>(left, k % 2) * element_of<T>(right, k % 2);
    }
  }
#elif defined(__CUDA_ARCH__)
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d.r[0]), "+f"(d.r[1]), "+f"(d.r[2]), "+f"(d.r[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d.r[0]), "+f"(d.r[1]), "+f"(d.r[2]), "+f"(d.r[3])
        : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]));
  }
#else
  // Turing has half of the columns in one instruction, and float16 only.
  for (int half = 0; half < 2; ++half)
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, "
        "%1, %2, %3};"
        : "+f"(d.r[0]), "+f"(d.r[1]), "+f"(d.r[2]), "+f"(d.r[3])
        : "r"(a.r[2 * half]), "r"(a.r[2 * half + 1]), "r"(b.r[half]));
#endif
#endif
}

}  // namespace fastconv
