// What a launch of the GPU kernels for HOG of blocks carries, and how the host chooses tiles that fit shared memory.
#pragma once

#include <algorithm>
#include <cstdlib>

#include "hog/orientation.h"
#include "hog/plan.h"

namespace maskfeat {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTileBlocks = 8;                    // of a side of a tile, at most
constexpr int kTileHeight = 16, kTileWidth = 32;  // pixels of a tile of the gradient, at most
constexpr int kBandRows = 16;                     // pixels that a band is high where shared memory is dear
constexpr int kBinsAtOnce = 12;
constexpr int64_t kSharedBytes = 48 << 10, kTileBytes = 32 << 10;  // of a thread block: at most, and as aimed at
constexpr int64_t kManyThreadBlocks = 512;                         // that keep a GPU busy
constexpr int kTable = 300, kStarts = 64;                          // what a launch has room for
constexpr double kPi = 3.14159265358979323846;

// CellAxis for the device, with its tables in those of Work.
struct Axis {
  int32_t pixels, stride, per_block, block_step, step, kinds, length;
  int32_t weights, starts;               // where its tables begin
  int32_t tile;                          // blocks of a tile
  int32_t group, group_step, group_end;  // cells come in groups, one each group_step pixels, that end so far on
  int32_t depth;                         // cells that can hold a pixel
  int32_t blocks, cells;
};

// What a kernel knows of an image or a region; coordinates along an axis are 32 bits wide, offsets in memory 64.
struct Rectangle {
  int32_t top, left, height, width;
};

// Where things are in shared memory, in bytes; the weights and cotangents are first.
struct BlocksMemory {
  int32_t starts, row_at, column_at, cells, divisors, columns, below, above, bins, bytes;
};
struct PixelsMemory {
  int32_t starts, row_at, column_at, row_slots, column_slots, row_weights, column_weights, cells, gx, gy, channel,
      bytes;
};

// What a launch carries.
template <typename T>
struct Work {
  ImageView image;
  Channels channels;
  Rectangle region;
  BlockStrides strides;  // of a result of `size`
  int64_t planes, size;
  Axis y, x;
  T eps, eps_again, clip, bins_per_turn;  // bins in the unit of angles
  int32_t bins, bins_at_once;
  int32_t lanes;  // of a cell
  int32_t band;   // rows of pixels
  int32_t image_height, image_width, tie_column;
  int32_t height, width;  // pixels of a tile of the gradient
  bool sqrt, sobel, is_signed, from_horizontal, linear, opencv, wide_rows, keep_cells;
  Norm norm;
  union {
    BlocksMemory blocks;
    PixelsMemory pixels;
  } at;
  int32_t table_size, start_count, cotangents;
  int32_t start[kStarts];
  T table[kTable];
};
static_assert(sizeof(Work<double>) <= 4096 - 3 * sizeof(void*), "what the parameters of a kernel may take");

// Hands out shared memory.
class Places {
 public:
  template <typename T>
  int32_t take(int64_t count) {
    const int64_t at = bytes_;
    bytes_ += (count * int64_t{sizeof(T)} + 15) / 16 * 16;
    return static_cast<int32_t>(at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

inline int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Places what the kernel of blocks needs for tiles of up to `blocks` x `blocks` and bands of least_rows or more; false
// where that is more than `limit`.
template <typename T>
bool place_blocks(Work<T>& work, int64_t blocks, int64_t least_rows, int64_t limit) {
  for (Axis* axis : {&work.y, &work.x}) {
    const int64_t all = std::max(1, axis->blocks);
    axis->tile = static_cast<int32_t>(quotient_up(all, quotient_up(all, blocks)));
  }
  const int64_t height = int64_t{work.y.tile - 1} * work.y.stride + work.y.pixels;
  const int64_t width = int64_t{work.x.tile - 1} * work.x.stride + work.x.pixels;
  const int64_t cells = (int64_t{work.y.tile - 1} * work.y.block_step + work.y.per_block) *
                        (int64_t{work.x.tile - 1} * work.x.block_step + work.x.per_block);
  for (work.bins_at_once = std::min(work.bins, kBinsAtOnce); work.bins_at_once > 0; --work.bins_at_once) {
    Places places;
    places.take<T>(work.table_size);
    BlocksMemory& at = work.at.blocks;
    at.starts = places.take<int32_t>(work.start_count);
    at.row_at = places.take<int64_t>(height + 2);
    at.column_at = places.take<int64_t>(width + 2);
    at.cells = places.take<T>(cells * work.bins);
    at.divisors = places.take<T>(2 * work.y.tile * work.x.tile);
    at.columns = places.take<T>(kWarps * 32 * work.bins_at_once);
    const int64_t row_bytes = width * static_cast<int64_t>(sizeof(T) * (work.linear ? 2 : 1) + sizeof(uint16_t));
    const int64_t rows = std::min(height, (limit - places.bytes() - 3 * 15) / row_bytes);
    if (rows < std::min(height, least_rows)) continue;
    work.band = static_cast<int32_t>(quotient_up(height, quotient_up(height, rows)));
    at.below = places.take<T>(work.band * width);
    at.above = places.take<T>(work.linear ? work.band * width : 0);
    at.bins = places.take<uint16_t>(work.band * width);
    at.bytes = static_cast<int32_t>(places.bytes());
    return true;
  }
  return false;
}

// The largest tiles that leave work for all of a GPU, or the smallest.
template <typename T>
bool place_blocks(Work<T>& work) {
  for (int64_t side = kTileBlocks; side > 1; --side) {
    const double tiles = static_cast<double>(quotient_up(work.y.blocks, side) * quotient_up(work.x.blocks, side));
    if (side > 2 && tiles * static_cast<double>(work.planes) < kManyThreadBlocks) continue;
    if (place_blocks(work, side, kBandRows, kTileBytes)) return true;
  }
  return place_blocks(work, 1, 1, kSharedBytes);
}

// Likewise for the kernel of pixels and tiles of work.height x work.width.
template <typename T>
bool place_pixels_of_tile(Work<T>& work) {
  const auto cells = [](const Axis& axis, int64_t pixels) {
    return ((pixels + axis.group_end - 2) / axis.group_step + 1) * axis.group;
  };
  const int64_t height = work.height + 2, width = work.width + 2;
  Places places;
  places.take<T>(work.table_size);
  PixelsMemory& at = work.at.pixels;
  at.starts = places.take<int32_t>(work.start_count);
  at.row_at = places.take<int64_t>(height + 2);
  at.column_at = places.take<int64_t>(width + 2);
  at.row_slots = places.take<int32_t>(height * (work.y.depth + 1));
  at.column_slots = places.take<int32_t>(width * (work.x.depth + 1));
  at.row_weights = places.take<T>(height * work.y.depth);
  at.column_weights = places.take<T>(width * work.x.depth);
  at.cells = places.take<T>(work.keep_cells ? cells(work.y, height) * cells(work.x, width) * work.bins : 0);
  at.gx = places.take<T>(height * width);
  at.gy = places.take<T>(height * width);
  at.channel = places.take<int32_t>(height * width);
  at.bytes = static_cast<int32_t>(places.bytes());
  return places.bytes() <= kSharedBytes;
}

template <typename T>
bool place_pixels(Work<T>& work) {
  for (const bool keep : {true, false})
    for (int shrink = 0; shrink < 3; ++shrink) {
      work.keep_cells = keep;
      work.height = static_cast<int32_t>(std::min<int64_t>(kTileHeight >> shrink, work.image.height));
      work.width = static_cast<int32_t>(std::min<int64_t>(kTileWidth >> shrink, work.image.width));
      if (place_pixels_of_tile(work)) return true;
    }
  return false;
}

// Copies the tables of an axis; false where they do not fit. What x has in common with y is there already.
template <typename T>
bool add_axis(Work<T>& work, Axis& to, const CellAxis& from, int64_t blocks, const CellAxis* same) {
  const int64_t count = from.kinds * from.length;
  to = {};
  to.pixels = static_cast<int32_t>(from.pixels), to.stride = static_cast<int32_t>(from.stride);
  to.per_block = static_cast<int32_t>(from.per_block), to.block_step = static_cast<int32_t>(from.block_step);
  to.step = static_cast<int32_t>(from.step);
  to.kinds = static_cast<int32_t>(from.kinds), to.length = static_cast<int32_t>(from.length);
  to.blocks = static_cast<int32_t>(blocks);
  to.cells = blocks > 0 ? static_cast<int32_t>((blocks - 1) * from.block_step + from.per_block) : 0;
  // Cells side by side are all of one group in space, whatever their weights.
  bool side_by_side = from.step == from.kinds * from.length;
  int64_t last = 0;
  for (int64_t k = 0; k < from.kinds; ++k) {
    side_by_side = side_by_side && from.starts[k] == k * from.length;
    last = std::max(last, from.starts[k]);
  }
  to.group = static_cast<int32_t>(side_by_side ? 1 : from.kinds);
  to.group_step = static_cast<int32_t>(side_by_side ? from.length : from.step);
  to.group_end = static_cast<int32_t>((side_by_side ? 0 : last) + from.length);
  const int64_t depth = to.group * quotient_up(to.length, to.group_step);
  to.depth = static_cast<int32_t>(std::min<int64_t>(depth, kSharedBytes));
  if (same && same->kinds == from.kinds && same->length == from.length &&
      std::equal(from.starts, from.starts + from.kinds, same->starts) &&
      std::equal(from.weights, from.weights + count, same->weights)) {
    to.starts = work.y.starts, to.weights = work.y.weights;
    return true;
  }
  if (count > kTable - work.table_size || from.kinds > kStarts - work.start_count) return false;
  to.starts = work.start_count, to.weights = work.table_size;
  for (int64_t i = 0; i < from.kinds; ++i) work.start[work.start_count++] = static_cast<int32_t>(from.starts[i]);
  for (int64_t i = 0; i < count; ++i) work.table[work.table_size++] = static_cast<T>(from.weights[i]);
  return true;
}

// All but the places in shared memory. Returns what does not fit, nullptr if all does.
template <typename T>
const char* fill(Work<T>& work, const ImageView& image, const Channels& channels, const HogBlocks& hog) {
  const Region& region = hog.region;
  const auto cells = [](const CellAxis& axis, int64_t size) {
    return axis.blocks(size) * (axis.block_step + axis.per_block);
  };
  for (const int64_t size : {image.height, image.width, region.height, region.width, std::abs(region.top),
                             std::abs(region.left), cells(hog.y, region.height), cells(hog.x, region.width)})
    if (size >= int64_t{1} << 29) return "an axis of more than 2^29 pixels";
  work.region = {static_cast<int32_t>(region.top), static_cast<int32_t>(region.left),
                 static_cast<int32_t>(region.height), static_cast<int32_t>(region.width)};
  work.tie_column = static_cast<int32_t>(std::min<int64_t>(std::max<int64_t>(region.tie_column, 0), region.width));
  work.image_height = static_cast<int32_t>(image.height), work.image_width = static_cast<int32_t>(image.width);
  work.image = image, work.channels = channels;
  work.planes = 1;
  for (int axis = 0; axis < image.lead; ++axis) work.planes *= image.lead_size[axis];
  work.strides = hog.strides(), work.size = hog.size();
  work.eps = static_cast<T>(hog.eps), work.eps_again = static_cast<T>(hog.eps_again);
  work.clip = static_cast<T>(hog.clip);
  work.bins = static_cast<int32_t>(hog.bins);
  work.sqrt = hog.sqrt, work.sobel = hog.gradient == Gradient::sobel, work.is_signed = hog.is_signed;
  work.from_horizontal = hog.from_horizontal, work.linear = hog.votes == Votes::linear;
  work.opencv = hog.arithmetic == Arithmetic::opencv, work.wide_rows = hog.layout == Layout::planes;
  work.norm = hog.norm;
  const double circle = work.opencv ? 360 : 2 * kPi;
  work.bins_per_turn = static_cast<T>(static_cast<double>(hog.bins) / (hog.is_signed ? circle : circle / 2));
  for (work.lanes = 1; work.lanes < 32 && work.lanes * 16 <= hog.y.length * hog.x.length;) work.lanes *= 2;
  const char* const too_many =
      "weights of pixels in cells and bin edges that are more than the 300 numbers of a launch";
  if (!add_axis(work, work.y, hog.y, hog.block_rows(), nullptr)) return too_many;
  if (!add_axis(work, work.x, hog.x, hog.block_columns(), &hog.y)) return too_many;
  work.cotangents = work.table_size;
  if (work.linear) return nullptr;
  if (hog.bins > kTable - work.table_size) return too_many;
  for (int64_t k = 0; k < hog.bins; ++k)
    work.table[work.table_size++] = k ? static_cast<T>(bin_edge_cotangent(k, hog.bins, hog.is_signed)) : T(0);
  return nullptr;
}

}  // namespace
}  // namespace maskfeat
