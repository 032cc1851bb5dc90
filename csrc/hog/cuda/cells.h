// Histograms of cells on a GPU. This knows neither Python nor torch.
#pragma once

#include "hog/plan.h"

namespace maskfeat {

// Limits of the GPU kernels, whose tables travel with the launch.
constexpr int64_t kCudaMaxBins = 256;
constexpr int64_t kCudaMaxWindow = 256;

// `out` is [planes, bins, H / cell_h, W / cell_w], float64 for float64 pixels, else float32. It must not be empty. All
// memory is the device's. Queues the work on a stream of the current device, and returns the CUDA error of the launch,
// 0 for none.
int hog_cells_cuda(const ImageView& image, const CellPlan& plan, void* out, void* stream);

// The same at several cell sizes, the first of which is that of the plan. Of more than one, the plan leaves sums.
int hog_scales_cuda(const ImageView& image, const CellPlan& plan, const Scale* scales, int64_t count, int64_t planes,
                    void* stream);

// `out` is [B, K, C, bins, side / cell_h, side / cell_w]. It is NaN for an id that `patches` does not hold. Nothing is
// read for such an id.
int hog_patches_cuda(const ImageView& image, const PatchView& patches, const CellPlan& plan, void* out, void* stream);

}  // namespace maskfeat
