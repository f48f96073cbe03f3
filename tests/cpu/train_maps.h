// Maps of training and their gradients, drawn, in a level's memory, and in float64; what is wrong
// with results.
#pragma once

#include "cases.h"

namespace fastconv::test {

inline double slope(double x, Activation activation) {
  const double s = 1 / (1 + std::exp(-x));
  switch (activation) {
    case Activation::kRelu:
      return x > 0;
    case Activation::kRelu6:
      return x > 0 && x < 6;
    case Activation::kHardswish:
      return x <= -3 ? 0 : x >= 3 ? 1 : x / 3 + 0.5;
    case Activation::kSilu:
      return s + x * s * (1 - s);
    case Activation::kSigmoid:
      return s * (1 - s);
    case Activation::kHardsigmoid:
      return x > -3 && x < 3 ? 1.0 / 6 : 0;
    case Activation::kTanh:
      return 1 - std::tanh(x) * std::tanh(x);
    case Activation::kGelu:
      return 0.5 * std::erfc(-std::sqrt(0.5) * x) +
             x * std::exp(-0.5 * x * x) / std::sqrt(8 * std::atan(1.0));
    default:
      return 1;
  }
}

inline double or_else(const Floats& x, int64_t i, double otherwise) {
  return x.empty() ? otherwise : x[i];
}

// What a map is normalized by, and what a gradient is made from; empty: not there.
struct Drawn {
  Drawn(Draw& draw, int64_t n, int64_t h, int64_t w, int64_t c, bool gates)
      : batch(n), height(h), width(w), channels(c) {
    data = draw.floats(n * h * w * c, 3);
    affine = draw.maybe(draw.chance(), 2 * c);
    gate = draw.maybe(gates && draw.chance(), n * c);
    if (!affine.empty()) activation = draw.activation();
  }
  double before(int64_t i) const {
    const int64_t c = i % channels;
    return affine.empty() ? data[i] : data[i] * double{affine[c]} + affine[channels + c];
  }
  // Without the gate.
  double activated(int64_t i) const {
    return affine.empty() ? data[i] : activate(before(i), activation);
  }
  double own_slope(int64_t i) const { return affine.empty() ? 1 : slope(before(i), activation); }
  double gate_at(int64_t i) const {
    return or_else(gate, i / (height * width * channels) * channels + i % channels, 1);
  }
  Map normalized() const {
    Map x(batch, height, width, channels);
    for (std::size_t i = 0; i < data.size(); ++i) {
      x.value[i] = activated(i) * gate_at(i);
      x.magnitude[i] = (std::abs(data[i]) + 2) * std::abs(gate_at(i)) + std::abs(x.value[i]);
    }
    return x;
  }
  std::string describe() const {
    return text(batch, height, width, channels, "affine", !affine.empty(), "gate", !gate.empty(),
                "activation", static_cast<int>(activation));
  }

  int64_t batch, height, width, channels;
  Floats data, affine, gate;
  Activation activation = Activation::kNone;
};

struct DrawnGradient {
  DrawnGradient(Draw& draw, int64_t n, int64_t h, int64_t w, int64_t c, bool has_raw)
      : raw(draw, n, h, w, c, true), is_bare(!has_raw) {
    grad = draw.floats(n * h * w * c);
    if (is_bare) return;
    offset = draw.maybe(draw.chance(), n * c);
    coefficients = draw.maybe(draw.chance(), 4 * c);
    if (raw.affine.empty()) raw.activation = draw.activation();
  }
  // G, before the coefficients.
  double before(int64_t i) const {
    if (is_bare) return grad[i];
    const int64_t c = raw.channels, at = i / (raw.height * raw.width * c) * c + i % c;
    return (grad[i] * raw.gate_at(i) + or_else(offset, at, 0)) *
           slope(raw.before(i), raw.activation);
  }
  Map of_raw() const {
    const int64_t c = raw.channels;
    Map x(raw.batch, raw.height, raw.width, c);
    for (std::size_t i = 0; i < grad.size(); ++i) {
      x.value[i] = before(i);
      if (!coefficients.empty()) {
        const float* k = coefficients.data() + i % c;
        x.value[i] = k[0] * x.value[i] + double{k[c]} * (raw.data[i] - k[2 * c]) + k[3 * c];
      }
      x.magnitude[i] = std::abs(x.value[i]) + std::abs(raw.data[i]) + 3;
    }
    return x;
  }
  std::string describe() const {
    return text("gradient bare", is_bare, "offset", !offset.empty(), "coefficients",
                !coefficients.empty(), "of", raw.describe());
  }

  Drawn raw;
  Floats grad, offset, coefficients;
  bool is_bare;
};

// The memory of a level's kernels behind what was drawn.
struct Input {
  Input(const Level& level, const Drawn& x)
      : data(level, x.data),
        map{data.data(), data_or_null(x.affine), data_or_null(x.gate), x.activation} {}
  const Elements data;
  NormalizedMap map;
};

struct Gradient {
  Gradient(const Level& level, const DrawnGradient& g)
      : grad(level, g.grad),
        raw(level, g.raw.data),
        map{grad.data(),
            g.is_bare ? nullptr : raw.data(),
            g.is_bare ? nullptr : data_or_null(g.raw.affine),
            g.is_bare ? nullptr : data_or_null(g.raw.gate),
            data_or_null(g.offset),
            data_or_null(g.coefficients),
            g.is_bare ? Activation::kNone : g.raw.activation} {}
  const Elements grad, raw;
  GradientMap map;
};

// Sums over the pixels of a map by some index of each value.
struct Sums {
  explicit Sums(int64_t size) : value(size), magnitude(size) {}
  void add(int64_t i, double x, double size) {
    value[i] += x;
    magnitude[i] += std::abs(size);
  }
  std::vector<double> value, magnitude;
};

inline std::string compare_sums(const Level& level, const char* name, const Floats& got,
                                const Sums& expected) {
  const double tolerance = level.table->type == DataType::kFloat32 ? 4e-6 : 1.2e-2;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::abs(got[i] - expected.value[i]) <= tolerance * expected.magnitude[i] + 1e-6) continue;
    return text(name, i, "is", got[i], "instead of", expected.value[i]);
  }
  return "";
}

// Means and variances, about the level's own output.
inline std::string compare_moments(const Floats& got, const Floats& output, int64_t channels) {
  const int64_t count = output.size() / channels;
  for (int64_t c = 0; c < channels; ++c) {
    double mean = 0, variance = 0;
    for (int64_t p = 0; p < count; ++p) mean += output[p * channels + c] / double(count);
    for (int64_t p = 0; p < count; ++p)
      variance += std::pow(output[p * channels + c] - mean, 2) / double(count);
    const double scale = std::sqrt(variance) + 1e-3 * std::abs(mean);
    if (!(std::abs(got[c] - mean) <= 2e-6 * scale + 1e-6) ||
        !(std::abs(got[channels + c] - variance) <= 1e-5 * variance + 1e-6))
      return text("moments of", c, "are", got[c], got[channels + c], "instead of", mean, variance);
  }
  return "";
}

// Runs `kernel(level, threads, floats)` with one thread and with several; its results, NaN before,
// must have the same bits. Returns what is wrong.
template <class Kernel>
inline std::string same_bits(const Level& level, const Kernel& kernel,
                             std::vector<Floats>* results) {
  std::vector<Floats> found = *results;
  kernel(level, Threads{1, run_on_threads, nullptr}, *results);
  const int64_t several = several_threads(level);
  kernel(level, Threads{several, run_on_threads, nullptr}, found);
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (!found[i].empty() &&
        std::memcmp(found[i].data(), (*results)[i].data(), sizeof(float) * found[i].size()) != 0)
      return text(several, "threads give another result", i, "than 1");
  }
  return "";
}

inline float* pointer(Floats& x) { return x.empty() ? nullptr : x.data(); }

inline std::string first_of(std::initializer_list<std::string> failures) {
  for (const std::string& failure : failures) {
    if (!failure.empty()) return failure;
  }
  return "";
}

}  // namespace fastconv::test
