// Every kernel, at every level that this CPU can run, on shapes that leave part of a tile empty,
// against reference.h. Built with the sanitizers by `make sanitize`; needs no torch.
#include "cases.h"

int main() {
  fastconv::test::Draw draw;
  fastconv::test::test_convolutions(draw);
  fastconv::test::test_blocks(draw);
  fastconv::test::test_sequential(draw);
  return fastconv::test::score().print() == 0 ? 0 : 1;
}
