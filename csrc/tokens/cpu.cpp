// Token rows on the CPU: calls the kernel that was compiled for the instruction set of this machine.
#include "tokens/cpu.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "common/simd/instruction_set.h"

namespace maskfeat {
namespace {

#define CPU_KERNEL "tokens/cpu_kernel.h"
#include "common/simd/every_instruction_set.h"

}  // namespace

int64_t masked_gather_cpu(const TokenView& tokens, const IdView& ids, void* out, int64_t begin, int64_t end) {
  DISPATCH(masked_gather, tokens, ids, out, begin, end);
}

void masked_scatter_add_cpu(const TokenView& values, const IdView& ids, int64_t length, void* out, int64_t begin,
                            int64_t end) {
  DISPATCH(masked_scatter_add, values, ids, length, out, begin, end);
}

void mask_tokens_cpu(const TokenView& tokens, const void* mask_token, int64_t mask_token_stride, const MaskView& mask,
                     void* out, int64_t begin, int64_t end) {
  DISPATCH(mask_tokens, tokens, mask_token, mask_token_stride, mask, out, begin, end);
}

void masked_sum_cpu(const TokenView& x, const MaskView& mask, Dtype result, void* sums, int64_t begin, int64_t end) {
  DISPATCH(masked_sum, x, mask, result, sums, begin, end);
}

}  // namespace maskfeat
