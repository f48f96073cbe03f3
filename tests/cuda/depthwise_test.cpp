#include <sstream>

#include "csrc/cuda/depthwise_conv2d.h"
#include "harness.h"

namespace fastconv_test {
namespace {

using fastconv::Activation;
using fastconv::CudaDepthwiseConv2dParams;
using fastconv::DepthwiseConv2dParams;

struct Case {
  int64_t n, c, h, w, kh, kw, sh, sw, dh, dw, top, bottom, left, right, bands;
  Activation activation;
  bool biased = true;
  int64_t offset = 0;  // of the maps in their memory, in elements
};

std::string text(const Case& k, DataType type) {
  std::ostringstream out;
  out << "depthwise " << k.n << "x" << k.c << "x" << k.h << "x" << k.w << " kernel " << k.kh << "x"
      << k.kw << " stride " << k.sh << "," << k.sw << " dilation " << k.dh << "," << k.dw
      << " padding " << k.top << "," << k.bottom << "," << k.left << "," << k.right << " bands "
      << k.bands << (k.biased ? "" : " without bias") << " offset " << k.offset << " type "
      << static_cast<int>(type);
  return out.str();
}

// Where an element of a map lies.
struct Place {
  bool nchw;
  int64_t c, h, w;
  int64_t operator()(int64_t n, int64_t ci, int64_t y, int64_t x) const {
    return nchw ? ((n * c + ci) * h + y) * w + x : ((n * h + y) * w + x) * c + ci;
  }
};

template <class T>
void run(Results& results, Random& random, const Case& k, bool nchw) {
  const int64_t oh = (k.h + k.top + k.bottom - k.dh * (k.kh - 1) - 1) / k.sh + 1;
  const int64_t ow = (k.w + k.left + k.right - k.dw * (k.kw - 1) - 1) / k.sw + 1;
  const auto input = random.values<T>(k.offset + k.n * k.c * k.h * k.w);
  const auto weight = random.values<float>(k.c * k.kh * k.kw, 0.3f);
  const auto bias = k.biased ? random.values<float>(k.c) : std::vector<float>(k.c);
  auto output = unwritten<T>(k.offset + k.n * k.c * oh * ow);
  auto sums = unwritten<float>(k.n * k.bands * k.c);

  CudaDepthwiseConv2dParams p{};
  DepthwiseConv2dParams& c = p.conv;
  const T* from = input.data() + k.offset;
  T* to = output.data() + k.offset;
  c = {k.n,  k.h,   k.w,    k.c,  oh,   ow,           k.kh, k.kw,          k.sh,
       k.sw, k.top, k.left, k.dh, k.dw, k.activation, from, weight.data(), to};
  p.bias = k.biased ? bias.data() : nullptr;
  p.sums = k.bands > 0 ? sums.data() : nullptr;
  p.bands = k.bands;
  p.type = type_of<T>();
  const char* error = nchw ? fastconv::launch_depthwise_conv2d_nchw(p, nullptr)
                           : fastconv::launch_depthwise_conv2d(p, nullptr);
  const std::string what = text(k, p.type) + (nchw ? " NCHW" : "");
  results.require(what + ": " + (error == nullptr ? "" : error), error == nullptr);

  const Place in{nchw, k.c, k.h, k.w}, out{nchw, k.c, oh, ow};
  const int64_t band_rows = k.bands > 0 ? (oh + k.bands - 1) / k.bands : oh;
  std::vector<double> expected(k.n * k.c * oh * ow), expected_sums(sums.size());
  for (int64_t n = 0; n < k.n; ++n)
    for (int64_t ci = 0; ci < k.c; ++ci)
      for (int64_t y = 0; y < oh; ++y)
        for (int64_t x = 0; x < ow; ++x) {
          double total = bias[ci];
          for (int64_t ky = 0; ky < k.kh; ++ky)
            for (int64_t kx = 0; kx < k.kw; ++kx) {
              const int64_t in_y = y * k.sh - k.top + ky * k.dh,
                            in_x = x * k.sw - k.left + kx * k.dw;
              if (in_y < 0 || in_y >= k.h || in_x < 0 || in_x >= k.w) continue;
              const int64_t tap = ky * k.kw + kx;
              const float factor = weight[nchw ? ci * k.kh * k.kw + tap : tap * k.c + ci];
              const T value = input[k.offset + in(n, ci, in_y, in_x)];
              total += static_cast<double>(fastconv::to_float(value)) * factor;
            }
          total = activate(k.activation, total);
          expected[out(n, ci, y, x)] = total;
          if (k.bands > 0) expected_sums[(n * k.bands + y / band_rows) * k.c + ci] += total;
        }
  output.erase(output.begin(), output.begin() + k.offset);
  results.check(what, output, expected, 2 * rounding<T>() + 1e-5);
  if (k.bands > 0) results.check(what + " sums", sums, expected_sums, 1e-4);
}

void run_all_types(Results& results, Random& random, const Case& k, bool nchw) {
  run<float>(results, random, k, nchw);
  run<__half>(results, random, k, nchw);
  run<__nv_bfloat16>(results, random, k, nchw);
}

std::vector<Case> cases(Random& random, bool nchw) {
  std::vector<Case> found;
  const auto add = [&](int64_t n, int64_t c, int64_t h, int64_t w, int64_t k, int64_t s,
                       int64_t bands) {
    const auto activation = static_cast<Activation>(found.size() % 7);
    const int64_t p = k / 2;
    found.push_back({n, c, h, w, k, k, s, s, 1, 1, p, p, p, p, nchw ? 0 : bands, activation});
  };
  for (int64_t k : {3, 5, 7})
    for (int64_t s : {1, 2}) {
      add(1, 8, 9, 11, k, s, 0);
      add(2, 36, 7, 5, k, s, 3);     // more channel vectors than lanes are full
      add(1, 5, 8, 13, k, s, 2);     // no vectors
      add(1, 160, 10, 33, k, s, 1);  // several blocks of channels, more strips than rows of threads
    }
  // Padding on one side only, a window of another shape, a dilation, an input smaller than it.
  found.push_back({1, 12, 6, 7, 3, 3, 2, 2, 1, 1, 0, 1, 0, 1, nchw ? 0 : 2, Activation::kSilu});
  found.push_back({2, 12, 6, 7, 3, 3, 1, 1, 1, 1, 0, 0, 2, 0, 0, Activation::kRelu});
  found.push_back({1, 7, 6, 9, 2, 5, 1, 2, 2, 1, 1, 0, 3, 1, nchw ? 0 : 4, Activation::kNone});
  found.push_back({1, 8, 1, 1, 7, 7, 1, 1, 1, 1, 3, 3, 3, 3, nchw ? 0 : 1, Activation::kHardswish});
  found.push_back({1, 8, 2, 3, 3, 3, 1, 1, 1, 1, 4, 4, 4, 4, nchw ? 0 : 20, Activation::kSigmoid});
  // Without a bias, in maps that vectors cannot be read from, and more images than a grid has.
  for (int64_t size : {3, 4}) {
    Case k{1, 8, 7, 6, size, size, 1, 1, 1, 1, 1, 1, 1, 1, nchw ? 0 : 2, Activation::kRelu, false};
    found.push_back(k);
    k.offset = 1;
    found.push_back(k);
    k.n = emulator::kMostBlocks + 2;
    k.h = k.w = 3;
    k.offset = 0;
    k.biased = true;
    found.push_back(k);
  }
  for (int i = 0; i < 12; ++i) {
    Case k{};
    k.n = random.from_to(1, 2);
    k.c = random.from_to(1, 24);
    k.kh = random.from_to(1, 4);
    k.kw = random.from_to(1, 4);
    k.h = k.kh * 2 + random.from_to(0, 6);
    k.w = k.kw * 2 + random.from_to(0, 9);
    k.sh = random.from_to(1, 3);
    k.sw = random.from_to(1, 3);
    k.dh = random.from_to(1, 2);
    k.dw = random.from_to(1, 2);
    k.top = random.from_to(0, 3);
    k.bottom = random.from_to(0, 3);
    k.left = random.from_to(0, 3);
    k.right = random.from_to(0, 3);
    k.bands = nchw ? 0 : random.from_to(0, 3);
    k.activation = static_cast<Activation>(random.from_to(0, 6));
    found.push_back(k);
  }
  return found;
}

}  // namespace

void test_depthwise(Results& results) {
  Random random;
  for (const Case& k : cases(random, false)) run_all_types(results, random, k, false);
}

void test_depthwise_nchw(Results& results) {
  Random random;
  for (const Case& k : cases(random, true)) run_all_types(results, random, k, true);
}

}  // namespace fastconv_test
