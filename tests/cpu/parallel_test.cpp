// How work is shared: the team that a chain's steps run on, and parts that follow the threads'
// speeds.
#include <stdexcept>

#include "cases.h"
#include "csrc/cpu/team.h"

namespace fastconv::test {
namespace {

using Pool = Threads::Run;

void in_turn(void*, int64_t workers, Threads::Body body, void* context) {
  for (int64_t i = 0; i < workers; ++i) body(context, i, i + 1);
}

void at_once(void*, int64_t workers, Threads::Body body, void* context) {
  body(context, 0, workers);
}

// run_on_threads for workers that throw; like torch's pool, it throws the first exception again.
void run_and_rethrow(void*, int64_t workers, Threads::Body body, void* context) {
  struct Shared {
    Threads::Body body;
    void* context;
    std::mutex mutex;
    std::exception_ptr error;
  } shared{body, context, {}, {}};
  run_on_threads(
      nullptr, workers,
      [](void* state, int64_t begin, int64_t end) {
        auto& s = *static_cast<Shared*>(state);
        try {
          s.body(s.context, begin, end);
        } catch (...) {
          const std::lock_guard<std::mutex> lock(s.mutex);
          if (!s.error) s.error = std::current_exception();
        }
      },
      &shared);
  if (shared.error) std::rethrow_exception(shared.error);
}

// Empty, or what keeps the team from running every task of every parallel part once.
std::string all_done(const Threads& team, int64_t rounds) {
  for (int64_t round = 0; round < rounds; ++round) {
    std::vector<std::atomic<int>> done(round % 9);
    team.parallel(done.size(), [&](int64_t i) { ++done[i]; });
    for (const auto& count : done) {
      if (count != 1) return text("round", round, "ran a task", count.load(), "times");
    }
  }
  return "";
}

// A task throws: on a helper while the leader is in the other one, or wherever it runs.
void fail(const Threads& team, bool on_helper) {
  const auto leader = std::this_thread::get_id();
  std::atomic<bool> failing{false};
  team.parallel(2, [&](int64_t) {
    if (on_helper && std::this_thread::get_id() == leader) {
      while (!failing) std::this_thread::yield();
      return;
    }
    failing = true;
    throw std::runtime_error("task");
  });
}

std::string test_failure(const Threads& pool, bool on_helper) {
  std::string failure = "the team does not lead";
  const auto caught = [&](const auto& work) {
    try {
      work();
    } catch (const std::runtime_error& error) {
      return std::string(error.what()) == "task";
    }
    return false;
  };
  const bool out = caught([&] {
    Team::lead(pool, [&](const Threads& team) {
      const bool in = caught([&] { fail(team, on_helper); });
      failure = in ? all_done(team, 50) : "no exception from the parallel part";
      fail(team, on_helper);
    });
  });
  return out ? failure : text("no exception from the team;", failure);
}

void test_team() {
  const auto count = [](const std::string& what, const std::string& failure) {
    score().count(levels()[0], "team", failure.empty() ? "" : what + "| " + failure);
  };
  for (int64_t threads : kThreadCounts) {
    const std::pair<const char*, Pool> pools[] = {
        {"threads", run_and_rethrow}, {"in turn", in_turn}, {"at once", at_once}};
    for (const auto& [name, pool] : pools) {
      const std::string what = text(threads, "workers", name);
      const Threads all{threads, pool, nullptr};
      int led = 0;
      std::string failure;
      Team::lead(all, [&](const Threads& team) {
        ++led;
        failure = all_done(team, 200);
      });
      count(what, led == 1 ? failure : text("led", led, "times"));
      count(what + "failing", test_failure(all, false));
      // Only these certainly have a helper.
      if (pool == run_and_rethrow && threads > 1)
        count(what + "failing on a helper", test_failure(all, true));
    }
  }
}

std::string ends_text(const std::vector<int64_t>& ends) {
  std::string result;
  for (int64_t end : ends) result += text(end) + " ";
  return result;
}

// Where the parts of `total` end after parts took these seconds, again and again.
std::vector<int64_t> learned(int64_t total, const std::vector<double>& seconds_each, int rounds) {
  Speeds speeds;
  const auto parts = static_cast<int64_t>(seconds_each.size());
  std::vector<int64_t> ends(parts);
  speeds.deal(total, parts, ends.data());
  for (int round = 0; round < rounds; ++round) {
    std::vector<double> seconds;
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t size = ends[i] - (i == 0 ? 0 : ends[i - 1]);
      seconds.push_back(seconds_each[i] * static_cast<double>(size));
    }
    speeds.learn(parts, ends.data(), seconds.data());
    speeds.deal(total, parts, ends.data());
  }
  return ends;
}

void test_speeds() {
  struct Case {
    int64_t total;
    std::vector<double> seconds;  // for one of [0, total)
    std::vector<int64_t> ends;
  };
  const Case cases[] = {
      {14, {1, 1}, {7, 14}},
      {15, {1, 1}, {7, 15}},
      {100, {1, 1.05}, {50, 100}},  // might be chance
      {100, {1, 1.5}, {60, 100}},
      {100, {1.5, 1}, {40, 100}},
      {14, {1, 1.5}, {8, 14}},
      {40, {1, 2, 2}, {20, 30, 40}},
      {100, {1e-3, 1}, {80, 100}},     // not more than four times as much
      {100, {1e-9, 2e-9}, {50, 100}},  // too short to tell
      {3, {1, 1.1, 1}, {1, 2, 3}},
      {1, {1}, {1}},
      {0, {1, 1}, {0, 0}},
  };
  for (const Case& c : cases) {
    const std::vector<int64_t> ends = learned(c.total, c.seconds, 20);
    const std::string failure =
        ends == c.ends ? "" : text("parts of", c.total, "end at", ends_text(ends));
    score().count(levels()[0], "speeds", failure);
  }
}

// Every one of [0, total) is in one part, on teams whose workers are not equally fast.
void test_split() {
  for (int64_t threads : kThreadCounts) {
    for (const Pool pool : {run_on_threads, in_turn, at_once}) {
      std::string failure;
      const Threads all{threads, pool, nullptr};
      const auto check_split = [&](const Threads& team) {
        for (int64_t round = 0; round < 40; ++round) {
          const int64_t total = round % 10;
          std::vector<std::atomic<int>> done(total);
          team.split(total, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) ++done[i];
            const double until = seconds_now() + (begin == 0 ? 1e-4 : 2e-5);
            while (seconds_now() < until) continue;
          });
          for (const auto& count : done) {
            if (count != 1) failure = text("round", round, "did one", count.load(), "times");
          }
        }
      };
      Team::lead(all, check_split);
      check_split(all);
      score().count(levels()[0], "split", failure);
    }
  }
}

}  // namespace

void test_parallel(Draw&) {
  test_team();
  test_speeds();
  test_split();
}

}  // namespace fastconv::test
