"""The compiled ops of HOG: schema, fake kernel and batching rule of each."""

import dataclasses
import operator
from functools import partial

import torch
from torch import Tensor

from ..library import LIBRARY, compiled, define, fold, op
from . import plan
from .plan import Region, block_shape, whole
from .spec import HogSpec

for _schema in (
    "hog(Tensor x, int bins, int cell_h, int cell_w, int gaussian_window) -> Tensor",
    "hog_tokens(Tensor x, Tensor token_ids, int patch_size, int bins, int cell_h, int cell_w, int gaussian_window)"
    " -> Tensor",
    "hog_blocks(Tensor x, int[] numbers, float[] reals, SymInt[] region, SymInt[] shape) -> Tensor",
    "hog_blocks_backward(Tensor grad, Tensor x, int[] numbers, float[] reals, SymInt[] region) -> Tensor",
):
    define(_schema)
_STRONGEST = 3  # its place in the numbers of a HOG of blocks

_hog = compiled("hog")
_hog_tokens = compiled("hog_tokens")
_hog_blocks = compiled("hog_blocks")
_hog_blocks_backward = compiled("hog_blocks_backward")


def hog(
    x: Tensor,  # [..., C, H, W]
    spec: HogSpec,
    region: Region | None,  # the image, if None
) -> Tensor:  # [..., (C unless channels are "strongest"), *block_shape(spec, region)]
    """Histograms of oriented gradients: those of MASKFEAT by kernels of their own, all others by those of blocks."""
    if region is None:
        if spec.is_maskfeat:
            return _hog(x, spec.bins, *spec.cell, spec.gaussian_window)
        region = whole(spec, *x.shape[-2:])
    refuse_tracing()
    return _hog_blocks(x, *pack(spec), list(region), list(block_shape(spec, region)))


def hog_backward(
    grad: Tensor,  # of the result, contiguous
    x: Tensor,  # [..., C, H, W]
    spec: HogSpec,
    region: Region | None,
) -> Tensor:  # [..., C, H, W]
    """The gradient of :func:`hog` to its pixels. The bins and the choice of the channel are taken as constant."""
    region = whole(spec, *x.shape[-2:]) if region is None else region
    return _hog_blocks_backward(grad, x, *pack(spec), list(region))


def hog_tokens(
    x: Tensor,  # [B, T, C, H, W]
    token_ids: Tensor,  # [B, K], int64
    patch_size: int,
    spec: HogSpec,
) -> Tensor:  # [B, K, C * bins * (patch_size // cell_h) * (patch_size // cell_w)]
    """Histograms of chosen patches, of MASKFEAT and its family."""
    return _hog_tokens(x, token_ids, patch_size, spec.bins, *spec.cell, spec.gaussian_window)


def refuse_tracing() -> None:
    """Raise RuntimeError under torch.jit.trace, which knows no lists of sizes."""
    if torch.jit.is_tracing():
        raise RuntimeError(
            "torch.jit.trace cannot record HOG of this dialect or with a gradient, as it knows no lists of sizes: use"
            " torch.export, or backend 'reference'"
        )


def pack(spec: HogSpec) -> tuple[list[int], list[float]]:
    """(numbers, reals) of a spec, see ``plan.pack``; constants of the graph under torch.compile."""
    if not torch.compiler.is_compiling():
        return plan.pack(spec)
    return _pack(*(_constant(getattr(spec, field.name)) for field in dataclasses.fields(spec)))


def _constant(value):
    """A field of a spec as what the compiler knows to be a constant: of other numbers it would make variables."""
    if isinstance(value, tuple):
        return tuple(_constant(number) for number in value)
    if isinstance(value, float):
        return value.hex()
    return operator.index(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _pack(*values) -> tuple[list[int], list[float]]:
    """Of the constants of the fields of a spec."""
    fields = dataclasses.fields(HogSpec)
    return plan.pack(HogSpec(*(
        float.fromhex(value) if isinstance(field.default, float) else value
        for field, value in zip(fields, values, strict=True)
    )))  # fmt: skip


_pack._dynamo_marked_constant = True  # what torch.compiler.assume_constant_result does, which first loads the compiler


def hog_dtype(x: torch.Tensor) -> torch.dtype:
    """float64 images are computed and returned in float64, all others in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def register_hog_ops(hog, hog_tokens) -> None:
    """Give these ops their fake kernels and batching rules, the same for each backend."""

    def hog_fake(x, bins, cell_h, cell_w, gaussian_window):
        *lead, height, width = x.shape
        return x.new_empty((*lead, bins, height // cell_h, width // cell_w), dtype=hog_dtype(x))

    def hog_tokens_fake(x, token_ids, patch_size, bins, cell_h, cell_w, gaussian_window):
        features = x.shape[2] * bins * (patch_size // cell_h) * (patch_size // cell_w)
        return x.new_empty((*token_ids.shape, features), dtype=hog_dtype(x))

    torch.library.register_fake(hog, hog_fake, lib=LIBRARY)
    torch.library.register_vmap(hog, lambda info, dims, x, *rest: (hog(x.movedim(dims[0], 0), *rest), 0), lib=LIBRARY)
    torch.library.register_fake(hog_tokens, hog_tokens_fake, lib=LIBRARY)
    torch.library.register_vmap(hog_tokens, partial(fold, hog_tokens), lib=LIBRARY)


def register_hog_blocks_ops(hog_blocks, hog_blocks_backward) -> None:
    """Give these ops their fake kernels and batching rules, the same for each backend."""

    def hog_blocks_fake(x, numbers, reals, region, shape):
        lead = x.shape[: -3 if numbers[_STRONGEST] and x.ndim > 2 else -2]
        return x.new_empty((*lead, *shape), dtype=hog_dtype(x))

    def hog_blocks_backward_fake(grad, x, numbers, reals, region):
        return x.new_empty(x.shape, dtype=hog_dtype(x))

    def with_channel(x, numbers):  # a batch of planes [H, W] is no plane of channels
        return x.unsqueeze(1) if numbers[_STRONGEST] and x.ndim == 3 else x

    def hog_blocks_vmap(info, in_dims, x, *parameters):
        return hog_blocks(with_channel(x.movedim(in_dims[0], 0), parameters[0]), *parameters), 0

    def hog_blocks_backward_vmap(info, in_dims, grad, x, *parameters):
        grad, x = (
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip((grad, x), in_dims, strict=False)
        )
        return hog_blocks_backward(grad.contiguous(), with_channel(x, parameters[0]), *parameters).view(x.shape), 0

    torch.library.register_fake(hog_blocks, hog_blocks_fake, lib=LIBRARY)
    torch.library.register_fake(hog_blocks_backward, hog_blocks_backward_fake, lib=LIBRARY)
    torch.library.register_vmap(hog_blocks, hog_blocks_vmap, lib=LIBRARY)
    torch.library.register_vmap(hog_blocks_backward, hog_blocks_backward_vmap, lib=LIBRARY)


register_hog_ops(*map(op, ("hog", "hog_tokens")))
register_hog_blocks_ops(*map(op, ("hog_blocks", "hog_blocks_backward")))
