#include "team.h"

#include <thread>
#include <utility>

namespace fastconv {
namespace {

constexpr uint64_t kOpen = 1, kHelper = 2, kRound = uint64_t{1} << 32;

// Waits a little at first; then lets other threads run, should there be more of them than cores.
class Waiting {
 public:
  void once() {
    constexpr int kSpins = 4096;
    if (++spins_ > kSpins) {
      std::this_thread::yield();
    } else {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }

 private:
  int spins_ = 0;
};

}  // namespace

void Team::call_body(int64_t worker) {
  try {
    body_(context_, worker, worker + 1);
  } catch (...) {
    const std::lock_guard<std::mutex> lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void Team::open(Threads::Body body, void* context) {
  body_ = body;
  context_ = context;
  left_.store(0, std::memory_order_relaxed);
  const uint64_t round = gate_.load(std::memory_order_relaxed) / kRound + 1;
  gate_.store(round * kRound + kOpen, std::memory_order_release);
}

void Team::close() {
  const uint64_t entered = gate_.fetch_and(~kOpen, std::memory_order_acq_rel) % kRound / kHelper;
  for (Waiting waiting; left_.load(std::memory_order_acquire) != entered;) waiting.once();
}

void Team::run(void* pool, int64_t workers, Threads::Body body, void* context) {
  if (workers <= 1) return body(context, 0, 1);
  Team& team = *static_cast<Team*>(pool);
  team.open(body, context);
  team.call_body(0);
  team.close();
  if (team.error_) std::rethrow_exception(std::exchange(team.error_, nullptr));
}

void Team::help() {
  const int64_t worker = 1 + helpers_.fetch_add(1, std::memory_order_relaxed);
  uint64_t done = 0;
  Waiting waiting;
  while (!finished_.load(std::memory_order_acquire)) {
    uint64_t gate = gate_.load(std::memory_order_acquire);
    const uint64_t round = gate / kRound;
    if ((gate & kOpen) == 0 || round == done) {
      waiting.once();
    } else if (gate_.compare_exchange_weak(gate, gate + kHelper, std::memory_order_acq_rel)) {
      call_body(worker);
      left_.fetch_add(1, std::memory_order_release);
      done = round;
      waiting = Waiting();
    }
  }
}

}  // namespace fastconv
