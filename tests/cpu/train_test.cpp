// The kernels of training.
#include "train_maps.h"

namespace fastconv::test {
namespace {

void test_pointwise(Draw& draw, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k) {
  const Drawn input(draw, n, h, w, c, true);
  const Floats weight = draw.floats(k * c);
  const Map normalized = input.normalized();
  const Map expected = convolve(normalized, weight, {}, k, 1, Window());
  const std::string what = text(input.describe(), "outputs", k);
  for (const Level& level : levels()) {
    const Input in(level, input);
    std::vector<Floats> results{Floats(expected.value.size(), NAN), Floats(2 * k, NAN)};
    const std::string bits = same_bits(
        level,
        [&](const Level&, const Threads& threads, std::vector<Floats>& out) {
          Elements output(level, out[0]);
          level.table->train_pointwise_conv2d(
              {n, h * w, c, k, in.map, weight.data(), output.data(), out[1].data()}, threads);
          out[0] = output.floats();
        },
        &results);
    const std::string failure = first_of(
        {bits, compare(level, results[0], expected), compare_moments(results[1], results[0], k)});
    score().count(level, "train_pointwise", failure.empty() ? "" : what + "| " + failure);
  }
}

// What both backward passes have in common: the drawn input and gradient, and the results that
// they ask for.
struct Wanted {
  explicit Wanted(Draw& draw)
      : input(draw.chance()), weight(draw.chance() || !input), bias(draw.chance()) {}
  bool input, weight, bias;
};

// Gradient of the map before the activation from d, the gradient of what the convolution read, and
// what is summed along with it.
struct Finished {
  Finished(const Drawn& input, const Map& d, const Floats& mean, const Floats& residual)
      : grad(d), sums(2 * input.channels), gates(input.batch * input.channels) {
    const int64_t c = input.channels, image = input.height * input.width * c;
    for (int64_t i = 0; i < static_cast<int64_t>(d.value.size()); ++i) {
      gates.add(i / image * c + i % c, d.value[i] * input.activated(i),
                d.magnitude[i] * (std::abs(input.activated(i)) + 1));
      if (input.gate.empty()) {
        grad.value[i] *= input.own_slope(i);
        grad.magnitude[i] *= 1.5;
      }
      const double about = input.data[i] - mean[i % c];
      sums.add(i % c, grad.value[i], grad.magnitude[i]);
      sums.add(c + i % c, grad.value[i] * about, grad.magnitude[i] * (std::abs(about) + 1));
    }
    grad = add(grad, residual);
  }
  Map grad;
  Sums sums, gates;
};

void test_pointwise_backward(Draw& draw, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k) {
  const Drawn input(draw, n, h, w, c, true);
  const DrawnGradient gradient(draw, n, h, w, k, draw.below(4) > 0);
  const Floats weight = draw.floats(k * c), mean = draw.floats(c);
  const Wanted wanted(draw);
  const bool plain = input.affine.empty() && input.gate.empty();
  const Floats residual = draw.maybe(plain && draw.chance(), n * h * w * c);
  Floats transposed(k * c);
  for (int64_t i = 0; i < k * c; ++i) transposed[i % c * k + i / c] = weight[i];
  const Map dy = gradient.of_raw(), normalized = input.normalized();
  const Finished finished(input, convolve(dy, transposed, {}, c, 1, Window()), mean, residual);
  Sums grad_weight(k * c), grad_bias(k);
  for (int64_t p = 0; p < n * h * w; ++p) {
    for (int64_t i = 0; i < k; ++i) {
      const int64_t at = p * k + i;
      grad_bias.add(i, dy.value[at], dy.magnitude[at]);
      for (int64_t j = 0; j < c; ++j)
        grad_weight.add(i * c + j, dy.value[at] * normalized.value[p * c + j],
                        dy.magnitude[at] * normalized.magnitude[p * c + j]);
    }
  }
  const bool gates = wanted.input && !input.gate.empty();
  const bool sums = wanted.input && input.gate.empty() && !input.affine.empty();
  const std::string what = text(input.describe(), "outputs", k, gradient.describe(), "wanted",
                                wanted.input, wanted.weight, wanted.bias);
  for (const Level& level : levels()) {
    const Input in(level, input);
    const Gradient g(level, gradient);
    const Elements residuals(level, residual);
    std::vector<Floats> results{Floats(wanted.input ? n * h * w * c : 0, NAN),
                                Floats(wanted.weight ? k * c : 0, NAN),
                                Floats(wanted.bias ? k : 0, NAN), Floats(sums ? 2 * c : 0, NAN),
                                Floats(gates ? n * c : 0, NAN)};
    const std::string bits = same_bits(
        level,
        [&](const Level&, const Threads& threads, std::vector<Floats>& out) {
          Elements grad_input(level, out[0]);
          level.table->train_pointwise_conv2d_backward(
              {n, h * w, c, k, in.map, g.map, weight.data(), mean.data(),
               residual.empty() ? nullptr : residuals.data(), grad_input.data(), pointer(out[1]),
               pointer(out[2]), pointer(out[3]), pointer(out[4])},
              threads);
          out[0] = grad_input.floats();
        },
        &results);
    const std::string failure = first_of({bits, compare(level, results[0], finished.grad),
                                          compare_sums(level, "weight", results[1], grad_weight),
                                          compare_sums(level, "bias", results[2], grad_bias),
                                          compare_sums(level, "sum", results[3], finished.sums),
                                          compare_sums(level, "gate", results[4], finished.gates)});
    score().count(level, "train_pointwise_back", failure.empty() ? "" : what + "| " + failure);
  }
}

TrainWindow train_window(const Drawn& x, const Window& s) {
  return {x.batch,
          x.height,
          x.width,
          x.channels,
          s.out_height(x.height),
          s.out_width(x.width),
          s.kernel_height,
          s.kernel_width,
          s.stride_height,
          s.stride_width,
          s.top,
          s.left,
          s.dilation_height,
          s.dilation_width};
}

void test_depthwise(Draw& draw, const Drawn& input, const Window& s) {
  const int64_t c = input.channels, taps = s.kernel_height * s.kernel_width;
  const Floats weight = draw.floats(c * taps);
  const Map expected = convolve(input.normalized(), weight, {}, c, c, s);
  const std::string what = text(input.describe(), describe(s));
  for (const Level& level : levels()) {
    const Floats packed = pack_depthwise(level, weight, c, taps, {});
    const Input in(level, input);
    std::vector<Floats> results{Floats(expected.value.size(), NAN), Floats(2 * c, NAN)};
    const std::string bits = same_bits(
        level,
        [&](const Level&, const Threads& threads, std::vector<Floats>& out) {
          Elements output(level, out[0]);
          level.table->train_depthwise_conv2d(
              {train_window(input, s), in.map, packed.data(), output.data(), out[1].data()},
              threads);
          out[0] = output.floats();
        },
        &results);
    const std::string failure = first_of(
        {bits, compare(level, results[0], expected), compare_moments(results[1], results[0], c)});
    score().count(level, "train_depthwise", failure.empty() ? "" : what + "| " + failure);
  }
}

void test_depthwise_backward(Draw& draw, const Drawn& input, const Window& s, bool bare_gradient) {
  const int64_t n = input.batch, c = input.channels, taps = s.kernel_height * s.kernel_width;
  const int64_t out_height = s.out_height(input.height), out_width = s.out_width(input.width);
  const DrawnGradient gradient(draw, n, out_height, out_width, c, !bare_gradient);
  const Floats weight = draw.floats(c * taps), mean = draw.floats(c);
  const Wanted wanted(draw);
  const Floats residual =
      draw.maybe(input.affine.empty() && draw.chance(), n * input.height * input.width * c);
  const Map dy = gradient.of_raw(), normalized = input.normalized();
  Map d(n, input.height, input.width, c);
  Sums grad_weight(c * taps), grad_bias(c);
  for (int64_t i = 0; i < static_cast<int64_t>(dy.value.size()); ++i) {
    const int64_t k = i % c, x = i / c % out_width, y = i / (c * out_width) % out_height,
                  image = i / (c * out_width * out_height);
    grad_bias.add(k, dy.value[i], dy.magnitude[i]);
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t in_y = y * s.stride_height - s.top + tap / s.kernel_width * s.dilation_height;
      const int64_t in_x = x * s.stride_width - s.left + tap % s.kernel_width * s.dilation_width;
      if (in_y < 0 || in_y >= d.height || in_x < 0 || in_x >= d.width) continue;
      const int64_t at = d.at(image, in_y, in_x, k);
      const double w = weight[k * taps + tap];
      d.value[at] += w * dy.value[i];
      d.magnitude[at] += std::abs(w) * dy.magnitude[i];
      grad_weight.add(k * taps + tap, dy.value[i] * normalized.value[at],
                      dy.magnitude[i] * normalized.magnitude[at]);
    }
  }
  const Finished finished(input, d, mean, residual);
  const bool sums = wanted.input && !input.affine.empty();
  const std::string what = text(input.describe(), describe(s), gradient.describe(), "wanted",
                                wanted.input, wanted.weight, wanted.bias);
  Floats turned(c * taps);
  for (int64_t i = 0; i < c * taps; ++i) turned[i] = weight[i / taps * taps + taps - 1 - i % taps];
  for (const Level& level : levels()) {
    const Floats packed = pack_depthwise(level, turned, c, taps, {});
    const Input in(level, input);
    const Gradient g(level, gradient);
    const Elements residuals(level, residual);
    std::vector<Floats> results{Floats(wanted.input ? d.value.size() : 0, NAN),
                                Floats(wanted.weight ? c * taps : 0, NAN),
                                Floats(wanted.bias ? c : 0, NAN), Floats(sums ? 2 * c : 0, NAN)};
    const std::string bits = same_bits(
        level,
        [&](const Level&, const Threads& threads, std::vector<Floats>& out) {
          Elements grad_input(level, out[0]);
          level.table->train_depthwise_conv2d_backward(
              {train_window(input, s), in.map, g.map, packed.data(), mean.data(),
               residual.empty() ? nullptr : residuals.data(), grad_input.data(), pointer(out[1]),
               pointer(out[2]), pointer(out[3])},
              threads);
          out[0] = grad_input.floats();
        },
        &results);
    const std::string failure = first_of({bits, compare(level, results[0], finished.grad),
                                          compare_sums(level, "weight", results[1], grad_weight),
                                          compare_sums(level, "bias", results[2], grad_bias),
                                          compare_sums(level, "sum", results[3], finished.sums)});
    score().count(level, "train_depthwise_back", failure.empty() ? "" : what + "| " + failure);
  }
}

void test_maps(Draw& draw, int64_t n, int64_t h, int64_t w, int64_t c) {
  Drawn input(draw, n, h, w, c, true);
  if (input.affine.empty()) input.affine = draw.floats(2 * c);
  const DrawnGradient gradient(draw, n, h, w, c, true);
  const Floats residual = draw.maybe(draw.chance(), n * h * w * c), mean = draw.floats(c);
  const Map normalized = add(input.normalized(), residual), dy = gradient.of_raw();
  Sums means(n * c), sums(2 * c);
  const int64_t image = h * w * c;
  for (int64_t i = 0; i < n * image; ++i) {
    means.add(i / image * c + i % c, input.activated(i) / (h * w),
              (std::abs(input.activated(i)) + 1) / (h * w));
    const double g = gradient.before(i), about = gradient.raw.data[i] - mean[i % c];
    sums.add(i % c, g, std::abs(g) + 1);
    sums.add(c + i % c, g * about, (std::abs(g) + 1) * (std::abs(about) + 1));
  }
  const std::string what = text(input.describe(), gradient.describe());
  for (const Level& level : levels()) {
    const Input in(level, input);
    const Gradient g(level, gradient);
    const Elements residuals(level, residual);
    TrainMapParams p{n, h * w, c, in.map, g.map, nullptr, mean.data(), nullptr, nullptr};
    std::vector<Floats> results{Floats(n * image, NAN), Floats(n * c, NAN), Floats(2 * c, NAN),
                                Floats(n * image, NAN), Floats(2 * c, NAN)};
    const std::string bits = same_bits(
        level,
        [&](const Level&, const Threads& threads, std::vector<Floats>& out) {
          Elements map(level, out[0]), gradients(level, out[3]);
          p.residual = residual.empty() ? nullptr : residuals.data();
          p.output = map.data();
          level.table->train_normalize(p, threads);
          out[0] = map.floats();
          p.output = gradients.data();
          level.table->train_gradient(p, threads);
          out[3] = gradients.floats();
          p.results = out[1].data();
          level.table->train_normalized_mean(p, threads);
          p.results = out[2].data();
          level.table->train_moments(p, threads);
          p.results = out[4].data();
          level.table->train_gradient_sums(p, threads);
        },
        &results);
    const std::string failure = first_of(
        {bits, compare(level, results[0], normalized),
         compare_sums(level, "mean", results[1], means), compare_moments(results[2], input.data, c),
         compare(level, results[3], dy), compare_sums(level, "sum", results[4], sums)});
    score().count(level, "train_maps", failure.empty() ? "" : what + "| " + failure);
  }
}

}  // namespace

void test_train(Draw& draw) {
  constexpr int64_t kWide[] = {1, 3, 8, 16, 17, 24, 40, 70, 130};
  constexpr int64_t kSome[] = {1, 2, 3};
  for (int i = 0; i < 60; ++i) {
    const int64_t n = draw.of(kSome), h = draw_size(draw), w = draw_size(draw);
    const int64_t c = draw.of(kWide), k = draw.of(kWide);
    test_pointwise(draw, n, h, w, c, k);
    test_pointwise_backward(draw, n, h, w, c, k);
    test_maps(draw, n, h, w, k);
  }
  for (int i = 0; i < 90; ++i) {
    const auto& kernel = pick(draw, kKernels);
    const auto& stride = pick(draw, kStrides);
    const auto& dilation = pick(draw, kDilations);
    const Drawn input(draw, draw.of(kSome), draw_size(draw), draw_size(draw), draw.of(kChannels),
                      false);
    const Window s =
        with_padding(draw, window(kernel, stride, dilation), input.height, input.width);
    test_depthwise(draw, input, s);
    test_depthwise_backward(draw, input, s, draw.below(4) == 0);
  }
  // Whole vectors of maps that need not be normalized, which are read where they lie.
  for (int i = 0; i < 60; ++i) {
    constexpr int64_t kWhole[] = {16, 32, 48};
    Drawn input(draw, draw.of(kSome), draw_size(draw), draw_size(draw), draw.of(kWhole), false);
    input.affine.clear();
    input.activation = Activation::kNone;
    const auto& kernel = pick(draw, kKernels);
    const bool dense = draw.chance();
    const Window w = dense ? window(kernel, {1, 1}, {1, 1})
                           : window(kernel, pick(draw, kStrides), pick(draw, kDilations));
    test_depthwise_backward(draw, input, with_padding(draw, w, input.height, input.width),
                            draw.below(4) > 0);
  }
  // Several bands, and several slices of the channels.
  for (int64_t stride : {1, 2}) {
    const Drawn tall(draw, 1, 70, 5, 20, false), wide(draw, 1, 9, 400, 70, false);
    for (const Drawn* input : {&tall, &wide}) {
      Window s = window({3, 3}, {stride, stride}, {1, 1});
      s.top = s.bottom = s.left = s.right = 1;
      test_depthwise(draw, *input, s);
      test_depthwise_backward(draw, *input, s, draw.chance());
    }
  }
}

}  // namespace fastconv::test
