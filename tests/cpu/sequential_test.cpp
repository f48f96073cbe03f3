// Chains of ops, image by image, in groups and band by band.
#include "chain.h"
#include "csrc/cpu/plan.h"

namespace fastconv::test {
namespace {

constexpr Window kSame{3, 3, 1, 1, 1, 1, 1, 1, 1, 1};
constexpr Window kHalving{5, 5, 2, 2, 1, 1, 2, 2, 2, 2};

void test_networks(Draw& draw, int64_t n) {
  for (int i = 0; i < 4; ++i) {
    const int64_t h = 9 + draw_size(draw), w = 9 + draw_size(draw), c = draw.of(kChannels);
    const Window stem{3, 3, 2, 2, 1, 1, 1, 1, 1, 1};
    Chain(draw, n, h, w, 3)
        .conv2d(draw.of(kChannels), stem)
        .block(0, c, kSame)
        .block(draw.of(kChannels), c, kSame, true)
        .block(draw.of(kChannels), c, kSame, true, 1 + draw.below(9))
        .depthwise(kHalving)
        .squeeze_excite(1 + draw.below(9))
        .pointwise(draw.of(kChannels))
        .pool(draw.of(kChannels))
        .linear(draw.of(kChannels))
        .linear(draw.of(kChannels))
        .run();
    Chain(draw, n, h, w, c)
        .depthwise(kSame)
        .block(draw.of(kChannels), c, kHalving)
        .pointwise(draw.of(kChannels), 2)
        .block(0, draw.of(kChannels), kSame)
        .run();
    Chain(draw, n, h, w, c).block(33, c, kSame, true).pointwise(17).run();
  }
  // Maps that a group of images has in common only late.
  const int64_t width = cache_sizes().l2 / (4 * 8 * 9) / 4;
  Chain(draw, n, 9, width, 8).pointwise(7, 2).depthwise(kHalving).pool(9).linear(3).run();
}

// Steps that read earlier maps, add one, or write a part of one.
void test_graphs(Draw& draw, int64_t n) {
  const Window halving{3, 3, 2, 2, 1, 1, 1, 1, 1, 1};
  for (int i = 0; i < 3; ++i) {
    const int64_t h = 9 + draw_size(draw), w = 9 + draw_size(draw), c = draw.of(kChannels);
    const int64_t k = draw.of(kChannels), mid = draw.of(kChannels);
    // Residual blocks, with a shortcut of their own and without.
    Chain(draw, n, h, w, c)
        .pointwise(k, 2)
        .from(0)
        .pointwise(mid)
        .convolution(mid, halving)
        .adding(1)
        .pointwise(k)
        .convolution(k, kSame)
        .adding(4)
        .convolution(k, kSame)
        .mean_pool()
        .linear(5)
        .run();
    // Branches side by side, twice.
    Chain(draw, n, h, w, c)
        .max_pool(halving)
        .pointwise(k)
        .from(1)
        .pointwise(mid)
        .joining(2)
        .convolution(9, kSame)
        .from(1)
        .average_pool(kSame)
        .joining(2)
        .pointwise(17)
        .pointwise(mid)
        .from(2)
        .joining(7)
        .max_pool(kSame)
        .pool(k)
        .run();
    // The input is added; what is joined is the result.
    Chain(draw, n, h, w, c).convolution(c, kSame).adding(0).convolution(c, kSame).run();
    Chain(draw, n, h, w, c).max_pool(halving).from(0).joining(1).convolution(k, halving).run();
  }
}

void test_single_steps(Draw& draw, int64_t n) {
  Chain(draw, n, 7, 9, 3).conv2d(17, kSame).run();
  Chain(draw, n, 7, 9, 9).pointwise(24).run();
  Chain(draw, n, 7, 9, 17).depthwise(kHalving).run();
  Chain(draw, n, 7, 9, 9).block(33, 9, kSame, true).run();
  Chain(draw, n, 7, 9, 9).block(33, 9, kSame, false, 3).run();
  Chain(draw, n, 7, 9, 9).block(0, 9, kHalving, false, 5).run();
  Chain(draw, n, 7, 9, 17).squeeze_excite(5).run();
  // So many channels that threads share the matrices.
  Chain(draw, n, 3, 2, 9).block(400, 9, kSame, true, 100).run();
  Chain(draw, n, 7, 9, 9).pool(33).run();
  Chain(draw, n, 1, 1, 33).linear(9).run();
  Chain(draw, n, 1, 1, 33).linear(9).linear(17).run();
}

// The first map does not stay in L2: it is made and read in bands, three of them on one thread.
void test_bands(Draw& draw, int64_t n) {
  constexpr int64_t kHeight = 24;
  const auto wide = [&](int64_t channels) {
    return cache_sizes().l2 * 3 / 4 / (4 * kHeight * channels) + 1;
  };
  const Window tall{3, 1, 1, 1, 1, 1, 1, 1, 0, 0};
  Chain(draw, n, kHeight, wide(8), 1).conv2d(8, kSame).block(0, 3, kSame).run();
  Chain(draw, n, kHeight, wide(9), 1).conv2d(9, tall).block(0, 9, kSame, true).run();
  Chain(draw, n, kHeight, wide(7), 2)
      .conv2d(7, tall)
      .block(0, 5, kHalving)
      .block(9, 5, kSame, true)
      .pool(3)
      .linear(7)
      .run();
  // A first convolution with a stride, and output rows that see nothing but padding.
  const Window stem{3, 3, 2, 1, 1, 1, 1, 0, 1, 1}, far{3, 3, 1, 2, 2, 1, 9, 8, 1, 1};
  Chain(draw, n, 2 * kHeight, wide(8), 1).conv2d(8, stem).block(0, 3, far).run();
}

}  // namespace

void test_sequential(Draw& draw) {
  for (int64_t n : {0, 1, 2, 3, 7}) {
    test_networks(draw, n);
    test_graphs(draw, n);
    test_single_steps(draw, n);
  }
  for (int64_t n : {1, 2}) test_bands(draw, n);
}

}  // namespace fastconv::test
