#include <cstring>
#include <sstream>

#include "csrc/cuda/train_depthwise_conv2d.h"
#include "csrc/cuda/train_depthwise_tiling.h"
#include "harness.h"

namespace fastconv_test {
namespace {

using fastconv::Activation;
using fastconv::CudaTrainDepthwiseConv2dBackwardParams;
using fastconv::CudaTrainDepthwiseConv2dParams;
using fastconv::TrainTiling;
using fastconv::TrainWindow;

struct Case {
  int64_t n, c, h, w, kh, kw, sh, sw, dh, dw, top, bottom, left, right, parts;
  Activation activation = Activation::kNone, raw_activation = Activation::kNone;
  // What is there.
  bool affine = true, raw = true, raw_affine = true, gate = true, offset = true;
  bool coefficients = true, residual = true;
  // What is wanted.
  bool input = true, weight = true, bias = true, sums = true;
  bool corners = false;    // values at which slopes jump
  bool far = false;        // the output's mean is far from zero
  int64_t misaligned = 0;  // elements
};

std::string text(const Case& k, DataType type) {
  std::ostringstream out;
  out << "train_depthwise " << k.n << "x" << k.c << "x" << k.h << "x" << k.w << " kernel " << k.kh
      << "x" << k.kw << " stride " << k.sh << "," << k.sw << " dilation " << k.dh << "," << k.dw
      << " padding " << k.top << "," << k.bottom << "," << k.left << "," << k.right << " parts "
      << k.parts << " type " << static_cast<int>(type) << " activations "
      << static_cast<int>(k.activation) << "," << static_cast<int>(k.raw_activation) << " there "
      << k.affine << k.raw << k.raw_affine << k.gate << k.offset << k.coefficients << k.residual
      << " wanted " << k.input << k.weight << k.bias << k.sums << " misaligned " << k.misaligned;
  return out.str();
}

double slope(Activation activation, double x) {
  const double s = 1 / (1 + std::exp(-x));
  switch (activation) {
    case Activation::kNone:
      return 1;
    case Activation::kRelu:
      return x > 0 ? 1 : 0;
    case Activation::kRelu6:
      return x > 0 && x < 6 ? 1 : 0;
    case Activation::kHardswish:
      return x >= 3 ? 1 : x > -3 ? x / 3 + 0.5 : 0;
    case Activation::kSilu:
      return s + x * s * (1 - s);
    case Activation::kSigmoid:
      return s * (1 - s);
    case Activation::kHardsigmoid:
      return x > -3 && x < 3 ? 1. / 6 : 0;
    case Activation::kTanh:
      return 1 - std::tanh(x) * std::tanh(x);
    case Activation::kGelu:
      return 0.5 * std::erfc(-std::sqrt(0.5) * x) +
             x * std::exp(-0.5 * x * x) / std::sqrt(8 * std::atan(1.0));
  }
  return 1;
}

// A map whose first element is where the case wants it.
template <class T>
struct Map {
  Map(std::vector<T> values, int64_t misaligned) : memory(values.size() + 8), first(misaligned) {
    std::copy(values.begin(), values.end(), memory.begin() + first);
    size = static_cast<int64_t>(values.size());
  }
  T* data() { return memory.data() + first; }
  double operator[](int64_t i) const { return fastconv::to_float(memory[first + i]); }
  std::vector<T> values() const {
    return std::vector<T>(memory.begin() + first, memory.begin() + first + size);
  }
  std::vector<T> memory;
  int64_t first, size;
};

// A case's sizes, what it reads, and what has to come out.
template <class T>
class Problem {
 public:
  Problem(Random& random, const Case& k)
      : k_(k),
        oh_((k.h + k.top + k.bottom - k.dh * (k.kh - 1) - 1) / k.sh + 1),
        ow_((k.w + k.left + k.right - k.dw * (k.kw - 1) - 1) / k.sw + 1),
        window_{k.n, k.h, k.w, k.c, oh_, ow_, k.kh, k.kw, k.sh, k.sw, k.top, k.left, k.dh, k.dw},
        input_(values(random, k.n * k.h * k.w * k.c), k.misaligned),
        grad_(random.values<T>(k.n * oh_ * ow_ * k.c), k.misaligned),
        raw_(values(random, k.n * oh_ * ow_ * k.c), k.misaligned),
        residual_(random.values<T>(k.n * k.h * k.w * k.c), k.misaligned),
        weight_(random.values<float>(k.c * k.kh * k.kw, 0.4f)),
        affine_(affine(random)),
        raw_affine_(affine(random)),
        gate_(random.values<float>(k.n * k.c)),
        offset_(random.values<float>(k.n * k.c, 0.3f)),
        coefficients_(random.values<float>(4 * k.c)),
        mean_(random.values<float>(k.c)) {
    if (k.far)
      for (int64_t c = 0; c < k.c; ++c) affine_[k.c + c] = 1000;
  }

  void forward(Results& results) {
    const std::string what = text(k_, type_of<T>());
    Map<T> output(unwritten<T>(k_.n * oh_ * ow_ * k_.c), k_.misaligned);
    auto moments = unwritten<float>(2 * k_.c), partial = unwritten<float>(k_.parts * 3 * k_.c);
    CudaTrainDepthwiseConv2dParams p{};
    p.conv = {window_, normalized(), weight_.data(), output.data(), nullptr};
    p.type = type_of<T>();
    p.parts = k_.parts;
    if (k_.parts > 0) {
      p.partial = partial.data();
      p.conv.moments = moments.data();
    }
    require(results, what, fastconv::launch_train_depthwise_conv2d(p, nullptr));
    std::vector<double> expected(k_.n * oh_ * ow_ * k_.c);
    each_tap([&](int64_t tap, int64_t in, int64_t out, int64_t c) {
      expected[out] += weight_[tap * k_.c + c] * value(in, c);
    });
    results.check(what, output.values(), expected, 2 * rounding<T>() + 1e-5);
    if (k_.parts == 0) return;
    const std::vector<double> whole = moments_of(output, 0, k_.n * oh_);
    std::vector<double> joined(2 * k_.c);
    for (int64_t c = 0; c < k_.c; ++c) {
      const double count = whole[c];
      joined[c] = whole[k_.c + c];
      joined[k_.c + c] = count == 0 ? 0 : whole[2 * k_.c + c] / count;
    }
    results.check(what + " moments", moments, joined, k_.far ? 1e-3 : 1e-5);
    const TrainTiling t = fastconv::train_forward_tiling(window_, type_of<T>(), pairs(), 4);
    if (t.tiles > 1) return;
    std::vector<double> parts;
    for (int64_t part = 0; part < k_.parts; ++part) {
      const auto one = moments_of(output, share(t.rows, part), share(t.rows, part + 1));
      parts.insert(parts.end(), one.begin(), one.end());
    }
    results.check(what + " parts", partial, parts, k_.far ? 1e-3 : 2e-5);
    const auto before = output.values();
    const auto moments_before = moments;
    fastconv::launch_train_depthwise_conv2d(p, nullptr);
    results.require(what + ": other bits the second time",
                    same(before, output.values()) && same(moments_before, moments));
  }

  void backward(Results& results) {
    const std::string what = text(k_, type_of<T>()) + " backward";
    Map<T> grad_input(unwritten<T>(k_.n * k_.h * k_.w * k_.c), k_.misaligned);
    const int64_t taps = k_.kh * k_.kw;
    auto weight = unwritten<float>(k_.c * taps), bias = unwritten<float>(k_.c),
         sums = unwritten<float>(2 * k_.c);
    CudaTrainDepthwiseConv2dBackwardParams p{};
    p.conv = {
        window_,
        normalized(),
        {grad_.data(), k_.raw ? raw_.data() : nullptr, k_.raw_affine ? raw_affine_.data() : nullptr,
         k_.gate ? gate_.data() : nullptr, k_.offset ? offset_.data() : nullptr,
         k_.coefficients ? coefficients_.data() : nullptr, k_.raw_activation},
        k_.input ? weight_.data() : nullptr,
        k_.sums ? mean_.data() : nullptr,
        k_.residual ? residual_.data() : nullptr,
        k_.input ? grad_input.data() : nullptr,
        k_.weight ? weight.data() : nullptr,
        k_.bias ? bias.data() : nullptr,
        k_.sums ? sums.data() : nullptr};
    p.type = type_of<T>();
    p.parts = std::max<int64_t>(1, k_.parts);
    auto partial = unwritten<float>(p.parts * p.rows() * k_.c);
    p.partial = partial.empty() ? nullptr : partial.data();
    require(results, what, fastconv::launch_train_depthwise_conv2d_backward(p, nullptr));
    const auto all = [&] {
      std::vector<float> bits;
      for (const auto* v : {&weight, &bias, &sums, &partial})
        bits.insert(bits.end(), v->begin(), v->end());
      return bits;
    };
    const auto first = all();
    const auto first_input = grad_input.values();
    check(results, what, p, grad_input, weight, bias, sums, partial);
    fastconv::launch_train_depthwise_conv2d_backward(p, nullptr);
    results.require(what + ": other bits the second time",
                    same(first, all()) && same(first_input, grad_input.values()));
  }

 private:
  void check(Results& results, const std::string& what,
             const CudaTrainDepthwiseConv2dBackwardParams& p, const Map<T>& grad_input,
             const std::vector<float>& weight, const std::vector<float>& bias,
             const std::vector<float>& sums, const std::vector<float>& partial) const {
    const int64_t taps = k_.kh * k_.kw, pixels = k_.n * k_.h * k_.w;
    std::vector<double> g(grad_.size), d(pixels * k_.c), dw(k_.c * taps), db(k_.c);
    for (int64_t i = 0; i < grad_.size; ++i) db[i % k_.c] += g[i] = gradient(i);
    each_tap([&](int64_t tap, int64_t in, int64_t out, int64_t c) {
      d[in] += weight_[tap * k_.c + c] * g[out];
      dw[c * taps + tap] += value(in, c) * g[out];
    });
    std::vector<double> rows(k_.n * k_.h * 2 * k_.c), total(2 * k_.c);
    for (int64_t i = 0; i < pixels * k_.c; ++i) {
      const int64_t c = i % k_.c, row = i / k_.c / k_.w;
      if (k_.affine) d[i] *= slope(k_.activation, linear(i, c));
      for (int64_t j = 0; j < 2; ++j) {
        const double term = j == 0 ? d[i] : d[i] * (input_[i] - mean_[c]);
        rows[(row * 2 + j) * k_.c + c] += term;
        total[j * k_.c + c] += term;
      }
      if (k_.residual) d[i] += residual_[i];
    }
    if (k_.input) results.check(what + " input", grad_input.values(), d, 2 * rounding<T>() + 2e-5);
    if (k_.weight) results.check(what + " weight", weight, dw, 5e-5);
    if (k_.bias) results.check(what + " bias", bias, db, 5e-5);
    if (!k_.sums) return;
    results.check(what + " sums", sums, total, 5e-5);
    // Each part sums up its own rows.
    const TrainTiling t = fastconv::train_backward_tiling(window_, type_of<T>(), pairs(), 4);
    if (t.tiles > 1 || k_.sh > 1) return;
    std::vector<double> expected;
    std::vector<float> got;
    for (int64_t part = 0; part < p.parts; ++part) {
      std::vector<double> one(2 * k_.c);
      for (int64_t row = share(t.rows, part, p.parts); row < share(t.rows, part + 1, p.parts);
           ++row)
        for (int64_t i = 0; i < 2 * k_.c; ++i) one[i] += rows[row * 2 * k_.c + i];
      expected.insert(expected.end(), one.begin(), one.end());
      const auto end = partial.begin() + (part + 1) * p.rows() * k_.c;
      got.insert(got.end(), end - 2 * k_.c, end);
    }
    results.check(what + " parts", got, expected, 5e-5);
  }

  std::vector<T> values(Random& random, int64_t count) const {
    if (!k_.corners) return random.values<T>(count);
    std::vector<T> v(count);
    for (T& x : v) x = fastconv::from_float<T>(static_cast<float>(3 * random.from_to(-2, 2)));
    return v;
  }
  std::vector<float> affine(Random& random) const {
    std::vector<float> v(2 * k_.c);
    for (int64_t c = 0; c < k_.c; ++c) {
      v[c] = k_.corners ? 1.0f : 1 + random.next();
      v[k_.c + c] = k_.corners ? 0.0f : random.next();
    }
    return v;
  }
  fastconv::NormalizedMap normalized() {
    return {input_.data(), k_.affine ? affine_.data() : nullptr, nullptr, k_.activation};
  }
  bool pairs() const { return k_.c % 2 == 0 && k_.misaligned % 2 == 0; }

  int64_t share(int64_t rows, int64_t part, int64_t parts) const {
    return part * (rows / parts) + std::min(part, rows % parts);
  }
  int64_t share(int64_t rows, int64_t part) const { return share(rows, part, k_.parts); }

  double linear(int64_t in, int64_t c) const { return input_[in] * affine_[c] + affine_[k_.c + c]; }
  double value(int64_t in, int64_t c) const {
    return k_.affine ? activate(k_.activation, linear(in, c)) : input_[in];
  }
  double gradient(int64_t i) const {
    const int64_t c = i % k_.c, at = i / (oh_ * ow_ * k_.c) * k_.c + c;
    double g = grad_[i];
    if (!k_.raw) return g;
    if (k_.gate) g *= gate_[at];
    if (k_.offset) g += offset_[at];
    const double x = raw_[i];
    g *= slope(k_.raw_activation, k_.raw_affine ? x * raw_affine_[c] + raw_affine_[k_.c + c] : x);
    if (!k_.coefficients) return g;
    const float* k = coefficients_.data() + c;
    return k[0] * g + k[k_.c] * (x - k[2 * k_.c]) + k[3 * k_.c];
  }

  // f(tap, element of the input, of the output, channel)
  template <class F>
  void each_tap(const F& f) const {
    for (int64_t row = 0; row < k_.n * oh_; ++row)
      for (int64_t x = 0; x < ow_; ++x)
        for (int64_t tap = 0; tap < k_.kh * k_.kw; ++tap) {
          const int64_t n = row / oh_;
          const int64_t in_y = row % oh_ * k_.sh - k_.top + tap / k_.kw * k_.dh;
          const int64_t in_x = x * k_.sw - k_.left + tap % k_.kw * k_.dw;
          if (in_y < 0 || in_y >= k_.h || in_x < 0 || in_x >= k_.w) continue;
          for (int64_t c = 0; c < k_.c; ++c)
            f(tap, ((n * k_.h + in_y) * k_.w + in_x) * k_.c + c, (row * ow_ + x) * k_.c + c, c);
        }
  }

  // Counts, means and sums of squared differences of rows of the output.
  std::vector<double> moments_of(const Map<T>& output, int64_t begin, int64_t end) const {
    std::vector<double> result(3 * k_.c);
    const double count = static_cast<double>((end - begin) * ow_);
    for (int64_t c = 0; c < k_.c; ++c) {
      double sum = 0, squares = 0;
      for (int64_t i = begin * ow_; i < end * ow_; ++i) sum += output[i * k_.c + c];
      const double mean = count == 0 ? 0 : sum / count;
      for (int64_t i = begin * ow_; i < end * ow_; ++i)
        squares += (output[i * k_.c + c] - mean) * (output[i * k_.c + c] - mean);
      result[c] = count;
      result[k_.c + c] = mean;
      result[2 * k_.c + c] = squares;
    }
    return result;
  }

  static void require(Results& results, const std::string& what, const char* error) {
    results.require(what + ": " + (error == nullptr ? "" : error), error == nullptr);
  }
  template <class U>
  static bool same(const std::vector<U>& a, const std::vector<U>& b) {
    return a.size() == b.size() &&
           (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(U)) == 0);
  }

  const Case k_;
  const int64_t oh_, ow_;
  const TrainWindow window_;
  Map<T> input_, grad_, raw_, residual_;
  std::vector<float> weight_, affine_, raw_affine_, gate_, offset_, coefficients_, mean_;
};

template <class T>
void run(Results& results, Random& random, const Case& k) {
  Problem<T> problem(random, k);
  problem.forward(results);
  problem.backward(results);
}

Case square(int64_t n, int64_t c, int64_t h, int64_t w, int64_t k, int64_t s, int64_t parts) {
  const int64_t p = k / 2;
  return {n, c, h, w, k, k, s, s, 1, 1, p, p, p, p, parts, Activation::kRelu6, Activation::kSilu};
}

std::vector<Case> cases(Random& random) {
  std::vector<Case> found;
  const auto add = [&](Case k) {
    k.activation = static_cast<Activation>(found.size() % 7);
    k.raw_activation = static_cast<Activation>((3 * found.size() + 1) % 7);
    found.push_back(k);
  };
  for (int64_t k : {3, 5, 7})
    for (int64_t s : {1, 2}) {
      add(square(2, 8, 7, 7, k, s, 3));
      add(square(1, 24, 9, 14, k, s, 1));
      add(square(3, 2, 1, 1, k, s, 2));
      add(square(1, 3, 6, 5, k, s, 4));    // no pairs
      add(square(1, 130, 5, 7, k, s, 2));  // several blocks of channels
      add(square(1, 8, 5, 150, k, s, 3));  // several tiles of columns in a block
    }
  add(square(1, 1, 5, 9, 3, 1, 40));  // more parts than rows
  add(square(1, 64, 6, 75, 3, 1, 5));
  add(square(1, 64, 6, 75, 5, 2, 5));
  add(square(2, 32, 5, 40, 7, 1, 3));
  // Padding on one side only, more than a window, none; windows behind the input's end.
  for (int64_t s : {1, 2}) {
    add({2, 12, 6, 7, 3, 3, s, s, 1, 1, 0, 1, 0, 1, 2});
    add({1, 12, 6, 7, 5, 5, s, s, 1, 1, 4, 0, 3, 0, 3});
    add({1, 6, 9, 8, 5, 5, s, s, 1, 1, 0, 0, 0, 0, 2});
    add({2, 12, 7, 6, 3, 3, s, s, 1, 1, 2, 2, 2, 2, 2});
    add({1, 8, 2, 3, 3, 3, s, s, 1, 1, 4, 4, 4, 4, 2});
    add({1, 8, 3, 4, 3, 3, s, s, 1, 1, 1, 5, 1, 3, 2});
  }
  // Dilation, windows that are not square.
  add({2, 5, 9, 10, 3, 3, 1, 1, 2, 2, 2, 2, 2, 2, 3});
  add({1, 7, 6, 9, 2, 5, 1, 2, 2, 1, 1, 0, 3, 1, 4});
  add({1, 34, 5, 6, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 2});
  for (int64_t k : {3, 2})
    for (int activation = 0; activation < 7; ++activation) {  // with and without a special kernel
      Case one = square(1, 4, 8, 8, k, 1, 2);
      one.corners = true;
      one.raw_affine = activation % 2 == 0;
      add(one);
      found.back().activation = found.back().raw_activation = static_cast<Activation>(activation);
    }
  // What is there, and what is wanted.
  for (int i = 0; i < 24; ++i) {
    const bool generic = i >= 16;
    Case k = square(2, 6, 6, 9, generic ? 2 : i % 2 == 0 ? 3 : 5, 1 + i / 2 % 2, 3);
    add(k);
    Case& one = found.back();
    const auto maybe = [&] { return random.from_to(0, 1) == 1; };
    one.affine = maybe();
    one.raw = random.from_to(0, 3) > 0;
    one.raw_affine = one.raw && maybe();
    one.gate = one.raw && maybe();
    one.offset = one.raw && maybe();
    one.coefficients = one.raw && maybe();
    one.residual = maybe();
    one.input = maybe();
    one.weight = maybe();
    one.bias = maybe();
    one.sums = one.input && one.affine && maybe();
    one.misaligned = random.from_to(0, 2);
    if (!one.affine) one.activation = Activation::kNone;
    if (!one.raw) one.raw_activation = Activation::kNone;
    one.residual = one.residual && one.input;
    if (i == 0) one.parts = 0;
  }
  return found;
}

}  // namespace

void test_train_depthwise(Results& results) {
  Random random;
  int64_t i = 0;
  for (const Case& k : cases(random)) {
    // Types take turns, since the kernels do not differ in anything but elements.
    const int64_t type = i++ % 3;
    if (type == 0) run<float>(results, random, k);
    if (type == 1) run<__half>(results, random, k);
    if (type == 2) run<__nv_bfloat16>(results, random, k);
  }
  for (int64_t k : {3, 2}) {
    run<float>(results, random, square(0, 4, 5, 5, k, 1, 2));
    Case far = square(3, 4, 19, 19, k, 1, 5);
    far.top = far.bottom = far.left = far.right = 0;
    far.activation = Activation::kNone;
    far.far = true;
    Problem<float>(random, far).forward(results);
    Case many = square(66000, 1, 1, 1, k, 1, 7);  // more images than a grid's dimension holds
    many.top = many.left = k - 1;
    many.bottom = many.right = 0;
    Problem<float>(random, many).forward(results);
    if (k == 2) Problem<float>(random, many).backward(results);
  }
}

}  // namespace fastconv_test
