// Histograms of cells of any size, with any bins and windows, on a GPU. Cells of 8 x 8 pixels have a kernel of their
// own in cells_8x8.h.
//
// A thread does a column of pixels. It walks down with three rows of three pixels, and the S_k of its column, in
// registers. A thread block does a strip of whole cells, or whole patches side by side, one row of cells after the
// other.
//
//     thread  0 1 2 3 4 5 6 7   8 9 ...          127
//           h h h h h h h h h   h h              h h h   load:      pixels p and their halo h
//           h p p p p p p p p | p p  ...         p p h   gradient:  gx, gy and magnitude of p
//           h p p p p p p p p | p p              p p h   bin:       S_k of the column, down the rows
//           h p p p p p p p p | p p  ...         p p h   histogram: S_k of the cell, across its columns
//           h h h h h h h h h   h h              h h h   normalise: one thread a cell
//
// S_k is the sum of the magnitudes of the pixels at or beyond bin edge k. The arithmetic and its order are those of the
// CPU kernel. Both return the same bits, since this is compiled with -fmad=false. The exception are cells wider than a
// thread block, which are summed in another order.
#pragma once

#include "hog/cuda/cells_launch.h"

namespace maskfeat {
namespace {

constexpr int kThreads = 128;  // threads of a thread block
constexpr int kSliceRows = 8;  // a tall cell is summed in slices of these rows
constexpr int kStripRows = 4;  // rows of cells that a thread block does, so that it reads most halo rows once

// Where a segment of a thread block begins: its image plane and top left pixel, and the region of the output.
template <typename Pixel>
struct Segment {
  const Pixel* plane;
  int y, x;
  int64_t region;
  bool exists;  // it is in the output
  bool valid;   // it is in the image
};

template <bool PATCHES, typename Pixel, typename T>
__device__ Segment<Pixel> segment_of(const CellWork<T>& work, unsigned group, unsigned strip, int segment) {
  const Pixel* pixels = static_cast<const Pixel*>(work.image.data);
  const int left = static_cast<int>(strip * work.cells * work.plan.cell_w);
  const int64_t y = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
  if (y >= work.regions) return {pixels, 0, 0, 0, false, false};
  if (!PATCHES) return {pixels + work.image.plane_offset(y), 0, left, y, true, true};
  const PatchView& patches = work.patches;
  const int64_t item = int64_t{group} * work.segments + segment, batch = item / patches.count;
  if (batch >= work.image.lead_size[0]) return {pixels, 0, 0, 0, false, false};
  const int64_t id = patches.id(batch, item - batch * patches.count), region = item * work.regions + y;
  if (!patches.holds(id)) return {pixels, 0, 0, region, true, false};
  const int64_t* stride = work.image.lead_stride;
  return {pixels + batch * stride[0] + patches.frame(id) * stride[1] + y * stride[2],
          static_cast<int>(patches.top(id)),
          static_cast<int>(patches.left(id)) + left,
          region,
          true,
          true};
}

// A byte p becomes the float 2^23 + p without a conversion. The bias cancels exactly in every difference.
template <typename Pixel>
INLINE auto biased(Pixel p) {
  return widen(p);
}
INLINE float biased(uint8_t p) { return bit_cast<float>(0x4b000000u | p); }

template <typename T>
struct Three {
  T left, middle, right;
};

// load to bin: one column of pixels of a row of cells. Its S_k go to the thread's column of `sums`. Row 0 is the total.
// Rows 1 + p and 1 + PAIRS + p belong to the edges first + 1 + p and bins - first - 1 - p. `lost` is what rounding has
// lost.
template <int PAIRS, typename Pixel, typename T>
__device__ __forceinline__ void walk_down(const CellWork<T>& work, const Pixel* plane, int y0, int x, int first,
                                          bool fresh, T (*sums)[kThreads], T (*lost)[kThreads]) {
  const ImageView& image = work.image;
  const int width = static_cast<int>(image.width), height = static_cast<int>(image.height);
  const int cell_h = static_cast<int>(work.plan.cell_h), side = static_cast<int>(work.plan.gaussian_window);
  const auto offset = [&](int column) { return mirror_once(column, width) * image.column_stride; };
  const int64_t left = offset(x - 1), middle = offset(x), right = offset(x + 1);
  const auto row = [&](int y) { return plane + mirror_once(y, height) * image.row_stride; };
  const auto load = [&](const Pixel* row) -> Three<T> {
    return {biased(read(row + left)), biased(read(row + middle)), biased(read(row + right))};
  };
  const Pixel* next = row(y0);
  Three<T> up = load(row(y0 - 1)), mid = load(next);
  for (int done = 0; done < cell_h; done += kSliceRows) {
    const int rows = min(cell_h - done, kSliceRows);
    T total = 0, lower[PAIRS] = {}, upper[PAIRS] = {};
#pragma unroll 1
    for (int i = 0; i < rows; ++i) {
      const int y = y0 + done + i;
      next = y + 1 < height ? next + image.row_stride : row(height);
      const Three<T> down = load(next);
      const T dx = sobel(up.left, up.right, mid.left, mid.right, down.left, down.right);
      const T dy = sobel(up.left, down.left, up.middle, down.middle, up.right, down.right);
      const T half = half_plane(dx, dy), gx = flip(dx, half), gy = flip(dy, half);
      T magnitude = root(gx * gx + gy * gy);
      if (side > 0) magnitude *= work.window[y % side] * work.window[x % side];
      total += magnitude;
#pragma unroll
      for (int p = 0; p < PAIRS; ++p) {
        const T product = gx * work.cotangent[first + p];
        if (product >= gy) lower[p] += magnitude;
        if (-product >= gy) upper[p] += magnitude;
      }
      up = mid, mid = down;
    }
    // Slices are added with Kahan's compensation, which keeps the precision over thousands of rows.
    const auto add = [&](int row, T sum) {
      T &old = sums[row][threadIdx.x], &missed = lost[row][threadIdx.x];
      if (fresh && done == 0) {
        old = sum;
        missed = 0;
        return;
      }
      add_compensated(old, missed, sum);
    };
    add(0, total);
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) {
      add(1 + p, lower[p]);
      add(1 + PAIRS + p, upper[p]);
    }
  }
}

// histogram: adds the columns of a cell as a tree. The sum ends in the first column.
template <typename T>
__device__ void sum_columns(T* columns, int width) {
  for (int half = static_cast<int>(first_half(width)); width > 1; width = half, half /= 2)
    for (int i = 0; i + half < width; ++i) columns[i] += columns[i + half];
}

// How many thread blocks are to be resident on a multiprocessor: as many as leave each thread the registers it needs.
template <typename T, int PAIRS>
constexpr int kResidentBlocks = PAIRS > 4 && sizeof(T) == 8 ? 3 : 4;

// Bins with more than PAIRS pairs of edges take several walks. Their sums wait in the output, where the histograms will
// stand.
template <typename Pixel, typename T, int PAIRS, bool PATCHES>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<T, PAIRS>)
    column_kernel(const __grid_constant__ CellWork<T> work, T* __restrict__ out) {
  constexpr int kSums = 2 * PAIRS + 1;
  __shared__ T sums[kSums][kThreads];
  __shared__ T lost[kSums][kThreads];

  const unsigned strip = blockIdx.x % work.strips, group = blockIdx.x / work.strips;
  const int thread = static_cast<int>(threadIdx.x), segments = PATCHES ? work.segments : 1;
  const int cell_h = static_cast<int>(work.plan.cell_h), cell_w = static_cast<int>(work.plan.cell_w);
  const int cells = min(work.cells, work.across - static_cast<int>(strip) * work.cells), all_cells = cells * segments;
  const int columns = cells * cell_w, width = min(cell_w, kThreads);
  const int bins = static_cast<int>(work.plan.bins), pairs = bins / 2;
  const bool one_walk = pairs <= PAIRS;
  const int row_begin = PATCHES ? 0 : static_cast<int>(group) * kStripRows;
  const int row_end = PATCHES ? work.rows : min(row_begin + kStripRows, work.rows);

  const int segment = PATCHES ? thread / columns : 0;
  const bool has_segment = segment < segments;
  const Segment<Pixel> place = segment_of<PATCHES, Pixel>(work, group, strip, has_segment ? segment : 0);
  for (int row = row_begin; row < row_end; ++row) {
    const int cell_segment = thread / cells, cell = thread - cell_segment * cells;
    const auto histogram_of = [&](const Segment<Pixel>& to) {
      return out + (to.region * bins * work.rows + row) * work.across + static_cast<int>(strip) * work.cells + cell;
    };
    const int64_t bin_stride = int64_t{work.rows} * work.across;
    for (int first = 0; first == 0 || first < pairs; first += PAIRS) {
      if (has_segment && place.valid)
        for (int x = thread - segment * columns; x < columns; x += kThreads)
          walk_down<PAIRS>(work, place.plane, place.y + row * cell_h, place.x + x, first, x < kThreads, sums, lost);
      __syncthreads();
      for (int i = thread; i < kSums * all_cells; i += kThreads)
        sum_columns(&sums[i / all_cells][i % all_cells * width], width);
      __syncthreads();
      if (one_walk) continue;
      if (thread < all_cells) {
        const Segment<Pixel> to = segment_of<PATCHES, Pixel>(work, group, strip, cell_segment);
        T* const histogram = histogram_of(to);
        if (to.exists && first == 0) histogram[0] = sums[0][thread * width];
        for (int p = 0; to.exists && p < PAIRS && first + p < pairs; ++p) {
          histogram[(first + 1 + p) * bin_stride] = sums[1 + p][thread * width];
          histogram[(bins - first - 1 - p) * bin_stride] = sums[1 + PAIRS + p][thread * width];
        }
      }
      __syncthreads();
    }
    if (thread < all_cells) {
      const Segment<Pixel> to = segment_of<PATCHES, Pixel>(work, group, strip, cell_segment);
      T* const histogram = histogram_of(to);
      const auto sum = [&](int k) -> T {
        if (k == bins) return 0;
        if (!one_walk) return histogram[k * bin_stride];
        return sums[k <= pairs ? k : PAIRS + bins - k][thread * width];
      };
      T squares = 0, from = to.exists ? sum(0) : T(0);
      const T all = from;
      for (int k = 0; to.exists && k < bins; ++k) {
        const T next = sum(k + 1), h = from - next;
        squares += h * h;
        from = next;
      }
      const T length = work.plan.sums_only ? T(1) : inverse_norm(squares);
      const T scale = to.valid ? length : static_cast<T>(NAN);
      from = all;
      for (int k = 0; to.exists && k < bins; ++k) {
        const T next = sum(k + 1);
        histogram[k * bin_stride] = (from - next) * scale;
        from = next;
      }
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace maskfeat
