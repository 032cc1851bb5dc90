// What the two kernels of cells share: the parameters of a launch, how a thread reads a pixel, and the square root.
#pragma once

#include "common/cuda_launch.h"
#include "hog/cuda/cells.h"
#include "hog/math.h"

namespace maskfeat {
namespace {

// The parameters of a launch: sizes, and tables. Threads read them from constant memory.
template <typename T>
struct CellWork {
  ImageView image;
  CellPlan plan;
  PatchView patches;                  // used where ids choose patches; else whole images are done
  int64_t regions;                    // image planes, or the channels of a patch
  int32_t rows, across;               // cells of an image or a patch
  int32_t segments;                   // side by side in a thread block: one, or several patches
  int32_t cells;                      // cells of a segment, across
  int32_t strips;                     // segments of an image or a patch, across
  T cotangent[kCudaMaxBins / 2 + 9];  // edges past the last are NaN, and never reached
  T window[kCudaMaxWindow];
  T lower_slope[4], upper_slope[4];  // gy / gx on the edges, for cells of bytes: see cells_8x8.h
};

// What both kernels need of a call.
template <bool PATCHES, typename T>
CellWork<T> cell_work(const ImageView& image, const PatchView& patches, const CellPlan& plan) {
  CellWork<T> work{};
  work.image = image;
  work.plan = plan;
  work.patches = patches;
  work.regions = PATCHES ? image.lead_size[2] : 1;
  for (int axis = 0; !PATCHES && axis < image.lead; ++axis) work.regions *= image.lead_size[axis];
  work.rows = static_cast<int32_t>((PATCHES ? patches.side : image.height) / plan.cell_h);
  work.across = static_cast<int32_t>((PATCHES ? patches.side : image.width) / plan.cell_w);
  for (T& edge : work.cotangent) edge = static_cast<T>(NAN);
  for (int64_t k = 1; k <= plan.bins / 2; ++k) work.cotangent[k - 1] = static_cast<T>(edge_cotangent(k, plan.bins));
  gaussian_window(plan.gaussian_window, work.window);
  return work;
}

// These read through the read-only cache.
__device__ __forceinline__ uint8_t read(const uint8_t* p) { return __ldg(p); }
__device__ __forceinline__ Float16 read(const Float16* p) { return {__ldg(&p->bits)}; }
__device__ __forceinline__ BFloat16 read(const BFloat16* p) { return {__ldg(&p->bits)}; }
__device__ __forceinline__ float read(const float* p) { return __ldg(p); }
__device__ __forceinline__ double read(const double* p) { return __ldg(p); }

// The square root, by an approximate reciprocal root and one Newton step on the residue. The compiler makes the same of
// sqrt, plus a branch for extreme arguments. The reciprocal root is right within two units in the last place. The
// result is then correctly rounded for all squares of bytes, and for all but a handful of mantissas
// (test_square_root.py). Below 2^-126 it loses precision.
__device__ __forceinline__ double root(double x) { return sqrt(x); }
__device__ __forceinline__ float root(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  y = fminf(y, 0x1p63f);  // the reciprocal root of zero is infinite
  const float s = x * y;
  return fmaf(fmaf(-s, s, x), 0.5f * y, s);
#else
  return std::sqrt(x);
#endif
}

}  // namespace
}  // namespace maskfeat
