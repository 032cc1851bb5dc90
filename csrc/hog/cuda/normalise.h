// The normalisation of blocks on a GPU in every dialect, OpenCV's too, and its gradient. A warp does a block: each lane
// takes every 32nd value, and the lanes add up their sums.
#pragma once

#include "hog/cuda/blocks_launch.h"

namespace maskfeat {
namespace {

constexpr unsigned kAllLanes = 0xffffffff;

template <typename T>
__device__ T sum_of_warp(T sum) {
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  return sum;
}

// A block in shared memory, where its cells in a row are one run. A warp calls what(value, index in the result) for all
// values.
template <typename T>
struct Block {
  const T* cells;
  int row_stride;  // from a row of cells to the next
  int64_t offset;  // from the result's first number to the block's

  template <typename What>
  __device__ __forceinline__ void for_each(const BlockWork<T>& work, const What& what) const {
    const int run = work.x.per_block * work.bins;
    for (int k = 0; k < work.y.per_block; ++k)
      for (int i = static_cast<int>(threadIdx.x) % 32; i < run; i += 32)
        what(cells[k * row_stride + i], offset + k * work.strides.cell_row + offset_in_run(work, i));
  }
  static __device__ int64_t offset_in_run(const BlockWork<T>& work, int i) {
    return i / work.bins * work.strides.cell_column + i % work.bins * work.strides.bin;
  }
};

// normalise: what a block is divided by. A value v becomes finish(v). For "l2-hys" this is min(v / first, clip) /
// second. `first` is NaN where the norm of the block is not finite.
template <typename T>
struct Divisors {
  T first, second;

  __device__ T clipped(const BlockWork<T>& work, T v) const {
    const T w = v / first;
    return w > work.clip ? work.clip : w;
  }
  __device__ T finish(const BlockWork<T>& work, T v) const {
    if (work.norm == Norm::l2_hys) return clipped(work, v) / second;
    return work.norm == Norm::l1_sqrt ? std::sqrt(v / first) : v / first;
  }
};

// The length of a block, from its sum of squares. OpenCV adds epsilon outside of the root.
template <typename T>
__device__ T length_with(const BlockWork<T>& work, T squares, T eps) {
  if (work.opencv) return std::sqrt(squares) + eps;
  return std::sqrt(squares + eps * eps);
}

template <typename T>
__device__ Divisors<T> divisors_of(const BlockWork<T>& work, const Block<T>& block) {
  T sum = 0, sum_again = 0;
  const bool l1 = work.norm == Norm::l1 || work.norm == Norm::l1_sqrt;
  block.for_each(work, [&](T v, int64_t) { sum += work.norm == Norm::none ? v * T(0) : l1 ? v : v * v; });
  sum = finite_or_nan(sum_of_warp(sum));
  Divisors<T> by{T(1) + sum, 1};
  if (l1) by.first = sum + work.eps;
  if (work.norm == Norm::l2 || work.norm == Norm::l2_hys) by.first = length_with(work, sum, work.eps);
  if (work.norm == Norm::unit) by.first = std::sqrt(sum) < work.eps ? work.eps : std::sqrt(sum);
  if (work.norm != Norm::l2_hys) return by;
  block.for_each(work, [&](T v, int64_t) {
    const T w = by.clipped(work, v);
    sum_again += w * w;
  });
  by.second = length_with(work, sum_of_warp(sum_again), work.eps_again);
  return by;
}

// Where the divisor is a length of v, the gradient to v is grad / divisor - v * projection. `grad` is the gradient to
// v / divisor, and `dot` is grad . v. The projection is dot / divisor^2 * (derivative of the divisor by v) / v.
template <typename T>
__device__ T projection_of(const BlockWork<T>& work, T dot, T divisor, T eps) {
  if (work.norm == Norm::unit && !(divisor > eps)) return 0;
  const T length = work.opencv ? divisor - eps : divisor;
  return length > T(0) ? dot / divisor / divisor / length : T(0);
}

// Turns the gradient to a normalised block into the gradient to the block before it was normalised. Writes it to `out`.
template <typename T>
__device__ void write_gradient(const BlockWork<T>& work, const Block<T>& block, const T* grad, T* out) {
  const Divisors<T> by = divisors_of(work, block);
  const bool l1 = work.norm == Norm::l1 || work.norm == Norm::l1_sqrt, l2_hys = work.norm == Norm::l2_hys;
  T projection_again = 0, dot = 0;
  if (l2_hys) {
    block.for_each(work, [&](T v, int64_t i) { dot += by.clipped(work, v) * grad[i]; });
    projection_again = projection_of(work, sum_of_warp(dot), by.second, work.eps_again);
  }
  // The gradient to v / first. From there on, the steps are those of a norm without a second normalisation.
  const auto inner = [&](T v, int64_t i) -> T {
    const T w = v / by.first;
    if (l2_hys) return w > work.clip ? T(0) : grad[i] / by.second - w * projection_again;
    if (work.norm == Norm::l1_sqrt) return w > T(0) ? grad[i] / (2 * std::sqrt(w)) : T(0);
    return grad[i];
  };
  dot = 0;
  block.for_each(work, [&](T v, int64_t i) { dot += inner(v, i) * v; });
  dot = sum_of_warp(dot);
  const T projection = work.norm == Norm::none ? T(0)
                       : l1                    ? dot / by.first / by.first
                                               : projection_of(work, dot, by.first, work.eps);
  block.for_each(work, [&](T v, int64_t i) { out[i] = inner(v, i) / by.first - (l1 ? projection : v * projection); });
}

}  // namespace
}  // namespace maskfeat
