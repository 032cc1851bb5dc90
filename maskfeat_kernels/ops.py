"""The contract with PyTorch: schema, fake kernel and batching rule of each compiled op.

The kernels themselves are registered per device by ``csrc/*_torch.cpp``, in a shared object that is loaded here. A
program that ``torch.export`` has saved finds the ops once this module has been imported.
"""

import ctypes
import dataclasses
import operator
import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from . import blocks
from .blocks import Region, block_shape
from .spec import HogSpec

_NAMESPACE = "maskfeat_kernels"
_library = torch.library.Library(_NAMESPACE, "DEF")
_STRONGEST = 3  # its place in the numbers of a HOG of blocks
TAGS = (torch.Tag.needs_exact_strides,)
for _schema in (
    "hog(Tensor x, int bins, int cell_h, int cell_w, int gaussian_window) -> Tensor",
    "hog_tokens(Tensor x, Tensor token_ids, int patch_size, int bins, int cell_h, int cell_w, int gaussian_window)"
    " -> Tensor",
    "hog_blocks(Tensor x, int[] numbers, float[] reals, SymInt[] region, SymInt[] shape) -> Tensor",
    "hog_blocks_backward(Tensor grad, Tensor x, int[] numbers, float[] reals, SymInt[] region) -> Tensor",
    "masked_gather(Tensor tokens, Tensor token_ids) -> Tensor",
    "masked_scatter_add(Tensor values, Tensor token_ids, SymInt length) -> Tensor",
    "mask_tokens(Tensor tokens, Tensor mask_token, Tensor mask) -> Tensor",
    "masked_sum(Tensor x, Tensor mask) -> Tensor",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag, *TAGS))

# A missing file means "not built"; a file that does not load is a broken build and raises here.
_shared_object = Path(__file__).with_name("_torch_ops.so")
_record = None
if _shared_object.exists():
    torch.ops.load_library(_shared_object)
    _record = ctypes.CDLL(str(_shared_object))


def _built_with(name: str) -> str:
    """What ``csrc/common/build_record.cpp`` says; nothing where there is no shared object, or one of older sources."""
    function = getattr(_record, f"maskfeat_{name}", None)
    if function is None:
        return ""
    function.restype = ctypes.c_char_p
    return function().decode()


def find_compiled_devices() -> list[str]:
    """Those that the shared object has kernels for; not GPUs of AMD, which torch also names "cuda"."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    devices = ["cpu"] if torch.version.hip else ["cpu", "cuda"]
    return [device for device in devices if has(f"{_NAMESPACE}::hog", device.upper())]


compiled_devices = find_compiled_devices()
cuda_archs = _built_with("cuda_archs").split()
"""Architectures that the CUDA kernels are compiled for: ["80", "90"]."""
_why_no_cuda = _built_with("no_cuda")
_OUT_OF_MEMORY = "maskfeat_kernels: out of memory"  # what the shared object says of it


def _op(name: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.maskfeat_kernels, name).default


def _with_room(name: str):
    """The op, but out of memory raises what ``torch.empty`` raises, which only an allocation by torch can."""
    op = _op(name)

    def call(*arguments):
        try:
            return op(*arguments)
        except RuntimeError as error:
            if _OUT_OF_MEMORY not in str(error):
                raise
            message = str(error)
        x = arguments[0]
        result = op(*(y.to("meta") if isinstance(y, Tensor) else y for y in arguments))
        x.new_empty(result.shape, dtype=result.dtype)
        if x.is_cuda:  # it was scratch
            raise torch.OutOfMemoryError(f"CUDA out of memory. {message}")
        raise RuntimeError(message)

    return call


hog = _with_room("hog")
hog_tokens = _with_room("hog_tokens")
masked_gather = _with_room("masked_gather")
masked_scatter_add = _with_room("masked_scatter_add")
mask_tokens = _with_room("mask_tokens")
masked_sum = _with_room("masked_sum")
_hog_blocks = _with_room("hog_blocks")
_hog_blocks_backward = _with_room("hog_blocks_backward")


def hog_blocks(
    x: Tensor,  # [..., C, H, W]
    spec: HogSpec,
    region: Region,
) -> Tensor:  # [..., (C unless channels are "strongest"), *block_shape(spec, region)]
    """Histograms of oriented gradients of overlapping blocks; see :class:`maskfeat_kernels.HogSpec`."""
    return _hog_blocks(x, *pack(spec), list(region), list(block_shape(spec, region)))


def hog_blocks_backward(
    grad: Tensor,  # of the result, contiguous
    x: Tensor,  # [..., C, H, W]
    spec: HogSpec,
    region: Region,
) -> Tensor:  # [..., C, H, W]
    """The gradient of :func:`hog_blocks` to its pixels."""
    return _hog_blocks_backward(grad, x, *pack(spec), list(region))


def pack(spec: HogSpec) -> tuple[list[int], list[float]]:
    """(numbers, reals) of a spec, see ``blocks.pack``; constants of the graph under torch.compile."""
    if not torch.compiler.is_compiling():
        return blocks.pack(spec)
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
    return blocks.pack(HogSpec(*(
        float.fromhex(value) if isinstance(field.default, float) else value
        for field, value in zip(fields, values, strict=True)
    )))  # fmt: skip


_pack._dynamo_marked_constant = True  # what torch.compiler.assume_constant_result does, which first loads the compiler


def why_not_compiled(device: str) -> str | None:
    """None if the shared object holds kernels for ``device`` ("cpu" or "cuda"), else what to do about it."""
    if device in compiled_devices:
        return None
    if device == "cuda" and torch.version.hip:
        return "this torch is built for ROCm"
    if not compiled_devices:
        if sys.platform == "win32":
            return "there are no compiled kernels for Windows"
        return "the compiled extension is not built; run `pip install .` in the source tree"
    return f"the extension was built without it ({_why_no_cuda}); rebuild with MASKFEAT_BUILD={device}"


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

    torch.library.register_fake(hog, hog_fake, lib=_library)
    torch.library.register_vmap(hog, lambda info, dims, x, *rest: (hog(x.movedim(dims[0], 0), *rest), 0), lib=_library)
    torch.library.register_fake(hog_tokens, hog_tokens_fake, lib=_library)
    torch.library.register_vmap(hog_tokens, partial(_fold, hog_tokens), lib=_library)


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

    torch.library.register_fake(hog_blocks, hog_blocks_fake, lib=_library)
    torch.library.register_fake(hog_blocks_backward, hog_blocks_backward_fake, lib=_library)
    torch.library.register_vmap(hog_blocks, hog_blocks_vmap, lib=_library)
    torch.library.register_vmap(hog_blocks_backward, hog_blocks_backward_vmap, lib=_library)


def register_token_ops(masked_gather, masked_scatter_add, mask_tokens, masked_sum) -> None:
    """Give these ops their fake kernels and batching rules, the same for each backend."""
    for op, fake, rule in (
        (masked_gather, lambda tokens, ids: tokens.new_empty((*ids.shape, tokens.shape[2])), _fold),
        (masked_scatter_add, lambda x, ids, length: x.new_empty((x.shape[0], length, x.shape[2])), _fold),
        (mask_tokens, lambda tokens, mask_token, mask: tokens.new_empty(tokens.shape), _loop),
        (masked_sum, lambda x, mask: x.new_empty(x.shape[2]), _loop),
    ):
        torch.library.register_fake(op, fake, lib=_library)
        torch.library.register_vmap(op, partial(rule, op), lib=_library)


def _fold(op, info, in_dims, *args):
    """Batching rule of an op whose tensors all begin with the axis B: the new axis becomes a part of it."""

    def fold(x, dim):
        if not isinstance(x, torch.Tensor):
            return x
        x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        return x.flatten(0, 1)

    out = op(*map(fold, args, in_dims))
    return out.unflatten(0, (info.batch_size, out.shape[0] // info.batch_size)), 0


def _loop(op, info, in_dims, *args):
    """Batching rule of any op: a call for each index of the new axis."""

    def call(i):
        return op(*(x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True)))

    return torch.stack([call(i) for i in range(info.batch_size)]), 0


register_hog_ops(*map(_op, ("hog", "hog_tokens")))
register_hog_blocks_ops(*map(_op, ("hog_blocks", "hog_blocks_backward")))
register_token_ops(*map(_op, ("masked_gather", "masked_scatter_add", "mask_tokens", "masked_sum")))
