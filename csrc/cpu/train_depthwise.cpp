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

// Sums over one output row: sums[tap][channel] += gradient[x] input[tap row][x stride + tap
// column dilation]. TAPS of one kernel row, or of KH whole ones, stay in registers.
struct RowSum {
  const Element* gradient;
  int64_t gradient_pixel;
  const Element* const* inputs;  // by kernel row
  int64_t step;                  // elements of the input from one output column to the next
  int64_t tap;                   // and from one tap to the next
  int64_t width;                 // output columns
  int64_t vectors;
  float* sums;  // [tap][channels]
  int64_t channels;
};

template <int KH, int KW>
void sum_taps(const RowSum& s, int64_t row, int64_t column, int64_t kernel_width) {
  for (int64_t v = 0; v < s.vectors; ++v) {
    Vec acc[KH * KW];
    float* sums = s.sums + (row * kernel_width + column) * s.channels + v * kW;
    FASTCONV_UNROLL for (int i = 0; i < KH; ++i) {
      FASTCONV_UNROLL for (int j = 0; j < KW; ++j) acc[i * KW + j] =
          vload(sums + (i * kernel_width + j) * s.channels);
    }
    const Element* g = s.gradient + v * kW;
    const Element* inputs[KH];
    FASTCONV_UNROLL for (int i = 0; i < KH; ++i) inputs[i] =
        s.inputs[row + i] + column * s.tap + v * kW;
    for (int64_t x = 0; x < s.width; ++x) {
      const Vec gradient = vload(g);
      FASTCONV_UNROLL for (int i = 0; i < KH; ++i) {
        FASTCONV_UNROLL for (int j = 0; j < KW; ++j) acc[i * KW + j] =
            vfma(gradient, vload(inputs[i] + j * s.tap), acc[i * KW + j]);
        inputs[i] += s.step;
      }
      g += s.gradient_pixel;
    }
    FASTCONV_UNROLL for (int i = 0; i < KH; ++i) {
      FASTCONV_UNROLL for (int j = 0; j < KW; ++j)
          vstore(sums + (i * kernel_width + j) * s.channels, acc[i * KW + j]);
    }
  }
}

void sum_row(const RowSum& s, int64_t height, int64_t width) {
  if (height == 3 && width == 3) return sum_taps<3, 3>(s, 0, 0, 3);
  if (kRegisters == 32 && height == 5 && width == 5) return sum_taps<5, 5>(s, 0, 0, 5);
  for (int64_t i = 0; i < height; ++i) {
    int64_t j = 0;
    for (; j + 5 <= width; j += 5) sum_taps<1, 5>(s, i, j, width);
    for (; j + 3 <= width; j += 3) sum_taps<1, 3>(s, i, j, width);
    for (; j < width; ++j) sum_taps<1, 1>(s, i, j, width);
  }
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
        gradient_slots_((height_ + w_.stride_height - 1) / w_.stride_height + 2),
        work_(w_, w_.height,
              gradient_slots_ * gradient_width_ + height_ * input_width_ + 2 * w_.width),
        streams_(streams(p.grad_input, map_bytes(w_.batch * w_.height * w_.width, w_.channels),
                         w_.channels)) {}

  void run(const Threads& threads) const {
    const int64_t c = w_.channels, taps = w_.kernel_height * w_.kernel_width;
    const int64_t parts = w_.batch * work_.bands;
    // By part: the weight's gradient [tap][C], then the bias's, then the two sums; by whole
    // vectors.
    const int64_t row = vectors_of(c) * kW, room = (taps + 1) * row + 2 * c;
    float* memory = scratch_floats(Scratch::kPartials, (parts + 1) * room);
    std::fill(memory, memory + parts * room, 0.f);
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
    int64_t own_begin, own_end;         // rows of the gradient that this task sums over
  };

  void task(int64_t index, float* memory, int64_t room) const {
    const Work::Task t = work_.task(index);
    const int64_t vectors = vectors_of(t.count), channels = vectors * kW;
    const int64_t gradient_room = gradient_slots_ * gradient_width_ * channels;
    Element* rings =
        scratch_elements(Scratch::kSlab, gradient_room + height_ * input_width_ * channels);
    Element* out = scratch_elements(Scratch::kTile, 2 * w_.width * channels);
    auto** rows = static_cast<const Element**>(
        scratch(Scratch::kTable, 3 * sizeof(Element*) * w_.kernel_height));
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
            Ring(rings + gradient_room, height_, input_width_, channels),
            rows + 2 * w_.kernel_height,
            memory + (t.image * work_.bands + index % work_.bands) * room,
            0,
            0,
            owned(t.begin),
            owned(t.end)};
    s.next_input = std::max<int64_t>(0, s.own_begin * w_.stride_height - w_.pad_top);
    const int64_t above = t.begin + w_.pad_top - (height_ - 1);
    s.next_gradient =
        std::min(s.own_begin, above <= 0 ? 0 : (above + w_.stride_height - 1) / w_.stride_height);
    if (p_.grad_input != nullptr) {
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

  // Takes the next row of the gradient into the ring and, if it is this task's, adds to the
  // weight's and the bias's gradient.
  void add_gradient(State& s) const {
    const int64_t y = s.next_gradient++, c = w_.channels;
    const MapTile tile{
        c,         s.t.image, (s.t.image * w_.out_height + y) * w_.out_width, w_.out_width,
        s.t.first, s.t.count};
    Element* gradient = s.gradients.at(y) + margin_ * s.channels;
    gradient_tile(p_.gradient, tile, gradient, w_.stride_width * s.channels);
    if (y < s.own_begin || y >= s.own_end) return;
    const int64_t taps = w_.kernel_height * w_.kernel_width, row = vectors_of(c) * kW;
    if (p_.grad_bias != nullptr)
      add_pixels(gradient, w_.stride_width * s.channels, w_.out_width, s.t.count,
                 s.partial + taps * row + s.t.first);
    if (p_.grad_weight == nullptr) return;
    const int64_t top = y * w_.stride_height - w_.pad_top;
    for (; s.next_input < std::min(w_.height, top + height_); ++s.next_input) {
      const MapTile input{c,        s.t.image, (s.t.image * w_.height + s.next_input) * w_.width,
                          w_.width, s.t.first, s.t.count};
      normalized_tile(p_.input, input, s.inputs.at(s.next_input) + w_.pad_left * s.channels,
                      s.channels);
    }
    RowSum sum{gradient,
               w_.stride_width * s.channels,
               s.rows,
               w_.stride_width * s.channels,
               w_.dilation_width * s.channels,
               w_.out_width,
               s.vectors,
               s.partial + s.t.first,
               row};
    bool whole = true;
    for (int64_t i = 0; i < w_.kernel_height; ++i) {
      const int64_t from = top + i * w_.dilation_height;
      s.rows[i] = from >= 0 && from < w_.height ? s.inputs.at(from) : nullptr;
      whole = whole && s.rows[i] != nullptr;
    }
    if (whole) return sum_row(sum, w_.kernel_height, w_.kernel_width);
    for (int64_t i = 0; i < w_.kernel_height; ++i) {  // one row after the other
      if (s.rows[i] == nullptr) continue;
      sum.inputs = s.rows + i;
      sum.sums = s.partial + s.t.first + i * w_.kernel_width * row;
      sum_row(sum, 1, w_.kernel_width);
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
  const int64_t gradient_width_, input_width_, gradient_slots_;
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
