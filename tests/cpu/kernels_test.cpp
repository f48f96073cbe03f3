// Every kernel, at every level that this CPU can run, on shapes that leave part of a tile empty,
// against reference.h. Built with the sanitizers by `make sanitize`, for another CPU by `make
// neon`; needs no torch. Arguments: the tests to run, by default all, and levels that must be among
// those tested.
#include <algorithm>
#include <string>
#include <vector>

#include "cases.h"

namespace {

struct Test {
  const char* name;
  void (*run)(fastconv::test::Draw&);
};

constexpr Test kTests[] = {
    {"isa", [](fastconv::test::Draw&) { fastconv::test::test_isa(); }},
    {"parallel", fastconv::test::test_parallel},
    {"convolutions", fastconv::test::test_convolutions},
    {"blocks", fastconv::test::test_blocks},
    {"sequential", fastconv::test::test_sequential},
    {"train", fastconv::test::test_train},
};

}  // namespace

int main(int count, char** arguments) {
  std::vector<std::string> levels(arguments + 1, arguments + count);
  std::vector<const Test*> chosen;
  for (const Test& test : kTests) {
    const auto at = std::find(levels.begin(), levels.end(), test.name);
    if (at == levels.end()) continue;
    chosen.push_back(&test);
    levels.erase(at);
  }
  if (chosen.empty())
    for (const Test& test : kTests) chosen.push_back(&test);
  for (const Test* test : chosen) {
    fastconv::test::Draw draw;
    test->run(draw);
  }
  bool complete = true;
  for (const std::string& level : levels) {
    if (fastconv::test::score().has_passed(level)) continue;
    std::printf("FAILED %s is not among the levels tested\n", level.c_str());
    complete = false;
  }
  return fastconv::test::score().print() == 0 && complete ? 0 : 1;
}
