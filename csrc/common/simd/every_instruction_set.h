// Compiles a CPU kernel once per instruction set. The .cpp file of a kernel defines CPU_KERNEL, the name of the
// kernel's file, and then includes this file inside its anonymous namespace. DISPATCH(function, arguments...) then
// calls the function of the kernel that was compiled for this machine. AVX2_KERNEL is defined where a kernel may name instructions of
// AVX2. There is no include guard.

// The lanes of `a` and `b` that are named. GCC before 12 is used for arm64 only, and names as many lanes as `a` has.
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(a == b){__VA_ARGS__})
#endif

namespace baseline {  // SSE2 on x86-64, NEON on arm64
constexpr int kVectorBytes = 16;
#include "common/simd/vector.h"
#include CPU_KERNEL
}  // namespace baseline

// Clang has no pragma that sets the target of templates. Built with Clang, x86-64 runs the baseline.
#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
constexpr int kVectorBytes = 32;
#define AVX2_KERNEL
#include "common/simd/vector.h"
#include CPU_KERNEL
#undef AVX2_KERNEL
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
namespace avx512 {
constexpr int kVectorBytes = 64;
#include "common/simd/vector.h"
#include CPU_KERNEL
}  // namespace avx512
#pragma GCC pop_options

#define DISPATCH(function, ...)                                        \
  switch (instruction_set()) {                                         \
    case InstructionSet::avx512: return avx512::function(__VA_ARGS__); \
    case InstructionSet::avx2: return avx2::function(__VA_ARGS__);     \
    case InstructionSet::baseline: break;                              \
  }                                                                    \
  return baseline::function(__VA_ARGS__)
#else
#define DISPATCH(function, ...) \
  instruction_set();            \
  return baseline::function(__VA_ARGS__)
#endif
