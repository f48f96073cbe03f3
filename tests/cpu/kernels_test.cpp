// Every kernel, at every level that this CPU can run, on shapes that leave part of a tile empty,
// against reference.h. Built with the sanitizers by `make sanitize`, for another CPU by `make
// neon`; needs no torch. Arguments: levels that must be among those tested.
#include "cases.h"

int main(int count, char** arguments) {
  fastconv::test::Draw draw;
  fastconv::test::test_isa();
  fastconv::test::test_convolutions(draw);
  fastconv::test::test_blocks(draw);
  fastconv::test::test_sequential(draw);
  fastconv::test::test_train(draw);
  bool complete = true;
  for (int i = 1; i < count; ++i) {
    if (fastconv::test::score().has_passed("pointwise_conv2d", arguments[i])) continue;
    std::printf("FAILED %s is not among the levels tested\n", arguments[i]);
    complete = false;
  }
  return fastconv::test::score().print() == 0 && complete ? 0 : 1;
}
