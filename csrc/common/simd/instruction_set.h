// Which instructions the kernels of the CPU use.
#pragma once

namespace maskfeat {

enum class InstructionSet { baseline, avx2, avx512 };

// The best that this machine has, or the one that the environment variable MASKFEAT_CPU names: "baseline", which is SSE2 on
// x86-64 and NEON on arm64, "avx2" or "avx512". Throws std::invalid_argument where it names another.
InstructionSet instruction_set();

}  // namespace maskfeat
