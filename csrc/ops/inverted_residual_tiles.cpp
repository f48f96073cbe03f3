#include "../cuda/tiles.h"
#include "check.h"

namespace fastconv {
namespace {

// problem: as BlockSizes has them. Returns height and width of every tile, the best first.
Ints inverted_residual_tiles(const Ints& problem, int64_t shared_bytes) {
  const char* op = "inverted_residual_tiles";
  check_ints(op, "problem", problem, 11, 0);
  const BlockSizes sizes{problem[0], problem[1], problem[2],      problem[3],
                         problem[4], problem[5], problem[6],      problem[7],
                         problem[8], problem[9], problem[10] != 0};
  Ints numbers;
  for (const Tile& tile : tiles_for(sizes, shared_bytes)) {
    numbers.push_back(tile.height);
    numbers.push_back(tile.width);
  }
  return numbers;
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CompositeExplicitAutograd, m) {
  m.impl("inverted_residual_tiles", TORCH_BOX(&fastconv::inverted_residual_tiles));
}
