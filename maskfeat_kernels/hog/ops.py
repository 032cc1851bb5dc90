"""The compiled ops of HOG: schema, fake kernel, batching rule and meaning of each."""

import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..library import LIBRARY, Op, compiled, define, describe, fold, is_traced, op
from . import plan, reference
from .plan import CellAxis, Region, block_shape
from .spec import HogSpec

for _schema in (
    "hog(Tensor x, int bins, int cell_h, int cell_w, int gaussian_window) -> Tensor",
    "hog_scales(Tensor x, int bins, int[] cells, int gaussian_window) -> Tensor[]",
    "hog_tokens(Tensor x, Tensor token_ids, int patch_size, int bins, int cell_h, int cell_w, int gaussian_window)"
    " -> Tensor",
    "hog_blocks(Tensor x, int[] numbers, float[] reals, SymInt[] region, SymInt[] shape) -> Tensor",
    "hog_blocks_at(Tensor x, Tensor points, int[] numbers, float[] reals, SymInt[] region, SymInt[] shape) -> Tensor",
    "hog_blocks_backward(Tensor grad, Tensor x, int[] numbers, float[] reals, SymInt[] region) -> Tensor",
):
    define(_schema)
Reading = tuple[HogSpec, tuple[CellAxis, CellAxis] | None]
"""A spec, and the tables of its cells if it has not all the words that make them."""
_FIELDS = dataclasses.fields(HogSpec)

_hog = compiled("hog")
_hog_scales: Callable[..., Any] = compiled("hog_scales")
_hog_tokens = compiled("hog_tokens")
_hog_blocks = compiled("hog_blocks")
_hog_blocks_at = compiled("hog_blocks_at")
_hog_blocks_backward = compiled("hog_blocks_backward")


def hog(
    x: Tensor,  # [..., C, H, W]
    spec: HogSpec,
    region: Region | None,  # None: the image, by the kernels of cells, which know MASKFEAT alone
) -> Tensor:  # [..., (C unless channels are "strongest"), *block_shape(spec, region)]
    """Histograms of oriented gradients: by the kernels of blocks, unless ``region`` is None."""
    if region is None:
        return _hog(x, spec.bins, *spec.cell, spec.gaussian_window)
    refuse_tracing()
    return _hog_blocks(x, *pack(spec), list(region), list(block_shape(spec, region)))


def hog_scales(
    x: Tensor,  # [..., C, H, W]
    sizes: Sequence[tuple[int, int]],  # of cells, from fine to coarse
    spec: HogSpec,  # of MASKFEAT's family, in which each of them stands for the cell
) -> list[Tensor]:  # of each what hog() returns
    """Histograms of several cell sizes by the kernels of cells."""
    sides = [side for size in sizes for side in size]
    results: list[Tensor] = _hog_scales(x, spec.bins, sides, spec.gaussian_window)
    return results


def hog_at(
    x: Tensor,  # [..., C, H, W]
    points: Tensor,  # [N, 2] or [..., N, 2]: (y, x), int64
    spec: HogSpec,
    region: Region,  # the window at point (0, 0)
) -> Tensor:  # [..., N, (C unless channels are "strongest"), *block_shape(spec, region)]
    """Histograms of windows, each the region moved by a point; on the CPU alone."""
    refuse_tracing()
    return _hog_blocks_at(x, points.contiguous(), *pack(spec), list(region), list(block_shape(spec, region)))


def hog_backward(
    grad: Tensor,  # of the result, contiguous
    x: Tensor,  # [..., C, H, W]
    spec: HogSpec,
    region: Region,
) -> Tensor:  # [..., C, H, W]
    """The gradient of :func:`hog` to its pixels. The bins and the choice of the channel are taken as constant."""
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
    if is_traced():
        raise RuntimeError(
            "torch.jit.trace cannot record HOG of this dialect or with a gradient, as it knows no lists of sizes: use"
            " torch.export, or backend 'reference'"
        )


def pack(spec: HogSpec) -> tuple[list[int], list[float]]:
    """(numbers, reals) of a spec, see ``plan.pack``; constants of the graph under torch.compile."""
    return _packed_constant(*_constants(spec)) if torch.compiler.is_compiling() else plan.pack(spec)


def spell(spec: HogSpec) -> str:
    """A spec as text, which the ops on Triton take; a constant of the graph under torch.compile."""
    return _spelt_constant(*_constants(spec)) if torch.compiler.is_compiling() else _spell(spec)


@functools.lru_cache
def _spell(spec: HogSpec) -> str:
    return json.dumps({field.name: getattr(spec, field.name) for field in _FIELDS if not _is_default(spec, field)})


@functools.lru_cache
def read(text: str) -> HogSpec:
    """The spec that :func:`spell` has written."""
    return HogSpec(**json.loads(text))


def _is_default(spec: HogSpec, field: dataclasses.Field[Any]) -> bool:
    return bool(getattr(spec, field.name) == field.default)


# torch.compile makes variables of the numbers of a spec. A function that is marked as below has a constant result, if
# its arguments are constants: text is one, and of numbers those which the code itself has converted.


def _constants(spec: HogSpec) -> list[Any]:
    return [_constant(getattr(spec, field.name)) for field in _FIELDS]


def _constant(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_constant(number) for number in value)
    if isinstance(value, float):
        return value.hex()
    return operator.index(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _spec_of(constants: tuple[Any, ...]) -> HogSpec:
    values: list[Any] = [
        float.fromhex(value) if isinstance(field.default, float) else value
        for field, value in zip(_FIELDS, constants, strict=True)
    ]
    return HogSpec(*values)


def _packed_constant(*constants: Any) -> tuple[list[int], list[float]]:
    return plan.pack(_spec_of(constants))


def _spelt_constant(*constants: Any) -> str:
    return _spell(_spec_of(constants))


# torch.compiler.assume_constant_result sets this mark, but it would load the compiler with this module.
for _function in (_packed_constant, _spelt_constant):
    vars(_function)["_dynamo_marked_constant"] = True


def hog_dtype(x: torch.Tensor) -> torch.dtype:
    """float64 images are computed and returned in float64, all others in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def register_hog_ops(hog: Op, hog_tokens: Op) -> None:
    """Give these ops their fake kernels, batching rules and meanings, the same for each backend."""

    def hog_fake(x: Tensor, bins: int, cell_h: int, cell_w: int, gaussian_window: int) -> Tensor:
        *lead, height, width = x.shape
        return x.new_empty((*lead, bins, height // cell_h, width // cell_w), dtype=hog_dtype(x))

    def hog_tokens_fake(
        x: Tensor, token_ids: Tensor, patch_size: int, bins: int, cell_h: int, cell_w: int, gaussian_window: int
    ) -> Tensor:
        features = x.shape[2] * bins * (patch_size // cell_h) * (patch_size // cell_w)
        return x.new_empty((*token_ids.shape, features), dtype=hog_dtype(x))

    torch.library.register_vmap(hog, lambda info, dims, x, *rest: (hog(x.movedim(dims[0], 0), *rest), 0), lib=LIBRARY)
    torch.library.register_vmap(hog_tokens, partial(fold, hog_tokens), lib=LIBRARY)

    def hog_meaning(x: Tensor, bins: int, cell_h: int, cell_w: int, gaussian_window: int) -> Tensor:
        return reference.hog(x, HogSpec(bins, (cell_h, cell_w), gaussian_window))

    def hog_tokens_meaning(
        x: Tensor, token_ids: Tensor, patch_size: int, bins: int, cell_h: int, cell_w: int, gaussian_window: int
    ) -> Tensor:
        return reference.hog_tokens(x, token_ids, patch_size, HogSpec(bins, (cell_h, cell_w), gaussian_window))

    describe(hog, hog_fake, hog_meaning)
    describe(hog_tokens, hog_tokens_fake, hog_tokens_meaning)


def register_hog_scales_op(hog_scales: Op) -> None:
    """The same for the op of several cell sizes."""

    def specs(bins: int, cells: list[int], gaussian_window: int) -> list[HogSpec]:
        return [HogSpec(bins, cell, gaussian_window) for cell in zip(cells[::2], cells[1::2], strict=True)]

    def fake(x: Tensor, *parameters: Any) -> list[Tensor]:
        *lead, height, width = x.shape
        shapes = [(*lead, spec.bins, height // spec.cell[0], width // spec.cell[1]) for spec in specs(*parameters)]
        return [x.new_empty(shape, dtype=hog_dtype(x)) for shape in shapes]

    def meaning(x: Tensor, *parameters: Any) -> list[Tensor]:
        return [reference.hog(x, spec) for spec in specs(*parameters)]

    def vmap(info: Any, in_dims: tuple[int, ...], x: Tensor, *parameters: Any) -> tuple[list[Tensor], list[int]]:
        results: Any = hog_scales(x.movedim(in_dims[0], 0), *parameters)
        return results, [0] * len(results)

    torch.library.register_vmap(hog_scales, vmap, lib=LIBRARY)
    describe(hog_scales, fake, meaning)


def register_hog_blocks_ops(hog_blocks: Op, hog_blocks_backward: Op, read: Callable[..., Reading]) -> None:
    """Give these ops their fake kernels, batching rules and meanings, the same for each backend.

    After the tensors they take the parameters of a spec, which ``read`` reads, and a region; hog_blocks also takes the
    shape of the result behind its leading axes.
    """

    def takes_strongest(*parameters: Any) -> bool:
        return read(*parameters)[0].channels == "strongest"

    def hog_blocks_meaning(x: Tensor, *parameters: Any) -> Tensor:
        spec, axes = read(*parameters)
        # The arc tangent of another library does not round as scikit-image's. Exact bins are the same everywhere.
        spec = spec.replace(arithmetic="exact") if spec.arithmetic == "skimage" else spec
        return reference.hog(x, spec, Region(*parameters[-2]), axes)

    def hog_blocks_fake(x: Tensor, *parameters: Any) -> Tensor:
        lead = x.shape[: -3 if takes_strongest(*parameters) and x.ndim > 2 else -2]
        return x.new_empty((*lead, *parameters[-1]), dtype=hog_dtype(x))

    def hog_blocks_backward_fake(grad: Tensor, x: Tensor, *parameters: Any) -> Tensor:
        return x.new_empty(x.shape, dtype=hog_dtype(x))

    def with_channel(x: Tensor, parameters: tuple[Any, ...]) -> Tensor:
        # A batch of planes [H, W] is no plane of channels.
        return x.unsqueeze(1) if takes_strongest(*parameters) and x.ndim == 3 else x

    def hog_blocks_vmap(info: Any, in_dims: tuple[int, ...], x: Tensor, *parameters: Any) -> tuple[Tensor, int]:
        return hog_blocks(with_channel(x.movedim(in_dims[0], 0), parameters), *parameters), 0

    def hog_blocks_backward_vmap(
        info: Any, in_dims: tuple[int | None, ...], grad: Tensor, x: Tensor, *parameters: Any
    ) -> tuple[Tensor, int]:
        grad, x = (
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip((grad, x), in_dims, strict=False)
        )
        return hog_blocks_backward(grad.contiguous(), with_channel(x, parameters), *parameters).view(x.shape), 0

    torch.library.register_fake(hog_blocks_backward, hog_blocks_backward_fake, lib=LIBRARY)
    torch.library.register_vmap(hog_blocks, hog_blocks_vmap, lib=LIBRARY)
    torch.library.register_vmap(hog_blocks_backward, hog_blocks_backward_vmap, lib=LIBRARY)
    describe(hog_blocks, hog_blocks_fake, hog_blocks_meaning)


def register_hog_blocks_at_op(hog_blocks_at: Op) -> None:
    """The same for the op at points, which takes them after the images."""

    def meaning(x: Tensor, points: Tensor, numbers: list[int], reals: list[float], region: Any, shape: Any) -> Tensor:
        spec, axes = plan.unpack(numbers, reals)
        spec = spec.replace(arithmetic="exact") if spec.arithmetic == "skimage" else spec
        return reference.hog_at(x, points, spec, Region(*region), axes)

    def fake(x: Tensor, points: Tensor, numbers: list[int], reals: list[float], region: Any, shape: Any) -> Tensor:
        channels = x.shape[-3:-2] if has_each(numbers, reals) else ()
        return x.new_empty((*x.shape[:-3], points.shape[-2], *channels, *shape), dtype=hog_dtype(x))

    def has_each(numbers: list[int], reals: list[float]) -> bool:
        return plan.unpack(numbers, reals)[0].channels == "each"

    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, points: Tensor, *parameters: Any) -> tuple[Tensor, int]:
        x, points = (
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip((x, points), in_dims, strict=False)
        )
        is_plane = x.ndim == 3  # a batch of planes [H, W] is no plane of channels
        x = x.unsqueeze(1) if is_plane else x
        if points.ndim == 3:  # those of all images of an index
            points = points.unflatten(0, (-1, *[1] * (x.ndim - 4))).expand(*x.shape[:-3], *points.shape[1:])
        blocks = hog_blocks_at(x, points.contiguous(), *parameters)
        return (blocks.squeeze(2) if is_plane and has_each(*parameters[:2]) else blocks), 0

    torch.library.register_vmap(hog_blocks_at, vmap, lib=LIBRARY)
    describe(hog_blocks_at, fake, meaning)


register_hog_ops(op("hog"), op("hog_tokens"))
register_hog_scales_op(op("hog_scales"))
register_hog_blocks_at_op(op("hog_blocks_at"))
register_hog_blocks_ops(
    op("hog_blocks"), op("hog_blocks_backward"), lambda numbers, reals, *_: plan.unpack(numbers, reals)
)
