// Squeeze-excite and the fused blocks, by both of their schedules.
#include "cases.h"
#include "csrc/cpu/plan.h"

namespace fastconv::test {
namespace {

struct SqueezeExcite {
  SqueezeExcite(Draw& draw, int64_t channels, int64_t squeezed)
      : reduce(draw.floats(squeezed * channels)),
        reduce_bias(draw.maybe(draw.chance(), squeezed)),
        expand(draw.floats(channels * squeezed)),
        expand_bias(draw.maybe(draw.chance(), channels)),
        params{channels, squeezed, draw.activation(), draw.activation(), nullptr, nullptr, {}} {}

  Map apply(const Map& x) const {
    const Map squeezed =
        activate(convolve(mean(x), reduce, reduce_bias, params.squeezed, 1, {}), params.activation);
    return multiply(
        x, activate(convolve(squeezed, expand, expand_bias, params.channels, 1, {}), params.gate));
  }

  // The weights of both convolutions, and params with pointers into them.
  std::pair<Floats, SqueezeExciteParams> packed(const Level& level) const {
    std::pair<Floats, SqueezeExciteParams> result{{}, params};
    if (params.squeezed == 0) return result;
    auto& [both, p] = result;
    both = pack_pointwise(level, reduce, p.squeezed, p.channels, reduce_bias);
    const auto begin = static_cast<int64_t>(both.size());
    const Floats second = pack_pointwise(level, expand, p.channels, p.squeezed, expand_bias);
    both.insert(both.end(), second.begin(), second.end());
    p.reduce_packed = both.data();
    p.expand_packed = both.data() + begin;
    p.weights = {both.data(), static_cast<int64_t>(both.size())};
    return result;
  }

  const Floats reduce, reduce_bias, expand, expand_bias;
  const SqueezeExciteParams params;
};

void test_squeeze_excite(Draw& draw, int64_t n, int64_t pixels, int64_t c, int64_t squeezed) {
  Floats input;
  const Map image = draw_map(draw, n, 1, pixels, c, &input);
  const SqueezeExcite weights(draw, c, squeezed);
  SqueezeExciteConv2dParams p{n, pixels, weights.params, nullptr, nullptr};
  const std::string what =
      text(describe(image), "squeezed", squeezed, describe(weights.params.activation), "gate",
           static_cast<int>(weights.params.gate));
  check("squeeze_excite", what, weights.apply(image),
        [&](const Level& level, const Threads& threads, void* output) {
          const auto packed = weights.packed(level);
          const Elements elements(level, input);
          p.weights = packed.second;
          p.input = elements.data();
          p.output = output;
          level.table->squeeze_excite(p, threads);
        });
}

// Which of the two schedules ran, in one step and in several, and whether threads shared the rows
// of the second; per level.
std::map<std::string, std::array<int, 6>> schedules;

struct Block {
  int64_t in, mid, out;
  bool expands;
  int64_t squeezed;
};

void test_inverted_residual(Draw& draw, const int64_t (&size)[3], const Block& b, const Window& s) {
  Floats input;
  const Map image = draw_map(draw, size[0], size[1], size[2], b.in, &input);
  const int64_t mid = b.expands ? b.mid : b.in, taps = s.kernel_height * s.kernel_width;
  const Floats expand = draw.floats(mid * b.in), expand_bias = draw.maybe(draw.chance(), mid);
  const Floats depthwise = draw.floats(mid * taps), depthwise_bias = draw.maybe(draw.chance(), mid);
  const Floats project = draw.floats(b.out * mid), project_bias = draw.maybe(draw.chance(), b.out);
  const SqueezeExcite squeeze_excite(draw, mid, b.squeezed);

  InvertedResidualParams p{};
  p.depthwise = depthwise_params(image, mid, s, draw.activation());
  p.in_channels = b.in;
  p.out_channels = b.out;
  p.expand_activation = draw.activation();
  p.project_activation = draw.activation();

  Map x = b.expands
              ? activate(convolve(image, expand, expand_bias, mid, 1, {}), p.expand_activation)
              : image;
  x = activate(convolve(x, depthwise, depthwise_bias, mid, mid, s), p.depthwise.activation);
  if (b.squeezed > 0) x = squeeze_excite.apply(x);
  x = convolve(x, project, project_bias, b.out, 1, {});
  const Floats residual = draw.maybe(draw.chance(), x.value.size());
  const Map expected = activate(add(x, residual), p.project_activation);

  const std::string what =
      text(describe(image), "channels", mid, b.out, "expands", b.expands, "squeezed", b.squeezed,
           describe(s), describe(p.expand_activation), describe(p.depthwise.activation),
           describe(p.project_activation), "residual", !residual.empty());
  check("inverted_residual", what, expected,
        [&](const Level& level, const Threads& threads, void* output) {
          const Floats expand_packed = pack_pointwise(level, expand, mid, b.in, expand_bias);
          const Floats depthwise_packed =
              pack_depthwise(level, depthwise, mid, taps, depthwise_bias);
          const Floats project_packed = pack_pointwise(level, project, b.out, mid, project_bias);
          p.expand_packed = b.expands ? expand_packed.data() : nullptr;
          p.depthwise.packed = depthwise_packed.data();
          p.project_packed = project_packed.data();
          const auto excite = squeeze_excite.packed(level);
          const Elements elements(level, input), residuals(level, residual);
          p.squeeze_excite = excite.second;
          p.depthwise.input = elements.data();
          p.residual = residuals.data();
          p.depthwise.output = output;
          level.table->inverted_residual(p, threads);
          if (size[0] == 0) return;
          const InvertedResidualPlan plan = plan_inverted_residual(
              p, level.table->type, level.lanes, 2 * level.lanes, cache_sizes());
          if (threads.count > 1) {
            const bool shared = size[0] == 1 && !plan.ring && shares_rows(p, threads.count);
            schedules[level.name][b.squeezed > 0 ? 4 : 5] += shared;
            return;
          }
          ++schedules[level.name][2 * plan.ring + (plan.rows_per_step < p.depthwise.out_height)];
        });
}

void check_schedules() {
  const char* names[] = {"chunks in one step",          "chunks in several steps",
                         "a ring in one step",          "a ring in several steps",
                         "gated chunks of shared rows", "chunks of shared rows"};
  for (const Level& level : levels()) {
    for (int i = 0; i < 6; ++i) {
      const int runs = schedules[level.name][i];
      std::printf("%-13s%4d blocks by %s\n", level.name, runs, names[i]);
      score().count(level, "schedules", runs > 0 ? "" : text("no block ran by", names[i]));
    }
  }
}

}  // namespace

void test_blocks(Draw& draw) {
  for (int64_t c : kChannels) {
    for (int64_t squeezed : {1, 3, 8, 9, 17}) {
      test_squeeze_excite(draw, draw.of(kBatches), draw_size(draw) * draw_size(draw), c, squeezed);
    }
    for (const auto& kernel : kKernels) {
      for (int i = 0; i < 4; ++i) {
        const int64_t size[] = {draw.of(kBatches), draw_size(draw), draw_size(draw)};
        const Block block{c, draw.of(kChannels), draw.of(kChannels), i % 2 == 0,
                          i < 2 ? 0 : 1 + draw.below(9)};
        const Window s = window(kernel, pick(draw, kStrides), pick(draw, kDilations));
        test_inverted_residual(draw, size, block, with_padding(draw, s, size[1], size[2]));
      }
    }
  }
  const Window same{3, 3, 1, 1, 1, 1, 1, 1, 1, 1};
  const Window halving{5, 5, 2, 2, 1, 1, 1, 2, 2, 1};
  // Several steps of both schedules, and several blocks of pixels in the projection of the second.
  for (int64_t squeezed : {0, 4}) {
    for (bool expands : {true, false}) {
      test_inverted_residual(draw, {1, 80, 23}, {9, 24, 17, expands, squeezed}, same);
      test_inverted_residual(draw, {2, 65, 61}, {7, 40, 24, expands, squeezed}, halving);
      test_inverted_residual(draw, {1, 14, 14}, {40, 248, 33, expands, squeezed}, same);
    }
  }
  test_inverted_residual(draw, {1, 7, 7}, {65, 390, 65, true, 16}, same);
  // Rows so far apart that a ring of them does not fit into the cache: the second schedule without
  // squeeze-excite.
  for (int64_t size : {5, 19}) {
    const int64_t rows = l2_bytes() / (4 * 24 * size);
    const Window far{3, 3, 1, 1, rows, 1, rows, rows, 1, 1};
    test_inverted_residual(draw, {2, size, size}, {9, 24, 17, true, 0}, far);
  }
  // As many channels as no ring in the cache has room for, on rows that threads can share.
  const int64_t many = l2_bytes() / 600;
  for (bool expands : {true, false}) {
    for (const Window& s : {same, Window{3, 3, 2, 1, 1, 1, 1, 1, 1, 1}})
      test_inverted_residual(draw, {1, 30, 8}, {expands ? 3 : many, many, 3, expands, 0}, s);
  }
  check_schedules();
}

}  // namespace fastconv::test
