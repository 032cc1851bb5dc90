// Several cell sizes of one gradient field on a GPU. The kernels of cells leave the histograms of the finest cells as
// sums. Then a launch for each coarser size adds those of the size before, and normalises these in place. The order of
// sums is that of hog/cpu/scales_kernel.h.
#pragma once

#include "common/cuda_launch.h"
#include "hog/math.h"
#include "hog/plan.h"

namespace maskfeat {
namespace {

constexpr int kScaleThreads = 64;  // threads of a thread block
constexpr int kScaleBlocks = 16;   // of which so many are resident on a multiprocessor, with 64 registers for a thread

struct ScaleWork {
  Scale fine, coarse;
  int64_t planes, bins;
  uint32_t across;  // threads for a row of coarser cells
  bool is_last;     // the coarser histograms are normalised, too
};

template <typename T>
__device__ void normalise_in_place(T* histogram, int64_t bins, int64_t bin_stride) {
  T squares = 0;
  for (int64_t k = 0; k < bins; ++k) squares += histogram[k * bin_stride] * histogram[k * bin_stride];
  const T scale = inverse_norm(squares);
  for (int64_t k = 0; k < bins; ++k) histogram[k * bin_stride] *= scale;
}

// A thread does a coarser cell and the finer cells in it. Finer cells that fill none have threads, too. SIDE is 2 where
// a coarser cell has 2 x 2 finer ones, so that their loads are under way together. Else it is 0.
template <typename T, int SIDE>
__global__ void __launch_bounds__(kScaleThreads, kScaleBlocks) scale_kernel(const __grid_constant__ ScaleWork work) {
  const Scale &fine = work.fine, &coarse = work.coarse;
  const int64_t down = SIDE ? SIDE : coarse.down, across = SIDE ? SIDE : coarse.across;
  const int64_t plane = int64_t{blockIdx.z} * gridDim.y + blockIdx.y;
  const uint32_t number = blockIdx.x * kScaleThreads + threadIdx.x;  // in the plane
  const uint32_t row = number / work.across, column = number - row * work.across;
  const int64_t top = row * down, left = column * across;
  if (plane >= work.planes || top >= fine.rows) return;
  const int64_t bins = work.bins, fine_size = fine.size(), coarse_size = coarse.size();
  T* const from = static_cast<T*>(fine.out) + plane * bins * fine_size + top * fine.columns + left;
  if (row < coarse.rows && column < coarse.columns) {
    T* const to = static_cast<T*>(coarse.out) + plane * bins * coarse_size + row * coarse.columns + column;
#pragma unroll(SIDE ? 3 : 1)
    for (int64_t k = 0; k < bins; ++k) {
      T total = 0, lost = 0;
#pragma unroll(SIDE ? SIDE : 1)
      for (int64_t y = 0; y < down; ++y) {
        const T* const cells = from + k * fine_size + y * fine.columns;
        T sum = cells[0], sum_lost = 0;
#pragma unroll(SIDE ? SIDE : 1)
        for (int64_t x = 1; x < across; ++x) add_compensated(sum, sum_lost, cells[x]);
        add_compensated(total, lost, sum);
      }
      to[k * coarse_size] = total;
    }
    if (work.is_last) normalise_in_place(to, bins, coarse_size);
  }
  for (int64_t y = 0; y < down && top + y < fine.rows; ++y)
    for (int64_t x = 0; x < across && left + x < fine.columns; ++x)
      normalise_in_place(from + y * fine.columns + x, bins, fine_size);
}

template <typename T>
int launch_scale(ScaleWork work, void* stream) {
  const int64_t across = ceil_div(work.fine.columns, work.coarse.across);
  const int64_t cells = ceil_div(work.fine.rows, work.coarse.down) * across;
  work.across = static_cast<uint32_t>(across);
  const dim3 grid = grid_of_planes(ceil_div<int64_t>(cells, kScaleThreads), work.planes);
  if (grid.x == 0 || cells >= int64_t{1} << 32) return cudaErrorInvalidConfiguration;
  if (work.coarse.down == 2 && work.coarse.across == 2)
    LAUNCH((scale_kernel<T, 2>), grid, dim3(kScaleThreads), 0, stream, work);
  else
    LAUNCH((scale_kernel<T, 0>), grid, dim3(kScaleThreads), 0, stream, work);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace
}  // namespace maskfeat
