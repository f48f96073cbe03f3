// How the fused inverted residual is cut into tiles, and what one needs of shared memory: one
// arithmetic for the launch and for the choice. Plain C++.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fastconv {

constexpr int kBlockWarps = 8;
constexpr int kBlockThreads = 32 * kBlockWarps;
constexpr int kChunk = 32;   // expanded channels at a time
constexpr int kPadding = 8;  // elements behind a row: rows then begin in different banks

struct Tile {
  int64_t height, width;  // output pixels of a block
};

// The sizes of a block of layers. out_channels 0: without projection.
struct BlockSizes {
  int64_t batch, height, width, out_height, out_width;
  int64_t in_channels, mid_channels, out_channels;
  int64_t kernel, stride;
  bool expands;
};

// The projection's sums in registers: every warp has m_tiles x n_tiles of 16 pixels x 8 channels,
// and warps_n warps beside each other.
struct WarpTiles {
  int m_tiles = 0, n_tiles = 0, warps_n = 1;
  constexpr int64_t rows() const { return int64_t{16} * m_tiles * (kBlockWarps / warps_n); }
  constexpr int64_t columns() const { return int64_t{8} * n_tiles * warps_n; }
};

// The smallest that has room; m_tiles is 0 where none has.
inline WarpTiles warp_tiles(int64_t pixels, int64_t out_channels) {
  const WarpTiles all[] = {{2, 4, 1}, {2, 8, 1}, {2, 8, 2}, {4, 8, 2}, {4, 8, 4}};
  for (const WarpTiles& t : all)
    if (t.rows() >= pixels && t.columns() >= out_channels) return t;
  return {};
}

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Where everything lies in shared memory, in bytes. Inputs 16-bit.
struct SharedLayout {
  SharedLayout(const BlockSizes& b, const Tile& tile) {
    in_width = (tile.width - 1) * b.stride + b.kernel;
    in_pixels = ((tile.height - 1) * b.stride + b.kernel) * in_width;
    in_rows = round_up(in_pixels, 16);
    out_pixels = tile.height * tile.width;
    warps = warp_tiles(out_pixels, b.out_channels);
    input_pitch = round_up(b.in_channels, 16) + kPadding;
    const int64_t chunk_pitch = kChunk + kPadding, taps = b.kernel * b.kernel;
    int64_t end = 0;
    const auto take = [&](int64_t bytes) {
      const int64_t begin = end;
      end += round_up(bytes, 16);
      return begin;
    };
    // Without expansion the chunks of the input are read as if they were expanded ones.
    input =
        take(2 * in_rows * (b.expands ? input_pitch : round_up(b.mid_channels, kChunk) + kPadding));
    expanded = take(b.expands ? 2 * in_rows * chunk_pitch : 0);
    depthwise = take(b.out_channels ? 2 * warps.rows() * chunk_pitch : 4 * kBlockThreads * 2);
    // Twice: the weights of the next chunk arrive while this one's are used.
    const int64_t weights = end;
    expand_weight = take(b.expands ? 2 * kChunk * input_pitch : 0);
    project_weight = take(b.out_channels ? 2 * warps.columns() * chunk_pitch : 0);
    filters = take(4 * (taps + 2) * kChunk);  // and both biases
    next_weights = end - weights;
    end += next_weights;
    bytes = end;
  }
  int64_t in_width, in_pixels, in_rows, out_pixels, input_pitch;
  WarpTiles warps;
  int64_t input, expanded, depthwise, expand_weight, project_weight, filters;
  int64_t next_weights;  // from one chunk's weights to the next one's
  int64_t bytes;
};

// Whether a tile can be computed with this much shared memory.
inline bool fits(const BlockSizes& b, const Tile& tile, int64_t shared_bytes) {
  if (tile.height < 1 || tile.width < 1 || tile.height > b.out_height || tile.width > b.out_width)
    return false;
  if ((b.kernel != 3 && b.kernel != 5) || b.stride < 1 || b.stride > 2) return false;
  if (tile.height * tile.width > 1024 || b.in_channels > 4096) return false;
  const SharedLayout layout(b, tile);
  return (b.out_channels == 0 || layout.warps.m_tiles > 0) && layout.bytes <= shared_bytes;
}

// About how many clocks a multiprocessor takes for all tiles of one image.
inline double clocks(const BlockSizes& b, const Tile& tile, int64_t shared_bytes) {
  constexpr double kTensor = 512, kFloat = 80, kL2 = 40;  // multiplications, bytes, per clock
  const SharedLayout s(b, tile);
  const double mid = static_cast<double>(b.mid_channels);
  const double expand = b.expands ? s.in_rows * round_up(b.in_channels, 16) : 0;
  const double project = b.out_channels ? s.warps.rows() * s.warps.columns() : 0;
  const double taps = static_cast<double>(s.out_pixels * b.kernel * b.kernel);
  const double weights = b.in_channels * b.expands + b.out_channels + 2 * b.kernel * b.kernel;
  const double read = 2 * (mid * weights + s.in_pixels * b.in_channels);
  const double one = mid * ((expand + project) / kTensor + taps / kFloat) + read / kL2;
  const double tiles = static_cast<double>((b.out_height + tile.height - 1) / tile.height) *
                       static_cast<double>((b.out_width + tile.width - 1) / tile.width);
  // Two blocks on a multiprocessor fill each other's waits.
  return tiles * one * (2 * s.bytes <= shared_bytes ? 1.0 : 1.5);
}

// The tiles that can pay, the best first. Every block of threads reads all the weights from the L2
// cache, which costs what the expanded maps' way through memory would, at less than
// (in_channels + out_channels) / 4 pixels.
inline std::vector<Tile> tiles_for(const BlockSizes& b, int64_t shared_bytes) {
  std::vector<Tile> found;
  for (const int64_t height : {4, 7, 8, 14, 16})
    for (const int64_t width : {7, 8, 14, 16}) {
      const Tile tile{std::min(height, b.out_height), std::min(width, b.out_width)};
      const bool known = std::any_of(found.begin(), found.end(), [&](const Tile& other) {
        return other.height == tile.height && other.width == tile.width;
      });
      const bool pays = 4 * tile.height * tile.width > b.in_channels * b.expands + b.out_channels;
      if (!known && pays && fits(b, tile, shared_bytes)) found.push_back(tile);
    }
  std::stable_sort(found.begin(), found.end(), [&](const Tile& one, const Tile& other) {
    return clocks(b, one, shared_bytes) < clocks(b, other, shared_bytes);
  });
  return found;
}

}  // namespace fastconv
