// How a kernel runs in parallel without knowing whose threads they are: the Torch half passes
// torch's pool, a test its own.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastconv {

// [begin, end) of part `index` when `total` is dealt to `parts` as equally as possible.
struct Share {
  // Inlined everywhere, like all that kernels of several instruction sets share: a merged copy
  // could hold AVX-512.
  __attribute__((always_inline)) Share(int64_t total, int64_t parts, int64_t index)
      : begin(total * index / parts), end(total * (index + 1) / parts) {}
  int64_t begin, end;
};

// The tasks of one worker: claimed first, then taken, by itself from the front, by others from the
// back.
struct alignas(64) Lane {
  __attribute__((always_inline)) bool claim(int64_t size) {
    return __atomic_load_n(&claimed, __ATOMIC_RELAXED) < size &&
           __atomic_fetch_add(&claimed, 1, __ATOMIC_RELAXED) < size;
  }
  __attribute__((always_inline)) int64_t front() {
    return __atomic_fetch_add(&from_front, 1, __ATOMIC_RELAXED);
  }
  __attribute__((always_inline)) int64_t back() {
    return __atomic_fetch_add(&from_back, 1, __ATOMIC_RELAXED);
  }
  int64_t claimed, from_front, from_back;
};

constexpr int64_t kMostLanes = 64;

// How fast the threads of a team are beside each other, as far as is known: a core may be of
// another kind, or share its units with another program's thread.
class Speeds {
 public:
  Speeds();
  // Where the parts of [0, total) end: of equal size as long as no difference is certain.
  void deal(int64_t total, int64_t parts, int64_t* ends) const;
  // From how long they took.
  void learn(int64_t parts, const int64_t* ends, const double* seconds);

 private:
  double of_[kMostLanes];  // each worker's; about 1
};

// Of a clock that never goes back.
double seconds_now();

struct Threads {
  using Body = void (*)(void* context, int64_t begin, int64_t end);
  // Splits [0, workers) among the threads of `pool`; returns when all have run. May run all of it
  // on the calling thread.
  using Run = void (*)(void* pool, int64_t workers, Body body, void* context);

  int64_t count;
  Run run;
  void* pool;
  Speeds* speeds = nullptr;  // null: taken to be equal

  // Each worker takes neighbouring tasks, one by one, and then the last ones of workers that are
  // not done: what a core has read or written for a task is near for the next one and for the next
  // op, and a thread that the system holds up does not hold up the others.
  template <class F>
  void parallel(int64_t tasks, const F& task) const {
    if (tasks <= 1 || count == 1) {
      for (int64_t i = 0; i < tasks; ++i) task(i);
      return;
    }
    const int64_t workers = std::min(tasks, count);
    Shared<F> shared{task, tasks, std::min(workers, kMostLanes)};
    const Body body = [](void* context, int64_t begin, int64_t end) {
      for (; begin < end; ++begin) static_cast<Shared<F>*>(context)->run_worker(begin);
    };
    run(pool, workers, body, &shared);
  }

  // Splits [0, total) into a part for each worker, larger ones for faster workers: for what is not
  // to be cut into more parts than there are threads. f(begin, end)
  template <class F>
  void split(int64_t total, const F& f) const {
    const int64_t parts = std::min(total, count);
    if (parts <= 1 || parts > kMostLanes || speeds == nullptr) {
      return parallel(parts, [&](int64_t i) {
        const Share share(total, parts, i);
        f(share.begin, share.end);
      });
    }
    int64_t ends[kMostLanes];
    speeds->deal(total, parts, ends);
    double seconds[kMostLanes];
    parallel(parts, [&](int64_t i) {
      const double begin = seconds_now();
      if (const int64_t first = i == 0 ? 0 : ends[i - 1]; first < ends[i]) f(first, ends[i]);
      seconds[i] = seconds_now() - begin;
    });
    speeds->learn(parts, ends, seconds);
  }

 private:
  template <class F>
  struct Shared {
    Shared(const F& f, int64_t total, int64_t count) : task(f), tasks(total), lanes(count) {
      for (int64_t i = 0; i < lanes; ++i) lane[i] = {0, 0, 0};
    }

    void run_worker(int64_t worker) {
      for (int64_t i = 0; i < lanes; ++i) {
        const int64_t owner = (worker + i) % lanes;
        const Share share(tasks, lanes, owner);
        while (lane[owner].claim(share.end - share.begin))
          task(i == 0 ? share.begin + lane[owner].front() : share.end - 1 - lane[owner].back());
      }
    }

    const F& task;
    const int64_t tasks, lanes;
    Lane lane[kMostLanes];
  };
};

// The calling thread and no other.
constexpr Threads kAlone{1, nullptr, nullptr};

}  // namespace fastconv
