// HOG on the CPU: what common/simd/every_instruction_set.h makes of the kernel.
#include "hog/cpu/cells.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include "common/simd/instruction_set.h"
#include "hog/math.h"

namespace maskfeat {
namespace {

#define CPU_KERNEL "hog/cpu/cells_kernel.h"
#include "common/simd/every_instruction_set.h"

}  // namespace

void hog_cpu(const ImageView& image, const HogParameters& hog, void* out, int64_t begin, int64_t end) {
  DISPATCH(hog, image, hog, out, begin, end);
}

void hog_tokens_cpu(const ImageView& image, const PatchView& patches, const HogParameters& hog, void* out,
                    int64_t begin, int64_t end) {
  DISPATCH(hog_tokens, image, patches, hog, out, begin, end);
}

}  // namespace maskfeat
