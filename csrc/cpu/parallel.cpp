#include "../parallel.h"

#include <chrono>

namespace fastconv {

Speeds::Speeds() { std::fill(of_, of_ + kMostLanes, 1.0); }

void Speeds::deal(int64_t total, int64_t parts, int64_t* ends) const {
  constexpr double kNoise = 1.08;
  const auto [least, most] = std::minmax_element(of_, of_ + parts);
  const bool equal = *most < kNoise * *least;
  double sum = 0, done = 0;
  for (int64_t i = 0; i < parts; ++i) sum += of_[i];
  for (int64_t i = 0; i < parts; ++i) {
    done += of_[i];
    const double end = static_cast<double>(total) * done / sum;
    ends[i] = equal ? Share(total, parts, i).end : static_cast<int64_t>(end + 0.5);
  }
  ends[parts - 1] = total;
}

void Speeds::learn(int64_t parts, const int64_t* ends, const double* seconds) {
  constexpr double kTooShort = 1e-5;  // what the caches hold then counts for more
  double rates[kMostLanes], sum = 0;
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t size = ends[i] - (i == 0 ? 0 : ends[i - 1]);
    if (size == 0 || seconds[i] < kTooShort) return;
    rates[i] = static_cast<double>(size) / seconds[i];
    sum += rates[i];
  }
  constexpr double kOfNew = 0.5, kLeast = 0.5, kMost = 2;
  for (int64_t i = 0; i < parts; ++i) {
    const double rate = std::clamp(rates[i] * static_cast<double>(parts) / sum, kLeast, kMost);
    of_[i] += kOfNew * (rate - of_[i]);
  }
}

double seconds_now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

}  // namespace fastconv
