// Runs a kernel at every level that this CPU can run, with one thread and with several, and keeps
// the score.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "csrc/cpu/dispatch.h"
#include "csrc/packed.h"
#include "reference.h"

namespace fastconv {
#if defined(FASTCONV_TEST_WIDE)
namespace wide {
extern const KernelTable table;
}
namespace wide_bf16 {
extern const KernelTable table;
}
#endif

namespace test {

struct Level {
  const char* name;
  const KernelTable* table;
  int64_t lanes;
};

inline int64_t lanes_of(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return 16;
    case Isa::kAvx2:
      return 8;
    default:
      return 4;
  }
}

// Those of this CPU, and the tiles of AVX-512 in portable vectors where they are built; for each
// type of element.
inline const std::vector<Level>& all_levels() {
  static const std::vector<Level> all = [] {
    std::vector<Level> found;
    for (Isa isa : isa_levels()) found.push_back({isa_name(isa), kernels_of(isa), lanes_of(isa)});
    if (const KernelTable* table = kernels_of(Isa::kAvx512, DataType::kBfloat16))
      found.push_back({"avx512_bf16", table, 16});
#if defined(FASTCONV_TEST_WIDE)
    found.push_back({"wide", &wide::table, 16});
    found.push_back({"wide_bf16", &wide_bf16::table, 16});
#endif
    return found;
  }();
  return all;
}

// The names of those to test; none: all.
inline std::vector<std::string>& wanted_levels() {
  static std::vector<std::string> names;
  return names;
}

inline const std::vector<Level>& levels() {
  static const std::vector<Level> wanted = [] {
    const std::vector<std::string>& names = wanted_levels();
    std::vector<Level> found;
    for (const Level& level : all_levels()) {
      if (names.empty() || std::find(names.begin(), names.end(), level.name) != names.end())
        found.push_back(level);
    }
    return found;
  }();
  return wanted;
}

// Numbers as a level's kernels have them in memory.
class Elements {
 public:
  Elements(const Level& level, const Floats& x)
      : type_(level.table->type), bytes_(x.size() * element_bytes(type_)) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      uint32_t bits;
      std::memcpy(&bits, &x[i], sizeof bits);
      const auto half = static_cast<uint16_t>(bits >> 16);  // the lower half is 0
      if (type_ == DataType::kFloat32) {
        std::memcpy(&bytes_[4 * i], &bits, sizeof bits);
      } else {
        std::memcpy(&bytes_[2 * i], &half, sizeof half);
      }
    }
  }
  const void* data() const { return bytes_.empty() ? nullptr : bytes_.data(); }
  void* data() { return bytes_.empty() ? nullptr : bytes_.data(); }
  bool operator==(const Elements& other) const { return bytes_ == other.bytes_; }
  Floats floats() const {
    Floats x(bytes_.size() / element_bytes(type_));
    for (std::size_t i = 0; i < x.size(); ++i) {
      uint32_t bits = 0;
      if (type_ == DataType::kFloat32) {
        std::memcpy(&bits, &bytes_[4 * i], sizeof bits);
      } else {
        std::memcpy(reinterpret_cast<char*>(&bits) + 2, &bytes_[2 * i], 2);
      }
      std::memcpy(&x[i], &bits, sizeof bits);
    }
    return x;
  }

 private:
  DataType type_;
  std::vector<char> bytes_;
};

// Every worker on a thread of its own, none before all have started: tasks then do spread over
// them.
inline void run_on_threads(void*, int64_t workers, Threads::Body body, void* context) {
  std::atomic<int64_t> started{0};
  const auto work = [&](int64_t i) {
    ++started;
    while (started < workers) std::this_thread::yield();
    body(context, i, i + 1);
  };
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < workers; ++i) threads.emplace_back(work, i);
  work(0);
  for (std::thread& thread : threads) thread.join();
}

constexpr int64_t kThreadCounts[] = {1, 2, 3, 5};

// With several threads a kernel must compute what it does with one. How many they are is drawn for
// every case: numbers in turn would meet the turns of the cases.
inline int64_t several_threads(const Level& level) {
  static std::map<const KernelTable*, std::mt19937> engines;
  return kThreadCounts[1 + engines[level.table]() % (std::size(kThreadCounts) - 1)];
}

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  ((out << parts << ' '), ...);
  return out.str();
}

class Score {
 public:
  void count(const Level& level, const char* op, const std::string& failure) {
    auto& [passed, failed] = scores_[{op, level.name}];
    ++(failure.empty() ? passed : failed);
    if (!failure.empty() && ++shown_ <= 50)
      std::printf("FAILED %s %s: %s\n", level.name, op, failure.c_str());
  }
  // Prints everything; returns the number of failures.
  int print() const {
    int passed = 0, failed = 0;
    for (const auto& [key, score] : scores_) {
      passed += score.first;
      failed += score.second;
      std::printf("%-13s%-24s%5d cases, %d failed\n", key.second.c_str(), key.first.c_str(),
                  score.first + score.second, score.second);
    }
    std::printf("%d passed, %d failed\n", passed, failed);
    return failed;
  }
  // Whether anything passed at the level of this name.
  bool has_passed(const std::string& level) const {
    for (const auto& [key, score] : scores_)
      if (key.second == level && score.first > 0) return true;
    return false;
  }

 private:
  std::map<std::pair<std::string, std::string>, std::pair<int, int>>
      scores_;  // (op, level): passed, failed
  int shown_ = 0;
};

inline Score& score() {
  static Score all;
  return all;
}

// Empty, or the first output that is off by more than rounding. What is drawn is bfloat16 already:
// only maps between ops and at the end are rounded.
inline std::string compare(const Level& level, const Floats& got, const Map& expected) {
  const double tolerance = level.table->type == DataType::kFloat32 ? 2e-6 : 6e-3;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(got[i] - expected.value[i]);
    if (error <= tolerance * expected.magnitude[i] + 1e-30) continue;
    const int64_t c = i % expected.channels, pixel = i / expected.channels,
                  row = pixel / expected.width;
    return text("output", row / expected.height, row % expected.height, pixel % expected.width, c,
                "is", got[i], "instead of", expected.value[i]);
  }
  return "";
}

// kernel(level, threads, output) must write `expected`, and the same bits with several threads.
template <class Kernel>
void check(const char* op, const std::string& what, const Map& expected, const Kernel& kernel) {
  for (const Level& level : levels()) {
    const auto run = [&](int64_t threads) {
      Elements output(level, Floats(expected.value.size(), NAN));
      kernel(level, Threads{threads, run_on_threads, nullptr}, output.data());
      return output;
    };
    const Elements one = run(1);
    std::string failure = compare(level, one.floats(), expected);
    const int64_t several = several_threads(level);
    if (!(run(several) == one))
      failure = text(several, "threads give another result than 1;", failure);
    score().count(level, op, failure.empty() ? failure : what + "| " + failure);
  }
}

// The same numbers on every machine, unlike the standard library's distributions.
class Draw {
 public:
  int64_t below(int64_t n) { return engine_() % n; }
  bool chance() { return below(2) == 0; }
  template <class T, std::size_t kCount>
  T of(const T (&choices)[kCount]) {
    return choices[below(kCount)];
  }
  Activation activation() { return static_cast<Activation>(below(kActivationCount)); }
  // Numbers that bfloat16 can hold, none of them 0.
  Floats floats(int64_t size, float range = 1) {
    Floats x(size);
    for (float& value : x) {
      const auto odd = static_cast<int32_t>(engine_() >> 24 | 1) - 128;
      value = static_cast<float>(odd) / 128 * range;
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof bits);
      bits &= 0xffff0000;
      std::memcpy(&value, &bits, sizeof bits);
    }
    return x;
  }
  Floats maybe(bool wanted, int64_t size) { return wanted ? floats(size) : Floats(); }

 private:
  std::mt19937 engine_{1};
};

// As pack_pointwise and pack_depthwise of csrc/ops make it, with NaN wherever the kernel writes
// nothing.
inline Floats pack_pointwise(const Level& level, const Floats& weight, int64_t n, int64_t channels,
                             int64_t segments, int64_t taps, const Floats& bias) {
  const DataType type = level.table->type;
  const int64_t depth = channels * segments * taps;
  Floats packed(packed_size(PackedKind::kPointwise, type, n, depth, segments), NAN);
  level.table->pack_pointwise(weight.data(), n, channels, segments, taps, data_or_null(bias),
                              packed.data() + kPackedHeader);
  return packed;
}

inline Floats pack_pointwise(const Level& level, const Floats& weight, int64_t n, int64_t channels,
                             const Floats& bias) {
  return pack_pointwise(level, weight, n, channels, 1, 1, bias);
}

inline Floats pack_winograd(const Level& level, const Floats& weight, int64_t n, int64_t channels,
                            const Floats& bias) {
  const int64_t depth = channels * kWinogradTaps;
  Floats packed(packed_size(PackedKind::kWinograd, level.table->type, n, depth), NAN);
  level.table->pack_winograd(weight.data(), n, channels, data_or_null(bias),
                             packed.data() + kPackedHeader);
  return packed;
}

inline Floats pack_depthwise(const Level& level, const Floats& weight, int64_t channels,
                             int64_t taps, const Floats& bias) {
  Floats packed(packed_size(PackedKind::kDepthwise, level.table->type, channels, taps), NAN);
  level.table->pack_depthwise(weight.data(), channels, taps, data_or_null(bias),
                              packed.data() + kPackedHeader);
  return packed;
}

}  // namespace test
}  // namespace fastconv
