// Moves and sums of token rows on the CPU. This knows neither Python nor torch.
#pragma once

#include "tokens/view.h"

namespace maskfeat {

// Each function computes the items [begin, end) of its result, so that a caller can divide them among threads. Items
// are rows counted batch by batch, or chunks. `out` is contiguous, and of the dtype of its input unless it says
// otherwise.

// out [B, K, D]: out[b, k] = tokens[b, ids[b, k]]. Stops at an id outside 0 .. N - 1 and returns its item, else `end`.
int64_t masked_gather_cpu(const TokenView& tokens, const IdView& ids, void* out, int64_t begin, int64_t end);

// out [B, length, D]: out[b, n] = sum of values[b, k] over the k with ids[b, k] = n, in the order of k, rounded once.
void masked_scatter_add_cpu(const TokenView& values, const IdView& ids, int64_t length, void* out, int64_t begin,
                            int64_t end);

// out [B, N, D]: out[b, n] = mask[b, n] ? mask_token : tokens[b, n].
void mask_tokens_cpu(const TokenView& tokens, const void* mask_token, int64_t mask_token_stride, const MaskView& mask,
                     void* out, int64_t begin, int64_t end);

// sums [chunks, D]: the sum of each chunk over its rows x[b, n] with mask[b, n], or over all rows if mask.data is null.
// The sums are of the wide dtype. A single chunk is the result, and of the dtype `result`.
void masked_sum_cpu(const TokenView& x, const MaskView& mask, Dtype result, void* sums, int64_t begin, int64_t end);

}  // namespace maskfeat
