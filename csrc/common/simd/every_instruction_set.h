// A kernel of the CPU for every instruction set. Included once by the .cpp file of a kernel, inside its anonymous namespace,
// after CPU_KERNEL, the name of the kernel's file, is defined: no include guard. DISPATCH(function, arguments...) then calls
// a function of the kernel.

// As many lanes as are named; of GCC before 12, which builds for arm64 alone, as many as `a` has.
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

// Clang has no pragma that sets the target of templates: built with it, x86-64 runs the baseline.
#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
namespace avx2 {
constexpr int kVectorBytes = 32;
#include "common/simd/vector.h"
#include CPU_KERNEL
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
