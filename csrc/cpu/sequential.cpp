// A chain of ops on maps that stay near: images are dealt to the threads, and each goes depth first
// through the ops, alone where its maps are large, in a group where the weights are the larger part
// and are then read once for all of it. Memory moved: the input, the weights once a group, the
// output. What images are left when each thread has as many go through one by one, all threads
// sharing every op. 1x1 convolutions side by side read their input together.
#include "../sequential.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "dispatch.h"
#include "plan.h"
#include "scratch.h"
#include "team.h"

namespace fastconv {
namespace {

constexpr int64_t kMostSideBySide = 4;

// [begin, end) of the steps.
struct Steps {
  int64_t begin, end;
};

constexpr Scratch kSlots[kMapSlots] = {Scratch::kMaps, Scratch::kOtherMaps, Scratch::kThirdMaps,
                                       Scratch::kFourthMaps, Scratch::kFifthMaps};

char* buffer(Scratch purpose, int64_t bytes) {
  return static_cast<char*>(scratch(purpose, static_cast<std::size_t>(bytes)));
}

struct Chain {
  const KernelTable& table;
  const SequentialParams& p;

  // Where maps begin is counted in bytes here.
  int64_t bytes(int64_t elements) const { return elements * element_bytes(table.type); }
  int64_t in_bytes(const SequentialStep& step) const { return bytes(step.in_elements); }
  int64_t out_bytes(const SequentialStep& step) const { return bytes(step.out_elements); }

  const char* image(int64_t n) const {
    const SequentialStep& first = p.steps[0];
    const bool strided = first.kind == StepKind::kConv2dBiasAct;
    const int64_t size = strided ? first.conv2d_bias_act.batch_stride : first.in_elements;
    return static_cast<const char*>(p.input) + bytes(n * size);
  }

  // One step on `batch` images; residual may be null.
  void run_step(const SequentialStep& step, int64_t batch, const char* input, const char* residual,
                char* output, const Threads& threads) const {
    output += bytes(step.out_begin);
    const auto run_kernel = [&](auto q, const auto& kernel) {
      q.batch = batch;
      q.input = input;
      q.output = output;
      kernel(q, threads);
    };
    switch (step.kind) {
      case StepKind::kConv2dBiasAct: {
        Conv2dBiasActParams q = step.conv2d_bias_act;
        q.residual = residual;
        return run_kernel(q, table.conv2d_bias_act);
      }
      case StepKind::kPointwise: {
        PointwiseConv2dParams q = step.pointwise;
        q.residual = residual;
        return run_kernel(q, [&](const PointwiseConv2dParams& own, const Threads& all) {
          table.pointwise_conv2d(&own, 1, all);
        });
      }
      case StepKind::kDepthwise:
        return run_kernel(step.depthwise, table.depthwise_conv2d);
      case StepKind::kInvertedResidual: {
        InvertedResidualParams q = step.inverted_residual;
        q.depthwise.batch = batch;
        q.depthwise.input = input;
        q.depthwise.output = output;
        q.residual = residual;
        q.ahead = weights_after(step);
        return table.inverted_residual(q, threads);
      }
      case StepKind::kPool: {
        PointwiseConv2dPoolParams q = step.pool;
        q.ahead = weights_after(step);
        return run_kernel(q, table.pointwise_conv2d_pool);
      }
      case StepKind::kLinear:
        return run_kernel(step.linear, table.linear);
      case StepKind::kSqueezeExcite:
        return run_kernel(step.squeeze_excite, table.squeeze_excite);
      case StepKind::kMaxPool:
        return run_kernel(step.window, table.max_pool);
      case StepKind::kAveragePool:
      case StepKind::kMean:
        return run_kernel(step.window, table.average_pool);
    }
  }

  // How many steps from the i-th on are 1x1 convolutions of the same pixels, to run as one. Without
  // residuals: the room of one that is read for the last time can be another's output.
  int64_t side_by_side(int64_t i, int64_t end) const {
    const SequentialStep& first = p.steps[i];
    const auto alike = [&](const SequentialStep& step) {
      return step.kind == StepKind::kPointwise && step.residual == kNoMap &&
             step.input == first.input &&
             step.pointwise.stride_height == first.pointwise.stride_height &&
             step.pointwise.stride_width == first.pointwise.stride_width;
    };
    int64_t count = 0;
    while (count < kMostSideBySide && i + count < end && alike(p.steps[i + count])) ++count;
    return std::max<int64_t>(1, count);
  }

  // Steps [i, i + count), which are side_by_side.
  template <class Output>
  void run_side_by_side(int64_t i, int64_t count, int64_t batch, const char* input,
                        const Output& output, const Threads& threads) const {
    PointwiseConv2dParams parts[kMostSideBySide];
    for (int64_t j = 0; j < count; ++j) {
      const SequentialStep& step = p.steps[i + j];
      parts[j] = step.pointwise;
      parts[j].batch = batch;
      parts[j].input = input;
      parts[j].output = output(step) + bytes(step.out_begin);
    }
    table.pointwise_conv2d(parts, count, threads);
  }

  // What of the next step's weights is worth asking for while this one runs. Most of what L2 holds
  // is in use. A fully connected layer does nothing but read its weights: for them, it is worth
  // some of L3, where L2 puts what it cannot keep.
  WeightRegion weights_after(const SequentialStep& step) const {
    if (&step + 1 == p.steps + p.count) return {};
    const SequentialStep& next = *(&step + 1);
    const int64_t l2_floats = cache_sizes().l2 / static_cast<int64_t>(sizeof(float));
    const int64_t limit = next.kind == StepKind::kLinear ? 2 * l2_floats : l2_floats / 4;
    return {next.weights.data, std::min(next.weights.floats, limit)};
  }

  // How many steps are one at the beginning: a dense convolution and a block that reads its map
  // directly run band by band, because that map is the largest of a network and need not be whole.
  int64_t in_first() const {
    if (p.count < 2 || p.steps[0].kind != StepKind::kConv2dBiasAct ||
        p.steps[1].kind != StepKind::kInvertedResidual)
      return 1;
    const InvertedResidualParams& block = p.steps[1].inverted_residual;
    const bool own = p.steps[1].residual == kNoMap || p.steps[1].residual == 1;
    const bool direct = own && p.steps[0].last_reader == 1 && block.expand_packed == nullptr &&
                        block.squeeze_excite.squeezed == 0;
    return direct && out_bytes(p.steps[0]) > cache_sizes().l2 / 2 ? 2 : 1;
  }

  // Rows [begin, end) of the first step's map, which is where a block finds them.
  void run_dense_rows(int64_t begin, int64_t end, const char* input, char* output) const {
    Conv2dBiasActParams q = p.steps[0].conv2d_bias_act;
    const int64_t first = begin * q.stride_height - q.pad_top;
    const int64_t above = std::max<int64_t>(0, first);
    q.batch = 1;
    q.input = input + bytes(above * q.row_stride);
    q.height -= above;
    q.pad_top = above - first;
    q.out_height = end - begin;
    q.output = output;
    table.conv2d_bias_act(q, kAlone);
  }

  // The first two steps on one image. Each task has a range of output rows and goes through it in
  // bands that stay in L2; what two bands read in common is kept.
  void run_banded(const char* input, char* output, const Threads& threads) const {
    const SequentialStep& step = p.steps[1];
    const InvertedResidualParams& block = step.inverted_residual;
    const DepthwiseConv2dParams& d = block.depthwise;
    const int64_t row = bytes(d.width * d.channels);
    const int64_t out_row = bytes(d.out_width * block.out_channels);
    const int64_t band = std::max<int64_t>(1, cache_sizes().l2 / 4 / (row * d.stride_height));
    constexpr int64_t kTasksPerThread = 2;
    const int64_t tasks =
        std::min(threads.count == 1 ? 1 : kTasksPerThread * threads.count, d.out_height);
    threads.parallel(tasks, [&](int64_t task) {
      const Share rows(d.out_height, tasks, task);
      char* map = buffer(Scratch::kBand, ring_rows(d, std::min(band, rows.end - rows.begin)) * row);
      int64_t have_begin = 0, have_end = 0;  // rows of the map that are there
      for (int64_t y = rows.begin; y < rows.end; y += band) {
        const int64_t count = std::min(band, rows.end - y);
        const int64_t first = y * d.stride_height - d.pad_top;
        const int64_t begin = std::max<int64_t>(0, first);
        const int64_t end = std::max(begin, std::min(d.height, first + ring_rows(d, count)));
        const int64_t kept = std::max<int64_t>(0, have_end - begin);
        if (kept > 0) std::memmove(map, map + (begin - have_begin) * row, kept * row);
        if (begin + kept < end) run_dense_rows(begin + kept, end, input, map + kept * row);
        have_begin = begin;
        have_end = end;
        InvertedResidualParams q = block;
        q.depthwise.batch = 1;
        q.depthwise.height = end - begin;
        q.depthwise.pad_top = begin - first;
        q.depthwise.out_height = count;
        q.depthwise.input = map;
        q.depthwise.output = output + y * out_row;
        q.residual = step.residual == kNoMap ? nullptr : map + (y - begin) * row;
        table.inverted_residual(q, kAlone);
      }
    });
  }

  // Runs what belongs to step i, and adds its time to that step's.
  template <class F>
  void timed(int64_t i, const Threads& threads, const F& run) const {
    if (p.nanoseconds == nullptr) return run();
    using Clock = std::chrono::steady_clock;
    const Clock::time_point begin = Clock::now();
    run();
    const std::chrono::nanoseconds time = Clock::now() - begin;
    __atomic_fetch_add(p.nanoseconds + i, time.count() * threads.count, __ATOMIC_RELAXED);
  }

  // Some steps in a row on `batch` images, which read no map from before but the last.
  void run_steps(Steps steps, int64_t batch, const char* input, char* output,
                 const Threads& threads) const {
    const int64_t first = steps.begin == 0 ? in_first() - 1 : steps.begin;
    const int64_t before = steps.begin == 0 ? 0 : p.steps[steps.begin - 1].output;
    const int64_t last = p.steps[steps.end - 1].output;
    int64_t largest[kMapSlots] = {};
    for (int64_t i = first; i < steps.end; ++i) {
      const SequentialStep& step = p.steps[i];
      if (step.output == last) continue;
      int64_t& size = largest[p.steps[step.output - 1].slot];
      size = std::max(size, out_bytes(step));
    }
    char* maps[kMapSlots];
    for (int64_t s = 0; s < kMapSlots; ++s)
      maps[s] = largest[s] == 0 ? nullptr : buffer(kSlots[s], batch * largest[s]);
    const auto at = [&](int64_t map) -> const char* {
      if (map == kNoMap) return nullptr;
      return map == before ? input : maps[p.steps[map - 1].slot];
    };
    const auto to = [&](const SequentialStep& step) {
      return step.output == last ? output : maps[p.steps[step.output - 1].slot];
    };
    for (int64_t i = first; i < steps.end;) {
      const SequentialStep& step = p.steps[i];
      const int64_t count = side_by_side(i, steps.end);
      const bool banded = i > steps.begin && i == first;
      timed(banded ? steps.begin : i, threads, [&] {
        if (banded) {
          run_banded(input, to(step), threads);
        } else if (count > 1) {
          run_side_by_side(i, count, batch, at(step.input), to, threads);
        } else {
          run_step(step, batch, at(step.input), at(step.residual), to(step), threads);
        }
      });
      i += count;
    }
  }

  // Images [begin, end) through steps [0, body) on one thread: each alone as far as `joint`, all
  // together from there.
  void run_group(int64_t begin, int64_t end, int64_t joint, int64_t body, char* output) const {
    const int64_t batch = end - begin;
    const int64_t joint_bytes = out_bytes(p.steps[joint - 1]);
    char* joint_maps = joint == body ? output : buffer(Scratch::kJointMaps, batch * joint_bytes);
    for (int64_t n = 0; n < batch; ++n)
      run_steps({0, joint}, 1, image(begin + n), joint_maps + n * joint_bytes, kAlone);
    if (joint < body) run_steps({joint, body}, batch, joint_maps, output, kAlone);
  }

  // How many images form a group at most, and how large the maps of a group may be, in bytes.
  struct Limits {
    int64_t images, maps;
  };

  // Maps of a group stay in L2. Where weights do not stay in L3 until the next group wants them,
  // it is worth having maps there instead; a few images share most of what reading them costs.
  Limits limits(const Threads& threads, int64_t body) const {
    int64_t weights = 0;
    for (int64_t i = 0; i < body; ++i)
      weights += p.steps[i].weights.floats * static_cast<int64_t>(sizeof(float));
    const CacheSizes cache = cache_sizes();
    const int64_t in_l2 = cache.l2 * 3 / 4;
    if (weights <= cache.l3 || cache.l3 == 0) return {8, in_l2};
    return {4, std::max(in_l2, cache.l3 / (2 * std::max<int64_t>(2, threads.count)))};
  }

  // The first step from which the maps of `group` images are within the limit and the chain can be
  // cut; not before in_first().
  int64_t joint_step(int64_t group, int64_t limit, int64_t body) const {
    const int64_t least = in_first();
    int64_t joint = body;
    for (int64_t i = body - 1; i >= least; --i) {
      const SequentialStep& step = p.steps[i];
      const int64_t out = out_bytes(step) * (step.residual == kNoMap ? 1 : 2);
      if (group * (in_bytes(step) + out) > limit) break;
      if (step.begins) joint = i;
    }
    return joint;
  }

  void run(const Threads& threads) const {
    // Fully connected layers at the end see the whole batch: their weights are read once.
    int64_t body = p.count;
    while (body > 1 && p.steps[body - 1].kind == StepKind::kLinear && p.steps[body - 1].begins)
      --body;
    const int64_t features = out_bytes(p.steps[body - 1]);
    char* const end = static_cast<char*>(p.output);
    char* output = body == p.count ? end : buffer(Scratch::kFeatures, p.batch * features);

    // Whole images, in groups of which every thread gets equally many.
    const Limits most = limits(threads, body);
    const int64_t each = p.batch / threads.count, whole = each * threads.count;
    const int64_t rounds = std::max<int64_t>(1, (each + most.images - 1) / most.images);
    const int64_t group = std::max<int64_t>(1, (each + rounds - 1) / rounds);
    const int64_t joint = joint_step(group, most.maps, body);
    // Images that have nothing in common are dealt one by one: a thread that another program holds
    // up then has fewer of them (beside one, MobileNetV2 at batch 16 takes 66 ms instead of 75).
    const int64_t groups = joint == body ? whole : each == 0 ? 0 : rounds * threads.count;
    threads.parallel(groups, [&](int64_t i) {
      const Share images(whole, groups, i);
      run_group(images.begin, images.end, joint, body, output + images.begin * features);
    });
    for (int64_t n = whole; n < p.batch; ++n)
      run_steps({0, body}, 1, image(n), output + n * features, threads);
    if (body < p.count) run_steps({body, p.count}, p.batch, output, end, threads);
  }
};

}  // namespace

bool plan_maps(SequentialStep* steps, int64_t count) {
  for (int64_t i = 0; i < count; ++i) steps[i].last_reader = i + 1;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t map : {steps[i].input, steps[i].residual, steps[i].output})
      if (map > 0) steps[map - 1].last_reader = std::max(steps[map - 1].last_reader, i);
  }
  int64_t free_from[kMapSlots] = {};  // the first step for which a slot is free
  for (int64_t i = 0; i < count; ++i) {
    SequentialStep& step = steps[i];
    const int64_t before = i == 0 ? 0 : steps[i - 1].output;
    step.begins = true;
    for (int64_t j = i; j < count; ++j) {
      for (int64_t map : {steps[j].input, steps[j].residual, steps[j].output})
        step.begins = step.begins && (map == kNoMap || map > i || map == before);
    }
    if (step.output != i + 1) continue;
    step.slot = 0;
    while (step.slot < kMapSlots && free_from[step.slot] > i) ++step.slot;
    if (step.slot == kMapSlots) return false;
    free_from[step.slot] = step.last_reader + 1;
  }
  return true;
}

void sequential(const KernelTable& table, const SequentialParams& p, const Threads& threads) {
  if (p.batch == 0) return;
  const Chain chain{table, p};
  Team::lead(threads, [&](const Threads& team) { chain.run(team); });
}

}  // namespace fastconv
