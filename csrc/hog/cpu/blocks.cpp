// HOG of blocks on the CPU: what common/simd/every_instruction_set.h makes of the kernel.
#include "hog/cpu/blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/simd/instruction_set.h"
#include "hog/orientation.h"

namespace maskfeat {
namespace {

#define CPU_KERNEL "hog/cpu/blocks_kernel.h"
#include "common/simd/every_instruction_set.h"

}  // namespace

void hog_blocks_cpu(const ImageView& image, const Channels& channels, const HogBlocks& hog, void* out, int64_t begin,
                    int64_t end) {
  DISPATCH(hog_blocks, image, channels, hog, out, begin, end);
}

void hog_blocks_backward_cpu(const ImageView& image, const Channels& channels, const HogBlocks& hog, const void* grad,
                             void* grad_x, int64_t begin, int64_t end) {
  DISPATCH(hog_blocks_backward, image, channels, hog, grad, grad_x, begin, end);
}

}  // namespace maskfeat
