// HOG on the CPU: the kernel at each vector width, and the choice between them.
#include "hog_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>

#include "instruction_set.h"

namespace maskfeat {
namespace {

namespace baseline {  // SSE2 on x86-64, NEON on arm64
constexpr int kVectorBytes = 16;
#include "cpu_vector.h"
#include "hog_cpu_kernel.h"
}  // namespace baseline

#ifdef SEVERAL_INSTRUCTION_SETS
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
constexpr int kVectorBytes = 32;
#include "cpu_vector.h"
#include "hog_cpu_kernel.h"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace avx512 {
constexpr int kVectorBytes = 64;
#include "cpu_vector.h"
#include "hog_cpu_kernel.h"
}  // namespace avx512
#pragma GCC pop_options
#endif

// Calls the variant for this machine of a function of the kernel.
#ifdef SEVERAL_INSTRUCTION_SETS
#define DISPATCH(function, ...)                                            \
  switch (kInstructionSet) {                                               \
    case InstructionSet::avx512: return avx512::function(__VA_ARGS__);     \
    case InstructionSet::avx2: return avx2::function(__VA_ARGS__);         \
    case InstructionSet::baseline: return baseline::function(__VA_ARGS__); \
  }
#else
#define DISPATCH(function, ...) return baseline::function(__VA_ARGS__)
#endif

const InstructionSet kInstructionSet = instruction_set();

}  // namespace

void hog_cpu(const ImageView& image, const HogParameters& hog, void* out, int64_t begin, int64_t end) {
  DISPATCH(hog, image, hog, out, begin, end);
}

void hog_tokens_cpu(const ImageView& image, const PatchView& patches, const HogParameters& hog, void* out,
                    int64_t begin, int64_t end) {
  DISPATCH(hog_tokens, image, patches, hog, out, begin, end);
}

}  // namespace maskfeat
