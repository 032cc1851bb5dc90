// HOG on the CPU: the kernel at each vector width, and the choice between them.
#include "hog_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(a == b){__VA_ARGS__})
#endif

namespace maskfeat {
namespace {

namespace baseline {  // SSE2 on x86-64, NEON on arm64
constexpr int kVectorBytes = 16;
#include "hog_cpu_kernel.h"
}  // namespace baseline

#ifdef __x86_64__
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
constexpr int kVectorBytes = 32;
#include "hog_cpu_kernel.h"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace avx512 {
constexpr int kVectorBytes = 64;
#include "hog_cpu_kernel.h"
}  // namespace avx512
#pragma GCC pop_options
#endif

using Kernel = void(const ImageView&, const HogParameters&, void*, int64_t, int64_t);

Kernel* choose_kernel() {
#ifdef __x86_64__
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return avx512::hog;
  if (__builtin_cpu_supports("x86-64-v3")) return avx2::hog;
#endif
  return baseline::hog;
}

}  // namespace

void hog_cpu(const ImageView& image, const HogParameters& hog, void* out, int64_t begin, int64_t end) {
  static Kernel* const kernel = choose_kernel();
  kernel(image, hog, out, begin, end);
}

}  // namespace maskfeat
