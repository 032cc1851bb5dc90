"""The token moves as Triton kernels, each launch an opaque op. Rows are counted over the whole batch.

A program moves a tile of rows by columns:

         BLOCK_D columns
        +---------------+
        |               |  BLOCK_R rows; the ids or the mask of these rows are read first, then only those rows that
        +---------------+  count
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..library import TAGS
from .ops import register_token_ops

_BYTES_OF_TILE = 4096  # two 16-byte accesses for each of 128 threads; with four, some do not fit the registers
_SLICE_ROWS, _SLICES = 32, 8

# Triton compiles a kernel anew for an integer argument that is 1 or a multiple of 16, if it is not told otherwise. Here
# ALIGNED alone says that the width and the strides are multiples of 16, so that a thread may move elements in one go.


@triton.jit(do_not_specialize=("rows", "N", "K", "D", "tokens_b", "tokens_n", "ids_b", "ids_k"))
def _gather_kernel(
    tokens,  # [B, N, D]
    token_ids,  # [B, K], int64
    out,  # [B, K, D]
    rows,  # B * K
    N,
    K,
    D,
    tokens_b,
    tokens_n,
    tokens_d,
    ids_b,
    ids_k,
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows out[b, k] = tokens[b, token_ids[b, k]], NaN where the id is out of range."""
    if ALIGNED:
        D, tokens_b, tokens_n = D // 16 * 16, tokens_b // 16 * 16, tokens_n // 16 * 16
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    b, k = row // K, row % K
    id = tl.load(token_ids + b * ids_b + k * ids_k, mask=row < rows, other=-1)
    inside = (id >= 0) & (id < N)
    x = tl.load(
        tokens + (b * tokens_b + id * tokens_n)[:, None] + (d * tokens_d)[None, :],
        mask=inside[:, None] & (d < D)[None, :],
        other=0,
    ).to(WIDE)
    x = tl.where(inside[:, None], x, float("nan"))
    tl.store(out + row[:, None] * D + d[None, :], x, mask=(row < rows)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=("N", "K", "D", "values_b", "values_k", "ids_b", "ids_k"))
def _scatter_add_kernel(
    values,  # [B, K, D]
    token_ids,  # [B, K], int64
    out,  # [B, N, D]
    N,
    K,
    D,
    values_b,
    values_k,
    values_d,
    ids_b,
    ids_k,
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Rows out[b, n] = sum of values[b, k] over the k with token_ids[b, k] = n, in the order of k.

    The ids are compared with all tokens of the tile, which is K * N comparisons for a batch row and column block, a few
    percent of the N * D elements written. A token listed once, as all are in pre-training, is then a plain copy.
    """
    if ALIGNED:
        D, values_b, values_k = D // 16 * 16, values_b // 16 * 16, values_k // 16 * 16
    tiles = tl.cdiv(N, BLOCK_R)
    b = tl.program_id(0).to(tl.int64) // tiles
    n = tl.program_id(0).to(tl.int64) % tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    first = tl.zeros((BLOCK_R,), tl.int64) + K
    count = tl.zeros((BLOCK_R,), tl.int32)
    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K).to(tl.int64)
        id = tl.load(token_ids + b * ids_b + k * ids_k, mask=k < K, other=-1)
        match = id[None, :] == n[:, None]
        count += tl.sum(match.to(tl.int32), axis=1)
        first = tl.minimum(first, tl.min(tl.where(match, k[None, :], K), axis=1))
    in_row = (d < D)[None, :]
    place = values + b * values_b + (d * values_d)[None, :]
    found = (first < K) & (n < N)
    x = tl.load(place + (first * values_k)[:, None], mask=found[:, None] & in_row, other=0).to(WIDE)
    if tl.max(tl.where(n < N, count, 0)) > 1:
        x = tl.zeros((BLOCK_R, BLOCK_D), WIDE)
        for k in range(K):
            id = tl.load(token_ids + b * ids_b + k * ids_k)
            match = (n == id) & (n < N)
            x += tl.load(place + k * values_k, mask=match[:, None] & in_row, other=0).to(WIDE)
    tl.store(out + (b * N + n)[:, None] * D + d[None, :], x, mask=(n < N)[:, None] & in_row)


@triton.jit(do_not_specialize=("rows", "N", "D", "tokens_b", "tokens_n", "mask_b", "mask_n"))
def _mask_kernel(
    tokens,  # [B, N, D]
    mask_token,  # [D]
    mask,  # [B, N], bool
    out,  # [B, N, D]
    rows,  # B * N
    N,
    D,
    tokens_b,
    tokens_n,
    tokens_d,
    mask_token_d,
    mask_b,
    mask_n,
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows out[b, n] = mask_token where the mask is set, tokens[b, n] elsewhere; masked tokens are not read."""
    if ALIGNED:
        D, tokens_b, tokens_n = D // 16 * 16, tokens_b // 16 * 16, tokens_n // 16 * 16
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    b, n = row // N, row % N
    masked = tl.load(mask + b * mask_b + n * mask_n, mask=row < rows, other=1) != 0
    token = tl.load(mask_token + d * mask_token_d, mask=d < D, other=0).to(WIDE)
    x = tl.load(
        tokens + (b * tokens_b + n * tokens_n)[:, None] + (d * tokens_d)[None, :],
        mask=(row < rows)[:, None] & (d < D)[None, :] & (masked == 0)[:, None],
        other=0,
    ).to(WIDE)
    x = tl.where(masked[:, None], token[None, :], x)
    tl.store(out + row[:, None] * D + d[None, :], x, mask=(row < rows)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=("rows", "N", "D", "x_b", "x_n", "mask_b", "mask_n"))
def _sum_kernel(
    x,  # [B, N, D]
    mask,  # [B, N], bool; not read unless MASKED
    sums,  # [chunks, D]
    rows,  # B * N
    N,
    D,
    x_b,
    x_n,
    x_d,
    mask_b,
    mask_n,
    MASKED: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
    SLICE_ROWS: tl.constexpr,
    SLICES: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The sum of a chunk of SLICES * SLICE_ROWS rows, those of each slice one after the other."""
    if ALIGNED:
        D, x_b, x_n = D // 16 * 16, x_b // 16 * 16, x_n // 16 * 16
    chunk = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    row0 = (chunk * SLICES + tl.arange(0, SLICES)) * SLICE_ROWS
    total = tl.zeros((SLICES, BLOCK_D), WIDE)
    for r in range(SLICE_ROWS):
        row = row0 + r
        b, n = row // N, row % N
        chosen = row < rows
        if MASKED:
            chosen = tl.load(mask + b * mask_b + n * mask_n, mask=chosen, other=0) != 0
        total += tl.load(
            x + (b * x_b + n * x_n)[:, None] + (d * x_d)[None, :], mask=chosen[:, None] & (d < D)[None, :], other=0
        ).to(WIDE)
    tl.store(sums + chunk * D + d, tl.sum(total, axis=0), mask=d < D)


@torch.library.custom_op("maskfeat_kernels::masked_gather_triton", mutates_args=(), tags=TAGS)
def masked_gather(tokens: Tensor, token_ids: Tensor) -> Tensor:
    (batch, length, width), count = tokens.shape, token_ids.shape[1]
    out = tokens.new_empty((batch, count, width))
    if out.numel():
        block_r, block_d = _tile(tokens)
        grid = (triton.cdiv(batch * count, block_r), triton.cdiv(width, block_d))
        with torch.cuda.device_of(tokens):
            _gather_kernel[grid](
                tokens, token_ids, out, batch * count, length, count, width, *_strides(tokens), *token_ids.stride(),
                ALIGNED=_is_aligned(tokens), WIDE=_wide(tokens), BLOCK_R=block_r, BLOCK_D=block_d,
            )  # fmt: skip
    return out


@torch.library.custom_op("maskfeat_kernels::masked_scatter_add_triton", mutates_args=(), tags=TAGS)
def masked_scatter_add(values: Tensor, token_ids: Tensor, length: int) -> Tensor:
    batch, count, width = values.shape
    out = values.new_empty((batch, length, width))
    if out.numel():
        block_r, block_d = _tile(values)
        grid = (batch * triton.cdiv(length, block_r), triton.cdiv(width, block_d))
        with torch.cuda.device_of(values):
            _scatter_add_kernel[grid](
                values, token_ids, out, length, count, width, *_strides(values), *token_ids.stride(),
                ALIGNED=_is_aligned(values), WIDE=_wide(values), BLOCK_R=block_r, BLOCK_D=block_d, BLOCK_K=64,
            )  # fmt: skip
    return out


@torch.library.custom_op("maskfeat_kernels::mask_tokens_triton", mutates_args=(), tags=TAGS)
def mask_tokens(tokens: Tensor, mask_token: Tensor, mask: Tensor) -> Tensor:
    batch, length, width = tokens.shape
    out = tokens.new_empty(tokens.shape)
    if out.numel():
        block_r, block_d = _tile(tokens)
        grid = (triton.cdiv(batch * length, block_r), triton.cdiv(width, block_d))
        with torch.cuda.device_of(tokens):
            _mask_kernel[grid](
                tokens, mask_token, mask, out, batch * length, length, width,
                *_strides(tokens), *mask_token.stride(), *mask.stride(),
                ALIGNED=_is_aligned(tokens), WIDE=_wide(tokens), BLOCK_R=block_r, BLOCK_D=block_d,
            )  # fmt: skip
    return out


@torch.library.custom_op("maskfeat_kernels::masked_sum_triton", mutates_args=(), tags=TAGS)
def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    dtype, masked = x.dtype, True
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if x.numel() == 0:
        return x.new_zeros(x.shape[2])
    while True:
        batch, length, width = x.shape
        chunks = triton.cdiv(batch * length, _SLICES * _SLICE_ROWS)
        sums = x.new_empty((1, chunks, width), dtype=wide if chunks > 1 else dtype)
        block_d = max(16, min(triton.next_power_of_2(width), 128))
        with torch.cuda.device_of(x):
            _sum_kernel[(chunks, triton.cdiv(width, block_d))](
                x, mask, sums, batch * length, length, width, *_strides(x), *mask.stride(),
                MASKED=masked, ALIGNED=_is_aligned(x), WIDE=_wide(x), SLICE_ROWS=_SLICE_ROWS, SLICES=_SLICES,
                BLOCK_D=block_d,
            )  # fmt: skip
        if chunks == 1:
            return sums.view(width)
        x, masked = sums, False


register_token_ops(masked_gather, masked_scatter_add, mask_tokens, masked_sum)


def _tile(tokens: Tensor) -> tuple[int, int]:  # BLOCK_R, BLOCK_D
    """Rows and columns of a tile: of the columns no more than there are, and then of the rows as many as fit."""
    block_d = max(16, min(triton.next_power_of_2(tokens.shape[2]), 256))
    return max(1, _BYTES_OF_TILE // (block_d * tokens.element_size())), block_d


def _strides(x: Tensor) -> list[int]:
    """The strides of [B, N, D]; 0 for an axis of one, which is never stepped along."""
    return [0 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True)]


def _is_aligned(x: Tensor) -> bool:
    """Whether the rows of [B, N, D] are whole packs of 16 elements, each a multiple of 16 from the first."""
    return all(number % 16 == 0 for number in (x.shape[2], *_strides(x)[:2]))


def _wide(x: Tensor) -> tl.dtype:
    """The dtype of arithmetic: float64 for float64, else float32. The interpreter has no bfloat16 arithmetic."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def ahead_of_time_cases():
    """(name, kernel, signature, constexprs, num_warps) of the variants to compile without a GPU."""
    tile = {"ALIGNED": True, "WIDE": tl.float32, "BLOCK_R": 4, "BLOCK_D": 256}
    sums = {"MASKED": True, "ALIGNED": True, "WIDE": tl.float32, "SLICE_ROWS": _SLICE_ROWS, "SLICES": _SLICES}
    sums["BLOCK_D"] = 128
    cases = []
    for dtype, element in (("float32", "*fp32"), ("bfloat16", "*bf16")):
        for name, kernel, constants in (
            ("masked_gather", _gather_kernel, tile),
            ("masked_scatter_add", _scatter_add_kernel, tile | {"BLOCK_K": 64}),
            ("mask_tokens", _mask_kernel, tile),
            ("masked_sum", _sum_kernel, sums),
        ):
            pointers = {"token_ids": "*i64", "mask": "*i1", "sums": "*fp32"}
            pointers |= dict.fromkeys(("tokens", "values", "mask_token", "x", "out"), element)
            signature = {argument: pointers.get(argument, "i32") for argument in kernel.arg_names}
            signature |= dict.fromkeys(constants, "constexpr")
            cases.append((f"{name} {dtype}", kernel, signature, constants, 4))
    return cases
