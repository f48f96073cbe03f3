// Depthwise convolution in training. The rows that a window needs are normalized into a ring in
// L2, [row][padded width][channels], and read from there by depthwise.h. Backward goes down the
// rows of the input: a row of the gradient enters its ring once, is multiplied there with the rows
// of the input under it (the weight's gradient), and serves the rows of the input's gradient, a
// convolution with the weight turned by 180 degrees, with zeros between its columns and rows where
// the stride is not 1. Memory moved per input pixel, stride 1: grad, raw and input in, the input's
// gradient out.
#include <algorithm>

#include "depthwise.h"
#include "kernels.h"
#include "train.h"
#include "train_depthwise_weight.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

// Rows of a map, normalized, one slot for each of the last `slots`.
struct Ring {
  Ring(Element* memory, int64_t slots, int64_t width, int64_t channels)
      : memory(memory), slots(slots), row(width * channels), channels(channels) {
    std::fill(memory, memory + slots * row, Element{});
  }
  Element* at(int64_t y) const { return memory + y % slots * row; }

  Element* memory;
  int64_t slots, row, channels;
};

// Images, and where there are few of them bands of rows, and slices of the channels whose rings
// fit into L2. By the shape alone.
struct Work {
  // row_elements: of one channel in all rings.
  Work(const TrainWindow& w, int64_t rows, int64_t ring_elements) : channels(w.channels) {
    constexpr int64_t kRoom = 512 * 1024 / sizeof(Element), kTasks = 16, kRows = 8;
    const int64_t vectors = vectors_of(channels);
    const int64_t most = std::max<int64_t>(1, kRoom / (ring_elements * kW));
    slices = (vectors + most - 1) / most;
    bands = std::max<int64_t>(
        1, std::min({(kTasks + w.batch * slices - 1) / (w.batch * slices), rows / kRows}));
    height = rows;
    tasks = w.batch * slices * bands;
  }
  struct Task {
    int64_t image, begin, end;  // rows
    int64_t first, count;       // channels
  };
  Task task(int64_t index) const {
    const Share band(height, bands, index % bands);
    const Share slice(vectors_of(channels), slices, index / bands % slices);
    const int64_t first = slice.begin * kW;
    return {index / bands / slices, band.begin, band.end, first,
            std::min(slice.end * kW, channels) - first};
  }

  int64_t channels, height, slices, bands, tasks;
};

int64_t reach(int64_t kernel, int64_t dilation) { return (kernel - 1) * dilation + 1; }

// Where a task's channels begin in packed weights.
const float* packed_slice(const float* packed, const TrainWindow& w, int64_t first) {
  return packed + kPackedHeader + first * (1 + w.kernel_height * w.kernel_width);
}

// Asks for a row of a map, while another one is computed.
void fetch_row(const void* map, int64_t row, int64_t width, int64_t channels, int64_t first,
               int64_t count) {
  if (map == nullptr) return;
  const Element* at = elements(map) + row * width * channels + first;
  const int64_t bytes = count * static_cast<int64_t>(sizeof(Element));
  if (count == channels) {  // one piece
    const char* p = reinterpret_cast<const char*>(at);
    for (int64_t i = 0; i < width * bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
    return;
  }
  for (int64_t x = 0; x < width; ++x, at += channels) {
    const char* p = reinterpret_cast<const char*>(at);
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
  }
}

class Forward {
 public:
  Forward(const TrainDepthwiseConv2dParams& p)
      : p_(p),
        w_(p.window),
        width_(std::max(w_.pad_left + w_.width, (w_.out_width - 1) * w_.stride_width +
                                                    reach(w_.kernel_width, w_.dilation_width))),
        slots_(reach(w_.kernel_height, w_.dilation_height) + w_.stride_height),
        work_(w_, w_.out_height, slots_ * width_ + 2 * w_.out_width),
        streams_(streams(p.output, map_bytes(w_.batch * w_.out_height * w_.out_width, w_.channels),
                         w_.channels)) {}

  void run(const Threads& threads) const {
    const int64_t parts = w_.batch * work_.bands;
    float* memory = p_.moments == nullptr
                        ? nullptr
                        : scratch_floats(Scratch::kPartials, Moments::room(w_.channels, parts));
    const Moments moments(w_.channels, parts, memory);
    threads.parallel(work_.tasks, [&](int64_t index) { task(index, memory, moments); });
    if (memory == nullptr) return;
    moments.finish(
        [&](int64_t part) {
          const Share band(w_.out_height, work_.bands, part % work_.bands);
          return (band.end - band.begin) * w_.out_width;
        },
        p_.moments);
  }

 private:
  void task(int64_t index, const float* memory, const Moments& moments) const {
    const Work::Task t = work_.task(index);
    const int64_t vectors = vectors_of(t.count), channels = vectors * kW;
    const Ring ring(scratch_elements(Scratch::kSlab, slots_ * width_ * channels), slots_, width_,
                    channels);
    Element* out = scratch_elements(Scratch::kTile, 2 * w_.out_width * channels);
    auto** rows = static_cast<const Element**>(
        scratch(Scratch::kTable, 2 * sizeof(Element*) * w_.kernel_height));
    const DepthwiseKernel kernel{w_.kernel_height, w_.kernel_width, w_.stride_width,
                                 w_.dilation_width, Activation::kNone};
    const float* packed = packed_slice(p_.packed, w_, t.first);
    const int64_t part = t.image * work_.bands + index % work_.bands;
    int64_t next = std::max<int64_t>(0, t.begin * w_.stride_height - w_.pad_top);  // to fill
    for (int64_t y = t.begin; y < t.end;) {
      const int64_t count = std::min<int64_t>(2, t.end - y);
      const int64_t last = (y + count - 1) * w_.stride_height - w_.pad_top +
                           reach(w_.kernel_height, w_.dilation_height);
      for (; next < std::min(last, w_.height); ++next) {
        const MapTile tile{w_.channels, t.image, (t.image * w_.height + next) * w_.width,
                           w_.width,    t.first, t.count};
        normalized_tile(p_.input, tile, ring.at(next) + w_.pad_left * channels, channels);
      }
      for (int64_t i = 0; i < 2 * w_.stride_height && next + i < w_.height; ++i)
        fetch_row(p_.input.data, t.image * w_.height + next + i, w_.width, w_.channels, t.first,
                  t.count);
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t i = 0; i < w_.kernel_height; ++i) {
          const int64_t from = (y + r) * w_.stride_height - w_.pad_top + i * w_.dilation_height;
          rows[r * w_.kernel_height + i] = from >= 0 && from < w_.height ? ring.at(from) : nullptr;
        }
      }
      const DepthwiseRows all{
          rows, 0, width_, channels, w_.out_width, channels, w_.out_width * channels, false};
      depthwise_rows(kernel, packed, all, count, vectors, out, kW);
      const int64_t pixels = count * w_.out_width;
      Element* to = elements(p_.output) +
                    (t.image * w_.out_height + y) * w_.out_width * w_.channels + t.first;
      copy_pixels(out, channels, pixels, t.count, to, w_.channels, streams_);
      if (memory != nullptr)
        moments.add(part, y == t.begin, out, channels, pixels, t.first, t.count);
      y += count;
    }
  }

  const TrainDepthwiseConv2dParams& p_;
  const TrainWindow& w_;
  const int64_t width_, slots_;
  const Work work_;
  const bool streams_;
};

class Backward {
 public:
  Backward(const TrainDepthwiseConv2dBackwardParams& p)
      : p_(p),
        w_(p.window),
        height_(reach(w_.kernel_height, w_.dilation_height)),
        turned_((w_.kernel_width - 1) * w_.dilation_width - w_.pad_left),
        margin_(std::max<int64_t>(0, turned_)),
        gradient_width_(
            std::max(margin_ + (w_.out_width - 1) * w_.stride_width + 1,
                     margin_ - turned_ + w_.width - 1 + reach(w_.kernel_width, w_.dilation_width))),
        input_width_(std::max(
            w_.pad_left + w_.width,
            (w_.out_width - 1) * w_.stride_width + reach(w_.kernel_width, w_.dilation_width))),
        reads_input_(p.input.is_plain() && w_.channels % kW == 0),
        reads_gradient_(p.gradient.raw == nullptr && p.grad_input == nullptr &&
                        w_.channels % kW == 0),
        sum_rows_(std::max<int64_t>(
            1, std::min(kMostRows, kColumns / std::max<int64_t>(1, w_.out_width)))),
        gradient_slots_(reads_gradient_
                            ? 0
                            : (height_ + w_.stride_height - 1) / w_.stride_height + 1 + sum_rows_),
        input_slots_(reads_input_ ? 0 : height_ + (sum_rows_ - 1) * w_.stride_height),
        work_(w_, w_.height,
              gradient_slots_ * gradient_width_ + input_slots_ * input_width_ + 2 * w_.width),
        streams_(streams(p.grad_input, map_bytes(w_.batch * w_.height * w_.width, w_.channels),
                         w_.channels)) {}

  void run(const Threads& threads) const {
    const int64_t c = w_.channels, taps = w_.kernel_height * w_.kernel_width;
    const int64_t parts = w_.batch * work_.bands;
    // By part: the weight's gradient [tap][C], then the bias's, then the two sums; by whole
    // vectors.
    const int64_t row = vectors_of(c) * kW, room = (taps + 1) * row + 2 * c;
    float* memory = scratch_floats(Scratch::kPartials, (parts + 1) * room);
    threads.parallel(work_.tasks, [&](int64_t index) { task(index, memory, room); });
    float* total = memory + parts * room;
    sum_parts(memory, parts, room, total, threads);
    if (p_.grad_weight != nullptr) {
      for (int64_t k = 0; k < c; ++k)
        for (int64_t i = 0; i < taps; ++i) p_.grad_weight[k * taps + i] = total[i * row + k];
    }
    const float* bias = total + taps * row;
    if (p_.grad_bias != nullptr) std::copy(bias, bias + c, p_.grad_bias);
    if (p_.sums != nullptr) std::copy(bias + row, bias + row + 2 * c, p_.sums);
  }

 private:
  // What one task has at hand.
  struct State {
    Work::Task t;
    int64_t channels, vectors;
    Ring gradients, inputs;
    const Element** rows;
    float* partial;
    int64_t next_gradient, next_input;  // rows to fill
    int64_t next_sum;                   // row of the gradient to sum over
    int64_t own_begin, own_end;         // of them, those that this task sums over
  };

  void task(int64_t index, float* memory, int64_t room) const {
    const Work::Task t = work_.task(index);
    const int64_t vectors = vectors_of(t.count), channels = vectors * kW;
    const int64_t gradient_room = gradient_slots_ * gradient_width_ * channels;
    Element* rings =
        scratch_elements(Scratch::kSlab, gradient_room + input_slots_ * input_width_ * channels);
    Element* out = scratch_elements(Scratch::kTile, 2 * w_.width * channels);
    auto** rows = static_cast<const Element**>(
        scratch(Scratch::kTable,
                sizeof(Element*) * (2 * w_.kernel_height + sum_rows_ * (1 + w_.kernel_height))));
    float* partial = memory + (t.image * work_.bands + index % work_.bands) * room;
    const int64_t taps = w_.kernel_height * w_.kernel_width, row = vectors_of(w_.channels) * kW;
    for (int64_t i = 0; i <= taps; ++i) std::fill_n(partial + i * row + t.first, channels, 0.f);
    for (int64_t i = 0; i < 2; ++i)
      std::fill_n(partial + (taps + 1) * row + i * w_.channels + t.first, t.count, 0.f);
    // The rows of the gradient belong to the band in which their window's first row lies.
    const auto owned = [&](int64_t y) {
      return y == w_.height
                 ? w_.out_height
                 : std::min(w_.out_height, (y + w_.stride_height - 1) / w_.stride_height);
    };
    State s{t,
            channels,
            vectors,
            Ring(rings, gradient_slots_, gradient_width_, channels),
            Ring(rings + gradient_room, input_slots_, input_width_, channels),
            rows + 2 * w_.kernel_height,
            partial,
            0,
            0,
            owned(t.begin),
            owned(t.begin),
            owned(t.end)};
    s.next_input = std::max<int64_t>(0, s.own_begin * w_.stride_height - w_.pad_top);
    const int64_t above = t.begin + w_.pad_top - (height_ - 1);
    s.next_gradient = s.own_begin;
    if (p_.grad_input != nullptr) {
      s.next_gradient =
          std::min(s.own_begin, above <= 0 ? 0 : (above + w_.stride_height - 1) / w_.stride_height);
      const DepthwiseKernel kernel{w_.kernel_height, w_.kernel_width, 1, w_.dilation_width,
                                   Activation::kNone};
      const float* packed = packed_slice(p_.packed, w_, t.first);
      for (int64_t y = t.begin; y < t.end;) {
        const int64_t count = std::min<int64_t>(2, t.end - y);
        const int64_t last =
            std::min(w_.out_height - 1, (y + count - 1 + w_.pad_top) / w_.stride_height);
        while (s.next_gradient <= last) add_gradient(s);
        for (int64_t r = s.next_gradient; r <= last + 2 && r < w_.out_height; ++r) {
          for (const void* map : {p_.gradient.grad, p_.gradient.raw})
            fetch_row(map, t.image * w_.out_height + r, w_.out_width, w_.channels, t.first,
                      t.count);
        }
        for (int64_t r = 0; r < count; ++r) {
          for (int64_t i = 0; i < w_.kernel_height; ++i)
            rows[r * w_.kernel_height + w_.kernel_height - 1 - i] =
                gradient_row(s, y + r + w_.pad_top - i * w_.dilation_height);
        }
        const DepthwiseRows all{rows,     margin_ - turned_, gradient_width_,     channels,
                                w_.width, channels,          w_.width * channels, false};
        depthwise_rows(kernel, packed, all, count, vectors, out, kW);
        finish(s, y, count, out);
        y += count;
      }
    }
    while (s.next_gradient < s.own_end) add_gradient(s);
  }

  // The ring's row of the gradient that lies over a row of the padded input, if one does.
  const Element* gradient_row(const State& s, int64_t row) const {
    if (row < 0 || row % w_.stride_height != 0 || row / w_.stride_height >= w_.out_height)
      return nullptr;
    return s.gradients.at(row / w_.stride_height);
  }

  // Where a row of the gradient begins, and one of the input: with its padding, if in the ring.
  const Element* gradient_at(const State& s, int64_t y) const {
    if (!reads_gradient_) return s.gradients.at(y) + margin_ * s.channels;
    const int64_t row = s.t.image * w_.out_height + y;
    return elements(p_.gradient.grad) + row * w_.out_width * w_.channels + s.t.first;
  }
  const Element* input_at(const State& s, int64_t y) const {
    if (!reads_input_) return s.inputs.at(y);
    const int64_t row = s.t.image * w_.height + y;
    return elements(p_.input.data) + row * w_.width * w_.channels + s.t.first;
  }
  int64_t gradient_pixel(const State& s) const {
    return reads_gradient_ ? w_.channels : w_.stride_width * s.channels;
  }

  // Takes the next row of the gradient into the ring and, if it is this task's, adds it to the
  // bias's gradient and, as soon as there are enough rows, to the weight's.
  void add_gradient(State& s) const {
    const int64_t y = s.next_gradient++, c = w_.channels;
    if (!reads_gradient_) {
      const MapTile tile{
          c,         s.t.image, (s.t.image * w_.out_height + y) * w_.out_width, w_.out_width,
          s.t.first, s.t.count};
      gradient_tile(p_.gradient, tile, s.gradients.at(y) + margin_ * s.channels,
                    w_.stride_width * s.channels);
    }
    if (y < s.own_begin || y >= s.own_end) return;
    const int64_t taps = w_.kernel_height * w_.kernel_width, row = vectors_of(c) * kW;
    if (p_.grad_bias != nullptr)
      add_pixels(gradient_at(s, y), gradient_pixel(s), w_.out_width, s.t.count,
                 s.partial + taps * row + s.t.first);
    const bool enough = y + 1 - s.next_sum == sum_rows_ || y + 1 == s.own_end;
    if (p_.grad_weight != nullptr && enough) add_weight(s, y + 1);
  }

  // Adds rows [s.next_sum, end) of the gradient to the weight's gradient.
  void add_weight(State& s, int64_t end) const {
    const int64_t last = (end - 1) * w_.stride_height - w_.pad_top + height_;
    for (; !reads_input_ && s.next_input < std::min(w_.height, last); ++s.next_input) {
      const MapTile tile{w_.channels, s.t.image, (s.t.image * w_.height + s.next_input) * w_.width,
                         w_.width,    s.t.first, s.t.count};
      normalized_tile(p_.input, tile, s.inputs.at(s.next_input) + w_.pad_left * s.channels,
                      s.channels);
    }
    // Columns of the ring's rows begin with the padding and are all there.
    const int64_t inputs = reads_input_ ? w_.width : input_width_;
    const int64_t first = reads_input_ ? -w_.pad_left : 0;
    const int64_t whole_begin = (w_.stride_width - 1 - first) / w_.stride_width;
    const int64_t room = inputs - first - reach(w_.kernel_width, w_.dilation_width);
    const int64_t whole_end = room < 0 ? 0 : std::min(w_.out_width, room / w_.stride_width + 1);
    const Element** gradients = s.rows + sum_rows_ * w_.kernel_height;
    WindowSum sum{0,
                  gradients,
                  s.rows,
                  gradient_pixel(s),
                  reads_input_ ? w_.channels : s.channels,
                  w_.kernel_height,
                  w_.kernel_width,
                  first,
                  w_.stride_width,
                  w_.dilation_width,
                  inputs,
                  w_.out_width,
                  std::min(whole_begin, w_.out_width),
                  std::max(std::min(whole_begin, w_.out_width), whole_end),
                  s.vectors,
                  s.partial + s.t.first,
                  vectors_of(w_.channels) * kW};
    // Rows one after the other, as far as the same rows of the kernel meet the image.
    while (s.next_sum < end) {
      const auto inside = [&](int64_t y, int64_t i) {
        const int64_t row = y * w_.stride_height - w_.pad_top + i * w_.dilation_height;
        return row >= 0 && row < w_.height;
      };
      const int64_t y = s.next_sum;
      int64_t from = 0, to = w_.kernel_height;
      while (from < to && !inside(y, from)) ++from;
      while (to > from && !inside(y, to - 1)) --to;
      const auto same = [&](int64_t row) {
        return row < end && inside(row, from) && inside(row, to - 1) &&
               (from == 0 || !inside(row, from - 1)) &&
               (to == w_.kernel_height || !inside(row, to));
      };
      sum.rows = 0;
      do {
        const int64_t row = s.next_sum++;
        gradients[sum.rows] = gradient_at(s, row);
        for (int64_t i = from; i < to; ++i) {
          const int64_t in = row * w_.stride_height - w_.pad_top + i * w_.dilation_height;
          s.rows[sum.rows * w_.kernel_height + i] = input_at(s, in);
        }
        ++sum.rows;
      } while (from < to && same(s.next_sum));
      if (from == to) continue;
      sum_window(sum, from, to);
    }
  }

  // Rows [y, y + count) of the input's gradient.
  void finish(const State& s, int64_t y, int64_t count, const Element* d) const {
    const int64_t taps = w_.kernel_height * w_.kernel_width, row = vectors_of(w_.channels) * kW;
    const MapTile tile{w_.channels,      s.t.image, (s.t.image * w_.height + y) * w_.width,
                       count * w_.width, s.t.first, s.t.count};
    const InputGradient gradient{
        p_.input,      p_.residual, p_.mean,
        p_.grad_input, streams_,    p_.sums == nullptr ? nullptr : s.partial + (taps + 1) * row,
        nullptr};
    finish_gradient(gradient, tile, d, s.channels);
  }

  const TrainDepthwiseConv2dBackwardParams& p_;
  const TrainWindow& w_;
  const int64_t height_;  // of the window
  const int64_t turned_;  // columns of the gradient before its first that the turned weight reads
  const int64_t margin_;
  const int64_t gradient_width_, input_width_;
  const bool reads_input_, reads_gradient_;  // from the maps themselves
  // Rows that the weight's gradient takes at once: a few short ones are worth reading its sums.
  static constexpr int64_t kMostRows = 8, kColumns = 32;
  const int64_t sum_rows_;
  const int64_t gradient_slots_, input_slots_;
  const Work work_;
  const bool streams_;
};

}  // namespace

void train_depthwise_conv2d(const TrainDepthwiseConv2dParams& p, const Threads& threads) {
  if (p.window.batch * p.window.out_height * p.window.out_width > 0) Forward(p).run(threads);
}

void train_depthwise_conv2d_backward(const TrainDepthwiseConv2dBackwardParams& p,
                                     const Threads& threads) {
  if (p.window.batch > 0) Backward(p).run(threads);
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
