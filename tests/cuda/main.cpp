// The CUDA kernels on the CPU, by the emulator beside this file. Arguments: the tests to run, by
// default all.
#include <cstring>

#include "harness.h"

namespace {

struct Test {
  const char* name;
  void (*run)(fastconv_test::Results&);
};

constexpr Test kTests[] = {
    {"depthwise", fastconv_test::test_depthwise},
    {"depthwise_nchw", fastconv_test::test_depthwise_nchw},
    {"mma", fastconv_test::test_mma},
    {"inverted_residual", fastconv_test::test_inverted_residual},
    {"train_depthwise", fastconv_test::test_train_depthwise},
};

}  // namespace

int main(int count, char** arguments) {
  fastconv_test::Results results;
  for (const Test& test : kTests) {
    bool chosen = count == 1;
    for (int i = 1; i < count; ++i) chosen = chosen || std::strcmp(arguments[i], test.name) == 0;
    if (chosen) test.run(results);
  }
  return results.report();
}
