// Every kernel, at every level that this CPU can run, on shapes that leave part of a tile empty,
// against reference.h. Built with the sanitizers by `make sanitize`, for another CPU by `make
// neon`; needs no torch. Arguments: tests and levels to run, by default all.
#include <algorithm>
#include <string>
#include <vector>

#include "cases.h"

namespace {

struct Test {
  const char* name;
  void (*run)(fastconv::test::Draw&);
  bool at_every_level;
};

constexpr Test kTests[] = {
    {"isa", [](fastconv::test::Draw&) { fastconv::test::test_isa(); }, false},
    {"parallel", fastconv::test::test_parallel, false},
    {"convolutions", fastconv::test::test_convolutions, true},
    {"blocks", fastconv::test::test_blocks, true},
    {"sequential", fastconv::test::test_sequential, true},
    {"train", fastconv::test::test_train, true},
};

}  // namespace

int main(int count, char** arguments) {
  std::vector<std::string>& names = fastconv::test::wanted_levels();
  names.assign(arguments + 1, arguments + count);
  std::vector<const Test*> chosen;
  for (const Test& test : kTests) {
    const auto at = std::find(names.begin(), names.end(), test.name);
    if (at == names.end()) continue;
    chosen.push_back(&test);
    names.erase(at);
  }
  if (fastconv::test::levels().size() < names.size()) {
    std::printf("not every argument is a test or a level of this CPU\n");
    return 1;
  }
  if (chosen.empty())
    for (const Test& test : kTests) chosen.push_back(&test);
  for (const Test* test : chosen) {
    fastconv::test::Draw draw;
    test->run(draw);
  }
  const bool all = std::any_of(chosen.begin(), chosen.end(),
                               [](const Test* test) { return test->at_every_level; });
  for (const fastconv::test::Level& level : fastconv::test::levels()) {
    if (!all || fastconv::test::score().has_passed(level.name)) continue;
    std::printf("FAILED nothing was tested at the level %s\n", level.name);
    return 1;
  }
  return fastconv::test::score().print() == 0 ? 0 : 1;
}
