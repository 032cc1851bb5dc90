// Histograms of blocks on the CPU: calls the kernel that was compiled for the instruction set of this machine.
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

void hog_blocks_cpu(const ImageView& image, const Channels& channels, const BlockPlan& plan, void* out, int64_t begin,
                    int64_t end) {
  DISPATCH(block_rows, image, channels, plan, out, begin, end);
}

void hog_blocks_backward_cpu(const ImageView& image, const Channels& channels, const BlockPlan& plan, const void* grad,
                             void* grad_x, int64_t begin, int64_t end) {
  DISPATCH(blocks_backward, image, channels, plan, grad, grad_x, begin, end);
}

void hog_votes_cpu(const ImageView& image, const Channels& channels, const BlockPlan& plan, int64_t plane,
                   const PlaneVotes& votes, int64_t begin, int64_t end) {
  DISPATCH(votes_of_plane, image, channels, plan, plane, votes, begin, end);
}

void hog_windows_cpu(const ImageView& image, const Channels& channels, const BlockPlan& plan, const Corners& corners,
                     int64_t plane, const PlaneVotes* votes, void* out, int64_t begin, int64_t end) {
  DISPATCH(windows_of_plane, image, channels, plan, corners, plane, votes, out, begin, end);
}

}  // namespace maskfeat
