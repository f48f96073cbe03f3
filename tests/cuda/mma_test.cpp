// The wrappers of ldmatrix and mma on a product that is known, apart from the kernel that uses
// them.
#include "csrc/cuda/mma.cuh"

#include "harness.h"

namespace fastconv_test {
namespace {

using fastconv::FragmentA;
using fastconv::FragmentB;
using fastconv::FragmentD;

struct Params {
  const void *a, *b;  // [16, 16], [16, 16]: two B of 8 rows
  float* d;           // [16, 16]
};

template <class T>
void product_kernel(Params p) {
  constexpr int kPitch = 24;
  T* shared = fastconv::shared_memory<T>();
  T *a = shared, *b = shared + 16 * kPitch;
  for (int i = threadIdx.x; i < 256; i += 32) {
    a[i / 16 * kPitch + i % 16] = static_cast<const T*>(p.a)[i];
    b[i / 16 * kPitch + i % 16] = static_cast<const T*>(p.b)[i];
  }
  __syncthreads();
  const FragmentA fa = fastconv::load_a(a, kPitch);
  FragmentB first, second;
  fastconv::load_b(first, second, b, kPitch);
  FragmentD sums[2] = {};
  fastconv::multiply<T>(sums[0], fa, first);
  fastconv::multiply<T>(sums[1], fa, second);
  const int lane = threadIdx.x;
  for (int n = 0; n < 2; ++n)
    for (int i = 0; i < 4; ++i)
      p.d[(lane / 4 + i / 2 * 8) * 16 + n * 8 + lane % 4 * 2 + i % 2] = sums[n].r[i];
}

// Which lane and register hold an element of A or B, as the PTX manual's figures have it: written
// down for single elements, not computed as the wrappers do.
template <class T>
void layout_kernel(Params p) {
  constexpr int kPitch = 24;
  T* shared = fastconv::shared_memory<T>();
  for (int i = threadIdx.x; i < 256; i += 32)
    shared[i / 16 * kPitch + i % 16] = fastconv::from_float<T>(static_cast<float>(i));
  __syncthreads();
  const FragmentA a = fastconv::load_a(shared, kPitch);
  FragmentB first, second;
  fastconv::load_b(first, second, shared, kPitch);
  T pair[2];
  for (int i = 0; i < 4; ++i) {
    std::memcpy(static_cast<void*>(pair), &a.r[i], 4);
    for (int j = 0; j < 2; ++j) p.d[threadIdx.x * 16 + i * 2 + j] = fastconv::to_float(pair[j]);
    std::memcpy(static_cast<void*>(pair), i < 2 ? &first.r[i] : &second.r[i - 2], 4);
    for (int j = 0; j < 2; ++j) p.d[threadIdx.x * 16 + 8 + i * 2 + j] = fastconv::to_float(pair[j]);
  }
}

template <class T>
void run(Results& results, Random& random) {
  const auto a = random.values<T>(256), b = random.values<T>(256);
  auto d = unwritten<float>(512);
  const std::size_t shared = 2 * 16 * 24 * sizeof(T);
  fastconv::launch(product_kernel<T>, dim3(1), 32, shared, nullptr,
                   Params{a.data(), b.data(), d.data()});
  std::vector<double> expected(256);
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n)
      for (int k = 0; k < 16; ++k)
        expected[m * 16 + n] += static_cast<double>(fastconv::to_float(a[m * 16 + k])) *
                                fastconv::to_float(b[n * 16 + k]);
  results.check("product of a warp", d, expected, 1e-5);

  fastconv::launch(layout_kernel<T>, dim3(1), 32, shared, nullptr,
                   Params{a.data(), b.data(), d.data()});
  const auto is = [&](int lane, int place, int row, int column) {
    results.require("fragment of a warp", d[lane * 16 + place] == row * 16 + column);
  };
  // A: lane 0 has (0, 0), (0, 1); (8, 0), (8, 1); (0, 8), (0, 9); (8, 8), (8, 9).
  is(0, 0, 0, 0);
  is(0, 1, 0, 1);
  is(0, 2, 8, 0);
  is(0, 4, 0, 8);
  is(0, 7, 8, 9);
  is(5, 0, 1, 2);  // lane 5: row 1, columns 2 and 3
  is(31, 3, 15, 7);
  is(31, 6, 15, 14);
  // B: lane 0 has k = 0, 1 and 8, 9 of row 0; the second tile's rows begin at 8.
  is(0, 8, 0, 0);
  is(0, 10, 0, 8);
  is(0, 12, 8, 0);
  is(6, 9, 1, 5);
  is(31, 11, 7, 15);
  is(31, 14, 15, 14);
}

}  // namespace

void test_mma(Results& results) {
  Random random;
  run<__half>(results, random);
  run<__nv_bfloat16>(results, random);
}

}  // namespace fastconv_test
