// How a kernel runs in parallel without knowing whose threads they are: the Torch half passes torch's pool, a test its own.
#pragma once

#include <cstdint>

namespace fastconv {

struct Threads {
  using Body = void (*)(void* context, int64_t begin, int64_t end);
  // Splits [0, tasks) among the threads; returns when every task has run. May run all of it on the calling thread.
  using Run = void (*)(int64_t tasks, Body body, void* context);

  int64_t count;
  Run run;

  template <class F>
  void parallel(int64_t tasks, const F& task) const {
    if (tasks == 0) return;
    if (tasks == 1 || count == 1) {
      for (int64_t i = 0; i < tasks; ++i) task(i);
      return;
    }
    const Body body = [](void* context, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) (*static_cast<const F*>(context))(i);
    };
    run(tasks, body, const_cast<void*>(static_cast<const void*>(&task)));
  }
};

// [begin, end) of part `index` when `total` is dealt to `parts` as equally as possible.
struct Share {
  // Inlined everywhere, like all that kernels of several instruction sets share: a merged copy could hold AVX-512.
  __attribute__((always_inline)) Share(int64_t total, int64_t parts, int64_t index)
      : begin(total * index / parts), end(total * (index + 1) / parts) {}
  int64_t begin, end;
};

}  // namespace fastconv
