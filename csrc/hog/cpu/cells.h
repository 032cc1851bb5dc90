// HOG on the CPU. Knows neither Python nor torch.
#pragma once

#include "hog/plan.h"

namespace maskfeat {

// Computes the rows of cells [begin, end) of all planes, counted plane by plane, into
// out [planes, bins, H / cell_h, W / cell_w], float64 for float64 pixels, else float32.
void hog_cpu(const ImageView& image, const HogParameters& hog, void* out, int64_t begin, int64_t end);

// Computes the histograms of the patches [begin, end) of the B * K chosen, all of them with ids that `patches` holds, into
// out [B, K, C, bins, side / cell_h, side / cell_w], of the same dtype.
void hog_tokens_cpu(const ImageView& image, const PatchView& patches, const HogParameters& hog, void* out,
                    int64_t begin, int64_t end);

}  // namespace maskfeat
