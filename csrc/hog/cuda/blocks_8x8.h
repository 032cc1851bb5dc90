// Histograms of blocks on a GPU where the shape is the usual one. That is: unsigned orientations in nine bins, cells of
// 8 x 8 pixels, blocks of 2 x 2 or 3 x 3 cells at every cell, norm "l2-hys", and one channel or three. Linear votes have
// blocks of 2 x 2 alone. The arithmetic is in float32. These are the defaults of scikit-image and OpenCV. A thread block
// walks down a strip of the image, four rows of pixels at a time. A thread does a column.
//
//      <------ up to 224 columns ------>
//    h p p p p p p p p p p p p p p p p p h    load:       four rows and their halo h, as floats
//    h p p p p p p p p p p p p p p p p p h    vote:       a thread a column, into a histogram of its own
//      |cell   |cell   |cell   |cell   |      cells:      a thread a cell and bin, across the columns
//      |block          |                      normalise:  8 lanes a block
//              |block          |
//
// Every sum has the order of the CPU, so bytes have its bits. Hard votes go to cells that blocks share, and a column has
// one sum for each bin. Linear votes go to the four cells of a block, which are 12 pixels high. Each row is in three
// such cells, and a column has a sum for each of them (ColumnRoles).
#pragma once

#include <algorithm>

#include "hog/cuda/blocks_8x8_stages.h"

namespace maskfeat {
namespace {

// How many thread blocks are to be resident on a multiprocessor: as many as leave enough registers.
template <typename Shape, bool GRADIENT>
constexpr int kResidentStrips = !Shape::kLinear && Shape::kPerBlock == 2 ? 3
                                : GRADIENT                               ? 2
                                : Shape::kLinear                         ? 3
                                                                         : 4;

// Writes blocks. With GRADIENT, reads the gradient to the result and writes that to the blocks before normalisation.
template <typename Shape, int CHANNELS, bool GRADIENT>
__global__ void __launch_bounds__(kStripThreads, kResidentStrips<Shape, GRADIENT>)
    hog_strip_kernel(const __grid_constant__ BlockWork<float> work, const __grid_constant__ StripWeights weights,
                     const float* __restrict__ grad, float* __restrict__ out) {
  using Memory = StripMemory<Shape, CHANNELS>;
  constexpr int kMore = Shape::kPerBlock - 1;  // cells of a block after the first
  __shared__ Memory memory;
  const int64_t plane = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
  if (plane >= work.planes) return;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int strips_across = ceil_div(work.x.blocks, work.x.tile), strip = static_cast<int>(blockIdx.x);
  const int row = strip / strips_across, block_y = row * work.y.tile,
            block_x = (strip - row * strips_across) * work.x.tile;
  const int rows = min(work.y.tile, work.y.blocks - block_y), across = min(work.x.tile, work.x.blocks - block_x);
  const int columns = (across + kMore) * kStripCell, top = block_y * kStripCell, left = block_x * kStripCell;

  // The threads after the last column load the halo.
  const int pixel = thread == columns ? -1 : thread == columns + 1 ? columns : thread;
  const int64_t column_at = mirror(work.region.left + left + pixel, work.image_width) * work.image.column_stride;
  const int64_t first_pixel = work.image.plane_offset(plane) + column_at;
  const uint32_t tie = left + thread >= work.tie_column ? 1 : 0;
  float cotangents[kStripBins / 2] = {};
  if constexpr (Shape::kLinear) {
    if (thread < kStripCell) {
      const bool later = thread >= kStripRows;
      memory.weights[later][thread % kStripRows] = {
          weights.down[0][thread], weights.down[1][later ? thread - kStripRows : thread + kStripRows],
          later ? weights.down[1][thread + kStripRows] : weights.down[0][thread + kStripCell], 0};
    }
  } else {
    for (int k = 0; k < kStripBins / 2; ++k) cotangents[k] = work.table[work.cotangents + 1 + k];
  }
  if (work.sqrt && work.image.dtype == Dtype::uint8)
    for (int i = thread; i < 256; i += threads) memory.roots[i] = std::sqrt(static_cast<float>(i));

  // A thread sums the columns of a bin in a shared cell, or in the cells of a block. Eight lanes normalise a block.
  const int items = Shape::kLinear ? across : across + kMore, item_bin = thread / items,
            item = thread - item_bin * items;
  const int lane = thread % kBlockLanes, block = thread / kBlockLanes;
  const bool by_columns = work.strides.cell_column > work.strides.cell_row;
  const int cell_pitch = by_columns ? Shape::kRun : kStripBins;         // from a cell to the one beside it
  const int row_pitch = by_columns ? kStripBins : Memory::kRowOfCells;  // and to the one below
  const int gap = by_columns || Shape::kLinear ? 0 : Memory::kRowOfCells - Shape::kRun;  // between runs of a block
  float* const cell = memory.cells + item * (Shape::kLinear ? Shape::kEntries : cell_pitch) + item_bin;
  const float* const entries = memory.cells + block * (Shape::kLinear ? Shape::kEntries : cell_pitch) + lane;
  const int64_t first_block = plane * work.size + block_y * work.strides.row + (block_x + block) * work.strides.column;
  float* to = out + first_block + lane;
  const float* from = GRADIENT ? grad + first_block + lane : nullptr;
  find_rows(work, top - kStripRows + 1, memory);
  __syncthreads();

  ColumnState<CHANNELS> state{};
  ColumnRoles roles;
  float cell_before[kMore] = {};
  for (int half = -1; half < 2 * (rows + kMore); ++half) {
    float pixels[kStripRows][CHANNELS];
    if (thread < columns + 2) load_rows<CHANNELS>(work, first_pixel, pixel + 1, memory, pixels);
    __syncthreads();
    if (thread < columns) vote_rows<Shape>(work, cotangents, half, thread, tie, roles, pixels, state, memory);
    find_rows(work, top + (half + 1) * kStripRows + 1, memory);
    __syncthreads();
    const int block_row = half / 2 - kMore;

    if constexpr (Shape::kLinear) {
      if (item_bin < kStripBins && block_row >= 0) {
        Columns<2> of(memory.columns[roles.ending][item_bin], item);
        of.add(memory.columns[roles.kLast][item_bin], item);
        float left_sum = 0, right_sum = 0;
#pragma unroll
        for (int i = 0; i < kLinearLength; ++i) {
          left_sum += of.value[i] * weights.across[0][i];
          right_sum += of.value[kLinearStart + i] * weights.across[1][i];
        }
        float* const row = cell + half % 2 * work.strides.cell_row;
        row[0] = left_sum, row[work.strides.cell_column] = right_sum;
      }
      roles.advance(half);
    } else if (half % 2 == 1 && item_bin < kStripBins) {
      const Columns<1> of(memory.columns[0][item_bin], item);
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kStripCell; ++i) sum += of.value[i];
      sum *= weights.shared;
#pragma unroll
      for (int i = 0; i < kMore; ++i) {
        cell[i * row_pitch] = cell_before[i];
        cell_before[i] = i + 1 < kMore ? cell_before[i + 1] : sum;
      }
      cell[kMore * row_pitch] = sum;
    }
    if ((half & 1) == 0) continue;
    __syncthreads();

    if (block_row < 0) continue;
    if (block / 4 * 4 >= across) continue;  // all four blocks of a warp
    float v[Shape::kOfLane], g[Shape::kOfLane];
#pragma unroll
    for (int i = 0; i < Shape::kOfLane; ++i) {
      const int first = i * kBlockLanes, run = first / Shape::kRun, last_run = (first + kBlockLanes - 1) / Shape::kRun;
      const bool is_entry = first + kBlockLanes <= Shape::kEntries || lane < Shape::kEntries - first;
      const int gaps = run == last_run || lane < last_run * Shape::kRun - first ? run : last_run;
      v[i] = is_entry ? entries[first + gaps * gap] : 0.0f;
      g[i] = GRADIENT && is_entry && block < across ? from[first] : 0.0f;
    }
    normalise_entries<GRADIENT>(work, v, g);
#pragma unroll
    for (int i = 0; i < Shape::kOfLane; ++i)
      if (block < across && (i < Shape::kOfLane - 1 || lane < Shape::kEntries - i * kBlockLanes))
        to[i * kBlockLanes] = g[i];
    to += work.strides.row;
    if (GRADIENT) from += work.strides.row;
  }
}

// True where cells, blocks, bins and channels are those that strips can have.
inline bool fits_strips(const BlockWork<float>& work, const BlockPlan& plan) {
  const auto fits = [&](const CellAxis& axis) {
    if (axis.stride != kStripCell || axis.step != kStripCell || axis.starts[0] != 0) return false;
    if (work.linear)
      return axis.per_block == 2 && axis.block_step == 2 && axis.period == 2 && axis.length == kLinearLength &&
             axis.starts[1] == kLinearStart;
    return axis.per_block <= 3 && axis.block_step == 1 && axis.period == 1 && axis.length == kStripCell &&
           std::all_of(axis.weights, axis.weights + axis.length, [&](double w) { return w == 1 || w == 0.125; });
  };
  return work.bins == kStripBins && !work.is_signed && (work.channels.count == 1 || work.channels.count == 3) &&
         fits(plan.y) && fits(plan.x) && plan.y.per_block == plan.x.per_block;
}

// True where the kernel can do what is asked for.
inline bool has_strip_kernel(const BlockWork<float>& work, const BlockPlan& plan) {
  return fits_strips(work, plan) && plan.y.per_block > 1 && work.from_horizontal && !work.sobel && !work.wide_rows &&
         work.norm == Norm::l2_hys;
}

// The most that each of at least `parts` equal parts has to take of `all`.
inline int32_t shared_evenly(int32_t all, int64_t parts) {
  return static_cast<int32_t>(ceil_div<int64_t>(all, std::min<int64_t>(all, std::max<int64_t>(1, parts))));
}

// How many thread blocks are to be launched at least. An H200 has 132 multiprocessors. Blocks that are resident together
// should all begin and end together: in one wave, or with three a multiprocessor in two.
constexpr int64_t strip_blocks(int resident) { return resident == 3 ? 768 : resident * 128; }

template <typename Shape>
StripWeights strip_weights(const BlockWork<float>& work) {
  StripWeights weights{};
  for (int i = 0; Shape::kLinear && i < 2 * kLinearLength; ++i) {
    weights.down[i / kLinearLength][i % kLinearLength] = work.table[work.y.weights + i];
    weights.across[i / kLinearLength][i % kLinearLength] = work.table[work.x.weights + i];
  }
  weights.shared = work.table[work.y.weights] * work.table[work.x.weights];
  return weights;
}

template <typename Shape, int CHANNELS, bool GRADIENT>
int launch_strips(BlockWork<float>& work, const float* grad, float* out, void* stream) {
  work.x.tile = shared_evenly(work.x.blocks, ceil_div(work.x.blocks, Shape::kMostBlocks));
  const int64_t strips_across = ceil_div(work.x.blocks, work.x.tile);
  work.y.tile = shared_evenly(
      work.y.blocks, ceil_div<int64_t>(strip_blocks(kResidentStrips<Shape, GRADIENT>), work.planes * strips_across));
  const int cells = work.x.tile + Shape::kPerBlock - 1, items = Shape::kLinear ? work.x.tile : cells;
  const int threads = ceil_div(std::max(cells * kStripCell + 2, items * kStripBins), 32) * 32;
  const dim3 grid = grid_of_planes(ceil_div(work.y.blocks, work.y.tile) * strips_across, work.planes);
  if (grid.x == 0) return cudaErrorInvalidConfiguration;
  LAUNCH((hog_strip_kernel<Shape, CHANNELS, GRADIENT>), grid, dim3(threads), 0, stream, work,
         strip_weights<Shape>(work), grad, out);
  return static_cast<int>(cudaGetLastError());
}

template <bool GRADIENT>
int launch_strips(BlockWork<float>& work, const BlockPlan& plan, const float* grad, float* out, void* stream) {
  const auto launch = [&](auto shape) {
    using Shape = decltype(shape);
    return work.channels.count == 1 ? launch_strips<Shape, 1, GRADIENT>(work, grad, out, stream)
                                    : launch_strips<Shape, 3, GRADIENT>(work, grad, out, stream);
  };
  if (work.linear) return launch(Shape<2, true>{});
  return plan.y.per_block == 2 ? launch(Shape<2, false>{}) : launch(Shape<3, false>{});
}

}  // namespace
}  // namespace maskfeat
