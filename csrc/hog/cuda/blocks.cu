// HOG of blocks on a GPU, every dialect, in one kernel: one read of the pixels, one write of the blocks.
//
// A thread block does a tile of blocks, as far as its shared memory reaches, band of rows by band:
//
//     votes:      a thread a pixel       gx, gy -> length, bin and shares, into shared memory
//     cells:      2^k lanes a cell       each lane adds votes in a column of its own, then lanes add the columns
//     normalise:  a warp a block         what divides the block
//     write:      lanes along memory
//
// The gradient takes two kernels: this one again, which then ends in the gradient of the normalisation, and the one of
// hog/cuda/backward.h. Nothing is added atomically, and every sum has one order.
#include "hog/cuda/blocks.h"

#include <limits>

#include "hog/cuda/backward.h"

namespace maskfeat {
namespace {

constexpr int64_t kMaxGridY = 65535;
constexpr unsigned kAllLanes = 0xffffffff;

template <typename T>
__device__ T sum_of_warp(T sum) {
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  return sum;
}

// A tile along an axis: of blocks, their pixels, and their cells.
struct Span {
  int block, pixel;  // the first
  int blocks, pixels, cells;
  int kind, lead;  // of the first cell, and from the tile's first pixel to the first cell of kind 0

  __device__ Span(const Axis& axis, int tile) : block(tile * axis.tile), pixel(block * axis.stride) {
    blocks = min(axis.tile, axis.blocks - block);
    pixels = (blocks - 1) * axis.stride + axis.pixels;
    cells = (blocks - 1) * axis.block_step + axis.per_block;
    const int cell = block * axis.block_step;
    kind = cell % axis.kinds;
    lead = cell / axis.kinds * axis.step - pixel;
  }
  __device__ int first_pixel(const Axis& axis, const int32_t* starts, int cell) const {
    return lead + (kind + cell) / axis.kinds * axis.step + starts[axis.starts + (kind + cell) % axis.kinds];
  }
  template <typename T>
  __device__ const T* weights(const Axis& axis, const T* table, int cell) const {
    return table + axis.weights + (kind + cell) % axis.kinds * axis.length;
  }
};

// cells: what the rows begin .. end - 1 of the tile add to its cells.
template <typename T>
__device__ void add_votes(const Work<T>& work, const Span& y, const Span& x, int begin, int end,
                          unsigned char* memory) {
  const BlocksMemory& at = work.at.blocks;
  const T *table = within<T>(memory, 0), *below = within<T>(memory, at.below), *above = within<T>(memory, at.above);
  const int32_t* starts = within<int32_t>(memory, at.starts);
  const uint16_t* bin_of = within<uint16_t>(memory, at.bins);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int lanes = work.lanes, at_once = 32 / lanes, length = work.x.length;
  T* const columns = within<T>(memory, at.columns) + warp * work.bins_at_once * 32;
  T* const sums = within<T>(memory, at.cells);
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
        for (int j = 0; j < lanes; ++j) sum += columns[k * 32 + own * lanes + (j + k) % lanes];  // banks in turn
        sums[(first + own) * work.bins + bin0 + k] += sum;
      }
      __syncwarp();
    }
  }
}

// The values of a block, a warp to go through them: what(value, index in the result) for each, where a run of cells
// across has a row of its own in shared memory.
template <typename T>
struct Block {
  const T* cells;
  int row_stride;  // of the cells
  int64_t offset;  // in the result

  template <typename What>
  __device__ __forceinline__ void for_each(const Work<T>& work, const What& what) const {
    const int run = work.x.per_block * work.bins;
    for (int k = 0; k < work.y.per_block; ++k)
      for (int i = static_cast<int>(threadIdx.x) % 32; i < run; i += 32)
        what(cells[k * row_stride + i], offset + k * work.strides.cell_row + offset_in_run(work, i));
  }
  static __device__ int64_t offset_in_run(const Work<T>& work, int i) {
    return i / work.bins * work.strides.cell_column + i % work.bins * work.strides.bin;
  }
};

// normalise: a value v becomes finish(v), which is min(v / first, clip) / second where the block is limited. `first` is NaN
// where the norm of the block is not finite.
template <typename T>
struct Divisors {
  T first, second;

  __device__ T limited(const Work<T>& work, T v) const {
    const T w = v / first;
    return w > work.clip ? work.clip : w;
  }
  __device__ T finish(const Work<T>& work, T v) const {
    if (work.norm == Norm::l2_hys) return limited(work, v) / second;
    return work.norm == Norm::l1_sqrt ? std::sqrt(v / first) : v / first;
  }
};

template <typename T>
__device__ T length_with(const Work<T>& work, T squares, T eps) {
  if (work.opencv) return std::sqrt(squares) + eps;
  return std::sqrt(squares + eps * eps);
}

template <typename T>
__device__ Divisors<T> divisors_of(const Work<T>& work, const Block<T>& block) {
  T sum = 0, limited = 0;
  const bool l1 = work.norm == Norm::l1 || work.norm == Norm::l1_sqrt;
  block.for_each(work, [&](T v, int64_t) { sum += work.norm == Norm::none ? v * T(0) : l1 ? v : v * v; });
  sum = finite_or_nan(sum_of_warp(sum));
  Divisors<T> by{T(1) + sum, 1};
  if (l1) by.first = sum + work.eps;
  if (work.norm == Norm::l2 || work.norm == Norm::l2_hys) by.first = length_with(work, sum, work.eps);
  if (work.norm == Norm::unit) by.first = std::sqrt(sum) < work.eps ? work.eps : std::sqrt(sum);
  if (work.norm != Norm::l2_hys) return by;
  block.for_each(work, [&](T v, int64_t) {
    const T w = by.limited(work, v);
    limited += w * w;
  });
  by.second = length_with(work, sum_of_warp(limited), work.eps_again);
  return by;
}

// The gradient of v / divisor where the divisor is a length of v, from that of the result, `grad`: grad / divisor -
// v * pull, with pull = (grad . v) / divisor^2 * (the derivative of the divisor by v, over v).
template <typename T>
__device__ T pull_of(const Work<T>& work, T dot, T divisor, T eps) {
  if (work.norm == Norm::unit && !(divisor > eps)) return 0;
  const T length = work.opencv ? divisor - eps : divisor;
  return length > T(0) ? dot / divisor / divisor / length : T(0);
}

template <typename T>
__device__ void write_gradient(const Work<T>& work, const Block<T>& block, const T* grad, T* out) {
  const Divisors<T> by = divisors_of(work, block);
  const bool l1 = work.norm == Norm::l1 || work.norm == Norm::l1_sqrt, hys = work.norm == Norm::l2_hys;
  T pull_again = 0, dot = 0;
  if (hys) {
    block.for_each(work, [&](T v, int64_t i) { dot += by.limited(work, v) * grad[i]; });
    pull_again = pull_of(work, sum_of_warp(dot), by.second, work.eps_again);
  }
  // To v / first, from which the rest is as without a second normalisation.
  const auto inner = [&](T v, int64_t i) -> T {
    const T w = v / by.first;
    if (hys) return w > work.clip ? T(0) : grad[i] / by.second - w * pull_again;
    if (work.norm == Norm::l1_sqrt) return w > T(0) ? grad[i] / (2 * std::sqrt(w)) : T(0);
    return grad[i];
  };
  dot = 0;
  block.for_each(work, [&](T v, int64_t i) { dot += inner(v, i) * v; });
  dot = sum_of_warp(dot);
  const T pull = work.norm == Norm::none ? T(0)
                 : l1                    ? dot / by.first / by.first
                                         : pull_of(work, dot, by.first, work.eps);
  block.for_each(work, [&](T v, int64_t i) { out[i] = inner(v, i) / by.first - (l1 ? pull : v * pull); });
}

// Blocks, or with GRADIENT the gradient to their values before the normalisation, from that of the result.
template <typename Pixel, typename T, bool GRADIENT>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 3 : 2)
    hog_blocks_kernel(const __grid_constant__ Work<T> work, const T* __restrict__ grad, T* __restrict__ out) {
  DYNAMIC_SHARED(unsigned char, memory);
  const BlocksMemory& at = work.at.blocks;
  const int64_t plane = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
  if (plane >= work.planes) return;
  const int tile = static_cast<int>(blockIdx.x), tiles_across = (work.x.blocks + work.x.tile - 1) / work.x.tile;
  const Span y(work.y, tile / tiles_across), x(work.x, tile % tiles_across);
  const Pixel* const pixels = static_cast<const Pixel*>(work.image.data) + work.image.plane_offset(plane);
  T* const table = within<T>(memory, 0);
  T* const cells = within<T>(memory, at.cells);
  int64_t *const row_at = within<int64_t>(memory, at.row_at), *const column_at = within<int64_t>(memory, at.column_at);
  load_tables(work, table, within<int32_t>(memory, at.starts));
  load_offsets(row_at, work.region.top + y.pixel - 1, y.pixels + 2, work.image_height, work.image.row_stride);
  load_offsets(column_at, work.region.left + x.pixel - 1, x.pixels + 2, work.image_width, work.image.column_stride);
  for (int i = static_cast<int>(threadIdx.x); i < y.cells * x.cells * work.bins; i += kThreads) cells[i] = 0;
  __syncthreads();

  for (int begin = 0; begin < y.pixels; begin += work.band) {
    const int end = min(begin + work.band, y.pixels);
    for_each(end - begin, x.pixels, [&](int row, int column) {
      const bool last_of_equals = x.pixel + column >= work.tie_column;
      const Slope<T> slope = slope_of(work, pixels, row_at + begin + row, column_at + column, last_of_equals);
      const Vote<T> vote = vote_of(work, table + work.cotangents, slope.gx, slope.gy);
      const int pixel = row * x.pixels + column;
      within<uint16_t>(memory, at.bins)[pixel] = static_cast<uint16_t>(vote.bin);
      within<T>(memory, at.below)[pixel] = vote.magnitude * (T(1) - vote.above);
      if (work.linear) within<T>(memory, at.above)[pixel] = vote.magnitude * vote.above;
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
  Divisors<T>* const divisors = within<Divisors<T>>(memory, at.divisors);
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

  // Lanes go along memory: over blocks where those are next to each other, else over the values of a run of cells.
  const int side = work.wide_rows ? kTileBlocks : 1, groups = (x.blocks + side - 1) / side;
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

// Zero in x where there are too many.
dim3 grid_of(int64_t tiles, int64_t planes) {
  const int64_t z = quotient_up(planes, kMaxGridY);
  if (tiles > std::numeric_limits<int32_t>::max() || z > kMaxGridY) return dim3(0);
  return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(quotient_up(planes, z)), static_cast<unsigned>(z));
}

template <bool GRADIENT, typename Pixel, typename T>
int launch_blocks(Work<T>& work, const T* grad, T* out, void* stream) {
  if (!place_blocks(work)) return cudaErrorInvalidValue;
  const int64_t tiles = quotient_up(work.y.blocks, work.y.tile) * quotient_up(work.x.blocks, work.x.tile);
  const dim3 grid = grid_of(tiles, work.planes);
  if (grid.x == 0) return cudaErrorInvalidConfiguration;
  LAUNCH((hog_blocks_kernel<Pixel, T, GRADIENT>), grid, dim3(kThreads), work.at.blocks.bytes, stream, work, grad, out);
  return static_cast<int>(cudaGetLastError());
}

template <typename Pixel, typename T>
int launch_pixels(Work<T>& work, const T* grad_blocks, T* grad_x, void* stream) {
  if (!place_pixels(work)) return cudaErrorInvalidValue;
  const int64_t tiles = quotient_up(work.image.height, work.height) * quotient_up(work.image.width, work.width);
  const dim3 grid = grid_of(tiles, work.planes);
  if (grid.x == 0) return cudaErrorInvalidConfiguration;
  LAUNCH((hog_pixels_kernel<Pixel, T>), grid, dim3(kThreads), work.at.pixels.bytes, stream, work, grad_blocks, grad_x);
  return static_cast<int>(cudaGetLastError());
}

// Blocks into `out`, or with `grad` their gradient by way of grad_blocks.
template <typename Pixel, typename T>
int launch(const ImageView& image, const Channels& channels, const HogBlocks& hog, const void* grad, void* grad_blocks,
           void* out, void* stream) {
  Work<T> work{};
  if (fill(work, image, channels, hog)) return cudaErrorInvalidValue;
  const T* const from = static_cast<const T*>(grad);
  if (work.planes == 0 || (grad ? image.height * image.width : work.size) == 0) return cudaSuccess;
  if (!grad) return launch_blocks<false, Pixel, T>(work, nullptr, static_cast<T*>(out), stream);
  const int error = work.size > 0 ? launch_blocks<true, Pixel, T>(work, from, static_cast<T*>(grad_blocks), stream) : 0;
  return error ? error
               : launch_pixels<Pixel, T>(work, static_cast<const T*>(grad_blocks), static_cast<T*>(out), stream);
}

int launch_for_dtype(const ImageView& image, const Channels& channels, const HogBlocks& hog, const void* grad,
                     void* grad_blocks, void* out, void* stream) {
  const auto call = [&](auto launch) { return launch(image, channels, hog, grad, grad_blocks, out, stream); };
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

int hog_blocks_cuda(const ImageView& image, const Channels& channels, const HogBlocks& hog, void* out, void* stream) {
  return launch_for_dtype(image, channels, hog, nullptr, nullptr, out, stream);
}

int hog_blocks_backward_cuda(const ImageView& image, const Channels& channels, const HogBlocks& hog, const void* grad,
                             void* grad_blocks, void* grad_x, void* stream) {
  return launch_for_dtype(image, channels, hog, grad, grad_blocks, grad_x, stream);
}

const char* hog_blocks_cuda_refuses(const HogBlocks& hog) {
  ImageView image{};  // the smallest tiles do not depend on it
  image.height = image.width = kTileWidth;
  Work<double> work{};
  if (const char* const reason = fill(work, image, Channels{1, 0}, hog)) return reason;
  if (!place_blocks(work, 1, 1, kSharedBytes) || !place_pixels(work))
    return "a block (its cells times bins, and its pixels down and across) of more than the 48 KB of shared memory";
  return nullptr;
}

}  // namespace maskfeat
