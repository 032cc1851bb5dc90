// Chooses the instruction set once a process.
#include "common/simd/instruction_set.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace maskfeat {
namespace {

InstructionSet best() {
#if defined(__x86_64__) && !defined(__clang__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return InstructionSet::avx512;
  if (__builtin_cpu_supports("x86-64-v3")) return InstructionSet::avx2;
#endif
  return InstructionSet::baseline;
}

InstructionSet choose() {
  const char* const wanted = std::getenv("MASKFEAT_CPU");
  if (!wanted || !*wanted) return best();
  const std::string names[] = {"baseline", "avx2", "avx512"};
  std::string known;
  for (int set = 0; set <= static_cast<int>(best()); ++set) {
    if (names[set] == wanted) return static_cast<InstructionSet>(set);
    known += names[set] + ", ";
  }
  throw std::invalid_argument("MASKFEAT_CPU must be one of those that this machine has, " + known + "got " + wanted);
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

}  // namespace maskfeat
