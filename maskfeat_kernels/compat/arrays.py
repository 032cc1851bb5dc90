"""HOG of NumPy arrays and of torch tensors by one call: arrays never import torch."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from ..hog.plan import Region, block_shape, pack
from ..hog.spec import HogSpec

Array = Any
"""An array of NumPy, or a tensor of torch, which a module that must not import torch cannot name."""

_numpy_ops: ModuleType | None
try:
    _numpy_ops = import_module("maskfeat_kernels._numpy_ops")
except ModuleNotFoundError:  # not built; a module that does not load raises
    _numpy_ops = None


def compiled(what: str, instead: str = "") -> ModuleType:
    """The compiled module, or RuntimeError that names what needs it."""
    if _numpy_ops is None:
        raise RuntimeError(
            f"{what} needs the compiled module maskfeat_kernels._numpy_ops, which is not built; run"
            f" `pip install .` in the source tree{instead}"
        )
    return _numpy_ops


def is_tensor(x: object) -> bool:
    """Whether ``x`` is a torch.Tensor, which nobody has before torch is imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def hog_blocks(
    x: Array,  # [..., C, H, W]: a tensor of a dtype of fused_hog, or an array, uint8, float16, float32 or float64
    spec: HogSpec,
    region: Region,
) -> Array:  # [..., (C unless the strongest is taken), *block_shape(spec, region)]
    """Blocks of histograms, float64 for float64 images, else float32: a tensor on the device of ``x``, or an array.

    Raises RuntimeError where ``x`` is an array and the module for arrays is not built.
    """
    if is_tensor(x):
        from .. import backend
        from ..hog import api

        return api.hog(x, spec, region, backend.choose_backend(x.device, "auto"))
    ops = compiled("HOG of NumPy arrays", ", or give torch tensors")
    return ops.hog_blocks(_as_kernels_read(x), *pack(spec), region, block_shape(spec, region))


def hog_blocks_at(
    x: Array,  # [C, H, W] or [H, W], as above
    points: np.ndarray,  # [N, 2]: (y, x), int64
    spec: HogSpec,  # of the strongest channel
    region: Region,
) -> Array:  # [N, *block_shape(spec, region)]
    """The same of windows, each the region moved by a point."""
    if is_tensor(x):
        from .. import backend
        from ..hog.points import hog_at

        return hog_at(x, like(x, points), spec, region, backend.choose_backend(x.device, "auto"))
    ops = compiled("HOG of NumPy arrays", ", or give torch tensors")
    return ops.hog_blocks_at(_as_kernels_read(x), points, *pack(spec), region, block_shape(spec, region))


def _as_kernels_read(x: np.ndarray) -> np.ndarray:
    """An array itself, or a copy where its memory is unaligned, of another byte order or of uneven steps."""
    if x.flags.aligned and x.dtype.isnative and not any(stride % x.itemsize for stride in x.strides):
        return x
    return np.array(x, x.dtype.newbyteorder("="))


def on_cpu(x: Array) -> tuple[Array, int | None]:
    """(x, threads): a tensor that the compiled kernels of the CPU would compute, as an array that shares its memory.

    Threads are those of torch for such a tensor, None for an array, and 1 for tensors that stay what they are.
    """
    if not is_tensor(x):
        return x, None
    from .. import backend

    if _numpy_ops is None or backend.choose_backend(x.device, "auto") != "cpu":
        return x, 1
    return x.detach().numpy(), sys.modules["torch"].get_num_threads()


def like(
    x: Array,
    values: np.ndarray,
) -> Array:
    """``values`` as what ``x`` is: the array itself, or a tensor on the device of ``x``."""
    return sys.modules["torch"].from_numpy(values).to(x.device) if is_tensor(x) else values


def to_numpy(x: Array) -> np.ndarray:
    """The values of an array or a tensor."""
    return x.detach().cpu().numpy() if is_tensor(x) else np.asarray(x)
