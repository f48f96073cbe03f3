// Threads that stay together for many short parallel parts: entering one costs a cache line's trip
// between cores, not the start of a parallel region. Nobody ever waits for a helper to arrive, so
// it also works where a pool runs its workers one after the other.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

#include "../parallel.h"

namespace fastconv {

class Team {
 public:
  // Calls work(threads) once, on the first of the pool's workers to arrive; the others help with
  // what it runs on `threads`.
  template <class Work>
  static void lead(const Threads& pool, const Work& work) {
    if (pool.count == 1) return work(pool);
    Team team;
    struct Shared {
      const Work& work;
      Team& team;
      int64_t count;
    } shared{work, team, pool.count};
    const Threads::Body arrive = [](void* context, int64_t, int64_t) {
      auto& s = *static_cast<Shared*>(context);
      if (s.team.led_.exchange(true)) return s.team.help();
      const End end{s.team};
      s.work(Threads{s.count, run, &s.team, &s.team.speeds_});
    };
    pool.run(pool.pool, pool.count, arrive, &shared);
  }

 private:
  struct End {
    Team& team;
    ~End() { team.finished_.store(true, std::memory_order_release); }
  };

  static void run(void* team, int64_t workers, Threads::Body body, void* context);
  void open(Threads::Body body, void* context);
  void close();
  void help();
  void call_body(int64_t worker);

  // Round in the upper half, then how many helpers entered it, then whether it is open.
  alignas(64) std::atomic<uint64_t> gate_{0};
  std::atomic<int64_t> helpers_{0};  // that ever arrived
  std::atomic<bool> led_{false}, finished_{false};
  alignas(64) std::atomic<uint64_t> left_{0};  // helpers that are done with the round
  Threads::Body body_ = nullptr;
  void* context_ = nullptr;
  Speeds speeds_;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

}  // namespace fastconv
