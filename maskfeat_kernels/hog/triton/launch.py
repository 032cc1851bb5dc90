"""HOG on Triton: every call is an opaque op, which launches the kernels of cells or of blocks."""

import functools
import math
from collections.abc import Iterable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...library import TAGS
from .. import ops
from ..plan import (
    OPENCV_ARC_TANGENT,
    BlockStrides,
    CellAxis,
    Region,
    block_shape,
    block_strides,
    cell_axes,
    edge_cotangents,
    epsilons,
)
from ..spec import DALAL_TRIGGS, SKIMAGE, HogSpec
from . import cells as cell_kernels
from .blocks import cells_kernel, normalise_kernel, pixels_kernel, spread_kernel
from .votes import AxisArguments, AxisConstants, Dialect, Image, hidden, image_of, tile

# Numbers of a program. The interpreter takes its time per program, whatever the size.
_INTERPRETED = triton.knobs.runtime.interpret
_SUMS = 1 << 18 if _INTERPRETED else 4096  # of columns and bins
_ENTRIES = 1 << 16 if _INTERPRETED else 1024  # of blocks
_PIXELS = 1 << 13 if _INTERPRETED else 256
_MOST_BINS, _MOST_CHANNELS = 32, 8
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
_PIXEL_OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}

_ARC = {
    # 2 atan(t) / t in powers of t^2, t <= tan(pi / 8): off by 3e-8 as in csrc/hog/orientation.h, and to the last bit
    torch.float32: (2.0, -0.66666615, 0.3999642134, -0.2847994268, 0.2114544958, -0.1206601709),
    torch.float64: tuple(2 * (-1) ** n / (2 * n + 1) for n in range(24)),
}


@torch.library.custom_op("maskfeat_kernels::hog_triton", mutates_args=(), tags=TAGS)
def hog_op(x: Tensor, bins: int, cell_h: int, cell_w: int, gaussian_window: int) -> Tensor:
    """The same as the compiled op ``hog``, see ops.py."""
    return cell_kernels.histograms(x, bins, cell_h, cell_w, gaussian_window)


@torch.library.custom_op("maskfeat_kernels::hog_tokens_triton", mutates_args=(), tags=TAGS)
def hog_tokens_op(
    x: Tensor, token_ids: Tensor, patch_size: int, bins: int, cell_h: int, cell_w: int, gaussian_window: int
) -> Tensor:
    """The same as the compiled op ``hog_tokens``, see ops.py."""
    return cell_kernels.patch_histograms(x, token_ids, patch_size, bins, cell_h, cell_w, gaussian_window)


@torch.library.custom_op(
    "maskfeat_kernels::hog_blocks_triton",
    mutates_args=(),
    tags=TAGS,
    schema="(Tensor x, str spec, SymInt[] region, SymInt[] shape) -> Tensor",
)
def hog_blocks_op(x: Tensor, spec: str, region: list[int], shape: list[int]) -> Tensor:
    """The same as the compiled op ``hog_blocks``, but the spec is text, as kernels are compiled for its words."""
    call = _Call(x, ops.read(spec), Region(*region))
    out = x.new_empty((*call.leading, *shape), dtype=call.dtype)
    if out.numel():
        with torch.cuda.device_of(x):
            call.normalise(call.cells(), out)
    return out


@torch.library.custom_op(
    "maskfeat_kernels::hog_blocks_backward_triton",
    mutates_args=(),
    tags=TAGS,
    schema="(Tensor grad, Tensor x, str spec, SymInt[] region) -> Tensor",
)
def hog_blocks_backward_op(grad: Tensor, x: Tensor, spec: str, region: list[int]) -> Tensor:
    """The same as the compiled op ``hog_blocks_backward``, but the spec is text."""
    call = _Call(x, ops.read(spec), Region(*region))
    out = x.new_empty(x.shape, dtype=call.dtype)
    if grad.numel() == 0:
        return out.zero_()
    with torch.cuda.device_of(x):
        call.pixels(call.spread(call.cells(), grad.contiguous()), out)
    return out


ops.register_hog_ops(hog_op, hog_tokens_op)
ops.register_hog_blocks_ops(hog_blocks_op, hog_blocks_backward_op, lambda spec, *_: (ops.read(spec), None))


def hog(
    x: Tensor,  # [..., C, H, W]
    spec: HogSpec,
    region: Region | None,  # None: the image, by the kernel of cells, which knows MASKFEAT alone
) -> Tensor:  # [..., (C unless channels are "strongest"), *block_shape(spec, region)]
    """Histograms of oriented gradients: by the kernels of blocks, unless ``region`` is None."""
    if region is None:
        cells: Tensor = hog_op(x, spec.bins, *spec.cell, spec.gaussian_window)
        return cells
    ops.refuse_tracing()
    blocks: Tensor = hog_blocks_op(x, ops.spell(spec), list(region), list(block_shape(spec, region)))
    return blocks


def hog_backward(
    grad: Tensor,  # of the result of hog
    x: Tensor,  # [..., C, H, W]
    spec: HogSpec,
    region: Region,
) -> Tensor:  # [..., C, H, W]
    """The gradient of :func:`hog` to its pixels."""
    pixels: Tensor = hog_blocks_backward_op(grad, x, ops.spell(spec), list(region))
    return pixels


def hog_tokens(
    x: Tensor,  # [B, T, C, H, W]
    token_ids: Tensor,  # [B, K], int64
    patch_size: int,
    spec: HogSpec,
) -> Tensor:  # [B, K, C * bins * (patch_size // cell_h) * (patch_size // cell_w)]
    """Histograms of chosen patches, of MASKFEAT and its family."""
    tokens: Tensor = hog_tokens_op(x, token_ids, patch_size, spec.bins, *spec.cell, spec.gaussian_window)
    return tokens


class _Call:
    """One call: the arguments of its kernels, and their launches."""

    def __init__(self, x: Tensor, spec: HogSpec, region: Region):
        self.dtype = ops.hog_dtype(x)
        self.spec, self.dialect = spec, _dialect(spec, self.dtype)
        axes = 3 if self.dialect.strongest else 2  # of a plane
        self.leading = x.shape[:-axes]
        self.image = image_of(x, axes, region.tie_column)
        self.planes = math.prod(self.leading)
        y, x_axis = cell_axes(spec)
        self.y = _arguments(y, x, -2, region.top, region.height)
        self.x = _arguments(x_axis, x, -1, region.left, region.width)
        inside = region.top >= 0 and region.left >= 0
        inside &= region.top + region.height <= x.shape[-2] and region.left + region.width <= x.shape[-1]
        self.pixel_constants = {"D": self.dialect, "FAR": not inside, "T": _TYPES[self.dtype]}

    def cells(self) -> Tensor:  # [planes, y.cells, x.cells, bins]
        """The histograms of all cells."""
        y, x, bins = self.y, self.x, self.dialect.bins
        out = self.image.pixels.new_empty((self.planes, y.cells, x.cells, bins), dtype=self.dtype)
        items = self.planes * y.cells
        some_bins = min(triton.next_power_of_2(bins), _MOST_BINS)
        columns = triton.next_power_of_2(self.dialect.x.length)
        lanes = max(1, _SUMS // (max(some_bins, 16) * columns))
        group, across = tile(items, x.cells, lanes)
        grid = (triton.cdiv(items, group), triton.cdiv(x.cells, across), triton.cdiv(bins, some_bins))
        cells_kernel[grid](
            hidden(self.image, "pixel_stride"), hidden(y), hidden(x), out, items, **self.pixel_constants,
            INDEX=_index(items), GROUP=group, CELLS=across, COLUMNS=columns, BINS=some_bins, **_OPTIONS,
        )  # fmt: skip
        return out

    def normalise(self, cells: Tensor, out: Tensor) -> None:
        grid, items, constants = self._blocks()
        y, x = hidden(self.y), hidden(self.x)
        normalise_kernel[grid](cells, out, y, x, items, hidden(self._strides()), **constants, **_OPTIONS)

    def spread(self, cells: Tensor, grad: Tensor) -> Tensor:  # [planes, y.blocks, x.blocks, down, across, bins]
        """The gradient of the cells of each block."""
        grid, items, constants = self._blocks()
        out, y, x = torch.empty_like(grad), hidden(self.y), hidden(self.x)
        spread_kernel[grid](cells, grad, out, y, x, items, hidden(self._strides()), **constants, **_OPTIONS)
        return out

    def pixels(self, grad_blocks: Tensor, out: Tensor) -> None:
        items = self.planes * self.y.size * self.x.size
        channels = min(triton.next_power_of_2(self.image.channels), _MOST_CHANNELS)
        pixels = _pixels(channels)
        grid = (triton.cdiv(items, pixels), triton.cdiv(self.image.channels, channels))
        pixels_kernel[grid](
            hidden(self.image, "pixel_stride"), hidden(self.y), hidden(self.x), grad_blocks, out, items,
            **self.pixel_constants,
            INDEX=_index(items), PIXELS=pixels, CHANNELS=channels, **_PIXEL_OPTIONS,
        )  # fmt: skip

    def _blocks(self) -> tuple[tuple[int], int, dict[str, Any]]:  # grid, blocks in all, constants
        items = self.planes * self.y.blocks * self.x.blocks
        entries = triton.next_power_of_2(self._entries())
        group, _ = tile(items, 1, max(1, _ENTRIES // entries))
        constants = {"D": self.dialect, "INDEX": _index(items), "GROUP": group, "ENTRIES": entries}
        return (triton.cdiv(items, group),), items, constants

    def _entries(self) -> int:
        """Numbers of a block."""
        return self.dialect.y.per_block * self.dialect.x.per_block * self.dialect.bins

    def _strides(self) -> BlockStrides:
        return block_strides(self.spec, self.y.blocks, self.x.blocks)


def _pixels(channels: int) -> int:
    """Pixels of a program that does so many channels: with 256 pixels of four channels, a thread spills."""
    return _PIXELS if channels == 1 else _PIXELS // 2


def _index(items: int) -> tl.dtype:
    """The integer type that counts ``items`` and the lanes past them."""
    return tl.int32 if items < 2**30 else tl.int64


@functools.lru_cache
def _dialect(spec: HogSpec, dtype: torch.dtype) -> Dialect:
    """The constants of the kernels."""
    y, x = cell_axes(spec)
    eps, eps_again = epsilons(spec)
    opencv = spec.arithmetic == "opencv"
    arc = OPENCV_ARC_TANGENT if opencv else _ARC[dtype]
    return Dialect(
        bins=spec.bins,
        sqrt=spec.sqrt,
        sobel=spec.gradient == "sobel",
        strongest=spec.channels == "strongest",
        signed=spec.signed,
        horizontal=spec.angle_from == "horizontal",
        linear=spec.votes == "linear",
        norm=spec.norm,
        opencv=opencv,
        eps=eps,
        eps_again=eps_again,
        clip=spec.clip,
        edges=tuple(edge_cotangents(spec.bins, spec.signed)),
        bins_per_radian=spec.bins / (2 * math.pi if spec.signed else math.pi),
        arc=arc,
        arc_slope=tuple((2 * n + 1) * coefficient for n, coefficient in enumerate(arc)),
        y=_constants(y),
        x=_constants(x),
    )


def _constants(axis: CellAxis) -> AxisConstants:
    holders = [_holders(axis, at) for at in range(axis.pixels)]
    return AxisConstants(
        pixels=axis.pixels,
        stride=axis.stride,
        per_block=axis.per_block,
        block_step=axis.block_step,
        step=axis.step,
        period=axis.period,
        length=axis.length,
        holders=max(1, *map(len, holders)),
        overlap=triton.cdiv(axis.pixels, axis.stride),
    )


def _holders(axis: CellAxis, at: int) -> range:
    """The cells of the first block that weight its pixel ``at``: neighbours."""
    weights = [axis.weights[k % axis.period] for k in range(axis.per_block)]
    holding = [
        k for k in range(axis.per_block) if 0 <= (i := at - axis.start(k)) < len(weights[k]) and weights[k][i] > 0
    ]
    return range(holding[0], holding[-1] + 1) if holding else range(0)


def _arguments(axis: CellAxis, x: Tensor, dim: int, begin: int, extent: int) -> AxisArguments:
    """``extent`` pixels of the mirrored image from ``begin`` on."""
    size = x.shape[dim]
    last = max(size - 1, 1)
    first_fold = begin // last
    return AxisArguments(
        size,
        begin,
        first_fold,
        max(first_fold, (begin + extent - (1 if size == 1 else 2)) // last),
        axis.cells(extent),
        axis.blocks(extent),
        *_tables(axis, ops.hog_dtype(x), x.device),
    )


@functools.lru_cache
def _tables(axis: CellAxis, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """starts, weights and holder of AxisArguments.

    The first call copies them to the device, as it compiles the kernels: capture a CUDA graph after it.
    """
    holder = [min(_holders(axis, at), default=0) for at in range(axis.pixels)]
    return (
        torch.tensor(axis.starts, dtype=torch.int32, device=device),
        torch.tensor(axis.weights, dtype=dtype, device=device),
        torch.tensor(holder, dtype=torch.int32, device=device),
    )


def ahead_of_time_cases(
    dialects: Iterable[tuple[str, HogSpec, torch.dtype, bool]] = (
        ("skimage", SKIMAGE, torch.uint8, False),
        ("dalal_triggs", DALAL_TRIGGS, torch.float32, False),
    ),
) -> list[tuple[str, Any, dict[str, Any], dict[str, Any], int]]:
    """(name, kernel, signature, constexprs, num_warps) of the variants to compile without a GPU.

    A dialect is (name, spec, dtype of the pixels, whether the region is larger than the image).
    """
    cases = []
    for name, spec, dtype, far in dialects:
        real = torch.float64 if dtype == torch.float64 else torch.float32
        dialect = _dialect(spec, real)
        pointer = {torch.uint8: "*u8", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}
        axis = AxisArguments._make([*["i32"] * 6, "*i32", pointer[real], "*i32"])
        image = Image._make([pointer[dtype], ("i32", "i32"), ("i32", "i32"), *["i32"] * 5])
        types = {"image": image, "y": axis, "x": axis, "strides": BlockStrides._make(["i32"] * 6), "items": "i32"}
        pixels = {"D": dialect, "FAR": far, "T": _TYPES[real], "INDEX": tl.int32}
        columns, bins = triton.next_power_of_2(dialect.x.length), min(triton.next_power_of_2(dialect.bins), _MOST_BINS)
        lanes = max(1, _SUMS // (max(bins, 16) * columns))
        cells = {"GROUP": 1, "CELLS": lanes, "COLUMNS": columns, "BINS": bins}
        entries = triton.next_power_of_2(dialect.y.per_block * dialect.x.per_block * dialect.bins)
        blocks = {"D": dialect, "INDEX": tl.int32, "GROUP": max(1, _ENTRIES // entries), "ENTRIES": entries}
        channels = 4 if dialect.strongest else 1
        gradients = {"PIXELS": _pixels(channels), "CHANNELS": channels}
        for stage, kernel, constants, options in (
            ("cells", cells_kernel, pixels | cells, _OPTIONS),
            ("normalise", normalise_kernel, blocks, _OPTIONS),
            ("spread", spread_kernel, blocks, _OPTIONS),
            ("pixels", pixels_kernel, pixels | gradients, _PIXEL_OPTIONS),
        ):
            signature = {argument: types.get(argument, pointer[real]) for argument in kernel.arg_names}
            signature |= dict.fromkeys(constants, "constexpr")
            cases.append((f"hog_blocks {stage} {name}", kernel, signature, constants, options["num_warps"]))
    return cases
