// Histograms of blocks on a GPU, forward and backward. This knows neither Python nor torch.
#pragma once

#include "hog/plan.h"

namespace maskfeat {

// Does what hog_blocks_cpu does, for all planes at once. Queues the work on a stream of the current device, and returns
// the CUDA error of the launch, 0 for none. Images and results are in the device's memory. The tables of `plan` are in
// the host's, and travel with the launch.
int hog_blocks_cuda(const ImageView& image, const Channels& channels, const BlockPlan& plan, void* out, void* stream);

// Does what hog_blocks_backward_cpu does, for all planes at once. grad_blocks is scratch of the size of `grad`.
int hog_blocks_backward_cuda(const ImageView& image, const Channels& channels, const BlockPlan& plan, const void* grad,
                             void* grad_blocks, void* grad_x, void* stream);

// Why the kernels cannot compute this plan: its tables or a block exceed their memory. It is nullptr where they can.
const char* hog_blocks_cuda_refuses(const BlockPlan& plan);

}  // namespace maskfeat
