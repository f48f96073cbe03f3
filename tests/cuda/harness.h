// Random maps, and what it means that a kernel on the emulator is right.
#pragma once

#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "csrc/activation.h"
#include "csrc/cuda/vec.cuh"
#include "csrc/data_type.h"

namespace fastconv_test {

using fastconv::DataType;

template <class T>
constexpr DataType type_of() {
  if (std::is_same_v<T, __half>) return DataType::kFloat16;
  return std::is_same_v<T, __nv_bfloat16> ? DataType::kBfloat16 : DataType::kFloat32;
}

// Of half a unit in the last place.
template <class T>
constexpr double rounding() {
  if (std::is_same_v<T, __half>) return 0x1p-11;
  return std::is_same_v<T, __nv_bfloat16> ? 0x1p-8 : 0x1p-24;
}

class Random {
 public:
  float next() { return normal_(engine_); }
  template <class T>
  std::vector<T> values(int64_t count, float scale = 1) {
    std::vector<T> v(count);
    for (T& x : v) x = fastconv::from_float<T>(scale * next());
    return v;
  }
  int64_t from_to(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }

 private:
  std::mt19937 engine_{7};
  std::normal_distribution<float> normal_;
};

template <class T>
std::vector<T> unwritten(int64_t count) {
  return std::vector<T>(count, fastconv::from_float<T>(std::numeric_limits<float>::quiet_NaN()));
}

inline double activate(fastconv::Activation activation, double x) {
  const auto clamp6 = [](double v) { return std::fmin(std::fmax(v, 0), 6); };
  switch (activation) {
    case fastconv::Activation::kNone:
      return x;
    case fastconv::Activation::kRelu:
      return std::fmax(x, 0);
    case fastconv::Activation::kRelu6:
      return clamp6(x);
    case fastconv::Activation::kHardswish:
      return x * clamp6(x + 3) / 6;
    case fastconv::Activation::kSilu:
      return x / (1 + std::exp(-x));
    case fastconv::Activation::kSigmoid:
      return 1 / (1 + std::exp(-x));
    case fastconv::Activation::kHardsigmoid:
      return clamp6(x + 3) / 6;
    case fastconv::Activation::kTanh:
      return std::tanh(x);
    case fastconv::Activation::kGelu:
      return 0.5 * x * std::erfc(-std::sqrt(0.5) * x);
  }
  return x;
}

class Results {
 public:
  template <class T>
  void check(const std::string& what, const std::vector<T>& output,
             const std::vector<double>& expected, double tolerance) {
    ++cases_;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double got = fastconv::to_float(output[i]);
      // Written so that NaN is no agreement.
      if (std::fabs(got - expected[i]) <= tolerance * (1 + std::fabs(expected[i]))) continue;
      std::printf("%s: element %zu is %g, not %g\n", what.c_str(), i, got, expected[i]);
      ++failed_;
      return;
    }
  }
  void require(const std::string& what, bool ok) {
    ++cases_;
    if (ok) return;
    std::printf("%s\n", what.c_str());
    ++failed_;
  }
  int report() const {
    std::printf("%d cases, %d failed\n", cases_, failed_);
    return failed_ == 0 && cases_ > 0 ? 0 : 1;
  }

 private:
  int cases_ = 0, failed_ = 0;
};

void test_depthwise(Results& results);
void test_depthwise_nchw(Results& results);
void test_mma(Results& results);
void test_inverted_residual(Results& results);
void test_train_depthwise(Results& results);

}  // namespace fastconv_test
