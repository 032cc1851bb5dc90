// The parameters of a launch of the kernels of blocks, and how the host chooses tiles that fit shared memory.
#pragma once

#include <algorithm>
#include <cstdlib>

#include "hog/orientation.h"
#include "hog/plan.h"

namespace maskfeat {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kTileBlocks = 8;                    // the most blocks along a side of a tile
constexpr int kTileHeight = 16, kTileWidth = 32;  // pixels of a tile of the gradient, at most
constexpr int kBandRows = 16;                     // rows of a band at least, unless nothing else fits
constexpr int kBinsAtOnce = 12;
constexpr int64_t kSharedBytes = 48 << 10, kTileBytes = 32 << 10;  // bytes of a thread block: the most, and the aim
constexpr int64_t kManyThreadBlocks = 512;                         // so many keep a GPU busy
constexpr int kTable = 300, kStarts = 64;                          // the numbers that a launch has room for

// A CellAxis for the device. Its tables are parts of those of BlockWork.
struct DeviceCellAxis {
  int32_t pixels, stride, per_block, block_step, step, period, length;
  int32_t weights, starts;        // where its tables begin in those of BlockWork
  int32_t tile;                   // blocks of a tile, along this axis
  int32_t group;                  // cells of a group: the places of cells repeat group after group
  int32_t group_step, group_end;  // pixels from a group to the next, and from its first pixel to its end
  int32_t depth;                  // the most cells that hold a pixel
  int32_t blocks, cells;
};

// A region for the device. Coordinates along an axis have 32 bits, offsets in memory 64.
struct Rectangle {
  int32_t top, left, height, width;
};

// Where arrays begin in shared memory, in bytes. The weights and cotangents are first.
struct BlocksMemory {
  int32_t starts, row_at, column_at, cells, divisors, columns, below, above, bins, bytes;
};
struct PixelsMemory {
  int32_t starts, row_at, column_at, row_slots, column_slots, row_weights, column_weights, cells, gx, gy, channel,
      bytes;
};

// The parameters of a launch.
template <typename T>
struct BlockWork {
  ImageView image;
  Channels channels;
  Rectangle region;
  BlockStrides strides;
  int64_t planes, size;  // planes of the result, and numbers of each
  DeviceCellAxis y, x;
  T eps, eps_again, clip, bins_per_angle;  // the last is the bins in a radian, or in a degree for OpenCV
  int32_t bins, bins_at_once;
  int32_t lanes;  // lanes that add the votes of a cell
  int32_t band;   // rows of pixels that are done at once
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
static_assert(sizeof(BlockWork<double>) <= 4096 - 3 * sizeof(void*), "what the parameters of a kernel may take");

// Hands out shared memory, in multiples of 16 bytes.
class SharedMemory {
 public:
  template <typename T>
  int32_t take(int64_t count) {
    const int64_t at = bytes_;
    bytes_ += ceil_div<int64_t>(count * int64_t{sizeof(T)}, 16) * 16;
    return static_cast<int32_t>(at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

// Lays out shared memory for the kernel of blocks, with tiles of up to `blocks` x `blocks` and bands of least_rows or
// more. Returns false where that takes more than `limit` bytes.
template <typename T>
bool place_blocks(BlockWork<T>& work, int64_t blocks, int64_t least_rows, int64_t limit) {
  for (DeviceCellAxis* axis : {&work.y, &work.x}) {
    const int64_t all = std::max(1, axis->blocks);
    axis->tile = static_cast<int32_t>(ceil_div<int64_t>(all, ceil_div<int64_t>(all, blocks)));
  }
  const int64_t height = int64_t{work.y.tile - 1} * work.y.stride + work.y.pixels;
  const int64_t width = int64_t{work.x.tile - 1} * work.x.stride + work.x.pixels;
  const int64_t cells = (int64_t{work.y.tile - 1} * work.y.block_step + work.y.per_block) *
                        (int64_t{work.x.tile - 1} * work.x.block_step + work.x.per_block);
  for (work.bins_at_once = std::min(work.bins, kBinsAtOnce); work.bins_at_once > 0; --work.bins_at_once) {
    SharedMemory shared;
    shared.take<T>(work.table_size);
    BlocksMemory& at = work.at.blocks;
    at.starts = shared.take<int32_t>(work.start_count);
    at.row_at = shared.take<int64_t>(height + 2);
    at.column_at = shared.take<int64_t>(width + 2);
    at.cells = shared.take<T>(cells * work.bins);
    at.divisors = shared.take<T>(2 * work.y.tile * work.x.tile);
    at.columns = shared.take<T>(kWarps * 32 * work.bins_at_once);
    const int64_t row_bytes = width * static_cast<int64_t>(sizeof(T) * (work.linear ? 2 : 1) + sizeof(uint16_t));
    const int64_t rows = std::min(height, (limit - shared.bytes() - 3 * 15) / row_bytes);
    if (rows < std::min(height, least_rows)) continue;
    work.band = static_cast<int32_t>(ceil_div<int64_t>(height, ceil_div<int64_t>(height, rows)));
    at.below = shared.take<T>(work.band * width);
    at.above = shared.take<T>(work.linear ? work.band * width : 0);
    at.bins = shared.take<uint16_t>(work.band * width);
    at.bytes = static_cast<int32_t>(shared.bytes());
    return true;
  }
  return false;
}

// Chooses the largest tiles that are still enough to keep all of a GPU busy, else the smallest.
template <typename T>
bool place_blocks(BlockWork<T>& work) {
  for (int64_t side = kTileBlocks; side > 1; --side) {
    const double tiles =
        static_cast<double>(ceil_div<int64_t>(work.y.blocks, side) * ceil_div<int64_t>(work.x.blocks, side));
    if (side > 2 && tiles * static_cast<double>(work.planes) < kManyThreadBlocks) continue;
    if (place_blocks(work, side, kBandRows, kTileBytes)) return true;
  }
  return place_blocks(work, 1, 1, kSharedBytes);
}

// Lays out shared memory for the kernel of pixels, with tiles of work.height x work.width.
template <typename T>
bool place_pixels_of_tile(BlockWork<T>& work) {
  const auto cells = [](const DeviceCellAxis& axis, int64_t pixels) {
    return ((pixels + axis.group_end - 2) / axis.group_step + 1) * axis.group;
  };
  const int64_t height = work.height + 2, width = work.width + 2;
  SharedMemory shared;
  shared.take<T>(work.table_size);
  PixelsMemory& at = work.at.pixels;
  at.starts = shared.take<int32_t>(work.start_count);
  at.row_at = shared.take<int64_t>(height + 2);
  at.column_at = shared.take<int64_t>(width + 2);
  at.row_slots = shared.take<int32_t>(height * (work.y.depth + 1));
  at.column_slots = shared.take<int32_t>(width * (work.x.depth + 1));
  at.row_weights = shared.take<T>(height * work.y.depth);
  at.column_weights = shared.take<T>(width * work.x.depth);
  at.cells = shared.take<T>(work.keep_cells ? cells(work.y, height) * cells(work.x, width) * work.bins : 0);
  at.gx = shared.take<T>(height * width);
  at.gy = shared.take<T>(height * width);
  at.channel = shared.take<int32_t>(height * width);
  at.bytes = static_cast<int32_t>(shared.bytes());
  return shared.bytes() <= kSharedBytes;
}

template <typename T>
bool place_pixels(BlockWork<T>& work) {
  for (const bool keep : {true, false})
    for (int shrink = 0; shrink < 3; ++shrink) {
      work.keep_cells = keep;
      work.height = static_cast<int32_t>(std::min<int64_t>(kTileHeight >> shrink, work.image.height));
      work.width = static_cast<int32_t>(std::min<int64_t>(kTileWidth >> shrink, work.image.width));
      if (place_pixels_of_tile(work)) return true;
    }
  return false;
}

// Copies an axis and its tables. Returns false where the tables do not fit. Tables that x shares with y, `same`, are
// there already.
template <typename T>
bool add_axis(BlockWork<T>& work, DeviceCellAxis& to, const CellAxis& from, int64_t blocks, const CellAxis* same) {
  const int64_t count = from.period * from.length;
  to = {};
  to.pixels = static_cast<int32_t>(from.pixels), to.stride = static_cast<int32_t>(from.stride);
  to.per_block = static_cast<int32_t>(from.per_block), to.block_step = static_cast<int32_t>(from.block_step);
  to.step = static_cast<int32_t>(from.step);
  to.period = static_cast<int32_t>(from.period), to.length = static_cast<int32_t>(from.length);
  to.blocks = static_cast<int32_t>(blocks);
  to.cells = blocks > 0 ? static_cast<int32_t>((blocks - 1) * from.block_step + from.per_block) : 0;
  // Cells side by side without gaps are groups of one cell, whatever their weights.
  bool side_by_side = from.step == from.period * from.length;
  int64_t last = 0;
  for (int64_t k = 0; k < from.period; ++k) {
    side_by_side = side_by_side && from.starts[k] == k * from.length;
    last = std::max(last, from.starts[k]);
  }
  to.group = static_cast<int32_t>(side_by_side ? 1 : from.period);
  to.group_step = static_cast<int32_t>(side_by_side ? from.length : from.step);
  to.group_end = static_cast<int32_t>((side_by_side ? 0 : last) + from.length);
  const int64_t depth = to.group * ceil_div<int64_t>(to.length, to.group_step);
  to.depth = static_cast<int32_t>(std::min<int64_t>(depth, kSharedBytes));
  if (same && same->period == from.period && same->length == from.length &&
      std::equal(from.starts, from.starts + from.period, same->starts) &&
      std::equal(from.weights, from.weights + count, same->weights)) {
    to.starts = work.y.starts, to.weights = work.y.weights;
    return true;
  }
  if (count > kTable - work.table_size || from.period > kStarts - work.start_count) return false;
  to.starts = work.start_count, to.weights = work.table_size;
  for (int64_t i = 0; i < from.period; ++i) work.start[work.start_count++] = static_cast<int32_t>(from.starts[i]);
  for (int64_t i = 0; i < count; ++i) work.table[work.table_size++] = static_cast<T>(from.weights[i]);
  return true;
}

// Fills in all but the layout of shared memory. Returns what does not fit, or nullptr.
template <typename T>
const char* fill(BlockWork<T>& work, const ImageView& image, const Channels& channels, const BlockPlan& plan) {
  const Region& region = plan.region;
  const auto cells = [](const CellAxis& axis, int64_t size) {
    return axis.blocks(size) * (axis.block_step + axis.per_block);
  };
  for (const int64_t size : {image.height, image.width, region.height, region.width, std::abs(region.top),
                             std::abs(region.left), cells(plan.y, region.height), cells(plan.x, region.width)})
    if (size >= int64_t{1} << 29) return "an axis of more than 2^29 pixels";
  work.region = {static_cast<int32_t>(region.top), static_cast<int32_t>(region.left),
                 static_cast<int32_t>(region.height), static_cast<int32_t>(region.width)};
  work.tie_column = static_cast<int32_t>(std::min<int64_t>(std::max<int64_t>(region.tie_column, 0), region.width));
  work.image_height = static_cast<int32_t>(image.height), work.image_width = static_cast<int32_t>(image.width);
  work.image = image, work.channels = channels;
  work.planes = 1;
  for (int axis = 0; axis < image.lead; ++axis) work.planes *= image.lead_size[axis];
  work.strides = plan.strides(), work.size = plan.size();
  work.eps = static_cast<T>(plan.eps), work.eps_again = static_cast<T>(plan.eps_again);
  work.clip = static_cast<T>(plan.clip);
  work.bins = static_cast<int32_t>(plan.bins);
  work.sqrt = plan.sqrt, work.sobel = plan.gradient == Gradient::sobel, work.is_signed = plan.is_signed;
  work.from_horizontal = plan.from_horizontal, work.linear = plan.votes == Votes::linear;
  work.opencv = plan.arithmetic == Arithmetic::opencv, work.wide_rows = plan.layout == Layout::planes;
  work.norm = plan.norm;
  const double circle = work.opencv ? 360 : 2 * kPi;
  work.bins_per_angle = static_cast<T>(static_cast<double>(plan.bins) / (plan.is_signed ? circle : circle / 2));
  for (work.lanes = 1; work.lanes < 32 && work.lanes * 16 <= plan.y.length * plan.x.length;) work.lanes *= 2;
  const char* const too_many =
      "weights of pixels in cells and bin edges that are more than the 300 numbers of a launch";
  if (!add_axis(work, work.y, plan.y, plan.block_rows(), nullptr)) return too_many;
  if (!add_axis(work, work.x, plan.x, plan.block_columns(), &plan.y)) return too_many;
  work.cotangents = work.table_size;
  if (work.linear) return nullptr;
  if (plan.bins > kTable - work.table_size) return too_many;
  for (int64_t k = 0; k < plan.bins; ++k)
    work.table[work.table_size++] = k ? static_cast<T>(edge_cotangent(k, plan.bins, plan.is_signed)) : T(0);
  return nullptr;
}

}  // namespace
}  // namespace maskfeat
