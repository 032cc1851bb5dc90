"""MASKFEAT and its family as one Triton kernel: one read of the pixels, one write of the histograms.

The kernels of blocks can compute the same, but take 250 instructions a pixel on sm_90, where this one takes 142. And it
can read chosen patches alone.

A program does GROUP rows of cells (of images, or of chosen patches), CELLS cells wide. It walks down their pixels with
three rows in registers:

         CELLS cells of COLUMNS pixels, the power of two above cell_w
      h h h h h h h h h h   h h h h h h h h h h      load:      pixels p and their halo h
      h p p p p p p p p | p p p p p p p p h         gradient:  gx, gy and magnitude of p
      h p p p p p p p p | p p p p p p p p h   ...   bin:       S_k of each column, down the rows
      h p p p p p p p p | p p p p p p p p h         histogram: S_k of the cell, across its columns
      h h h h h h h h h h   h h h h h h h h h h      normalise: h_k = S_k - S_(k+1), divided by its norm
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops import hog_dtype
from ..plan import edge_cotangents
from .votes import Image, constant, hidden, image_of, plane_offset, shown_image, tile, tree_sum

# Pixels of a row of a program. The interpreter takes its time per program, whatever the size.
_PIXELS = 16384 if triton.knobs.runtime.interpret else 256
_WARPS = 4


@triton.jit
def _pixels(row, left, middle, right, here, T: tl.constexpr):
    return (
        tl.load(row + left, mask=here, other=0).to(T),
        tl.load(row + middle, mask=here, other=0).to(T),
        tl.load(row + right, mask=here, other=0).to(T),
    )


@triton.jit
def _reflect(i, n):
    mirrored = tl.where(i < 0, -i, tl.where(i >= n, 2 * (n - 1) - i, i))
    return tl.where(n == 1, 0, mirrored).to(tl.int64)


@triton.jit
def _gaussian(i, SIDE: tl.constexpr, SUM: tl.constexpr, T: tl.constexpr):
    distance = ((i % SIDE).to(T) - (SIDE - 1) / 2) / max(SIDE // 2, 1)
    return tl.exp(-0.5 * distance * distance) / SUM


@triton.jit
def _add(sums, votes, N: tl.constexpr):
    """Tuples of N tensors, added element by element."""
    added = ()
    for k in tl.static_range(N):
        added = added + (sums[k] + votes[k],)
    return added


_COUNTS = ("items", "rows", "across", "T_SIZE", "C", "H", "W", "K", "ids_b", "ids_k")
"""Integers that Triton shall not compile anew for, as it does for one that is 1 or a multiple of 16.

It may do so for the side of a patch and for the step from a pixel to the next. :func:`hidden` hides the other strides;
ALIGNED says of them what loads of several pixels need.
"""


@triton.jit(do_not_specialize=_COUNTS)
def _hog_kernel(
    image,  # [..., H, W], with PATCHES [B, T, C, H, W]
    token_ids,  # [B, K], int64, if there are PATCHES
    out,  # [regions, bins, rows, across]; a region is an image plane, or a channel of a patch
    items,  # rows of cells in all: regions * rows
    rows,
    across,
    T_SIZE,
    C,
    H,
    W,
    K,
    ids_b,
    ids_k,
    side,  # of a patch, in pixels
    COTANGENTS: tl.constexpr,  # of the edges 1 .. bins - 1
    BINS: tl.constexpr,
    CELL_H: tl.constexpr,
    CELL_W: tl.constexpr,
    WINDOW: tl.constexpr,
    WINDOW_SUM: tl.constexpr,
    PATCHES: tl.constexpr,
    ALIGNED: tl.constexpr,  # rows begin at multiples of 4, so that a thread may load its pixels in one go
    INDEX: tl.constexpr,  # counts planes, rows of cells and pixels
    DTYPE: tl.constexpr,  # computes
    GROUP: tl.constexpr,
    CELLS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image = shown_image(image)
    item = tl.program_id(0).to(INDEX) * GROUP + tl.arange(0, GROUP)[:, None, None]
    cell = tl.program_id(1) * CELLS + tl.arange(0, CELLS)[None, :, None]
    column = tl.arange(0, COLUMNS)[None, None, :]
    region, row = item // rows, item % rows
    exists = (item < items) & (cell < across)

    # Where each row of cells lies in the images.
    if PATCHES:
        b = region // C // K
        grid_w = W // side
        place = token_ids + b.to(tl.int64) * ids_b + (region // C % K).to(tl.int64) * ids_k
        id = tl.load(place, mask=item < items, other=-1)
        valid = (id >= 0) & (id < T_SIZE * (H // side) * grid_w)
        plane = ((b * T_SIZE + id // grid_w // (H // side)) * C + region % C).to(INDEX)
        top = (id // grid_w % (H // side) * side).to(INDEX)
        left_edge = (id % grid_w * side).to(INDEX)
    else:
        plane, valid = region, item < items
        top, left_edge = tl.zeros_like(item), tl.zeros_like(item)
    y0 = top + row * CELL_H
    column_x = left_edge + cell * CELL_W + column
    here = exists & valid & (column < CELL_W)
    offset, row_stride = plane_offset(plane, image), image.row_stride
    if ALIGNED:
        offset, row_stride = offset // 4 * 4, row_stride // 4 * 4
    pixels = image.pixels + offset
    left, middle, right = _reflect(column_x - 1, W), column_x.to(tl.int64), _reflect(column_x + 1, W)
    left, middle, right = left * image.pixel_stride, middle * image.pixel_stride, right * image.pixel_stride

    # S_k of each column, and what their compensated sums over the blocks of a tall cell have lost.
    zero = tl.zeros((GROUP, CELLS, COLUMNS), DTYPE)
    sums, lost = (zero,) * BINS, (zero,) * BINS
    up_l, up_m, up_r = _pixels(pixels + _reflect(y0 - 1, H) * row_stride, left, middle, right, here, DTYPE)
    mid_l, mid_m, mid_r = _pixels(pixels + y0.to(tl.int64) * row_stride, left, middle, right, here, DTYPE)
    for done in range(0, CELL_H, 8):
        block = (zero,) * BINS
        for i in range(min(8, CELL_H - done)):
            y = y0 + done + i
            down_l, down_m, down_r = _pixels(pixels + _reflect(y + 1, H) * row_stride, left, middle, right, here, DTYPE)
            # gradient: subtract first, then weight, then turn into the half plane.
            gx = (up_l - up_r) + (down_l - down_r) + 2 * (mid_l - mid_r)
            gy = (up_l - down_l) + (up_r - down_r) + 2 * (up_m - down_m)
            turned = tl.where(gx != 0, gx, gy) < 0
            gx, gy = tl.abs(gx), tl.where(turned, -gy, gy)
            magnitude = tl.sqrt_rn(gx * gx + gy * gy) if DTYPE.is_fp32() else tl.sqrt(gx * gx + gy * gy)
            if WINDOW > 0:
                magnitude *= _gaussian(y, WINDOW, WINDOW_SUM, DTYPE) * _gaussian(column_x, WINDOW, WINDOW_SUM, DTYPE)
            # bin: the magnitude counts for each edge that is reached.
            votes = (magnitude,)
            for k in tl.static_range(BINS - 1):
                votes = votes + (tl.where(gx * COTANGENTS[k] >= gy, magnitude, 0.0),)
            block = _add(block, votes, BINS)
            up_l, up_m, up_r, mid_l, mid_m, mid_r = mid_l, mid_m, mid_r, down_l, down_m, down_r
        if CELL_H <= 8:
            sums = block
        else:
            added, missed = (), ()
            for k in tl.static_range(BINS):
                addend = block[k] - lost[k]
                now = sums[k] + addend
                added, missed = added + (now,), missed + ((now - sums[k]) - addend,)
            sums, lost = added, missed

    # histogram and norm
    histogram = ()
    squares = tl.zeros((GROUP, CELLS), DTYPE)
    rest = tl.reshape(tree_sum(sums[0], GROUP * CELLS, COLUMNS), (GROUP, CELLS))
    for k in tl.static_range(BINS):
        h = rest
        if k < BINS - 1:
            rest = tl.reshape(tree_sum(sums[k + 1], GROUP * CELLS, COLUMNS), (GROUP, CELLS))
            h -= rest
        histogram = histogram + (h,)
        squares += h * h
    norm = tl.sqrt(squares)
    least = constant(1e-12, norm)
    scale = 1 / tl.where(norm < least, least, norm)
    scale = tl.where(tl.reshape(valid, (GROUP, 1)) & (norm < float("inf")), scale, float("nan"))
    region, row = tl.reshape(region, (GROUP, 1)), tl.reshape(row, (GROUP, 1))
    cell, exists = tl.reshape(cell, (1, CELLS)), tl.reshape(exists, (GROUP, CELLS))
    for k in tl.static_range(BINS):
        place = out + ((region.to(tl.int64) * BINS + k) * rows + row) * across + cell
        tl.store(place, histogram[k] * scale, mask=exists)


def histograms(
    x: Tensor,  # [..., H, W]
    bins: int,
    cell_h: int,
    cell_w: int,
    window: int,
) -> Tensor:  # [..., bins, H // cell_h, W // cell_w]
    """The histograms of whole images."""
    height, width = x.shape[-2:]
    out = x.new_empty((*x.shape[:-2], bins, height // cell_h, width // cell_w), dtype=hog_dtype(x))
    if out.numel():
        _launch(x, x, (0, 0, 0), out, bins, cell_h, cell_w, window, x.shape[:-2].numel(), height, width, 0)
    return out


def patch_histograms(
    x: Tensor,  # [B, T, C, H, W]
    token_ids: Tensor,  # [B, K]
    side: int,
    bins: int,
    cell_h: int,
    cell_w: int,
    window: int,
) -> Tensor:  # [B, K, C * bins * (side // cell_h) * (side // cell_w)]
    """The histograms of chosen patches."""
    features = x.shape[2] * bins * (side // cell_h) * (side // cell_w)
    out = x.new_empty((*token_ids.shape, features), dtype=hog_dtype(x))
    if out.numel():
        ids, regions = (token_ids.shape[1], *token_ids.stride()), token_ids.numel() * x.shape[2]
        _launch(x, token_ids, ids, out, bins, cell_h, cell_w, window, regions, side, side, side)
    return out


def _launch(x, token_ids, ids, out, bins, cell_h, cell_w, window, regions, height, width, side) -> None:
    """Over ``regions`` of height x width pixels: planes, or with a ``side`` the channels of the patches."""
    rows, across = height // cell_h, width // cell_w
    columns = triton.next_power_of_2(cell_w)
    group, cells = tile(regions * rows, across, max(1, _PIXELS // columns))
    image = image_of(x, 2)
    sample_sum = sum(math.exp(-0.5 * ((i - (window - 1) / 2) / max(window // 2, 1)) ** 2) for i in range(window))
    grid = (triton.cdiv(regions * rows, group), triton.cdiv(across, cells))
    with torch.cuda.device_of(x):
        _hog_kernel[grid](
            hidden(image, "pixel_stride"), token_ids, out, regions * rows, rows, across,
            *(x.shape[1:] if side else (1, 1, height, width)), *ids, side,
            COTANGENTS=tuple(edge_cotangents(bins)), BINS=bins, CELL_H=cell_h, CELL_W=cell_w,
            WINDOW=window, WINDOW_SUM=sample_sum, PATCHES=side > 0,
            ALIGNED=all(stride % 4 == 0 for stride in (*image.strides, image.row_stride)),
            INDEX=tl.int32 if max(regions * height, x.shape[:-2].numel(), *x.shape[-2:]) < 2**30 else tl.int64,
            DTYPE=tl.float64 if x.dtype == torch.float64 else tl.float32,
            GROUP=group, CELLS=cells, COLUMNS=columns, num_warps=_WARPS, enable_fp_fusion=False,
        )  # fmt: skip


def ahead_of_time_cases():
    """(name, kernel, signature, constexprs, num_warps) of the variants to compile without a GPU."""
    cases = []
    for dtype, pixel in (("float32", "*fp32"), ("uint8", "*u8")):
        for patches in (False, True):
            constants = dict(
                COTANGENTS=tuple(edge_cotangents(9)), BINS=9, CELL_H=8, CELL_W=8, WINDOW=0, WINDOW_SUM=0,
                PATCHES=patches, ALIGNED=True, INDEX=tl.int32, DTYPE=tl.float32,
                GROUP=8 if patches else 1, CELLS=2 if patches else 32, COLUMNS=8,
            )  # fmt: skip
            image = Image(pixel, ("i32",) * 3, ("i32",) * 3, *["i32"] * 5)
            signature = {"image": image, "token_ids": "*i64" if patches else pixel, "out": "*fp32"}
            signature |= dict.fromkeys((*_COUNTS, "side"), "i32") | dict.fromkeys(constants, "constexpr")
            name = f"hog{'_tokens' if patches else ''} {dtype}"
            cases.append((name, _hog_kernel, signature, constants, _WARPS))
    return cases
