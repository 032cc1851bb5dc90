// HOG on a GPU. Knows neither Python nor torch.
#pragma once

#include "hog/plan.h"

namespace maskfeat {

// Limits of the GPU kernel, whose tables travel with the launch.
constexpr int64_t kCudaMaxBins = 256;
constexpr int64_t kCudaMaxWindow = 256;

// out [planes, bins, H / cell_h, W / cell_w], float64 for float64 pixels, else float32; not empty. Queues the work on a
// stream of the current device and returns the CUDA error of the launch, 0 for none. All memory is the device's.
int hog_cuda(const ImageView& image, const HogParameters& hog, void* out, void* stream);

// out [B, K, C, bins, side / cell_h, side / cell_w]; NaN for an id that `patches` does not hold, whose pixels are not read.
int hog_tokens_cuda(const ImageView& image, const PatchView& patches, const HogParameters& hog, void* out,
                    void* stream);

}  // namespace maskfeat
