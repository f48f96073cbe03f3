// The ops of one convolution, and the packing of their weights.
#include "cases.h"
#include "csrc/cpu/plan.h"

namespace fastconv::test {
namespace {

// Whatever the layout of the panels: every weight and bias is in it once, and the rest is zero or
// not written. Not for pairs of bfloat16, which the ops' results show.
void check_packed(const Level& level, const char* op, const Floats& packed, Floats expected,
                  int64_t taps) {
  Floats got;
  for (float x : packed) {
    if (x != 0 && !std::isnan(x)) got.push_back(x);
  }
  std::sort(got.begin(), got.end());
  std::sort(expected.begin(), expected.end());
  score().count(level, op, got == expected ? "" : text(packed.size(), "floats,", taps, "taps"));
}

void test_pack(Draw& draw) {
  for (int64_t n : kChannels) {
    for (int64_t taps : {1, 2, 9}) {
      const int64_t depth = draw.of(kChannels);
      const Floats pointwise = draw.floats(n * depth * taps), depthwise = draw.floats(n * taps);
      const Floats bias = draw.maybe(draw.chance(), n);
      const auto join = [&](Floats x) {
        x.insert(x.end(), bias.begin(), bias.end());
        return x;
      };
      for (const Level& level : levels()) {
        if (level.table->type == DataType::kFloat32) {
          check_packed(level, "pack_pointwise",
                       pack_pointwise(level, pointwise, n, depth, 1, taps, bias), join(pointwise),
                       taps);
        }
        check_packed(level, "pack_depthwise", pack_depthwise(level, depthwise, n, taps, bias),
                     join(depthwise), taps);
      }
    }
  }
}

void test_pointwise(Draw& draw, const int64_t (&size)[3], int64_t c, int64_t k,
                    const int64_t (&stride)[2]) {
  Floats input;
  const Map image = draw_map(draw, size[0], size[1], size[2], c, &input);
  const Window s = window({1, 1}, stride, {1, 1});
  const Activation activation = draw.activation();
  const Floats weight = draw.floats(k * c), bias = draw.maybe(draw.chance(), k);
  const Floats scale = draw.maybe(draw.chance(), size[0] * c);
  const Map scaled = scale.empty() ? image : multiply(image, Map(size[0], 1, 1, c, scale));
  Map expected = convolve(scaled, weight, bias, k, 1, s);
  const Floats residual = draw.maybe(draw.chance(), expected.value.size());
  expected = activate(add(expected, residual), activation);

  PointwiseConv2dParams p{
      size[0],   size[1],    size[2], c,       expected.height, expected.width, k,       stride[0],
      stride[1], activation, nullptr, nullptr, nullptr,         nullptr,        nullptr, 0};
  const std::string what = text(describe(image), "outputs", k, describe(s), describe(activation),
                                "scale", !scale.empty(), "residual", !residual.empty());
  check("pointwise_conv2d", what, expected,
        [&](const Level& level, const Threads& threads, void* output) {
          const Floats packed = pack_pointwise(level, weight, k, c, bias);
          p.packed = packed.data();
          const Elements elements(level, input);
          p.input = elements.data();
          p.output = output;
          const Elements residuals(level, residual), scales(level, scale);
          p.residual = residuals.data();
          p.input_scale = scales.data();
          level.table->pointwise_conv2d(&p, 1, threads);
        });
}

// Several on one input, each into some channels of one map; weights that L2 does not hold, too.
void test_side_by_side(Draw& draw, int64_t pixels, int64_t c, std::vector<int64_t> outputs) {
  Floats input;
  const Map image = draw_map(draw, 1, pixels, 2, c, &input);
  int64_t row = 0;
  for (const int64_t k : outputs) row += k;
  Map expected(1, pixels, 2, row, Floats(2 * pixels * row));
  std::vector<Floats> weights, biases;
  std::vector<PointwiseConv2dParams> parts;
  int64_t first = 0;
  for (const int64_t k : outputs) {
    weights.push_back(draw.floats(k * c));
    biases.push_back(draw.maybe(draw.chance(), k));
    PointwiseConv2dParams p{};
    p.batch = p.stride_height = p.stride_width = 1;
    p.height = p.out_height = pixels;
    p.width = p.out_width = 2;
    p.in_channels = c;
    p.out_channels = k;
    p.out_row = row;
    p.activation = draw.activation();
    parts.push_back(p);
    const Window window_1x1 = window({1, 1}, {1, 1}, {1, 1});
    const Map part =
        activate(convolve(image, weights.back(), biases.back(), k, 1, window_1x1), p.activation);
    for (int64_t m = 0; m < 2 * pixels; ++m) {
      for (int64_t j = 0; j < k; ++j) {
        expected.value[m * row + first + j] = part.value[m * k + j];
        expected.magnitude[m * row + first + j] = part.magnitude[m * k + j];
      }
    }
    first += k;
  }
  check(
      "pointwise_conv2d", text(describe(image), "side by side", outputs.size()), expected,
      [&](const Level& level, const Threads& threads, void* output) {
        const Elements elements(level, input);
        std::vector<Floats> packed;
        int64_t channel = 0;
        for (std::size_t i = 0; i < parts.size(); ++i) {
          packed.push_back(pack_pointwise(level, weights[i], parts[i].out_channels, c, biases[i]));
          parts[i].input = elements.data();
          parts[i].output = static_cast<char*>(output) + channel * element_bytes(level.table->type);
          channel += parts[i].out_channels;
        }
        for (std::size_t i = 0; i < parts.size(); ++i) parts[i].packed = packed[i].data();
        level.table->pointwise_conv2d(parts.data(), static_cast<int64_t>(parts.size()), threads);
      });
}

// NaN in one pixel stays NaN there, whatever the activation, and reaches no other pixel.
void test_nan(Draw& draw) {
  constexpr int64_t kPixels = 7, kDepth = 3, kOutputs = 33, kWrong = 2;
  Floats input = draw.floats(kPixels * kDepth);
  input[kWrong * kDepth] = NAN;
  const Floats weight = draw.floats(kOutputs * kDepth);
  for (int i = 0; i < kActivationCount; ++i) {
    for (const Level& level : levels()) {
      const Activation activation = static_cast<Activation>(i);
      const Floats packed = pack_pointwise(level, weight, kOutputs, kDepth, {});
      const Elements elements(level, input);
      Elements output(level, Floats(kPixels * kOutputs));
      const PointwiseConv2dParams p{
          1, 1,          kPixels,         kDepth,        1,       kPixels, kOutputs,      1,
          1, activation, elements.data(), packed.data(), nullptr, nullptr, output.data(), 0};
      level.table->pointwise_conv2d(&p, 1, kAlone);
      const Floats got = output.floats();
      bool right = true;
      for (std::size_t at = 0; at < got.size(); ++at)
        right = right && std::isnan(got[at]) == (at / kOutputs == kWrong);
      score().count(level, "nan", right ? "" : describe(activation));
    }
  }
}

void test_depthwise(Draw& draw, const int64_t (&size)[3], int64_t c, const Window& s) {
  Floats input;
  const Map image = draw_map(draw, size[0], size[1], size[2], c, &input);
  const Activation activation = draw.activation();
  const int64_t taps = s.kernel_height * s.kernel_width;
  const Floats weight = draw.floats(c * taps), bias = draw.maybe(draw.chance(), c);
  const Map expected = activate(convolve(image, weight, bias, c, c, s), activation);

  DepthwiseConv2dParams p = depthwise_params(image, c, s, activation);
  const std::string what = text(describe(image), describe(s), describe(activation));
  check("depthwise_conv2d", what, expected,
        [&](const Level& level, const Threads& threads, void* output) {
          const Floats packed = pack_depthwise(level, weight, c, taps, bias);
          p.packed = packed.data();
          const Elements elements(level, input);
          p.input = elements.data();
          p.output = output;
          level.table->depthwise_conv2d(p, threads);
        });
}

// Floats between neighbors of an input in memory; several views that a tensor can be.
struct Strides {
  const char* name;
  int64_t batch, channel, row, column;
};

std::vector<Strides> strides_of(int64_t h, int64_t w, int64_t c) {
  return {{"channels last", h * w * c, 1, w * c, c},
          {"contiguous", c * h * w, h * w, w, 1},
          {"some of the channels", h * w * (c + 2), 1, w * (c + 2), c + 2},
          {"some of the columns", h * (w + 3) * c, 1, (w + 3) * c, c},
          {"every other column", c * h * 2 * w + 5, h * 2 * w, 2 * w, 2},
          {"rows and columns exchanged", h * w * c, 1, c, h * c},
          {"one channel and image repeated", 0, 0, w, 1}};
}

void test_conv2d(Draw& draw, const int64_t (&size)[3], int64_t c, int64_t k, const Window& s) {
  const auto [n, h, w] = size;
  const auto all = strides_of(h, w, c);
  const Strides in = all[draw.below(all.size())];
  const int64_t last =
      (n - 1) * in.batch + (c - 1) * in.channel + (h - 1) * in.row + (w - 1) * in.column;
  Floats input(n == 0 ? 0 : last + 1, NAN), values(n * h * w * c);
  const auto offset = [&, h = h, w = w](int64_t i) {
    return i / (c * w * h) * in.batch + i / (c * w) % h * in.row + i / c % w * in.column +
           i % c * in.channel;
  };
  const Floats drawn = draw.floats(values.size(), 3);
  for (std::size_t i = 0; i < values.size(); ++i) input[offset(i)] = drawn[i];
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = input[offset(i)];
  const Map image(n, h, w, c, values);
  const Activation activation = draw.activation();
  const int64_t taps = s.kernel_height * s.kernel_width;
  const Floats weight = draw.floats(k * c * taps), bias = draw.maybe(draw.chance(), k);
  Map expected = as_computed(convolve(image, weight, bias, k, 1, s), c, s);
  const Floats residual = draw.maybe(draw.chance(), expected.value.size());
  expected = activate(add(expected, residual), activation);

  Conv2dBiasActParams p{n,
                        h,
                        w,
                        c,
                        expected.height,
                        expected.width,
                        k,
                        s.kernel_height,
                        s.kernel_width,
                        s.stride_height,
                        s.stride_width,
                        s.top,
                        s.left,
                        activation,
                        nullptr,
                        in.batch,
                        in.channel,
                        in.row,
                        in.column,
                        nullptr,
                        false,
                        nullptr,
                        nullptr,
                        0};
  const std::string what = text(describe(image), in.name, "outputs", k, describe(s),
                                describe(activation), "residual", !residual.empty());
  check("conv2d_bias_act", what, expected,
        [&](const Level& level, const Threads& threads, void* output) {
          p.winograd = suits_winograd(level.table->type, k, c, s.kernel_height, s.kernel_width,
                                      s.stride_height, s.stride_width);
          const Floats packed = p.winograd ? pack_winograd(level, weight, k, c, bias)
                                           : pack_pointwise(level, weight, k, c, s.kernel_height,
                                                            s.kernel_width, bias);
          p.packed = packed.data();
          const Elements elements(level, input), residuals(level, residual);
          p.residual = residuals.data();
          p.input = elements.data();
          p.output = output;
          level.table->conv2d_bias_act(p, threads);
        });
}

void test_pool(Draw& draw, int64_t n, int64_t pixels, int64_t c, int64_t k) {
  Floats input;
  const Map image = draw_map(draw, n, 1, pixels, c, &input);
  const Activation activation = draw.activation();
  const Floats weight = draw.floats(k * c), bias = draw.maybe(draw.chance(), k);
  const Map expected = mean(activate(convolve(image, weight, bias, k, 1, {}), activation));
  PointwiseConv2dPoolParams p{n, pixels, c, k, activation, nullptr, nullptr, nullptr, {}};
  const std::string what = text(describe(image), "outputs", k, describe(activation));
  check("pointwise_conv2d_pool", what, expected,
        [&](const Level& level, const Threads& threads, void* output) {
          const Floats packed = pack_pointwise(level, weight, k, c, bias);
          p.packed = packed.data();
          const Elements elements(level, input);
          p.input = elements.data();
          p.output = output;
          level.table->pointwise_conv2d_pool(p, threads);
        });
}

void test_linear(Draw& draw, int64_t n, int64_t c, int64_t k) {
  Floats input;
  const Map rows = draw_map(draw, n, 1, 1, c, &input);
  const Floats weight = draw.floats(k * c), bias = draw.maybe(draw.chance(), k);
  LinearParams p{n, c, k, nullptr, nullptr, nullptr, draw.activation()};
  check("linear", text(describe(rows), "outputs", k, describe(p.activation)),
        activate(convolve(rows, weight, bias, k, 1, {}), p.activation),
        [&](const Level& level, const Threads& threads, void* output) {
          const Floats packed = pack_pointwise(level, weight, k, c, bias);
          p.packed = packed.data();
          const Elements elements(level, input);
          p.input = elements.data();
          p.output = output;
          level.table->linear(p, threads);
        });
}

}  // namespace

void test_convolutions(Draw& draw) {
  test_pack(draw);
  test_nan(draw);
  for (int64_t c : kChannels) {
    for (const auto& kernel : kKernels) {
      for (const auto& stride : kStrides) {
        for (const int64_t dilation : {1, 2}) {
          const int64_t size[] = {draw.of(kBatches), draw_size(draw), draw_size(draw)};
          const Window s = window(kernel, stride, {dilation, draw.chance() ? dilation : 1});
          test_depthwise(draw, size, c, with_padding(draw, s, size[1], size[2]));
        }
        const int64_t size[] = {draw.of(kBatches), draw_size(draw), draw_size(draw)};
        const Window s = with_padding(draw, window(kernel, stride, {1, 1}), size[1], size[2]);
        test_conv2d(draw, size, c, draw.of(kChannels), s);
      }
    }
    for (int64_t k : {1, 3, 7, 8, 9, 16, 17, 24, 33, 47, 48, 65, 100, 200}) {
      for (const auto& stride : {kStrides[0], kStrides[0], pick(draw, kStrides)}) {
        const int64_t size[] = {draw.of(kBatches), draw_size(draw), draw_size(draw)};
        test_pointwise(draw, size, c, k, {stride[0], stride[1]});
      }
      test_pool(draw, draw.of(kBatches), draw.chance() ? draw_size(draw) : 60 + draw_size(draw), c,
                k);
      for (int64_t n : {0, 1, 2, 5, 17}) test_linear(draw, n, c, k);
    }
  }
  // Winograd's: few tiles and several blocks of them.
  for (int64_t c : {16, 17, 32}) {
    for (int64_t k : {16, 33, 40, 100}) {
      const int64_t wide = draw.chance() ? 40 : 1;
      const int64_t size[] = {draw.of(kBatches), draw_size(draw), wide + draw_size(draw)};
      test_conv2d(draw, size, c, k, with_padding(draw, {3, 3, 1, 1, 1, 1}, size[1], size[2]));
    }
  }
  // Several blocks of pixels, with and without a scale; several tiles of every height.
  test_pointwise(draw, {2, 40, 30}, 33, 24, {1, 1});
  test_pointwise(draw, {3, 19, 50}, 700, 17, {1, 1});
  test_pointwise(draw, {1, 3, 200}, 700, 33, {2, 1});
  for (int64_t pixels = 1; pixels <= 64; ++pixels)
    test_pointwise(draw, {1, 1, pixels}, 5, 65, {1, 1});
  test_linear(draw, 1, 1280, 1000);
  // Weights that L2 does not hold, on several blocks of pixels, a stride's, and hardly any.
  const int64_t l2_floats = cache_sizes().l2 / 4;
  test_pointwise(draw, {1, 31, 10}, l2_floats / 300, 160, {1, 1});
  test_pointwise(draw, {2, 9, 14}, l2_floats / 300, 170, {2, 2});
  test_pointwise(draw, {1, 3, 3}, l2_floats / 300, 170, {1, 1});
  test_side_by_side(draw, 9, 24, {17, 8, 33, 1});
  test_side_by_side(draw, 90, 33, {16, 100});
  test_side_by_side(draw, 40, l2_floats / 300, {40, 130, 7});
  // The same for dense kernels: narrow maps, whose rows are one matrix, and wide ones.
  const Window same{3, 3, 1, 1, 1, 1, 1, 1, 1, 1}, halving{3, 3, 2, 2, 1, 1, 1, 1, 1, 1};
  const int64_t outputs = std::max<int64_t>(160, l2_floats / 900);
  test_conv2d(draw, {1, 7, 7}, 160, outputs, halving);
  test_conv2d(draw, {2, 9, 15}, 160, outputs, halving);
  test_conv2d(draw, {1, 5, 9}, 1000, std::max<int64_t>(140, l2_floats / 9000), same);
  test_conv2d(draw, {1, 9, 37}, 160, outputs, halving);
}

}  // namespace fastconv::test
