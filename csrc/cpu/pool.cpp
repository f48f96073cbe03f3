// Pooling of windows, a vector of channels at a time. Memory moved: the input, from near for all
// but its first window, and the output.
#include "../pool.h"

#include <algorithm>
#include <limits>

#include "kernels.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

// What of a window lies inside the map, along one axis.
struct Inside {
  Inside(int64_t first, int64_t kernel, int64_t size)
      : begin(std::max<int64_t>(0, first)), end(std::min(size, first + kernel)) {}
  int64_t begin, end;
};

// Calls pool(pixels of a window, their rows and columns, output) for every window.
template <class F>
void each_window(const PoolParams& p, const Threads& threads, const F& pool) {
  const int64_t row = p.out_row == 0 ? p.channels : p.out_row;
  threads.parallel(p.batch * p.out_height, [&](int64_t task) {
    const Inside rows(task % p.out_height * p.stride_height - p.pad_top, p.kernel_height, p.height);
    const Element* image =
        elements(p.input) + task / p.out_height * p.height * p.width * p.channels;
    Element* out = elements(p.output) + task * p.out_width * row;
    for (int64_t x = 0; x < p.out_width; ++x, out += row) {
      const Inside columns(x * p.stride_width - p.pad_left, p.kernel_width, p.width);
      pool(image, rows, columns, out);
    }
  });
}

template <class F>
FASTCONV_INLINE void each_pixel(const PoolParams& p, const Element* image, const Inside& rows,
                                const Inside& columns, const F& visit) {
  for (int64_t y = rows.begin; y < rows.end; ++y) {
    const Element* pixel = image + (y * p.width + columns.begin) * p.channels;
    for (int64_t x = columns.begin; x < columns.end; ++x, pixel += p.channels) visit(pixel);
  }
}

FASTCONV_INLINE int lanes_at(const PoolParams& p, int64_t c) {
  return static_cast<int>(std::min<int64_t>(kW, p.channels - c));
}

}  // namespace

void max_pool(const PoolParams& p, const Threads& threads) {
  each_window(p, threads,
              [&](const Element* image, const Inside& rows, const Inside& columns, Element* out) {
                for (int64_t c = 0; c < p.channels; c += kW) {
                  const int lanes = lanes_at(p, c);
                  Vec largest = vset(-std::numeric_limits<float>::infinity());
                  each_pixel(p, image, rows, columns,
                             [&](const Element* pixel) __attribute__((always_inline)) {
                               largest = vmax_or_nan(largest, lanes == kW
                                                                  ? vload(pixel + c)
                                                                  : vload_first(pixel + c, lanes));
                             });
                  vstore_first(out + c, largest, lanes);
                }
              });
}

void average_pool(const PoolParams& p, const Threads& threads) {
  const Vec count = vset(static_cast<float>(p.kernel_height * p.kernel_width));
  each_window(
      p, threads,
      [&](const Element* image, const Inside& rows, const Inside& columns, Element* out) {
        for (int64_t c = 0; c < p.channels; c += kW) {
          const int lanes = lanes_at(p, c);
          Vec sum = vzero();
          each_pixel(
              p, image, rows, columns, [&](const Element* pixel) __attribute__((always_inline)) {
                sum = vadd(sum, lanes == kW ? vload(pixel + c) : vload_first(pixel + c, lanes));
              });
          vstore_first(out + c, vdiv(sum, count), lanes);
        }
      });
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
