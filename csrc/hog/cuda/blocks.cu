// Histograms of blocks on a GPU, in every dialect. The usual shapes have a kernel of their own, in blocks_8x8.h. For all
// others, the kernel below reads the pixels once and writes the blocks once. A
// thread block does a tile of blocks that fits into shared memory, one band of rows after the other:
//
//     votes:      a thread a pixel       gx, gy -> magnitude, bin and shares, into shared memory (votes.h)
//     cells:      2^k lanes a cell       each lane adds votes in a column of its own, then the lanes add the columns
//     normalise:  a warp a block         what the block is divided by (normalise.h)
//     write:      a lane a value         neighbouring lanes write neighbouring addresses
//
// The gradient takes two kernels. This one runs again and ends in the gradient of the normalisation. The kernel of
// backward.h goes on to the pixels. Nothing is added atomically. Every sum has a fixed order.
#include "hog/cuda/blocks.h"

#include "hog/cuda/backward.h"
#include "hog/cuda/backward_8x8.h"
#include "hog/cuda/blocks_8x8.h"
#include "hog/cuda/cells_8x8.h"
#include "hog/cuda/normalise.h"
#include "hog/cuda/votes.h"

namespace maskfeat {
namespace {

// A tile along an axis: its blocks, their pixels, and their cells.
struct TileSpan {
  int block, pixel;  // the first
  int blocks, pixels, cells;
  int phase;  // the number of the first cell, modulo axis.period
  int lead;   // pixels from the tile's first pixel to the first cell of phase 0

  __device__ TileSpan(const DeviceCellAxis& axis, int tile) : block(tile * axis.tile), pixel(block * axis.stride) {
    blocks = min(axis.tile, axis.blocks - block);
    pixels = (blocks - 1) * axis.stride + axis.pixels;
    cells = (blocks - 1) * axis.block_step + axis.per_block;
    const int cell = block * axis.block_step;
    phase = cell % axis.period;
    lead = cell / axis.period * axis.step - pixel;
  }
  __device__ int first_pixel(const DeviceCellAxis& axis, const int32_t* starts, int cell) const {
    return lead + (phase + cell) / axis.period * axis.step + starts[axis.starts + (phase + cell) % axis.period];
  }
  template <typename T>
  __device__ const T* weights(const DeviceCellAxis& axis, const T* table, int cell) const {
    return table + axis.weights + (phase + cell) % axis.period * axis.length;
  }
};

// cells: adds the votes of the rows [begin, end) of the tile to its cells. 2^k lanes do a cell.
template <typename T>
__device__ void add_votes(const BlockWork<T>& work, const TileSpan& y, const TileSpan& x, int begin, int end,
                          unsigned char* memory) {
  const BlocksMemory& at = work.at.blocks;
  const T *table = shared_array<T>(memory, 0), *below = shared_array<T>(memory, at.below),
          *above = shared_array<T>(memory, at.above);
  const int32_t* starts = shared_array<int32_t>(memory, at.starts);
  const uint16_t* bin_of = shared_array<uint16_t>(memory, at.bins);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int lanes = work.lanes, at_once = 32 / lanes, length = work.x.length;
  T* const columns = shared_array<T>(memory, at.columns) + warp * work.bins_at_once * 32;
  T* const sums = shared_array<T>(memory, at.cells);
  for (int first = warp * at_once; first < y.cells * x.cells; first += kWarps * at_once) {
    const int cell = first + lane / lanes, cell_y = cell / x.cells, cell_x = cell - cell_y * x.cells;
    const int top = y.first_pixel(work.y, starts, cell_y), left = x.first_pixel(work.x, starts, cell_x);
    const int row_begin = max(top, begin), row_end = cell < y.cells * x.cells ? min(top + work.y.length, end) : 0;
    if (!__any_sync(kAllLanes, row_begin < row_end)) continue;
    const T *down = y.weights(work.y, table, cell_y), *across = x.weights(work.x, table, cell_x);
    for (int bin0 = 0; bin0 < work.bins; bin0 += work.bins_at_once) {
      const int bins = min(work.bins_at_once, work.bins - bin0);
      for (int k = 0; k < bins; ++k) columns[k * 32 + lane] = 0;
      int row = row_begin, column = lane % lanes;
      const auto wrap = [&] {
        for (; column >= length; column -= length) ++row;
      };
      for (wrap(); row < row_end; column += lanes, wrap()) {
        const int pixel = (row - begin) * x.pixels + left + column, bin = bin_of[pixel];
        const T weight = down[row - top] * across[column];
        if (bin >= bin0 && bin < bin0 + bins) columns[(bin - bin0) * 32 + lane] += weight * below[pixel];
        if (!work.linear) continue;
        const int next = bin + 1 < work.bins ? bin + 1 : 0;
        if (next >= bin0 && next < bin0 + bins) columns[(next - bin0) * 32 + lane] += weight * above[pixel];
      }
      __syncwarp();
      for (int i = lane; i < at_once * bins; i += 32) {
        const int k = i / at_once, own = i % at_once;
        if (first + own >= y.cells * x.cells) continue;
        T sum = 0;
        for (int j = 0; j < lanes; ++j) sum += columns[k * 32 + own * lanes + (j + k) % lanes];  // no bank twice
        sums[(first + own) * work.bins + bin0 + k] += sum;
      }
      __syncwarp();
    }
  }
}

// Writes blocks. With GRADIENT it writes the gradient to blocks before their normalisation. It computes it from `grad`,
// the gradient to the result.
template <typename Pixel, typename T, bool GRADIENT>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 3 : 2)
    hog_blocks_kernel(const __grid_constant__ BlockWork<T> work, const T* __restrict__ grad, T* __restrict__ out) {
  DYNAMIC_SHARED(unsigned char, memory);
  const BlocksMemory& at = work.at.blocks;
  const int64_t plane = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
  if (plane >= work.planes) return;
  const int tile = static_cast<int>(blockIdx.x), tiles_across = ceil_div(work.x.blocks, work.x.tile);
  const TileSpan y(work.y, tile / tiles_across), x(work.x, tile % tiles_across);
  const Pixel* const pixels = static_cast<const Pixel*>(work.image.data) + work.image.plane_offset(plane);
  T* const table = shared_array<T>(memory, 0);
  T* const cells = shared_array<T>(memory, at.cells);
  int64_t* const row_at = shared_array<int64_t>(memory, at.row_at);
  int64_t* const column_at = shared_array<int64_t>(memory, at.column_at);
  load_tables(work, table, shared_array<int32_t>(memory, at.starts));
  load_offsets(row_at, work.region.top + y.pixel - 1, y.pixels + 2, work.image_height, work.image.row_stride);
  load_offsets(column_at, work.region.left + x.pixel - 1, x.pixels + 2, work.image_width, work.image.column_stride);
  for (int i = static_cast<int>(threadIdx.x); i < y.cells * x.cells * work.bins; i += kThreads) cells[i] = 0;
  __syncthreads();

  for (int begin = 0; begin < y.pixels; begin += work.band) {
    const int end = min(begin + work.band, y.pixels);
    for_each(end - begin, x.pixels, [&](int row, int column) {
      const bool last_of_equals = x.pixel + column >= work.tie_column;
      const PixelGradient<T> gradient =
          pixel_gradient(work, pixels, row_at + begin + row, column_at + column, last_of_equals);
      const Vote<T> vote = vote_of(work, table + work.cotangents, gradient.gx, gradient.gy);
      const int pixel = row * x.pixels + column;
      shared_array<uint16_t>(memory, at.bins)[pixel] = static_cast<uint16_t>(vote.bin);
      shared_array<T>(memory, at.below)[pixel] = vote.magnitude * (T(1) - vote.above);
      if (work.linear) shared_array<T>(memory, at.above)[pixel] = vote.magnitude * vote.above;
    });
    __syncthreads();
    add_votes(work, y, x, begin, end, memory);
    __syncthreads();
  }

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const auto block_of = [&](int row, int column) -> Block<T> {
    const int64_t offset = (y.block + row) * work.strides.row + (x.block + column) * work.strides.column;
    const T* const first = cells + (row * work.y.block_step * x.cells + column * work.x.block_step) * work.bins;
    return {first, x.cells * work.bins, plane * work.size + offset};
  };
  Divisors<T>* const divisors = shared_array<Divisors<T>>(memory, at.divisors);
  for (int i = warp; i < y.blocks * x.blocks; i += kWarps) {
    const Block<T> block = block_of(i / x.blocks, i % x.blocks);
    if (GRADIENT) {
      write_gradient(work, block, grad, out);
    } else {
      const Divisors<T> by = divisors_of(work, block);
      if (lane == 0) divisors[i] = by;
    }
  }
  if (GRADIENT) return;
  __syncthreads();

  // Lanes follow memory. Where neighbouring blocks are neighbours in memory, a lane does a block. Else it does a value
  // of a run of cells.
  const int side = work.wide_rows ? kTileBlocks : 1, groups = ceil_div(x.blocks, side);
  for (int i = warp; i < y.blocks * work.y.per_block * groups; i += kWarps) {
    const int column = i % groups * side + lane % side, row = i / groups / work.y.per_block;
    const int k = i / groups % work.y.per_block;
    if (column >= x.blocks) continue;
    const Block<T> block = block_of(row, column);
    const Divisors<T> by = divisors[row * x.blocks + column];
    T* const to = out + block.offset + k * work.strides.cell_row;
    for (int j = lane / side; j < work.x.per_block * work.bins; j += 32 / side)
      to[Block<T>::offset_in_run(work, j)] = by.finish(work, block.cells[k * block.row_stride + j]);
  }
}

// True for MASKFEAT's blocks of one cell, all of an image, which the kernel of cells computes: sums, and no means.
inline bool is_of_cells(const BlockWork<float>& work, const BlockPlan& plan) {
  return has_pixel_strips(work, plan) && plan.y.per_block == 1 && work.table[work.y.weights] == 1 &&
         work.table[work.x.weights] == 1 && work.norm == Norm::unit && work.eps == 1e-12f && work.wide_rows &&
         !work.from_horizontal && work.region.top == 0 && work.region.left == 0 &&
         work.y.blocks == work.image_height / kStripCell && work.x.blocks == work.image_width / kStripCell;
}

template <bool GRADIENT, typename Pixel, typename T>
int launch_blocks(BlockWork<T>& work, const BlockPlan& plan, const T* grad, T* out, void* stream) {
  if constexpr (std::is_same_v<T, float>) {
    if (has_strip_kernel(work, plan)) return launch_strips<GRADIENT>(work, plan, grad, out, stream);
    if constexpr (GRADIENT && !std::is_same_v<Pixel, uint8_t>) {
      if (is_of_cells(work, plan)) {
        auto cells = cell_work<false, float>(work.image, PatchView{}, {kStripBins, kStripCell, kStripCell, 0});
        if (has_cell_kernel<false>(cells))
          return launch_cells<Pixel, false, CellTask::gradient>(cells, grad, out, stream);
      }
    }
  }
  if (!place_blocks(work)) return cudaErrorInvalidValue;
  const int64_t tiles = ceil_div<int64_t>(work.y.blocks, work.y.tile) * ceil_div<int64_t>(work.x.blocks, work.x.tile);
  const dim3 grid = grid_of_planes(tiles, work.planes);
  if (grid.x == 0) return cudaErrorInvalidConfiguration;
  LAUNCH((hog_blocks_kernel<Pixel, T, GRADIENT>), grid, dim3(kThreads), work.at.blocks.bytes, stream, work, grad, out);
  return static_cast<int>(cudaGetLastError());
}

template <typename Pixel, typename T>
int launch_pixels(BlockWork<T>& work, const BlockPlan& plan, const T* grad_blocks, T* grad_x, void* stream) {
  if constexpr (std::is_same_v<T, float> && !std::is_same_v<Pixel, uint8_t>)
    if (has_pixel_strips(work, plan)) return launch_pixel_strips<Pixel>(work, plan, grad_blocks, grad_x, stream);
  if (!place_pixels(work)) return cudaErrorInvalidValue;
  const int64_t tiles =
      ceil_div<int64_t>(work.image.height, work.height) * ceil_div<int64_t>(work.image.width, work.width);
  const dim3 grid = grid_of_planes(tiles, work.planes);
  if (grid.x == 0) return cudaErrorInvalidConfiguration;
  LAUNCH((hog_pixels_kernel<Pixel, T>), grid, dim3(kThreads), work.at.pixels.bytes, stream, work, grad_blocks, grad_x);
  return static_cast<int>(cudaGetLastError());
}

// Writes blocks to `out`, or with `grad` the gradient to the pixels, by way of grad_blocks.
template <typename Pixel, typename T>
int launch(const ImageView& image, const Channels& channels, const BlockPlan& plan, const void* grad, void* grad_blocks,
           void* out, void* stream) {
  BlockWork<T> work{};
  if (fill(work, image, channels, plan)) return cudaErrorInvalidValue;
  const T* const from = static_cast<const T*>(grad);
  if (work.planes == 0 || (grad ? image.height * image.width : work.size) == 0) return cudaSuccess;
  if (!grad) return launch_blocks<false, Pixel, T>(work, plan, nullptr, static_cast<T*>(out), stream);
  const int error =
      work.size > 0 ? launch_blocks<true, Pixel, T>(work, plan, from, static_cast<T*>(grad_blocks), stream) : 0;
  return error ? error
               : launch_pixels<Pixel, T>(work, plan, static_cast<const T*>(grad_blocks), static_cast<T*>(out), stream);
}

int launch_for_dtype(const ImageView& image, const Channels& channels, const BlockPlan& plan, const void* grad,
                     void* grad_blocks, void* out, void* stream) {
  const auto call = [&](auto launch) { return launch(image, channels, plan, grad, grad_blocks, out, stream); };
  switch (image.dtype) {
    case Dtype::uint8: return call(launch<uint8_t, float>);
    case Dtype::float16: return call(launch<Float16, float>);
    case Dtype::bfloat16: return call(launch<BFloat16, float>);
    case Dtype::float32: return call(launch<float, float>);
    case Dtype::float64: return call(launch<double, double>);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

int hog_blocks_cuda(const ImageView& image, const Channels& channels, const BlockPlan& plan, void* out, void* stream) {
  return launch_for_dtype(image, channels, plan, nullptr, nullptr, out, stream);
}

int hog_blocks_backward_cuda(const ImageView& image, const Channels& channels, const BlockPlan& plan, const void* grad,
                             void* grad_blocks, void* grad_x, void* stream) {
  return launch_for_dtype(image, channels, plan, grad, grad_blocks, grad_x, stream);
}

const char* hog_blocks_cuda_refuses(const BlockPlan& plan) {
  ImageView image{};  // the smallest tiles are the same for every image
  image.height = image.width = kTileWidth;
  BlockWork<double> work{};
  if (const char* const reason = fill(work, image, Channels{1, 0}, plan)) return reason;
  if (!place_blocks(work, 1, 1, kSharedBytes) || !place_pixels(work))
    return "a block (its cells times bins, and its pixels down and across) of more than the 48 KB of shared memory";
  return nullptr;
}

}  // namespace maskfeat
