// HOG of blocks on the CPU, forward and backward. Knows neither Python nor torch.
#pragma once

#include "hog/plan.h"

namespace maskfeat {

// Computes the block rows [begin, end) of all planes, counted plane by plane, into out [planes, hog.size()], float64 for
// float64 pixels, else float32. A plane of `image` is a histogram's: its channels, if it has several, are in `channels`.
void hog_blocks_cpu(const ImageView& image, const Channels& channels, const HogBlocks& hog, void* out, int64_t begin,
                    int64_t end);

// Computes the gradients of the planes [begin, end) to their pixels into grad_x [planes, channels, H, W] from those of the
// result, grad [planes, hog.size()]; both of the dtype of `out` above and contiguous.
void hog_blocks_backward_cpu(const ImageView& image, const Channels& channels, const HogBlocks& hog, const void* grad,
                             void* grad_x, int64_t begin, int64_t end);

}  // namespace maskfeat
