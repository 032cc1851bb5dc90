// Histograms of cells of 8 x 8 pixels on a GPU. A thread does a cell. It walks down with three rows of ten pixels, and
// the S_k of its eight columns, in registers. Neighbouring columns share differences. Threads exchange nothing.
//
//     h h h h h h h h h h    load:      pixels p and their halo h, all p of a row at once where memory is aligned
//     h p p p p p p p p h    gradient:  gx and gy of p
//     h p p p p p p p p h    bin:       S_k of each column, down the rows
//       ...                  histogram: S_k of the cell, across its columns
//     h p p p p p p p p h    normalise
//     h h h h h h h h h h
//
// Gradients of bytes are computed for two columns at once, in the halves of a register.
#pragma once

#include <algorithm>
#include <type_traits>

#include "hog/cuda/cells_launch.h"

namespace maskfeat {

// Two numbers of half precision. The bits of a whole number n < 2048 are those of the half n * 2^-24. Bytes therefore
// need no conversion, and their Sobel sums are exact. The factor 2^-24 cancels in the norm.
struct Halves {
  uint32_t bits;
};

__device__ __forceinline__ float from_half(uint16_t bits) {
#ifdef __CUDA_ARCH__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#else
  return widen(Float16{bits});
#endif
}
__device__ __forceinline__ float low(Halves a) { return from_half(static_cast<uint16_t>(a.bits)); }
__device__ __forceinline__ float high(Halves a) { return from_half(static_cast<uint16_t>(a.bits >> 16)); }

// a * b + c. Where the result has too many bits, a GPU rounds and the host cuts off. Only half_plane() has such
// results, and only their sign counts.
__device__ __forceinline__ Halves multiply_add(Halves a, Halves b, Halves c) {
#ifdef __CUDA_ARCH__
  Halves sum;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum.bits) : "r"(a.bits), "r"(b.bits), "r"(c.bits));
  return sum;
#else
  const auto to_half = [](float x) -> uint32_t {
    return bit_cast<uint32_t>(std::fabs(x) * 0x1p-112f) >> 13 | (std::signbit(x) ? 0x8000u : 0u);
  };
  return {to_half(low(a) * low(b) + low(c)) | to_half(high(a) * high(b) + high(c)) << 16};
#endif
}
__device__ __forceinline__ Halves operator-(Halves a, Halves b) { return multiply_add(b, {0xbc00bc00u}, a); }  // * -1
__device__ __forceinline__ Halves smooth(Halves d0, Halves d1, Halves d2) {
  return multiply_add(d1, {0x40004000u}, multiply_add(d0, {0x3c003c00u}, d2));  // * 2, * 1
}
__device__ __forceinline__ Halves half_plane(Halves gx, Halves gy) {
  return multiply_add(gx, {0x68006800u}, gy);  // * 2048, more than |gy| / |gx| can be
}
__device__ __forceinline__ Halves flip(Halves value, Halves by) { return {value.bits ^ (by.bits & 0x80008000u)}; }

namespace {

constexpr int kCellThreads = 64;  // threads of a thread block
constexpr int kSide = 8;          // pixels along a side of a cell
constexpr int kPairs = 4;         // pairs of edges, enough for nine bins

// What a thread writes: the histogram, its sums before the division, or the gradient to these.
enum class CellTask { histogram, sums, gradient };

// How many thread blocks are to be resident on a multiprocessor. Six leave a thread 168 registers. Gradients need more,
// and single loads too, for addresses.
template <bool ALIGNED, CellTask TASK>
constexpr int kCellBlocks = ALIGNED && TASK != CellTask::gradient ? 6 : 4;

__device__ __forceinline__ float widened(float p) { return p; }
__device__ __forceinline__ float widened(BFloat16 p) { return widen(p); }
__device__ __forceinline__ float widened(Float16 p) { return from_half(p.bits); }

// A row of a cell: its pixels and their neighbours, and the differences across them. V holds one column, or two columns
// that are N = 4 apart.
template <typename V, int N>
struct Row {
  V pixel[N + 2], across[N];

  template <typename Pixel>
  __device__ __forceinline__ explicit Row(const Pixel (&p)[kSide + 2]) {
#pragma unroll
    for (int i = 0; i < N + 2; ++i) {
      if constexpr (N == kSide)
        pixel[i] = widened(p[i]);
      else
        pixel[i] = {p[i] | uint32_t{p[i + N]} << 16};
    }
#pragma unroll
    for (int i = 0; i < N; ++i) across[i] = pixel[i] - pixel[i + 2];
  }
};

// load: eight pixels of a row. They are side by side and aligned, or any step apart.
template <bool ALIGNED, typename Pixel>
__device__ __forceinline__ void read_eight(const Pixel* from, int64_t step, Pixel* to) {
  if constexpr (ALIGNED) {
    using Word = std::conditional_t<sizeof(Pixel) == 1, uint2, uint4>;
    Word words[kSide * sizeof(Pixel) / sizeof(Word)];
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(words) / sizeof(Word)); ++i)
      words[i] = __ldg(reinterpret_cast<const Word*>(from) + i);
    memcpy(to, words, sizeof(words));
  } else {
#pragma unroll
    for (int i = 0; i < kSide; ++i, from += step) to[i] = read(from);
  }
}

// gradient: of a row, in the half plane. With float16 pixels, |gy| is less than 2^43 times any other |gx|. One
// multiply-add then finds the half plane.
template <typename Pixel, typename V, int N>
__device__ __forceinline__ void gradient(const Row<V, N>& up, const Row<V, N>& mid, const Row<V, N>& down,
                                         float (&gx)[kSide], float (&gy)[kSide]) {
  constexpr bool kHalf = std::is_same_v<Pixel, Float16>;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const V dx = smooth(up.across[i], mid.across[i], down.across[i]);
    const V dy =
        smooth(up.pixel[i] - down.pixel[i], up.pixel[i + 1] - down.pixel[i + 1], up.pixel[i + 2] - down.pixel[i + 2]);
    if constexpr (N == kSide) {
      gx[i] = std::fabs(dx), gy[i] = flip(dy, kHalf ? fmaf(dx, 0x1p100f, dy) : half_plane(dx, dy));
    } else {
      const V folded = flip(dy, half_plane(dx, dy));
      gx[i] = std::fabs(low(dx)), gy[i] = low(folded);
      gx[i + N] = std::fabs(high(dx)), gy[i + N] = high(folded);
    }
  }
}

__device__ __forceinline__ float approximate_reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / x;
#endif
}

// bin: the S_k of eight columns: S_0, S_(1 + p) and S_(bins - 1 - p).
struct Sums {
  float total[kSide] = {}, lower[kPairs][kSide] = {}, upper[kPairs][kSide] = {};
};

template <bool BYTES>
__device__ __forceinline__ void vote(const CellWork<float>& work, float gx, float gy, int column, Sums& sums) {
  const float magnitude =
      BYTES ? root(fmaf(gx, gx, gy * gy)) : root(gx * gx + gy * gy);  // the squares of bytes are exact
  sums.total[column] += magnitude;
  if constexpr (BYTES) {
    // The slope of a byte gradient lies on an edge, or differs from it by 2^-20.2 of its size or more. It is compared
    // with values half way, at 2^-21, so that it may be a few roundings off (test_byte_slopes.py). Where the
    // slope is 0 / 0, the magnitude is zero.
    const float slope = gy * approximate_reciprocal(gx);
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      if (slope <= work.lower_slope[p]) sums.lower[p][column] += magnitude;
      if (slope <= work.upper_slope[p]) sums.upper[p][column] += magnitude;
    }
  } else {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const float product = gx * work.cotangent[p];
      if (product >= gy) sums.lower[p][column] += magnitude;
      if (-product >= gy) sums.upper[p][column] += magnitude;
    }
  }
}

// histogram: adds the columns of a cell as a tree.
__device__ __forceinline__ float sum_of(const float (&c)[kSide]) {
  return ((c[0] + c[4]) + (c[2] + c[6])) + ((c[1] + c[5]) + (c[3] + c[7]));
}

// Where a cell begins: its image plane and top left pixel. It is not valid where the id is no patch of the image.
template <typename Pixel>
struct CellCorner {
  const Pixel* plane;
  int y, x;
  bool valid;
};

template <bool PATCHES, typename Pixel>
__device__ CellCorner<Pixel> corner_of(const CellWork<float>& work, uint32_t region, uint32_t cell) {
  const Pixel* pixels = static_cast<const Pixel*>(work.image.data);
  const uint32_t row = cell / work.across, y = kSide * row, x = kSide * (cell - row * work.across);
  if (!PATCHES) return {pixels + work.image.plane_offset(region), static_cast<int>(y), static_cast<int>(x), true};
  const PatchView& patches = work.patches;
  const uint32_t channels = static_cast<uint32_t>(work.regions), count = static_cast<uint32_t>(patches.count);
  const uint32_t item = region / channels, batch = item / count;
  const int64_t id = patches.id(batch, item - batch * count);
  if (!patches.holds(id)) return {pixels, 0, 0, false};
  // There are fewer than 2^31 patches, so that 32-bit divisions do.
  const uint32_t grid_w = static_cast<uint32_t>(patches.grid_w), grid_h = static_cast<uint32_t>(patches.grid_h);
  const uint32_t side = static_cast<uint32_t>(patches.side), patch_row = static_cast<uint32_t>(id) / grid_w;
  const uint32_t frame = patch_row / grid_h;
  const int64_t* stride = work.image.lead_stride;
  return {pixels + batch * stride[0] + frame * stride[1] + (region - item * channels) * stride[2],
          static_cast<int>((patch_row - frame * grid_h) * side + y),
          static_cast<int>((static_cast<uint32_t>(id) - patch_row * grid_w) * side + x), true};
}

// `grad` is the gradient to the histograms, for CellTask::gradient.
template <typename Pixel, bool PATCHES, bool ALIGNED, CellTask TASK>
__global__ void __launch_bounds__(kCellThreads, kCellBlocks<ALIGNED, TASK>)
    cell_kernel(const __grid_constant__ CellWork<float> work, uint32_t all_cells, const float* __restrict__ grad,
                float* __restrict__ out) {
  constexpr bool BYTES = std::is_same_v<Pixel, uint8_t>;
  using Line = std::conditional_t<BYTES, Row<Halves, kSide / 2>, Row<float, kSide>>;
  const uint32_t number = blockIdx.x * kCellThreads + threadIdx.x, cells = work.rows * work.across;
  if (number >= all_cells) return;
  const uint32_t region = number / cells, cell = number - region * cells;
  const CellCorner<Pixel> corner = corner_of<PATCHES, Pixel>(work, region, cell);
  const int bins = static_cast<int>(work.plan.bins);
  float* to = out + int64_t{region} * bins * cells + cell;
  if (!corner.valid) {
    for (int k = 0; k < bins; ++k, to += cells) *to = NAN;
    return;
  }

  const ImageView& image = work.image;
  const int width = static_cast<int>(image.width), height = static_cast<int>(image.height), x = corner.x;
  const int64_t step = ALIGNED ? 1 : image.column_stride, row_stride = image.row_stride;
  const int64_t left = (mirror_once(x - 1, width) - x) * step, right = (mirror_once(x + kSide, width) - x) * step;
  const Pixel* from = corner.plane + mirror_once(corner.y - 1, height) * row_stride + x * step;
  const auto load = [&]() -> Line {
    Pixel pixels[kSide + 2];
    pixels[0] = read(from + left), pixels[kSide + 1] = read(from + right);
    read_eight<ALIGNED>(from, step, pixels + 1);
    return Line(pixels);
  };
  Line up = load();
  from += corner.y > 0 ? row_stride : -row_stride;
  Line mid = load();
  Sums sums;
#pragma unroll
  for (int i = 1; i <= kSide; ++i) {
    from += i < kSide || corner.y + kSide < height ? row_stride : -row_stride;
    const Line down = load();
    float gx[kSide], gy[kSide];
    gradient<Pixel>(up, mid, down, gx, gy);
#pragma unroll
    for (int column = 0; column < kSide; ++column) vote<BYTES>(work, gx[column], gy[column], column, sums);
    up = mid, mid = down;
  }

  // histogram and normalise: S_k in the order of k. With fewer than nine bins, some in the middle are not edges.
  constexpr int kEnd = 2 * kPairs + 1;
  const auto is_edge = [bins](int k) { return k <= bins / 2 || kEnd - k <= (bins - 1) / 2; };
  float sum[kEnd + 1], histogram[kEnd], squares = 0;
  sum[0] = sum_of(sums.total), sum[kEnd] = 0;
#pragma unroll
  for (int p = 0; p < kPairs; ++p) sum[1 + p] = sum_of(sums.lower[p]), sum[kEnd - 1 - p] = sum_of(sums.upper[p]);
  float before = sum[0];
#pragma unroll
  for (int k = 1; k <= kEnd; ++k)
    if (is_edge(k)) {
      histogram[k - 1] = before - sum[k];
      squares += histogram[k - 1] * histogram[k - 1];
      before = sum[k];
    }
  const float scale = TASK == CellTask::sums ? 1.0f : inverse_norm(squares);
  if constexpr (TASK == CellTask::gradient) {
    const float* from = grad + (to - out);
    float g[kEnd], dot = 0;
#pragma unroll
    for (int k = 0; k < kEnd; ++k)
      if (is_edge(k + 1)) {
        g[k] = __ldg(from), from += cells;
        dot += g[k] * histogram[k];
      }
    const float projection = squares > 1e-24f ? dot * scale * scale : 0.0f;
#pragma unroll
    for (int k = 0; k < kEnd; ++k)
      if (is_edge(k + 1)) histogram[k] = g[k] - histogram[k] * projection;
  }
#pragma unroll
  for (int k = 1; k <= kEnd; ++k)
    if (is_edge(k)) {
      *to = histogram[k - 1] * scale;
      to += cells;
    }
}

template <bool PATCHES>
int64_t count_cells(const CellWork<float>& work) {
  const int64_t patches = PATCHES ? work.image.lead_size[0] * work.patches.count : 1;
  return patches * work.regions * work.rows * work.across;
}

// True where the kernel can do what is asked for. It counts cells and patches in 32 bits.
template <bool PATCHES>
bool has_cell_kernel(const CellWork<float>& work) {
  const CellPlan& plan = work.plan;
  const PatchView& patches = work.patches;
  return plan.bins <= 2 * kPairs + 1 && plan.cell_h == kSide && plan.cell_w == kSide && plan.gaussian_window == 0 &&
         std::max(count_cells<PATCHES>(work), patches.frames * patches.grid_h * patches.grid_w) < int64_t{1} << 31;
}

// True where eight pixels can be read at once at the beginning of every row of every cell.
template <typename Pixel>
bool is_aligned(const ImageView& image) {
  constexpr int64_t kBytes = sizeof(Pixel) == 1 ? 8 : 16;
  const auto fits = [](int64_t stride) { return stride * int64_t{sizeof(Pixel)} % kBytes == 0; };
  return image.column_stride == 1 && reinterpret_cast<uintptr_t>(image.data) % kBytes == 0 && fits(image.row_stride) &&
         std::all_of(image.lead_stride, image.lead_stride + image.lead, fits);
}

template <typename Pixel, bool PATCHES, CellTask TASK>
int launch_cells(CellWork<float>& work, const float* grad, float* out, void* stream) {
  for (int p = 0; p < kPairs; ++p) {
    const float cotangent = work.cotangent[p], shift = cotangent * 0x1p-21f;
    work.lower_slope[p] = cotangent + shift, work.upper_slope[p] = -cotangent + shift;
  }
  const uint32_t cells = static_cast<uint32_t>(count_cells<PATCHES>(work));
  const dim3 blocks(ceil_div<uint32_t>(cells, kCellThreads)), threads(kCellThreads);
  if (is_aligned<Pixel>(work.image))
    LAUNCH((cell_kernel<Pixel, PATCHES, true, TASK>), blocks, threads, 0, stream, work, cells, grad, out);
  else
    LAUNCH((cell_kernel<Pixel, PATCHES, false, TASK>), blocks, threads, 0, stream, work, cells, grad, out);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace
}  // namespace maskfeat
