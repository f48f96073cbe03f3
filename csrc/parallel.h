// How a kernel runs in parallel without knowing whose threads they are: the Torch half passes
// torch's pool, a test its own.
#pragma once

#include <cstdint>

namespace fastconv {

struct Threads {
  using Body = void (*)(void* context, int64_t begin, int64_t end);
  // Splits [0, workers) among the threads of `pool`; returns when all have run. May run all of it
  // on the calling thread.
  using Run = void (*)(void* pool, int64_t workers, Body body, void* context);

  int64_t count;
  Run run;
  void* pool;

  // Tasks are handed out one by one: a thread that the system holds up does not hold up the others.
  template <class F>
  void parallel(int64_t tasks, const F& task) const {
    if (tasks <= 1 || count == 1) {
      for (int64_t i = 0; i < tasks; ++i) task(i);
      return;
    }
    struct Shared {
      const F& task;
      int64_t tasks;
      int64_t next;
    } shared{task, tasks, 0};
    const Body body = [](void* context, int64_t begin, int64_t end) {
      auto& s = *static_cast<Shared*>(context);
      for (; begin < end; ++begin) {
        for (int64_t i; (i = __atomic_fetch_add(&s.next, 1, __ATOMIC_RELAXED)) < s.tasks;)
          s.task(i);
      }
    };
    run(pool, tasks < count ? tasks : count, body, &shared);
  }
};

// The calling thread and no other.
constexpr Threads kAlone{1, nullptr, nullptr};

// [begin, end) of part `index` when `total` is dealt to `parts` as equally as possible.
struct Share {
  // Inlined everywhere, like all that kernels of several instruction sets share: a merged copy
  // could hold AVX-512.
  __attribute__((always_inline)) Share(int64_t total, int64_t parts, int64_t index)
      : begin(total * index / parts), end(total * (index + 1) / parts) {}
  int64_t begin, end;
};

}  // namespace fastconv
