// HOG of blocks on a GPU, forward and backward. Knows neither Python nor torch.
#pragma once

#include "hog/plan.h"

namespace maskfeat {

// As hog_blocks_cpu, of all planes at once. Queues the work on a stream of the current device and returns the CUDA error of
// the launch, 0 for none. Images and results are the device's, the tables of `hog` the host's: they travel with the launch.
int hog_blocks_cuda(const ImageView& image, const Channels& channels, const HogBlocks& hog, void* out, void* stream);

// As hog_blocks_backward_cpu, of all planes at once. grad_blocks, of the size of `grad`, is scratch.
int hog_blocks_backward_cuda(const ImageView& image, const Channels& channels, const HogBlocks& hog, const void* grad,
                             void* grad_blocks, void* grad_x, void* stream);

// Why the GPU kernels cannot compute this HOG (tables or a block beyond their memory), nullptr if they can.
const char* hog_blocks_cuda_refuses(const HogBlocks& hog);

}  // namespace maskfeat
