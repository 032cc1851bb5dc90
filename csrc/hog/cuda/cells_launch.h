// What the two HOG kernels of a GPU share: a launch, how a pixel is read, and the square root.
#pragma once

#include "common/cuda_launch.h"
#include "hog/cuda/cells.h"
#include "hog/math.h"

namespace maskfeat {
namespace {

// What a launch carries: sizes, and tables that the threads read from constant memory.
template <typename T>
struct Work {
  ImageView image;
  HogParameters hog;
  PatchView patches;                  // if there are ids; else whole images are done
  int64_t regions;                    // image planes, or with patches their channels
  int32_t rows, across;               // cells of a region: of an image or a patch
  int32_t segments;                   // side by side in a block of threads: 1, or patches
  int32_t cells;                      // of a segment, across
  int32_t strips;                     // segments that a region is wide
  T cotangent[kCudaMaxBins / 2 + 9];  // edges past the last are NaN, and never reached
  T window[kCudaMaxWindow];
  T lower_slope[4], upper_slope[4];  // gy / gx on the edges of cells of bytes, see hog/cuda/cells_8x8.h
};

// Through the read-only cache.
__device__ __forceinline__ uint8_t read(const uint8_t* p) { return __ldg(p); }
__device__ __forceinline__ Float16 read(const Float16* p) { return {__ldg(&p->bits)}; }
__device__ __forceinline__ BFloat16 read(const BFloat16* p) { return {__ldg(&p->bits)}; }
__device__ __forceinline__ float read(const float* p) { return __ldg(p); }
__device__ __forceinline__ double read(const double* p) { return __ldg(p); }

// The square root: an approximate reciprocal root and one Newton step on the residue, which is what the compiler makes of
// sqrt, less its branch for extreme arguments. With a reciprocal root within two units in the last place it is rounded
// correctly for all squares that bytes can have, and for all but a handful of mantissas (tests/test_square_root.py). Below
// 2^-126 it loses precision.
__device__ __forceinline__ double root(double x) { return sqrt(x); }
__device__ __forceinline__ float root(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  y = fminf(y, 0x1p63f);  // of zero it is infinite
  const float s = x * y;
  return fmaf(fmaf(-s, s, x), 0.5f * y, s);
#else
  return std::sqrt(x);
#endif
}

}  // namespace
}  // namespace maskfeat
