// From pixels to votes on a GPU, which both kernels of blocks do alike. A thread does a pixel.
#pragma once

#include "common/cuda_launch.h"
#include "hog/cuda/blocks_launch.h"

namespace maskfeat {
namespace {

// The array that begins at byte `at` of shared memory.
template <typename T>
__device__ T* shared_array(unsigned char* memory, int32_t at) {
  return reinterpret_cast<T*>(memory + at);
}

template <typename T>
__device__ void load_tables(const BlockWork<T>& work, T* table, int32_t* starts) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < work.table_size; i += kThreads) table[i] = work.table[i];
  for (int i = thread; i < work.start_count; i += kThreads) starts[i] = work.start[i];
}

// Mirror images of the image tile a plane without end. For rows (or columns) `begin` to begin + count - 1 of that plane,
// writes the offset in memory of the row (or column) of the image that stands there.
__device__ inline void load_offsets(int64_t* at, int begin, int count, int size, int64_t stride) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) at[i] = mirror(begin + i, size) * stride;
}

// Calls what(y, x) for all of a rectangle. A thread takes one after the other, without a division for each.
template <typename What>
__device__ __forceinline__ void for_each(int height, int width, const What& what) {
  const int thread = static_cast<int>(threadIdx.x), across = min(width, kThreads), down = kThreads / across;
  if (thread >= across * down) return;
  for (int x = thread % across; x < width; x += across)
    for (int y = thread / across; y < height; y += down) what(y, x);
}

template <typename T>
struct PixelGradient {
  T gx, gy;
  int channel;
};

// gradient: of the strongest channel, at the middle of three rows and three columns.
template <typename Pixel, typename T>
__device__ __forceinline__ PixelGradient<T> pixel_gradient(const BlockWork<T>& work, const Pixel* plane,
                                                           const int64_t* rows, const int64_t* columns,
                                                           bool last_of_equals) {
  const int64_t row[3] = {rows[0], rows[1], rows[2]}, column[3] = {columns[0], columns[1], columns[2]};
  PixelGradient<T> taken{};
  T most = -1;
  for (int channel = 0; channel < work.channels.count; ++channel, plane += work.channels.stride) {
    T v[3][3] = {};
#pragma unroll
    for (int i = 0; i < 9; ++i)
      if (i % 2 == 1 || (i != 4 && work.sobel))
        v[i / 3][i % 3] = static_cast<T>(widen(plane[row[i / 3] + column[i % 3]]));
    if (work.sqrt) {
#pragma unroll
      for (int i = 0; i < 9; ++i) v[i / 3][i % 3] = std::sqrt(v[i / 3][i % 3]);
    }
    T gx = v[1][2] - v[1][0], gy = v[2][1] - v[0][1];
    if (work.sobel) {
      gx = sobel(v[0][2], v[0][0], v[1][2], v[1][0], v[2][2], v[2][0]);
      gy = sobel(v[2][0], v[0][0], v[2][1], v[0][1], v[2][2], v[0][2]);
    }
    const T square = gx * gx + gy * gy;
    if (square > most || (square == most && last_of_equals) || square != square) {
      most = square;
      taken = {gx, gy, channel};
    }
  }
  return taken;
}

// A pixel votes with its magnitude. The share `above` goes to the bin after `bin`, the rest to `bin`.
template <typename T>
struct Vote {
  T magnitude, sine, cosine, above;
  int bin;
};

INLINE float angle_of(float sine, float cosine, float magnitude) {
  const float s = std::fabs(sine), c = std::fabs(cosine);
  return full_circle(octant_angle(s < c ? s : c, s < c ? c : s, magnitude), sine, cosine, static_cast<float>(2 * kPi));
}
INLINE double angle_of(double sine, double cosine, double) {
  const double angle = std::atan2(sine, cosine);
  return angle < 0 ? angle + 2 * kPi : angle;
}

template <typename T>
__device__ __forceinline__ Vote<T> vote_of(const BlockWork<T>& work, const T* cotangents, T gx, T gy) {
  Vote<T> vote{std::sqrt(gx * gx + gy * gy), work.from_horizontal ? gy : gx, work.from_horizontal ? gx : gy, T(0), 0};
  if (!(vote.magnitude > T(0))) return vote;
  if (!work.linear) {
    const BinEdges edges(work.bins, work.is_signed);
    vote.bin = static_cast<int>(hard_bin(vote.sine, vote.cosine, edges, cotangents));
    return vote;
  }
  T angle;
  if (work.opencv) {
    const T s = std::fabs(vote.sine), c = std::fabs(vote.cosine);
    angle = full_circle(opencv_octant_degrees(s < c ? s : c, s < c ? c : s), vote.sine, vote.cosine, T(360));
  } else {
    angle = angle_of(vote.sine, vote.cosine, vote.magnitude);
  }
  const T place = angle * work.bins_per_angle - T(0.5), below = std::floor(place);
  vote.above = place - below;
  // `below` is -1 to twice the bins. It is NaN where the magnitude is infinite.
  const int bin = below >= T(-1) && below <= T(2 * work.bins) ? static_cast<int>(below) : 0;
  vote.bin = bin < 0 ? bin + work.bins : bin % work.bins;
  return vote;
}

// The derivatives of a vote's angle by sine and by cosine, times the magnitude.
template <typename T>
__device__ __forceinline__ void angle_rate(const BlockWork<T>& work, const Vote<T>& vote, T& by_sine, T& by_cosine) {
  by_sine = vote.cosine / vote.magnitude;
  by_cosine = -vote.sine / vote.magnitude;
  if (!work.opencv) return;
  const T s = std::fabs(vote.sine), c = std::fabs(vote.cosine), larger = s < c ? c : s, smaller = s < c ? s : c;
  const T slope = opencv_octant_slope(smaller, larger) * vote.magnitude;
  const T ratio = smaller / larger, first = s > c ? ratio * slope : slope, second = s > c ? slope : ratio * slope;
  by_sine = vote.cosine < T(0) ? -first : first;
  by_cosine = vote.sine < T(0) ? second : -second;
}

}  // namespace
}  // namespace maskfeat
