// Expand 1x1 -> depthwise -> (squeeze-excite) -> project 1x1, the expanded tensor never leaving the
// cache.
//
// Expanded rows live in a slab of channel planes [vector][row slot][padding + W + padding][kW]; a
// row y has slot (y + pad_top) mod slots, and padding is stored as zeros, so the depthwise kernel
// meets no edge. Its output lies in planes [vector][pixel][kW] and is the A matrix of the
// projection. Memory moved per output pixel: the input once, the output once. Schedules: plan.h.
#include <algorithm>
#include <cstring>

#include "depthwise.h"
#include "gemm.h"
#include "kernels.h"
#include "plan.h"

namespace fastconv {
namespace FASTCONV_ISA_NAMESPACE {
namespace {

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// What the parts of one block share.
struct Block {
  Block(const InvertedResidualParams& params, int64_t rows)
      : p(params),
        d(params.depthwise),
        expand_panels(d.channels),
        project_panels(p.out_channels),
        kernel{d.kernel_height, d.kernel_width, d.stride_width, d.dilation_width, d.activation},
        rows_per_step(rows),
        slots(ring_rows(d, rows)),
        padded_width(std::max(
            d.pad_left + d.width,
            (d.out_width - 1) * d.stride_width + (d.kernel_width - 1) * d.dilation_width + 1)),
        slab_plane(plane_stride<float>(slots * padded_width * kW)),
        weights_per_vector(kW * (1 + d.kernel_height * d.kernel_width)),
        reads_input(p.expand_packed == nullptr && d.channels % kW == 0),
        is_far(fastconv::is_far(d, kDataType)) {}

  int64_t slot_offset(int64_t y) const { return (y + d.pad_top) % slots * padded_width * kW; }
  int64_t out_pixels() const { return d.out_height * d.out_width; }
  float* slab(Scratch purpose, int64_t vectors) const {
    return reads_input ? nullptr : scratch_floats(purpose, vectors * slab_plane);
  }
  // What is needed after the depthwise convolution, as far as that is worth asking for.
  WeightRegion after_depthwise() const {
    if (p.squeeze_excite.squeezed > 0) return p.squeeze_excite.weights;
    const int64_t steps = steps_of(kDataType, d.channels, 1);
    return {p.project_packed, kPackedHeader + project_panels.width(0) * kW * (1 + steps)};
  }

  const InvertedResidualParams& p;
  const DepthwiseConv2dParams& d;
  const Panels expand_panels, project_panels;
  const DepthwiseKernel kernel;
  const int64_t rows_per_step, slots, padded_width, slab_plane, weights_per_vector;
  const bool reads_input;  // no expansion, whole vectors: the depthwise kernel reads NHWC and needs
                           // no slab
  const bool is_far;       // the input does not fit into L2
};

// Zeroes the columns beside the image in every slot.
void clear_sides(const Block& b, int64_t vectors, float* slab) {
  const int64_t right = b.d.pad_left + b.d.width;
  for (int64_t v = 0; v < vectors; ++v) {
    for (int64_t s = 0; s < b.slots; ++s) {
      float* row = slab + v * b.slab_plane + s * b.padded_width * kW;
      std::fill(row, row + b.d.pad_left * kW, 0.f);
      std::fill(row + right * kW, row + b.padded_width * kW, 0.f);
    }
  }
}

// Without expansion: copies row y of the input into the planes.
void copy_row(const Block& b, int64_t image, Range vectors, int64_t y, float* slab) {
  const int64_t channels = b.d.channels;
  const Element* row = elements(b.d.input) + (image * b.d.height + y) * b.d.width * channels;
  for (int64_t v = vectors.begin; v < vectors.end; ++v) {
    float* out = slab + (v - vectors.begin) * b.slab_plane + b.slot_offset(y) + b.d.pad_left * kW;
    const int lanes = static_cast<int>(std::min<int64_t>(kW, channels - v * kW));
    for (int64_t x = 0; x < b.d.width; ++x) {
      vstore(out + x * kW, vload_first(row + x * channels + v * kW, lanes));
    }
  }
}

// Some output rows at a time: where things are in the slab, of every panel alike.
struct Step {
  Range rows;              // of the output
  Range news;              // input rows that no step before had, some of them padding
  Range inside;            // those inside the image
  int32_t* pixel_offsets;  // of the pixels of these
  int32_t* row_offsets;    // of the input rows under each kernel row of the output rows
};

// Room for the offsets of steps over so many output rows.
struct Offsets {
  Offsets(const Block& b, int64_t rows)
      : pixels(room(Scratch::kTable, std::min(ring_rows(b.d, rows), b.d.height) * b.d.width)),
        rows(room(Scratch::kRows, rows * b.d.kernel_height)) {}

  static int32_t* room(Scratch purpose, int64_t count) {
    return static_cast<int32_t*>(scratch(purpose, sizeof(int32_t) * count));
  }

  int32_t *pixels, *rows;
};

// next: the first input row that no step before had.
Step make_step(const Block& b, Range rows, int64_t next, const Offsets& offsets) {
  const DepthwiseConv2dParams& d = b.d;
  const int64_t first = rows.begin * d.stride_height - d.pad_top;
  const Range news{std::max(next, first), first + ring_rows(d, rows.size())};
  const Range inside{std::max<int64_t>(news.begin, 0), std::min(news.end, d.height)};
  int32_t* pixel = offsets.pixels;
  for (int64_t y = inside.begin; y < inside.end; ++y) {
    const int64_t base = b.slot_offset(y) + d.pad_left * kW;
    for (int64_t x = 0; x < d.width; ++x) *pixel++ = static_cast<int32_t>(base + x * kW);
  }
  int32_t* row = offsets.rows;
  for (int64_t y = rows.begin; y < rows.end; ++y) {
    const int64_t in_y = y * d.stride_height - d.pad_top;
    for (int64_t i = 0; i < d.kernel_height; ++i)
      *row++ = static_cast<int32_t>(b.slot_offset(in_y + i * d.dilation_height));
  }
  return {rows, news, inside, offsets.pixels, offsets.rows};
}

// Zeroes the slots of a step's new rows that are padding.
void clear_rows(const Block& b, int64_t vectors, const Step& step, float* slab) {
  for (int64_t row = step.news.begin; row < step.news.end; ++row) {
    if (row >= 0 && row < b.d.height) continue;
    for (int64_t v = 0; v < vectors; ++v) {
      float* out = slab + v * b.slab_plane + b.slot_offset(row) + b.d.pad_left * kW;
      std::fill(out, out + b.d.width * kW, 0.f);
    }
  }
}

// Fills the slots of a step's new rows inside the image for the channels of one panel, whose slab
// planes begin at `slab`. cold: the weight is read for the first time.
void expand_panel(const Block& b, int64_t image, int64_t panel, Range vectors, const Step& step,
                  bool cold, float* slab) {
  const DepthwiseConv2dParams& d = b.d;
  const Range& rows = step.inside;
  if (rows.begin >= rows.end) return;
  if (b.p.expand_packed == nullptr) {
    for (int64_t y = rows.begin; y < rows.end; ++y) copy_row(b, image, vectors, y, slab);
    return;
  }
  const int64_t in = b.p.in_channels;
  const GemmA a{elements(d.input) + (image * d.height + rows.begin) * d.width * in, in, in, 0, in};
  const GemmC c{
      slab, true, 0, b.slab_plane, step.pixel_offsets, b.expand_panels.vectors * kW, vectors.begin};
  gemm(a, {b.p.expand_packed + kPackedHeader, cold, cold ? b.after_depthwise() : WeightRegion{}},
       b.expand_panels, rows.size() * d.width, c, {b.p.expand_activation, nullptr, 0}, panel,
       panel + 1);
}

// Output rows [y, y + rows) of the depthwise convolution straight from the input.
void depthwise_from_input(const Block& b, int64_t image, Range vectors, int64_t y, int64_t rows,
                          Element* out, int64_t plane) {
  const DepthwiseConv2dParams& d = b.d;
  const float* packed = d.packed + kPackedHeader + vectors.begin * b.weights_per_vector;
  auto** pointers = static_cast<const Element**>(
      scratch(Scratch::kTable, sizeof(Element*) * rows * d.kernel_height));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < d.kernel_height; ++i) {
      const int64_t in_y = (y + r) * d.stride_height - d.pad_top + i * d.dilation_height;
      const bool inside = in_y >= 0 && in_y < d.height;
      pointers[r * d.kernel_height + i] =
          inside ? elements(d.input) + (image * d.height + in_y) * d.width * d.channels +
                       vectors.begin * kW
                 : nullptr;
    }
  }
  const DepthwiseRows all{pointers,    -d.pad_left, d.width,          d.channels,
                          d.out_width, kW,          d.out_width * kW, b.is_far};
  depthwise_rows(b.kernel, packed, all, rows, vectors.size(), out, plane);
}

// Copies pixels from planes to rows of whole vectors.
const Element* gather_pixels(int64_t pixels, int64_t vectors, const Element* planes,
                             int64_t plane) {
  constexpr int64_t kTogether = 8;  // pixels whose lines are near while all their vectors come
  Element* rows = scratch_elements(Scratch::kPixels, pixels * vectors * kW);
  for (int64_t first = 0; first < pixels; first += kTogether) {
    const int64_t end = std::min(pixels, first + kTogether);
    for (int64_t v = 0; v < vectors; ++v) {
      for (int64_t m = first; m < end; ++m)
        vstore(rows + (m * vectors + v) * kW, vload(planes + v * plane + m * kW));
    }
  }
  return rows;
}

// Whether the projection reads rows of pixels instead of planes. With 16 registers a panel of two
// vectors and six pixels of planes no longer fit into L1 from 373 channels on, and no prefetcher
// follows planes; a copy costs as much as a few outputs. (512 to 512: 77 % of peak, 92 % with the
// copy; 576 to 96: the same.)
bool gathers(const Block& b) {
  constexpr int64_t kTilePixels = 6, kWidth = 2 * kW, kFewOutputs = 64;
  const int64_t bytes = sizeof(float) * b.d.channels * (kWidth + kTilePixels);
  return kRegisters == 16 && bytes > cache_sizes().l1 && b.p.out_channels > kFewOutputs;
}

// Output pixels [begin, end) of the image from depthwise planes whose pixel 0 is `begin`.
void project(const Block& b, int64_t image, Range pixels, const Element* planes, int64_t plane,
             Range panels, const GemmWeight& weight) {
  const int64_t out = b.p.out_channels, vectors = vectors_of(b.d.channels);
  const int64_t offset = (image * b.out_pixels() + pixels.begin) * out;
  GemmA a{planes, kW, kW, plane, b.d.channels};
  if (gathers(b)) {
    const Element* rows = gather_pixels(pixels.size(), vectors, planes, plane);
    a = {rows, vectors * kW, b.d.channels, 0, b.d.channels};
  }
  const GemmEpilogue epilogue{b.p.project_activation,
                              b.p.residual ? elements(b.p.residual) + offset : nullptr, out};
  gemm(a, weight, b.project_panels, pixels.size(), gemm_map(elements(b.d.output) + offset, out),
       epilogue, panels.begin, panels.end);
}

// Sums of the channels over bands of output rows: each band's begin `stride` floats apart. No data:
// nothing is summed. Bands depend on the shape alone, and with them every sum's order.
struct ChannelSums {
  float* of(int64_t y, int64_t v) const {
    return data == nullptr ? nullptr : data + y / band * stride + v * kW;
  }
  float* data;
  int64_t stride, band;
};

// How many rows the step that begins with y has.
int64_t rows_from(const Block& b, Range rows, const ChannelSums& sums, int64_t y) {
  return std::min({b.rows_per_step, rows.end - y, sums.band - y % sums.band});
}

// A step of some panels, one by one, so that what is expanded is convolved while it is in L1: what
// is new into `slab`, whose first plane is theirs, then the depthwise convolution into `out`.
void run_step(const Block& b, int64_t image, Range panels, const Step& step, bool cold, float* slab,
              Element* out, int64_t out_plane, const ChannelSums& sums) {
  const DepthwiseConv2dParams& d = b.d;
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    const Range vectors{b.expand_panels.first_vector(p), b.expand_panels.first_vector(p + 1)};
    expand_panel(b, image, p, vectors, step, cold, slab);
    for (int64_t v = vectors.begin; v < vectors.end; ++v) {
      depthwise_plane(b.kernel, d.packed + kPackedHeader + v * b.weights_per_vector, slab,
                      step.row_offsets, out, step.rows.size(), d.out_width,
                      sums.of(step.rows.begin, v));
      slab += b.slab_plane;
      out += out_plane;
    }
  }
}

// First schedule: all channels of a band of output rows, projected step by step.
void ring_band(const Block& b, int64_t image, Range rows) {
  const int64_t vectors = vectors_of(b.d.channels), width = b.d.out_width;
  const int64_t plane = plane_stride<Element>(b.rows_per_step * width * kW);
  const ChannelSums none{nullptr, 0, b.d.out_height};
  Element* tile = scratch_elements(Scratch::kTile, vectors * plane);
  float* slab = b.slab(Scratch::kSlab, vectors);
  if (!b.reads_input) clear_sides(b, vectors, slab);
  int64_t next = rows.begin * b.d.stride_height - b.d.pad_top;
  for (int64_t y = rows.begin, end; y < rows.end; y = end) {
    end = y + rows_from(b, rows, none, y);
    if (b.reads_input) {
      depthwise_from_input(b, image, {0, vectors}, y, end - y, tile, plane);
    } else {
      const Step step = make_step(b, {y, end}, next, Offsets(b, end - y));
      next = step.news.end;
      clear_rows(b, vectors, step, slab);
      run_step(b, image, {0, b.expand_panels.count}, step, y == rows.begin, slab, tile, plane,
               none);
    }
    project(b, image, {y * width, end * width}, tile, plane, {0, b.project_panels.count},
            {b.p.project_packed + kPackedHeader, y == rows.begin,
             end == b.d.out_height ? b.p.ahead : WeightRegion{}});
  }
}

// The depthwise output in some rows of an image: vector v of row y at data + v * plane + (y -
// rows.begin) * out_width * kW.
struct Map {
  Element* data;
  int64_t plane;
  Range rows;
};

// Second schedule, first half: the channels of one panel after the other in some rows of the map,
// and their sums. What panels have in common is made once.
void chunks(const Block& b, int64_t image, Range panels, Range rows, const Map& map,
            const ChannelSums& sums) {
  constexpr int64_t kWidest = 4;  // vectors of a panel
  float* slab = b.slab(Scratch::kTile, kWidest);
  auto* steps = static_cast<Step*>(scratch(Scratch::kPlan, sizeof(Step) * rows.size()));
  int64_t count = 0;
  Offsets offsets(b, rows.size());
  int64_t next = rows.begin * b.d.stride_height - b.d.pad_top;
  for (int64_t y = rows.begin; y < rows.end; y = steps[count++].rows.end) {
    const Step step = make_step(b, {y, y + rows_from(b, rows, sums, y)}, next, offsets);
    steps[count] = step;
    next = step.news.end;
    offsets.pixels += std::max<int64_t>(0, step.inside.size()) * b.d.width;
    offsets.rows += step.rows.size() * b.d.kernel_height;
  }
  clear_sides(b, kWidest, slab);
  if (count == 1) clear_rows(b, kWidest, steps[0], slab);
  const int64_t row = b.d.out_width * kW;
  Element* const out = map.data - map.rows.begin * row;
  for (int64_t p = panels.begin; p < panels.end; ++p) {
    const Range vectors{b.expand_panels.first_vector(p), b.expand_panels.first_vector(p + 1)};
    Element* planes = out + vectors.begin * map.plane;
    for (int64_t i = 0; i < count; ++i) {
      const Step& step = steps[i];
      if (count > 1) clear_rows(b, vectors.size(), step, slab);
      run_step(b, image, {p, p + 1}, step, i == 0, slab, planes + step.rows.begin * row, map.plane,
               sums);
    }
  }
}

// The same straight from the input.
void chunks_of_input(const Block& b, int64_t image, Range panels, Range rows, const Map& map,
                     const ChannelSums& sums) {
  const Range vectors{b.expand_panels.first_vector(panels.begin),
                      b.expand_panels.first_vector(panels.end)};
  const int64_t row = b.d.out_width * kW;
  Element* const out = map.data - map.rows.begin * row;
  for (int64_t y = rows.begin, count; y < rows.end; y += count) {
    count = rows_from(b, rows, sums, y);
    depthwise_from_input(b, image, vectors, y, count, out + vectors.begin * map.plane + y * row,
                         map.plane);
  }
  for (int64_t v = vectors.begin; sums.data != nullptr && v < vectors.end; ++v) {
    for (int64_t y = rows.begin; y < rows.end; ++y) {
      const Element* x = out + v * map.plane + y * row;
      Vec sum = vload(sums.of(y, v));
      for (int64_t m = 0; m < b.d.out_width; ++m) sum = vadd(sum, vload(x + m * kW));
      vstore(sums.of(y, v), sum);
    }
  }
}

// The second schedule's first half, shared by threads: by rows, if that is better; else by panels,
// and where those are few, by rows as well, at the cost of expanding the rows between them twice.
void all_chunks(const Block& b, int64_t image, const Map& map, const ChannelSums& sums,
                const Threads& threads) {
  const int64_t panels = b.expand_panels.count, height = map.rows.size();
  const int64_t bands = (height + sums.band - 1) / sums.band;
  const auto run = [&](const Share& some, int64_t parts, int64_t part) {
    const Share share(bands, parts, part);
    const Range rows{map.rows.begin + share.begin * sums.band,
                     map.rows.begin + std::min(share.end * sums.band, height)};
    for (int64_t y = rows.begin; sums.data != nullptr && y < rows.end; y += sums.band) {
      std::fill(sums.of(y, b.expand_panels.first_vector(some.begin)),
                sums.of(y, b.expand_panels.first_vector(some.end)), 0.f);
    }
    const auto& convolve = b.reads_input ? chunks_of_input : chunks;
    convolve(b, image, {some.begin, some.end}, rows, map, sums);
  };
  if (threads.count > 1 && bands % threads.count == 0 && shares_rows(b.p, threads.count)) {
    return threads.parallel(threads.count,
                            [&](int64_t part) { run(Share(panels, 1, 0), threads.count, part); });
  }
  const int64_t parts = panels >= 2 * threads.count ? 1 : std::min(bands, threads.count);
  constexpr int64_t kGroupsPerThread = 8;
  const int64_t groups =
      threads.count == 1 ? 1 : std::min(panels, kGroupsPerThread * threads.count);
  threads.parallel(groups * parts, [&](int64_t task) {
    run(Share(panels, groups, task % groups), parts, task / groups);
  });
}

void scale_planes(Range vectors, Range pixels, const float* gates, const Map& map) {
  for (int64_t v = vectors.begin; v < vectors.end; ++v) {
    const Vec gate = vload(gates + v * kW);
    Element* x = map.data + v * map.plane;
    for (int64_t m = pixels.begin; m < pixels.end; ++m)
      vstore(x + m * kW, vmul(vload(x + m * kW), gate));
  }
}

// Second schedule, second half. gates: of the planes, or null. cold: the weights are read for the
// first time.
void project_map(const Block& b, int64_t image, const Map& map, const float* gates,
                 const float* weights, bool cold, const Threads& threads) {
  const int64_t before = map.rows.begin * b.d.out_width;
  const int64_t pixels = map.rows.size() * b.d.out_width, vectors = vectors_of(b.d.channels);
  const int64_t map_bytes = sizeof(Element) * pixels * vectors * kW;
  const int64_t weight_bytes = sizeof(Element) * vectors * kW * b.project_panels.vectors * kW;
  // Blocks of pixels whose A matrix stays in L2 while all panels pass. What L2 does not hold of the
  // weights comes anew for each block: fewer of them.
  constexpr int64_t kBlock = 160 * 1024, kMinPixels = 12;
  const int64_t half = cache_sizes().l2 / 2;
  const bool far = weight_bytes > half;
  const int64_t block = far ? std::max(kBlock, half) : kBlock;
  const int64_t by_cache = (map_bytes + block - 1) / block;
  const int64_t blocks_wanted =
      threads.count == 1 ? by_cache : std::max(by_cache, 2 * threads.count);
  const int64_t blocks = std::max<int64_t>(1, std::min(blocks_wanted, pixels / kMinPixels));
  // Few pixels, or fewer of them than weights: each thread reads some of the weights.
  const bool fewer = far && map_bytes < weight_bytes && b.project_panels.count >= threads.count;
  if (threads.count == 1 || (blocks >= threads.count && !fewer)) {
    threads.parallel(blocks, [&](int64_t i) {
      const Share share(pixels, blocks, i);
      if (gates) scale_planes({0, vectors}, {share.begin, share.end}, gates, map);
      project(b, image, {before + share.begin, before + share.end}, map.data + share.begin * kW,
              map.plane, {0, b.project_panels.count},
              {weights, far || (cold && i < threads.count), i == 0 ? b.p.ahead : WeightRegion{}});
    });
    return;
  }
  if (gates) {
    threads.parallel(threads.count, [&](int64_t i) {
      const Share share(vectors, threads.count, i);
      scale_planes({share.begin, share.end}, {0, pixels}, gates, map);
    });
  }
  const int64_t parts = std::min(threads.count, b.project_panels.count);
  threads.parallel(parts, [&](int64_t i) {
    const Share panels(b.project_panels.count, parts, i);
    for (int64_t r = 0; r < by_cache; ++r) {
      const Share share(pixels, by_cache, r);
      project(b, image, {before + share.begin, before + share.end}, map.data + share.begin * kW,
              map.plane, {panels.begin, panels.end},
              {weights, far || (cold && r == 0), r == 0 ? b.p.ahead : WeightRegion{}});
    }
  });
}

// Output rows by the second schedule, all of them where there is a squeeze-and-excitation;
// `threads` share both halves.
void chunked_rows(const Block& b, int64_t image, Range rows, const Threads& threads) {
  const int64_t pixels = rows.size() * b.d.out_width, vectors = vectors_of(b.d.channels);
  const int64_t plane = plane_stride<Element>(pixels * kW);
  // Where the first schedule has its slab: the memory of a block before this one is still near.
  const Map map{scratch_elements(Scratch::kSlab, vectors * plane), plane, rows};
  const bool gated = b.p.squeeze_excite.squeezed > 0;
  // The gates go where they meet fewer numbers: the planes, or the projection's weights.
  const int64_t weight_floats =
      b.project_panels.vectors * kW * (1 + steps_of(kDataType, b.d.channels, 1));
  const bool gates_weights = gated && 2 * weight_floats < pixels * vectors * kW;
  const bool gates_planes = gated && !gates_weights;
  constexpr int64_t kBands = 4, kBandRows = 7;
  const int64_t band = std::max(kBandRows, (b.d.out_height + kBands - 1) / kBands);
  ChannelSums sums{nullptr, vectors * kW, band};
  float *gates = nullptr, *gated_weights = nullptr;
  if (gated) {
    gates = scratch_floats(Scratch::kSums,
                           (1 + kBands) * vectors * kW + (gates_weights ? weight_floats : 0));
    sums.data = gates + vectors * kW;
    gated_weights = sums.data + kBands * vectors * kW;
  }

  all_chunks(b, image, map, sums, threads);
  if (gated) {
    for (int64_t v = 0; v < vectors; ++v) {
      Vec sum = vload(sums.of(0, v));
      for (int64_t y = band; y < b.d.out_height; y += band) sum = vadd(sum, vload(sums.of(y, v)));
      vstore(sums.of(0, v), sum);
    }
    squeeze_excite_gates(b.p.squeeze_excite, sums.data, pixels, gates, threads);
  }
  const float* weights = b.p.project_packed + kPackedHeader;
  if (gates_weights) {
    scale_inputs(weights, b.project_panels, b.d.channels, gates, gated_weights);
    weights = gated_weights;
  }

  project_map(b, image, map, gates_planes ? gates : nullptr, weights, !gates_weights, threads);
}

}  // namespace

void inverted_residual(const InvertedResidualParams& p, const Threads& threads) {
  const DepthwiseConv2dParams& d = p.depthwise;
  if (d.batch == 0 || d.out_height == 0 || d.out_width == 0) return;
  const InvertedResidualPlan plan = plan_inverted_residual(p, kDataType, kW, 2 * kW, cache_sizes());
  const Block b(p, plan.rows_per_step);

  const Range all{0, d.out_height};
  const auto run_rows = [&](int64_t n, Range rows) {
    if (plan.ring) {
      ring_band(b, n, rows);
    } else {
      chunked_rows(b, n, rows, kAlone);
    }
  };
  // Whole images first, a thread each; the images that are left are shared.
  const int64_t whole = d.batch / threads.count * threads.count;
  threads.parallel(whole, [&](int64_t n) { run_rows(n, all); });
  for (int64_t n = whole; n < d.batch; ++n) {
    const bool gated = p.squeeze_excite.squeezed > 0;
    if (plan.ring || (!gated && shares_rows(p, threads.count))) {
      threads.split(d.out_height, [&](int64_t begin, int64_t end) { run_rows(n, {begin, end}); });
    } else {
      chunked_rows(b, n, all, threads);
    }
  }
}

}  // namespace FASTCONV_ISA_NAMESPACE
}  // namespace fastconv
