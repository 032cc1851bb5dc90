// Histograms of blocks on the CPU, forward and backward. This knows neither Python nor torch.
#pragma once

#include "hog/plan.h"

namespace maskfeat {

// Computes the rows of blocks [begin, end) of all planes, counted plane by plane. `out` is [planes, plan.size()],
// float64 for float64 pixels, else float32. Each plane of `image` has one result. It may have several channels, see
// Channels.
void hog_blocks_cpu(const ImageView& image, const Channels& channels, const BlockPlan& plan, void* out, int64_t begin,
                    int64_t end);

// Computes the gradients to the pixels of the planes [begin, end), grad_x [planes, channels, H, W], from those to the
// result, grad [planes, plan.size()]. Both are contiguous and of the dtype of `out` above.
void hog_blocks_backward_cpu(const ImageView& image, const Channels& channels, const BlockPlan& plan, const void* grad,
                             void* grad_x, int64_t begin, int64_t end);

}  // namespace maskfeat
