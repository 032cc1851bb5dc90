// The maths of a pixel and a cell, which all kernels share: Sobel gradient, half plane, bin edges, window, norm. Every
// operation rounds once, in the same order on every device. All devices therefore return the same bits.
#pragma once

#include <cmath>

#include "common/portable.h"

namespace maskfeat {

// One component of the Sobel gradient, d0 + 2 d1 + d2, from the differences of its three pairs of pixels. Differences
// come before weights, so that equal pixels give an exact zero. Doubling is exact, so a fused multiply-add rounds to
// the same.
template <typename T>
INLINE T smooth(T d0, T d1, T d2) {
  const T outer = d0 + d2;
#ifdef __CUDA_ARCH__
  return fma(T(2), d1, outer);
#else
  return outer + (d1 + d1);
#endif
}

template <typename T>
INLINE T sobel(T a0, T b0, T a1, T b1, T a2, T b2) {
  return smooth<T>(a0 - b0, a1 - b1, a2 - b2);
}

// `value`, negated where `by` is negative.
INLINE float flip(float value, float by) {
  return bit_cast<float>(bit_cast<uint32_t>(value) ^ (bit_cast<uint32_t>(by) & 0x80000000u));
}
INLINE double flip(double value, double by) {
  return bit_cast<double>(bit_cast<uint64_t>(value) ^ (bit_cast<uint64_t>(by) & 0x8000000000000000u));
}
INLINE int16_t flip(int16_t value, int16_t by) {
  const int16_t sign = by >> 15;
  return (value ^ sign) - sign;
}

// An unsigned orientation is the same for (gx, gy) and (-gx, -gy). Bins are counted in the half plane gx > 0 or
// (gx = 0, gy >= 0). A gradient outside of it is negated first. This number is negative for such a gradient.
template <typename T>
INLINE T half_plane(T gx, T gy) {
  return gx != T(0) ? gx : gy;
}
INLINE int16_t half_plane(int16_t gx, int16_t gy) { return gx + gx + (gy >> 15); }

// cot(k pi / bins), k = 1 .. bins - 1. A gradient in the half plane has reached edge k where gx * cot >= gy. Its bin is
// the number of edges that it has reached. The cotangents are exact at 45, 90 and 135 degrees, and antisymmetric about
// 90. Python has the same function. hog/torch.cpp says why the kernels compute the table again.
inline double edge_cotangent(int64_t k, int64_t bins) {
  if (2 * k > bins) return -edge_cotangent(bins - k, bins);
  if (2 * k == bins) return 0.0;
  if (4 * k == bins) return 1.0;
  return 1.0 / std::tan(static_cast<double>(k) * kPi / static_cast<double>(bins));
}

// Samples e[0 .. side) of a Gaussian with a standard deviation of side / 2, rounded down. Their sum is one. Magnitudes
// are weighted by e[y mod side] * e[x mod side].
template <typename T>
void gaussian_window(int64_t side, T* e) {
  const auto sample = [side](int64_t i) {
    const double deviation = side > 1 ? static_cast<double>(side / 2) : 1.0;
    const double distance = (static_cast<double>(i) - static_cast<double>(side - 1) / 2) / deviation;
    return std::exp(-0.5 * distance * distance);
  };
  double sum = 0;
  for (int64_t i = 0; i < side; ++i) sum += sample(i);
  for (int64_t i = 0; i < side; ++i) e[i] = static_cast<T>(sample(i) / sum);
}

// The columns of a cell are added as a tree. The right half of the next power of two is added to the left half, until
// one sum is left. This is the first half for `width` columns.
INLINE int64_t first_half(int64_t width) {
  int64_t half = 1;
  while (2 * half < width) half *= 2;
  return half;
}

// Kahan's sum: adds, and keeps what rounding has lost.
template <typename T>
INLINE void add_compensated(T& sum, T& lost, T addend) {
  const T before = sum, more = addend - lost;
  sum = before + more;
  lost = (sum - before) - more;
}

// x, or NaN where x is infinite.
template <typename T>
INLINE T finite_or_nan(T x) {
  return x + (x - x);
}

// 1 / max(||h||, 1e-12) from the sum of squares. A norm that is not finite becomes NaN, and with it all bins of the
// cell.
template <typename T>
INLINE T inverse_norm(T sum_of_squares) {
  const T norm = std::sqrt(sum_of_squares);
  return T(1) / finite_or_nan(norm < T(1e-12) ? T(1e-12) : norm);
}

}  // namespace maskfeat
