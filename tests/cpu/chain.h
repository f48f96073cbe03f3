// A chain of ops and what it must compute, for the tests of csrc/sequential.h.
#pragma once

#include "cases.h"

namespace fastconv::test {

// Unlike a random residual, a map brings the rounding errors of its own past.
inline Map add(Map x, const Map& residual) {
  for (std::size_t i = 0; i < x.value.size(); ++i) {
    x.value[i] += residual.value[i];
    x.magnitude[i] += residual.magnitude[i];
  }
  return x;
}

// One packed weight of a step.
struct Part {
  Part(Draw& draw, int64_t outputs, int64_t inputs, int64_t rows = 1, int64_t columns = 1)
      : n(outputs),
        channels(inputs),
        segments(rows),
        taps(columns),
        // Keeps the size of values: where they grow, relu6 would hide most of them.
        weight(draw.floats(n * channels * segments * taps,
                           std::sqrt(3.f / (channels * segments * taps)))),
        bias(draw.maybe(draw.chance(), n)) {}

  int64_t n, channels, segments, taps;
  Floats weight, bias;
};

// A chain in the making: its steps, and what it should compute so far.
class Chain {
 public:
  Chain(Draw& draw, int64_t n, int64_t h, int64_t w, int64_t c)
      : draw_(draw), map_(draw_map(draw, n, h, w, c, &input_)), what_(describe(map_)) {
    maps_.push_back(map_);
  }

  // What the next step reads, adds to its result, or writes behind: map 0 is the input, map i what
  // the i-th step writes.
  Chain& from(int64_t map) {
    source_ = map;
    map_ = maps_[map];
    what_ += text("from", map);
    return *this;
  }
  Chain& adding(int64_t map) {
    residual_ = map;
    what_ += text("adding", map);
    return *this;
  }
  Chain& joining(int64_t map) {
    joined_ = map;
    what_ += text("joining", map);
    return *this;
  }

  // First step only. Reads planes whose rows lie apart in memory.
  Chain& conv2d(int64_t out, const Window& s) {
    const int64_t h = map_.height, w = map_.width, c = map_.channels, row = w + 3;
    Floats strided(map_.batch * c * h * row, NAN);
    for (std::size_t i = 0; i < input_.size(); ++i) {
      const int64_t pixel = i / c, plane = pixel / (w * h) * c + i % c;
      strided[(plane * h + pixel / w % h) * row + pixel % w] = input_[i];
    }
    input_ = std::move(strided);

    const Activation activation = draw_.activation();
    SequentialStep step =
        begin(StepKind::kConv2dBiasAct, {Part(draw_, out, c, s.kernel_height, s.kernel_width)});
    map_ = activate(convolve(map_, part(0), out, 1, s), activation);
    step.conv2d_bias_act = {0,
                            h,
                            w,
                            c,
                            map_.height,
                            map_.width,
                            out,
                            s.kernel_height,
                            s.kernel_width,
                            s.stride_height,
                            s.stride_width,
                            s.top,
                            s.left,
                            activation,
                            nullptr,
                            c * h * row,
                            h * row,
                            row,
                            1,
                            nullptr,
                            false,
                            nullptr,
                            nullptr,
                            0};
    return end(step, text("conv2d", out, describe(s), describe(activation)));
  }

  // A dense convolution inside the chain.
  Chain& convolution(int64_t out, const Window& s) {
    const Map in = map_;
    const int64_t c = in.channels, row = in.width * c;
    const Activation activation = draw_.activation();
    SequentialStep step =
        begin(StepKind::kConv2dBiasAct, {Part(draw_, out, c, s.kernel_height, s.kernel_width)});
    map_ = as_computed(convolve(in, part(0), out, 1, s), c, s);
    map_ = activate(with_residual(std::move(map_)), activation);
    step.conv2d_bias_act = {0,
                            in.height,
                            in.width,
                            c,
                            map_.height,
                            map_.width,
                            out,
                            s.kernel_height,
                            s.kernel_width,
                            s.stride_height,
                            s.stride_width,
                            s.top,
                            s.left,
                            activation,
                            nullptr,
                            in.height * row,
                            1,
                            row,
                            c,
                            nullptr,
                            false,
                            nullptr,
                            nullptr,
                            0};
    return end(step, text("convolution", out, describe(s), describe(activation)));
  }

  Chain& max_pool(const Window& s) { return pool_windows(StepKind::kMaxPool, s); }
  Chain& average_pool(const Window& s) { return pool_windows(StepKind::kAveragePool, s); }
  Chain& mean_pool() {
    SequentialStep step = begin(StepKind::kMean, {});
    Window s;
    s.kernel_height = map_.height;
    s.kernel_width = map_.width;
    step.window = pool_params(s);
    map_ = mean(map_);
    return end(step, "mean");
  }

  Chain& pointwise(int64_t out, int64_t stride = 1) {
    const Map in = map_;
    const Activation activation = draw_.activation();
    SequentialStep step = begin(StepKind::kPointwise, {Part(draw_, out, in.channels)});
    map_ = convolve(in, part(0), out, 1, window({1, 1}, {stride, stride}, {1, 1}));
    map_ = activate(with_residual(std::move(map_)), activation);
    step.pointwise = {0,       in.height, in.width,   in.channels, map_.height, map_.width, out,
                      stride,  stride,    activation, nullptr,     nullptr,     nullptr,    nullptr,
                      nullptr, 0};
    return end(step, text("pointwise", out, "stride", stride, describe(activation)));
  }

  Chain& depthwise(const Window& s) {
    const int64_t c = map_.channels;
    const Activation activation = draw_.activation();
    SequentialStep step =
        begin(StepKind::kDepthwise, {Part(draw_, c, 1, s.kernel_height, s.kernel_width)});
    step.depthwise = depthwise_params(map_, c, s, activation);
    map_ = activate(convolve(map_, part(0), c, c, s), activation);
    return end(step, text("depthwise", describe(s), describe(activation)));
  }

  // expanded 0: no expansion. squeezed 0: no squeeze-excite.
  Chain& block(int64_t expanded, int64_t out, const Window& s, bool residual = false,
               int64_t squeezed = 0) {
    const Map in = map_;
    const int64_t mid = expanded == 0 ? in.channels : expanded;
    std::vector<Part> parts;
    if (expanded > 0) parts.emplace_back(draw_, mid, in.channels);
    parts.emplace_back(draw_, mid, 1, s.kernel_height, s.kernel_width);
    if (squeezed > 0) add_excite(&parts, mid, squeezed);
    parts.emplace_back(draw_, out, mid);
    SequentialStep step = begin(StepKind::kInvertedResidual, std::move(parts));
    if (residual) step.residual = step.input;
    InvertedResidualParams& p = step.inverted_residual;
    p = {};
    p.depthwise = depthwise_params(in, mid, s, draw_.activation());
    p.in_channels = in.channels;
    p.out_channels = out;
    p.expand_activation = draw_.activation();
    p.project_activation = draw_.activation();
    if (squeezed > 0) p.squeeze_excite = draw_excite(mid, squeezed);

    int64_t i = 0;
    if (expanded > 0) map_ = activate(convolve(in, part(i++), mid, 1, {}), p.expand_activation);
    map_ = activate(convolve(map_, part(i++), mid, mid, s), p.depthwise.activation);
    if (squeezed > 0) map_ = excite(map_, p.squeeze_excite, i);
    map_ = convolve(map_, parts_.back().back(), out, 1, {});
    if (residual) map_ = add(std::move(map_), in);
    map_ = activate(std::move(map_), p.project_activation);
    return end(step, text("block", expanded, out, describe(s), describe(p.expand_activation),
                          describe(p.depthwise.activation), describe(p.project_activation),
                          "residual", residual, "squeezed", squeezed));
  }

  Chain& squeeze_excite(int64_t squeezed) {
    std::vector<Part> parts;
    add_excite(&parts, map_.channels, squeezed);
    SequentialStep step = begin(StepKind::kSqueezeExcite, std::move(parts));
    SqueezeExciteParams p = draw_excite(map_.channels, squeezed);
    step.squeeze_excite = {0, map_.height * map_.width, p, nullptr, nullptr};
    map_ = excite(map_, p, 0);
    return end(step, text("squeeze-excite", squeezed));
  }

  Chain& pool(int64_t out) {
    const Activation activation = draw_.activation();
    const int64_t pixels = map_.height * map_.width;
    SequentialStep step = begin(StepKind::kPool, {Part(draw_, out, map_.channels)});
    step.pool = {0, pixels, map_.channels, out, activation, nullptr, nullptr, nullptr, {}};
    map_ = mean(activate(convolve(map_, part(0), out, 1, {}), activation));
    return end(step, text("pool", out, describe(activation)));
  }

  Chain& linear(int64_t out) {
    const Activation activation = draw_.activation();
    SequentialStep step = begin(StepKind::kLinear, {Part(draw_, out, map_.channels)});
    step.linear = {0, map_.channels, out, nullptr, nullptr, nullptr, activation};
    map_ = activate(convolve(map_, part(0), out, 1, {}), activation);
    return end(step, text("linear", out, describe(activation)));
  }

  void run() {
    check("sequential", what_, map_, [&](const Level& level, const Threads& threads, void* output) {
      std::vector<Floats> packed;
      for (std::size_t i = 0; i < steps_.size(); ++i)
        packed.push_back(pack(level, parts_[i], &steps_[i]));
      score().count(level, "plan_maps",
                    plan_maps(steps_.data(), static_cast<int64_t>(steps_.size())) ? "" : what_);
      const Elements elements(level, input_);
      const SequentialParams p{map_.batch, static_cast<int64_t>(steps_.size()), steps_.data(),
                               elements.data(), output};
      sequential(*level.table, p, threads);
    });
  }

 private:
  static Map convolve(const Map& in, const Part& part, int64_t out, int64_t groups,
                      const Window& s) {
    return test::convolve(in, part.weight, part.bias, out, groups, s);
  }
  const Part& part(int64_t i) const { return parts_.back()[i]; }

  void add_excite(std::vector<Part>* parts, int64_t channels, int64_t squeezed) {
    parts->emplace_back(draw_, squeezed, channels);
    parts->emplace_back(draw_, channels, squeezed);
  }
  SqueezeExciteParams draw_excite(int64_t channels, int64_t squeezed) {
    return {channels, squeezed, draw_.activation(), draw_.activation(), nullptr, nullptr, {}};
  }
  // Its weights are the parts from the first on.
  Map excite(const Map& x, const SqueezeExciteParams& p, int64_t first) const {
    const Map squeezed = activate(convolve(mean(x), part(first), p.squeezed, 1, {}), p.activation);
    return multiply(x, activate(convolve(squeezed, part(first + 1), p.channels, 1, {}), p.gate));
  }

  SequentialStep begin(StepKind kind, std::vector<Part> parts) {
    SequentialStep step{};
    step.kind = kind;
    step.input = source_ < 0 ? static_cast<int64_t>(steps_.size()) : source_;
    if (step.input > 0) step.input = steps_[step.input - 1].output;
    step.residual = kNoMap;
    if (residual_ >= 0) step.residual = residual_ == 0 ? 0 : steps_[residual_ - 1].output;
    step.in_elements = elements_of(map_);
    parts_.push_back(std::move(parts));
    return step;
  }
  Chain& end(SequentialStep step, const std::string& what) {
    steps_.push_back(step);
    const auto map = static_cast<int64_t>(steps_.size());
    steps_.back().output = joined_ < 0 ? map : joined_;
    if (joined_ >= 0) {
      steps_.back().out_begin = maps_[joined_].channels;
      map_ = concatenate(maps_[joined_], map_);
      maps_[joined_] = map_;
    }
    maps_.push_back(map_);
    for (SequentialStep& other : steps_) {
      if (other.output != steps_.back().output) continue;
      other.out_elements = elements_of(map_);
      set_out_row(other, joined_ < 0 ? 0 : map_.channels);
    }
    source_ = residual_ = joined_ = -1;
    what_ += "-> " + what;
    return *this;
  }

  static int64_t elements_of(const Map& x) { return x.height * x.width * x.channels; }
  static void set_out_row(SequentialStep& step, int64_t row) {
    if (step.kind == StepKind::kConv2dBiasAct) step.conv2d_bias_act.out_row = row;
    if (step.kind == StepKind::kPointwise) step.pointwise.out_row = row;
    if (step.kind == StepKind::kMaxPool || step.kind == StepKind::kAveragePool)
      step.window.out_row = row;
  }
  Map with_residual(Map x) const {
    return residual_ < 0 ? std::move(x) : add(std::move(x), maps_[residual_]);
  }

  PoolParams pool_params(const Window& s) const {
    return {0,
            map_.height,
            map_.width,
            map_.channels,
            s.out_height(map_.height),
            s.out_width(map_.width),
            s.kernel_height,
            s.kernel_width,
            s.stride_height,
            s.stride_width,
            s.top,
            s.left,
            nullptr,
            nullptr,
            0};
  }
  Chain& pool_windows(StepKind kind, const Window& s) {
    SequentialStep step = begin(kind, {});
    step.window = pool_params(s);
    map_ = test::pool_windows(map_, s, kind == StepKind::kMaxPool);
    return end(step, text(kind == StepKind::kMaxPool ? "max" : "average", describe(s)));
  }

  // All of a step's weights, one after the other as in a network's.
  static Floats pack(const Level& level, const std::vector<Part>& parts, SequentialStep* step) {
    Floats all;
    std::vector<std::size_t> begins;
    for (const Part& part : parts) {
      const bool depthwise = step->kind == StepKind::kDepthwise ||
                             (step->kind == StepKind::kInvertedResidual && part.channels == 1 &&
                              part.segments * part.taps > 1);
      const bool winograd =
          step->kind == StepKind::kConv2dBiasAct &&
          suits_winograd(level.table->type, part.n, part.channels, part.segments, part.taps,
                         step->conv2d_bias_act.stride_height, step->conv2d_bias_act.stride_width);
      if (step->kind == StepKind::kConv2dBiasAct) step->conv2d_bias_act.winograd = winograd;
      const Floats packed =
          winograd ? pack_winograd(level, part.weight, part.n, part.channels, part.bias)
          : depthwise
              ? pack_depthwise(level, part.weight, part.n, part.segments * part.taps, part.bias)
              : pack_pointwise(level, part.weight, part.n, part.channels, part.segments, part.taps,
                               part.bias);
      begins.push_back(all.size());
      all.insert(all.end(), packed.begin(), packed.end());
    }
    step->weights = {all.data(), static_cast<int64_t>(all.size())};
    switch (step->kind) {
      case StepKind::kConv2dBiasAct:
        step->conv2d_bias_act.packed = all.data();
        break;
      case StepKind::kPointwise:
        step->pointwise.packed = all.data();
        break;
      case StepKind::kDepthwise:
        step->depthwise.packed = all.data();
        break;
      case StepKind::kInvertedResidual: {
        InvertedResidualParams& p = step->inverted_residual;
        const bool excites = p.squeeze_excite.squeezed > 0;
        const std::size_t depthwise = parts.size() - (excites ? 4 : 2);
        p.expand_packed = depthwise == 1 ? all.data() : nullptr;
        p.depthwise.packed = all.data() + begins[depthwise];
        if (excites) set_packed(&p.squeeze_excite, all, begins, depthwise + 1);
        p.project_packed = all.data() + begins.back();
        break;
      }
      case StepKind::kPool:
        step->pool.packed = all.data();
        break;
      case StepKind::kLinear:
        step->linear.packed = all.data();
        break;
      case StepKind::kSqueezeExcite:
        set_packed(&step->squeeze_excite.weights, all, begins, 0);
        break;
      default:  // a pooling
        break;
    }
    return all;  // moved, so that the pointers stay
  }
  static void set_packed(SqueezeExciteParams* p, const Floats& all,
                         const std::vector<std::size_t>& begins, std::size_t first) {
    const std::size_t end = first + 2 < begins.size() ? begins[first + 2] : all.size();
    p->reduce_packed = all.data() + begins[first];
    p->expand_packed = all.data() + begins[first + 1];
    p->weights = {p->reduce_packed, static_cast<int64_t>(end - begins[first])};
  }

  Draw& draw_;
  Floats input_;
  Map map_;                                            // what the steps so far make of the input
  std::vector<Map> maps_;                              // the input, and what each step made
  int64_t source_ = -1, residual_ = -1, joined_ = -1;  // of the next step
  std::string what_;
  std::vector<SequentialStep> steps_;
  std::vector<std::vector<Part>> parts_;  // of each step
};

}  // namespace fastconv::test
