// Reads the steps of a chain of ops, checks them against the packed weights and each other, and
// runs them. What was read is kept: a network's calls have the same steps, weights and sizes.
#include <sstream>

#include "conv2d_bias_act.h"
#include "depthwise.h"
#include "squeeze_excite.h"

namespace fastconv {
namespace {

constexpr const char* kOp = "sequential";

// The fields of one step, in the order of python/fastconv/ops/_sequential.py.
struct Fields {
  static constexpr int64_t kCount = 21;
  explicit Fields(const int64_t* f)
      : kind(static_cast<StepKind>(f[0])),
        out_channels(f[1]),
        mid_channels(f[2]),
        kernel(f[3], f[4]),
        stride{f[5], f[6]},
        padding{f[7], f[8], f[9], f[10]},
        dilation{f[11], f[12]},
        activation(check_activation(kOp, "steps' activation", f[13])),
        out_activation(check_activation(kOp, "steps' out_activation", f[14])),
        residual(f[15]),
        squeezed(f[16]),
        excite_activation(check_activation(kOp, "steps' squeeze-excite activation", f[17])),
        excite_gate(check_activation(kOp, "steps' squeeze-excite gate", f[18])),
        source(f[19]),
        joins(f[20]) {
    FASTCONV_CHECK(f[0] >= 0 && f[0] < kStepKinds, kOp, "steps' kind",
                   text("be from 0 to ", kStepKinds - 1), f[0]);
    for (int64_t i : {3, 4}) check_size(f[i], 1);
    check_size(f[1], pools() ? 0 : 1);
    for (int64_t i : {2, 15, 16, 19, 20}) check_size(f[i], 0);
  }
  // Without weights: it has as many output channels as input channels.
  bool pools() const {
    return kind == StepKind::kMaxPool || kind == StepKind::kAveragePool || kind == StepKind::kMean;
  }
  static void check_size(int64_t size, int64_t least) {
    FASTCONV_CHECK(size >= least && size <= (int64_t{1} << 24), kOp, "steps' sizes",
                   text("be from ", least, " to 2^24"), size);
  }

  StepKind kind;
  int64_t out_channels, mid_channels;  // mid_channels 0: no expansion
  KernelSize kernel;
  Ints stride, padding, dilation;
  Activation activation, out_activation;  // inside a block, and at its end
  int64_t residual;                       // 0: none; n: the map before the step n - 1 before
  int64_t squeezed;                       // 0: no squeeze-excite
  Activation excite_activation, excite_gate;
  int64_t source;  // the map before the step so many before is read
  int64_t joins;   // 0: none; n: writes behind the channels of the step n before
};

int64_t elements_of(const Sizes& image) { return image.channels * image.height * image.width; }

SqueezeExciteParams excite_of(const Fields& f, int64_t channels) {
  SqueezeExciteParams p{};
  p.channels = channels;
  p.squeezed = f.squeezed;
  p.activation = f.excite_activation;
  p.gate = f.excite_gate;
  return p;
}

PoolParams pool_window(const Sizes& image, const Fields& f) {
  const Window window = check_window(kOp, image, f.kernel, f.stride, f.padding, {1, 1});
  PoolParams p{};
  set_window(p, image, f.kernel, window, f.stride, f.padding);
  p.channels = image.channels;
  return p;
}

// One step on `image`, which becomes what the step makes of it.
SequentialStep read_step(const Fields& f, PackedWeights& weights, Sizes& image) {
  SequentialStep step{};
  step.kind = f.kind;
  step.in_elements = elements_of(image);
  const int64_t in = image.channels, out = f.pools() ? in : f.out_channels;
  const int64_t taps = f.kernel.height * f.kernel.width;
  const Sizes input = image;
  step.weights.data = weights.position();
  image.channels = out;
  switch (f.kind) {
    case StepKind::kConv2dBiasAct: {
      Conv2dBiasActParams& p = step.conv2d_bias_act;
      p = conv2d_window(kOp, input, out, f.kernel, f.stride, f.padding);
      p.activation = f.out_activation;
      weights.next_dense(p);
      p.batch_stride = step.in_elements;
      p.channel_stride = 1;
      p.row_stride = input.width * in;
      p.column_stride = in;
      image.height = p.out_height;
      image.width = p.out_width;
      break;
    }
    case StepKind::kPointwise: {
      check_ints(kOp, "steps' stride", f.stride, 2, 1);
      PointwiseConv2dParams& p = step.pointwise;
      p = PointwiseConv2dParams{};
      image.height = (input.height - 1) / f.stride[0] + 1;
      image.width = (input.width - 1) / f.stride[1] + 1;
      p.height = input.height;
      p.width = input.width;
      p.in_channels = in;
      p.out_height = image.height;
      p.out_width = image.width;
      p.out_channels = out;
      p.stride_height = f.stride[0];
      p.stride_width = f.stride[1];
      p.activation = f.out_activation;
      p.packed = weights.next(PackedKind::kPointwise, out, in);
      break;
    }
    case StepKind::kDepthwise: {
      FASTCONV_CHECK(out == in, kOp, "a depthwise step", text("have ", in, " output channels"),
                     out);
      DepthwiseConv2dParams& p = step.depthwise;
      p = depthwise_window(kOp, input, out, f.kernel, f.stride, f.padding, f.dilation);
      p.activation = f.out_activation;
      p.packed = weights.next(PackedKind::kDepthwise, out, taps);
      image.height = p.out_height;
      image.width = p.out_width;
      break;
    }
    case StepKind::kInvertedResidual: {
      const int64_t mid = f.mid_channels == 0 ? in : f.mid_channels;
      InvertedResidualParams& p = step.inverted_residual;
      p = InvertedResidualParams{};
      p.depthwise = depthwise_window(kOp, input, mid, f.kernel, f.stride, f.padding, f.dilation);
      p.depthwise.activation = p.expand_activation = f.activation;
      p.in_channels = in;
      p.out_channels = out;
      p.project_activation = f.out_activation;
      if (f.mid_channels != 0) p.expand_packed = weights.next(PackedKind::kPointwise, mid, in);
      p.depthwise.packed = weights.next(PackedKind::kDepthwise, mid, taps);
      if (f.squeezed > 0) {
        p.squeeze_excite = excite_of(f, mid);
        set_packed(p.squeeze_excite, weights);
      }
      p.project_packed = weights.next(PackedKind::kPointwise, out, mid);
      image.height = p.depthwise.out_height;
      image.width = p.depthwise.out_width;
      break;
    }
    case StepKind::kPool: {
      PointwiseConv2dPoolParams& p = step.pool;
      p = PointwiseConv2dPoolParams{};
      p.pixels = input.height * input.width;
      p.in_channels = in;
      p.out_channels = out;
      p.activation = f.out_activation;
      p.packed = weights.next(PackedKind::kPointwise, out, in);
      image.height = image.width = 1;
      break;
    }
    case StepKind::kLinear: {
      FASTCONV_CHECK(image.height == 1 && image.width == 1, kOp, "a linear step",
                     "follow a pooled one", text(image.height, " x ", image.width));
      LinearParams& p = step.linear;
      p = LinearParams{};
      p.in_features = in;
      p.out_features = out;
      p.activation = f.out_activation;
      p.packed = weights.next(PackedKind::kPointwise, out, in);
      break;
    }
    case StepKind::kSqueezeExcite: {
      FASTCONV_CHECK(out == in && f.squeezed > 0, kOp, "a squeeze-excite step",
                     text("have ", in, " output channels and squeezed ones"), out);
      step.squeeze_excite = {0, input.height * input.width, excite_of(f, in), nullptr, nullptr};
      set_packed(step.squeeze_excite.weights, weights);
      break;
    }
    case StepKind::kMaxPool:
    case StepKind::kAveragePool: {
      step.window = pool_window(input, f);
      image.height = step.window.out_height;
      image.width = step.window.out_width;
      break;
    }
    case StepKind::kMean: {
      PoolParams& p = step.window;
      p = PoolParams{};
      p.height = p.kernel_height = input.height;
      p.width = p.kernel_width = input.width;
      p.channels = in;
      p.out_height = p.out_width = p.stride_height = p.stride_width = 1;
      image.height = image.width = 1;
      break;
    }
  }
  step.weights.floats = weights.position() - step.weights.data;
  step.out_elements = elements_of(image);
  return step;
}

Ints parse(const std::string& steps) {
  Ints numbers;
  std::istringstream in(steps);
  for (int64_t number; in >> number;) numbers.push_back(number);
  FASTCONV_CHECK(in.eof() && !numbers.empty() && numbers.size() % Fields::kCount == 0, kOp, "steps",
                 text("have a multiple of ", Fields::kCount, " numbers"),
                 text(numbers.size(), " of them"));
  return numbers;
}

// A chain that was read, for all calls that it is right for. Where the memory of its weights has
// become that of others, nothing is read past their end: the same steps need the same size.
struct Plan {
  std::string text;
  const KernelTable* kernels = nullptr;
  const void* packed = nullptr;
  int64_t packed_size = 0, in_channels = 0, in_height = 0, in_width = 0;
  std::vector<SequentialStep> steps;
  int64_t channels = 0, height = 0, width = 0;  // of the output
  bool shares_input = false;                    // whether more than the first step reads it

  bool fits(const Image& image, const std::string& wanted, const Tensor& weights) const {
    return kernels == &image.kernels && packed == weights.const_data_ptr() &&
           packed_size == weights.numel() && in_channels == image.channels &&
           in_height == image.height && in_width == image.width && text == wanted;
  }
};

// Where a step writes its pixels if they are not dense; null for an op that cannot.
int64_t* out_row(SequentialStep& step) {
  switch (step.kind) {
    case StepKind::kConv2dBiasAct:
      return &step.conv2d_bias_act.out_row;
    case StepKind::kPointwise:
      return &step.pointwise.out_row;
    case StepKind::kMaxPool:
    case StepKind::kAveragePool:
      return &step.window.out_row;
    default:
      return nullptr;
  }
}

bool takes_residual(StepKind kind) {
  return kind == StepKind::kConv2dBiasAct || kind == StepKind::kPointwise ||
         kind == StepKind::kInvertedResidual;
}

// Follows the maps of a chain: their sizes, who writes them and who reads them.
class Maps {
 public:
  Maps(std::vector<SequentialStep>& steps, const Sizes& input)
      : steps_(steps), sizes_{input}, is_read_{false} {}

  void add(const Fields& f, PackedWeights& weights) {
    const int64_t map = find(f.source);
    Sizes image = sizes_[map];
    SequentialStep step = read_step(f, weights, image);
    step.input = map;
    is_read_[map] = true;
    step.residual = kNoMap;
    if (f.residual > 0) {
      step.residual = find(f.residual - 1);
      is_read_[step.residual] = true;
      const Sizes& added = sizes_[step.residual];
      FASTCONV_CHECK(takes_residual(f.kind) && f.joins == 0 && same_pixels(added, image) &&
                         added.channels == image.channels,
                     kOp, "a step with a residual",
                     "be a convolution or a block that has the shape of that map", "another");
    }
    step.output = static_cast<int64_t>(steps_.size()) + 1;
    if (f.joins > 0) join(f.joins, image, step);
    steps_.push_back(step);
    sizes_.push_back(image);
    is_read_.push_back(false);
  }

  // What the last step writes.
  const Sizes& last() const { return sizes_[steps_.back().output]; }

  // To be called when all steps are there.
  void finish() {
    for (SequentialStep& step : steps_) {
      const Sizes& image = sizes_[step.output];
      step.out_elements = elements_of(image);
      if (int64_t* row = out_row(step)) *row = image.channels;
    }
    FASTCONV_CHECK(plan_maps(steps_.data(), steps_.size()), kOp, "steps",
                   text("need at most ", kMapSlots, " maps at the same time"), "more");
  }

 private:
  // The map before the step so many before the next one.
  int64_t find(int64_t back) const {
    const int64_t map = static_cast<int64_t>(steps_.size()) - back;
    FASTCONV_CHECK(map >= 0, kOp, "a step's source", "be a map of the chain",
                   text(back, " steps before"));
    return map == 0 ? 0 : steps_[map - 1].output;
  }

  static bool same_pixels(const Sizes& a, const Sizes& b) {
    return a.height == b.height && a.width == b.width;
  }

  void join(int64_t back, const Sizes& image, SequentialStep& step) {
    const int64_t other = static_cast<int64_t>(steps_.size()) - back;
    const bool there = other >= 0;
    const int64_t map = there ? steps_[other].output : 0;
    Sizes& joint = sizes_[map];
    FASTCONV_CHECK(there && !is_read_[map] && same_pixels(joint, image) && out_row(step) &&
                       out_row(steps_[map - 1]) && steps_[map - 1].residual == kNoMap,
                   kOp, "a step that joins another",
                   "be a convolution or a pooling of its size, before the map is read",
                   text("one of ", image.height, " x ", image.width));
    step.output = map;
    step.out_begin = joint.channels;
    joint.channels += image.channels;
  }

  std::vector<SequentialStep>& steps_;
  std::vector<Sizes> sizes_;  // of map i; of the joint maps, as far as they are written
  std::vector<bool> is_read_;
};

Plan read_plan(const Image& image, const std::string& steps, const Tensor& packed) {
  Plan plan;
  plan.text = steps;
  plan.kernels = &image.kernels;
  plan.packed = packed.const_data_ptr();
  plan.packed_size = packed.numel();
  plan.in_channels = image.channels;
  plan.in_height = image.height;
  plan.in_width = image.width;
  const Ints numbers = parse(steps);
  PackedWeights weights(kOp, packed, image.kernels);
  Maps maps(plan.steps, image);
  for (std::size_t i = 0; i < numbers.size(); i += Fields::kCount)
    maps.add(Fields(numbers.data() + i), weights);
  weights.check_end();
  maps.finish();
  for (std::size_t i = 0; i < plan.steps.size(); ++i) {
    const SequentialStep& step = plan.steps[i];
    plan.shares_input |= step.residual == 0 || (i > 0 && step.input == 0);
  }
  plan.channels = maps.last().channels;
  plan.height = maps.last().height;
  plan.width = maps.last().width;
  return plan;
}

// Of this thread, the last few that were read.
Plan& plan_for(const Image& image, const std::string& steps, const Tensor& packed) {
  constexpr std::size_t kMost = 8;
  thread_local std::vector<Plan> plans;
  thread_local std::size_t oldest = 0;
  for (Plan& plan : plans)
    if (plan.fits(image, steps, packed)) return plan;
  Plan plan = read_plan(image, steps, packed);
  if (plans.size() < kMost) return plans.emplace_back(std::move(plan));
  Plan& place = plans[oldest];
  oldest = (oldest + 1) % kMost;
  return place = std::move(plan);
}

// (N, C), for a fully connected layer, is (N, C, 1, 1).
Image check_first_input(const Tensor& input) {
  if (input.dim() != 2) return check_input(kOp, input);
  const KernelTable& kernels = check_map(kOp, "input", input);
  FASTCONV_CHECK(input.size(1) > 0, kOp, "input", "have shape (N, C) with C at least 1",
                 shape_text(input));
  return {{input.size(0), input.size(1), 1, 1}, kernels};
}

// times: of the plan's steps; null for none.
Tensor run_plan(Plan& plan, const Image& image, const Tensor& input, int64_t* times) {
  const StepKind begin = plan.steps.front().kind, last = plan.steps.back().kind;
  const bool is_flat = input.dim() == 2;
  FASTCONV_CHECK(!is_flat || begin == StepKind::kLinear, kOp, "input", "have 4 dimensions",
                 shape_text(input));
  Tensor output =
      last == StepKind::kPool || last == StepKind::kMean || last == StepKind::kLinear
          ? empty_2d(input, image.batch, plan.channels)
          : empty_channels_last(input, {image.batch, plan.channels, plan.height, plan.width});
  const bool is_dense = begin == StepKind::kConv2dBiasAct;
  const Tensor first = is_flat                          ? dense(input)
                       : is_dense && !plan.shares_input ? input
                                                        : channels_last(input);
  if (is_dense) set_strided_input(plan.steps[0].conv2d_bias_act, first);
  const SequentialParams p{image.batch,          static_cast<int64_t>(plan.steps.size()),
                           plan.steps.data(),    data(first),
                           mutable_data(output), times};
  sequential(image.kernels, p, torch_threads());
  return output;
}

Tensor sequential_cpu(const Tensor& input, const std::string& steps, const Tensor& packed) {
  const Image image = check_first_input(input);
  check_packed(kOp, packed);
  return run_plan(plan_for(image, steps, packed), image, input, nullptr);
}

std::tuple<Tensor, Tensor> sequential_times_cpu(const Tensor& input, const std::string& steps,
                                                const Tensor& packed) {
  const Image image = check_first_input(input);
  check_packed(kOp, packed);
  Plan& plan = plan_for(image, steps, packed);
  const std::array<int64_t, 1> size{static_cast<int64_t>(plan.steps.size())};
  Tensor times = torch::stable::empty({size.data(), size.size()}, ScalarType::Long);
  torch::stable::zero_(times);
  Tensor output = run_plan(plan, image, input, times.mutable_data_ptr<int64_t>());
  return {output, times};
}

}  // namespace
}  // namespace fastconv

STABLE_TORCH_LIBRARY_IMPL(fastconv, CPU, m) {
  m.impl("sequential", TORCH_BOX(&fastconv::sequential_cpu));
  m.impl("sequential_times", TORCH_BOX(&fastconv::sequential_times_cpu));
}
