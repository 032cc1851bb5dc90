"""The token moves in plain torch: the meaning of the ops. Each of the two moves comes with its adjoint."""

import torch
from torch import Tensor


def masked_gather(
    tokens: Tensor,  # [B, N, D]
    token_ids: Tensor,  # [B, K], int64
) -> Tensor:  # [B, K, D]
    """tokens[b, token_ids[b, k]]; NaN for an id outside 0 .. N - 1."""
    length = tokens.shape[1]
    nowhere = tokens.new_full((tokens.shape[0], 1, tokens.shape[2]), torch.nan)
    token_ids = torch.where((token_ids >= 0) & (token_ids < length), token_ids, length)
    ids = token_ids.unsqueeze(-1).expand(-1, -1, tokens.shape[2])
    return torch.cat([tokens, nowhere], dim=1).gather(1, ids)


def masked_scatter_add(
    values: Tensor,  # [B, K, D]
    token_ids: Tensor,  # [B, K], int64
    length: int,
) -> Tensor:  # [B, length, D]
    """Sum over the k with token_ids[b, k] = n of values[b, k], rounded once; ids outside 0 .. length - 1 are dropped.

    One position of all rows at a time: no two ids of one step meet, so that the order is that of k on every device.
    """
    batch, count, width = values.shape
    token_ids = torch.where((token_ids >= 0) & (token_ids < length), token_ids, length)
    total = values.new_zeros((batch, length + 1, width), dtype=_wide(values))
    for k in range(count):
        ids = token_ids[:, k : k + 1].unsqueeze(-1).expand(-1, -1, width)
        total = total.scatter_add(1, ids, values[:, k : k + 1].to(total.dtype))
    return total[:, :length].to(values.dtype).contiguous()


def mask_tokens(
    tokens: Tensor,  # [B, N, D]
    mask_token: Tensor,  # [D]
    mask: Tensor,  # [B, N], bool
) -> Tensor:  # [B, N, D]
    """mask_token where the mask is set, the token elsewhere."""
    return torch.where(mask.unsqueeze(-1), mask_token, tokens).contiguous()


def masked_sum(
    x: Tensor,  # [B, N, D]
    mask: Tensor,  # [B, N], bool
) -> Tensor:  # [D]
    """Sum of x[b, n] over the set positions of the mask, rounded once."""
    return torch.where(mask.unsqueeze(-1), x, 0).sum((0, 1), dtype=_wide(x)).to(x.dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
