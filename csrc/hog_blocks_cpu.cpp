// HOG of blocks on the CPU: the kernel at each vector width, and the choice between them; as in hog_cpu.cpp.
#include "hog_blocks_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "hog_blocks_math.h"
#include "instruction_set.h"

namespace maskfeat {
namespace {

namespace baseline {  // SSE2 on x86-64, NEON on arm64
constexpr int kVectorBytes = 16;
#include "cpu_vector.h"
#include "hog_blocks_cpu_kernel.h"
}  // namespace baseline

#ifdef SEVERAL_INSTRUCTION_SETS
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
constexpr int kVectorBytes = 32;
#include "cpu_vector.h"
#include "hog_blocks_cpu_kernel.h"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace avx512 {
constexpr int kVectorBytes = 64;
#include "cpu_vector.h"
#include "hog_blocks_cpu_kernel.h"
}  // namespace avx512
#pragma GCC pop_options
#endif

struct Functions {
  decltype(&baseline::hog_blocks) forward;
  decltype(&baseline::hog_blocks_backward) backward;
};

Functions functions_for(InstructionSet set) {
  switch (set) {
#ifdef SEVERAL_INSTRUCTION_SETS
    case InstructionSet::avx512: return {avx512::hog_blocks, avx512::hog_blocks_backward};
    case InstructionSet::avx2: return {avx2::hog_blocks, avx2::hog_blocks_backward};
#endif
    default: return {baseline::hog_blocks, baseline::hog_blocks_backward};
  }
}

const Functions kFunctions = functions_for(instruction_set());

}  // namespace

void hog_blocks_cpu(const ImageView& image, const Channels& channels, const HogBlocks& hog, void* out, int64_t begin,
                    int64_t end) {
  kFunctions.forward(image, channels, hog, out, begin, end);
}

void hog_blocks_backward_cpu(const ImageView& image, const Channels& channels, const HogBlocks& hog, const void* grad,
                             void* grad_x, int64_t begin, int64_t end) {
  kFunctions.backward(image, channels, hog, grad, grad_x, begin, end);
}

}  // namespace maskfeat
