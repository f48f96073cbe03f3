// The products of the AVX2 tiles that networks consist of, four steps of k in one piece of
// assembly.
//
// Why not C++: of two threads that share a core, each gets every second fetch, and a loop of 23
// instructions for 12 FMAs is then bound by its branch: 5.1 FMA/ns of the 6.45 that it reaches
// alone, and 5.9 with four steps a branch (Zen 3). gcc, asked to unroll, holds an address for each
// row and each step and spills the accumulators.
#pragma once

#include <cstddef>

#include "element.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

// What is multiplied at a time: segments of A, each of whole fours of k. The assembly below knows
// where the members are.
struct Fours {
  static constexpr int64_t kBytes = sizeof(float);

  Fours(int64_t row, int64_t segment, int64_t fours_of_segment)
      : row(row * kBytes),
        row3(3 * row * kBytes),
        row5(5 * row * kBytes),
        fours(fours_of_segment),
        jump((segment - 4 * fours) * kBytes) {}

  int64_t row, row3, row5;  // bytes from a row to the first, third and fifth after it
  int64_t fours;            // of a segment, at least one
  int64_t jump;             // bytes from the end of a segment to the next one
  int64_t segments = 0;     // at least one
};
static_assert(offsetof(Fours, row) == 0 && offsetof(Fours, row3) == 8 &&
              offsetof(Fours, row5) == 16 && offsetof(Fours, fours) == 24 &&
              offsetof(Fours, jump) == 32 && offsetof(Fours, segments) == 40);

// MR rows times NV vectors: sum += A[., 0..k) B[0..k, .], each sum in the order of k, for the k of
// `fours`; a and b end past them. kExists: there is one for this tile; others are left to the
// compiler.
template <int MR, int NV>
struct MultiplyFours {
  static constexpr bool kExists = false;
};

#if defined(FASTCONV_ISA_AVX2) && !defined(FASTCONV_BFLOAT16)

constexpr bool kHasFours = true;

// Vectors of B in ymm12 to ymm14, an element of A in ymm15; row, row3 and row5 in r8 to r10, what
// is left of segments in rcx and of a segment's fours in rax. `at`: bytes from b, or the address of
// row i in A. u: the step. 29 operands, of which gcc allows 30.
#define FASTCONV_LOAD_B(at, register) "vmovups " at "(%[b]), %%" register "\n\t"
#define FASTCONV_LOAD_2(u) FASTCONV_LOAD_B("64*" u, "ymm14") FASTCONV_LOAD_B("64*" u "+32", "ymm13")
#define FASTCONV_LOAD_3(u)          \
  FASTCONV_LOAD_B("96*" u, "ymm14") \
  FASTCONV_LOAD_B("96*" u "+32", "ymm13") FASTCONV_LOAD_B("96*" u "+64", "ymm12")
#define FASTCONV_FMA(i, j, register) "vfmadd231ps %%" register ", %%ymm15, %[s" #i #j "]\n\t"
#define FASTCONV_ROW_2(i, at) \
  "vbroadcastss " at ", %%ymm15\n\t" FASTCONV_FMA(i, 0, "ymm14") FASTCONV_FMA(i, 1, "ymm13")
#define FASTCONV_ROW_3(i, at) FASTCONV_ROW_2(i, at) FASTCONV_FMA(i, 2, "ymm12")

#define FASTCONV_STEP_3(NV, u)                                \
  FASTCONV_LOAD_##NV(u) FASTCONV_ROW_##NV(0, "4*" u "(%[a])") \
      FASTCONV_ROW_##NV(1, "4*" u "(%[a],%%r8)") FASTCONV_ROW_##NV(2, "4*" u "(%[a],%%r8,2)")
#define FASTCONV_STEP_4(NV, u) FASTCONV_STEP_3(NV, u) FASTCONV_ROW_##NV(3, "4*" u "(%[a],%%r9)")
#define FASTCONV_STEP_5(NV, u) FASTCONV_STEP_4(NV, u) FASTCONV_ROW_##NV(4, "4*" u "(%[a],%%r8,4)")
#define FASTCONV_STEP_6(NV, u) FASTCONV_STEP_5(NV, u) FASTCONV_ROW_##NV(5, "4*" u "(%[a],%%r10)")

#define FASTCONV_SUM_2(i) [s##i##0] "+x"(sum[i * 2]), [s##i##1] "+x"(sum[i * 2 + 1])
#define FASTCONV_SUM_3(i) \
  [s##i##0] "+x"(sum[i * 3]), [s##i##1] "+x"(sum[i * 3 + 1]), [s##i##2] "+x"(sum[i * 3 + 2])
#define FASTCONV_SUMS_3(NV) FASTCONV_SUM_##NV(0), FASTCONV_SUM_##NV(1), FASTCONV_SUM_##NV(2)
#define FASTCONV_SUMS_4(NV) FASTCONV_SUMS_3(NV), FASTCONV_SUM_##NV(3)
#define FASTCONV_SUMS_5(NV) FASTCONV_SUMS_4(NV), FASTCONV_SUM_##NV(4)
#define FASTCONV_SUMS_6(NV) FASTCONV_SUMS_5(NV), FASTCONV_SUM_##NV(5)

#define FASTCONV_FOUR(MR, NV)                                                         \
  FASTCONV_STEP_##MR(NV, "0") FASTCONV_STEP_##MR(NV, "1") FASTCONV_STEP_##MR(NV, "2") \
      FASTCONV_STEP_##MR(NV, "3")

// clang-format off: an instruction a line.
#define FASTCONV_MULTIPLY(MR, NV, step_bytes)                                                     \
  template <>                                                                                     \
  struct MultiplyFours<MR, NV> {                                                                  \
    static constexpr bool kExists = true;                                                         \
    static FASTCONV_INLINE void run(const Fours& fours, const float*& a, const float*& b,         \
                                    Vec (&sum)[MR * NV]) {                                        \
      asm("mov (%[fours]), %%r8\n\t"                                                              \
          "mov 8(%[fours]), %%r9\n\t"                                                             \
          "mov 16(%[fours]), %%r10\n\t"                                                           \
          "mov 40(%[fours]), %%rcx\n"                                                             \
          "1:\n\t"                                                                                \
          "mov 24(%[fours]), %%rax\n"                                                             \
          "2:\n\t"                                                                                \
          FASTCONV_FOUR(MR, NV)                                                                   \
          "add $16, %[a]\n\t"                                                                     \
          "add $4*" step_bytes ", %[b]\n\t"                                                       \
          "sub $1, %%rax\n\t"                                                                     \
          "jne 2b\n\t"                                                                            \
          "add 32(%[fours]), %[a]\n\t"                                                            \
          "sub $1, %%rcx\n\t"                                                                     \
          "jne 1b\n\t"                                                                            \
          : FASTCONV_SUMS_##MR(NV), [a] "+&r"(a), [b] "+&r"(b)                                    \
          : [fours] "r"(&fours)                                                                   \
          : "memory", "cc", "rax", "rcx", "r8", "r9", "r10", "xmm12", "xmm13", "xmm14", "xmm15"); \
    }                                                                                             \
  };
// clang-format on

FASTCONV_MULTIPLY(4, 2, "64")
FASTCONV_MULTIPLY(5, 2, "64")
FASTCONV_MULTIPLY(6, 2, "64")
FASTCONV_MULTIPLY(3, 3, "96")
FASTCONV_MULTIPLY(4, 3, "96")

#undef FASTCONV_LOAD_B
#undef FASTCONV_LOAD_2
#undef FASTCONV_LOAD_3
#undef FASTCONV_FMA
#undef FASTCONV_ROW_2
#undef FASTCONV_ROW_3
#undef FASTCONV_STEP_3
#undef FASTCONV_STEP_4
#undef FASTCONV_STEP_5
#undef FASTCONV_STEP_6
#undef FASTCONV_SUM_2
#undef FASTCONV_SUM_3
#undef FASTCONV_SUMS_3
#undef FASTCONV_SUMS_4
#undef FASTCONV_SUMS_5
#undef FASTCONV_SUMS_6
#undef FASTCONV_FOUR
#undef FASTCONV_MULTIPLY

#else

constexpr bool kHasFours = false;

#endif

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
