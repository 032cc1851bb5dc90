// The instruction sets that kernels of the CPU are compiled for, and the best of them that this machine has.
#pragma once

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(a == b){__VA_ARGS__})
#endif

// Clang has no pragma that sets the target of templates: built with it, x86-64 runs the baseline.
#if defined(__x86_64__) && !defined(__clang__)
#define SEVERAL_INSTRUCTION_SETS
#endif

namespace maskfeat {

enum class InstructionSet { baseline, avx2, avx512 };

inline InstructionSet instruction_set() {
#ifdef SEVERAL_INSTRUCTION_SETS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return InstructionSet::avx512;
  if (__builtin_cpu_supports("x86-64-v3")) return InstructionSet::avx2;
#endif
  return InstructionSet::baseline;
}

}  // namespace maskfeat
