// Histograms of cells on the CPU: calls the kernel that was compiled for the instruction set of this machine.
#include "hog/cpu/cells.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "common/simd/instruction_set.h"
#include "hog/math.h"

namespace maskfeat {
namespace {

#define CPU_KERNEL "hog/cpu/cells_kernel.h"
#include "common/simd/every_instruction_set.h"

}  // namespace

void hog_cells_cpu(const ImageView& image, const CellPlan& plan, void* out, int64_t begin, int64_t end) {
  DISPATCH(cell_rows, image, plan, out, begin, end);
}

void hog_patches_cpu(const ImageView& image, const PatchView& patches, const CellPlan& plan, void* out, int64_t begin,
                     int64_t end) {
  DISPATCH(patch_cells, image, patches, plan, out, begin, end);
}

void hog_scales_cpu(const ImageView& image, const CellPlan& plan, const Scale* scales, int64_t count, int64_t begin,
                    int64_t end) {
  DISPATCH(scale_bands, image, plan, scales, count, begin, end);
}

}  // namespace maskfeat
