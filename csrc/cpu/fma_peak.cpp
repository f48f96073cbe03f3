// The limit that every speed is compared with: FMAs on registers, nothing else, on one thread.
#include <chrono>

#include "kernels.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {

double fma_peak(double seconds) {
  using Clock = std::chrono::steady_clock;
  // At least latency times throughput of the CPU's FMA: 10 on x86, 16 on large AArch64 cores.
  constexpr int kChains = kRegisters == 32 ? 24 : 12;
  constexpr int64_t kRepeats = 4096;
  const Vec factor = vset(0.5f), addend = vset(1.f);
  Vec chains[kChains];
  FASTCONV_UNROLL for (int i = 0; i < kChains; ++i) chains[i] = vset(static_cast<float>(i));
  double best = 0;
  const Clock::time_point start = Clock::now();
  Clock::time_point now = start;
  do {
    const Clock::time_point begin = now;
    for (int64_t r = 0; r < kRepeats; ++r) {
      FASTCONV_UNROLL for (int i = 0; i < kChains; ++i) chains[i] = vfma(chains[i], factor, addend);
    }
    now = Clock::now();
    const double rate =
        2.0 * kChains * kW * kRepeats / std::chrono::duration<double>(now - begin).count();
    if (rate > best) best = rate;
  } while (std::chrono::duration<double>(now - start).count() < seconds);
  float lanes[kW];
  volatile float sink = 0.f;
  FASTCONV_UNROLL for (int i = 0; i < kChains; ++i) {
    vstore(lanes, chains[i]);
    sink = sink + lanes[0];
  }
  return best / 1e9;
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
