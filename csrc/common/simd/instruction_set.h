// Which instruction set the CPU kernels use.
#pragma once

namespace maskfeat {

enum class InstructionSet { baseline, avx2, avx512 };

// The best one of this machine, or the one that the environment variable MASKFEAT_CPU names: "baseline", "avx2" or
// "avx512". The baseline is SSE2 on x86-64 and NEON on arm64. Throws std::invalid_argument for any other name.
InstructionSet instruction_set();

}  // namespace maskfeat
