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
  return fastconv::test::score().print() == 0 ? 0 : 1;
}
