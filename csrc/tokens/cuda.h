// Moves and sums of token rows on a GPU. This knows neither Python nor torch.
#pragma once

#include "tokens/view.h"

namespace maskfeat {

// Each function queues its work on a stream of the current device, and returns the CUDA error of the launch, 0 for
// none. All memory is the device's. `out` is contiguous, of the dtype of its input, and not empty.

// out [B, K, D]: out[b, k] = tokens[b, ids[b, k]]. It is NaN for an id outside 0 .. N - 1, for which nothing is read.
int masked_gather_cuda(const TokenView& tokens, const IdView& ids, void* out, void* stream);

// out [B, length, D]: out[b, n] = sum of values[b, k] over the k with ids[b, k] = n, in the order of k, rounded once.
// More than 2^30 ids of a batch row are refused.
int masked_scatter_add_cuda(const TokenView& values, const IdView& ids, int64_t length, void* out, void* stream);

// out [B, N, D]: out[b, n] = mask[b, n] ? mask_token : tokens[b, n].
int mask_tokens_cuda(const TokenView& tokens, const void* mask_token, int64_t mask_token_stride, const MaskView& mask,
                     void* out, void* stream);

// sums [chunks, D]: the sum of each chunk over its rows x[b, n] with mask[b, n], or over all rows if mask.data is null.
// The sums are of the wide dtype. A single chunk is the result, and of the dtype `result`.
int masked_sum_cuda(const TokenView& x, const MaskView& mask, Dtype result, void* sums, void* stream);

}  // namespace maskfeat
