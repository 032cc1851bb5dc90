"""The library of ops in PyTorch and the shared object with their compiled kernels, which is loaded here.

An op's schema, fake kernel, batching rule and meaning are in its ``ops.py``; ``csrc`` registers its kernels for each
device.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef
    from torch._ops import OpOverload

    Op = OpOverload[..., Tensor] | CustomOpDef
else:
    Op = Any

NAMESPACE = "maskfeat_kernels"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
TAGS = (torch.Tag.needs_exact_strides,)


def define(schema: str) -> None:
    """Make an op known to PyTorch."""
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, *TAGS))


# A missing file means "not built"; a file that does not load is a broken build and raises here.
_shared_object = Path(__file__).with_name("_torch_ops.so")
_record = None
if _shared_object.exists():
    torch.ops.load_library(_shared_object)
    _record = ctypes.CDLL(str(_shared_object))


def _built_with(name: str) -> str:
    """Read a fact from ``csrc/common/build_record.cpp``; "" without a shared object, or with one of older sources."""
    function = getattr(_record, f"maskfeat_{name}", None)
    if function is None:
        return ""
    function.restype = ctypes.c_char_p
    fact: bytes = function()
    return fact.decode()


def find_compiled_devices() -> list[str]:
    """The devices that the shared object has kernels for. GPUs of AMD, which torch also names "cuda", are none."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    devices = ["cpu"] if torch.version.hip else ["cpu", "cuda"]
    return [device for device in devices if has(f"{NAMESPACE}::hog", device.upper())]


compiled_devices = find_compiled_devices() if _record else []  # without an object, torch does not know the op yet
cuda_archs = _built_with("cuda_archs").split()
"""Architectures that the CUDA kernels are compiled for: ["80", "90"]."""
_why_no_cuda = _built_with("no_cuda")
_OUT_OF_MEMORY = "maskfeat_kernels: out of memory"  # what the shared object says of it


def op(name: str) -> Op:
    """An op, as PyTorch calls it."""
    overload: Op = getattr(torch.ops.maskfeat_kernels, name).default
    return overload


def compiled(name: str) -> Callable[..., Tensor]:
    """The op, but out of memory raises what ``torch.empty`` raises, which only an allocation by torch can."""
    kernel = op(name)

    def call(*arguments: Any) -> Tensor:
        try:
            result: Tensor = kernel(*arguments)
            return result
        except RuntimeError as error:
            if _OUT_OF_MEMORY not in str(error):
                raise
            message = str(error)
        x = arguments[0]
        empty = kernel(*(y.to("meta") if isinstance(y, Tensor) else y for y in arguments))
        results = [empty] if isinstance(empty, Tensor) else empty
        results = [x.new_empty(result.shape, dtype=result.dtype) for result in results]
        if x.is_cuda:  # it was scratch
            raise torch.OutOfMemoryError(f"CUDA out of memory. {message}")
        raise RuntimeError(message)

    return call


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


def describe(op: Op, fake: Callable[..., Any], meaning: Callable[..., Any]) -> None:
    """Tell torch the shapes of an op's results, and what the op means in plain torch.

    ``torch.onnx.export`` puts the meaning in its place. All else finds the op as it is: fake tensors of symbolic sizes,
    which look for a meaning too, get what the fake kernel says.
    """
    overload: Any = getattr(op, "_opoverload", op)  # of an op of Triton, which is a custom_op

    def traced(*arguments: Any) -> Any:
        # Inductor refuses to call an op that has a meaning, but only where CI is set: for PyTorch's own builds.
        if os.getenv("CI"):
            with _disable_current_modes():
                from torch._inductor.lowering import FALLBACK_ALLOW_LIST
            FALLBACK_ALLOW_LIST.add(overload.name())
        return fake(*arguments)

    def decomposition(*arguments: Any) -> Any:
        return fake(*arguments) if get_proxy_mode() is None else meaning(*arguments)

    torch.library.register_fake(op, traced, lib=LIBRARY)
    decomposition_table[overload] = decomposition


def fold(op: Op, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    """Batching rule of an op whose tensors all begin with the axis B: the new axis becomes a part of it."""

    def folded(x: Any, dim: int | None) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        return x.flatten(0, 1)

    out = op(*map(folded, args, in_dims))
    return out.unflatten(0, (info.batch_size, out.shape[0] // info.batch_size)), 0


def loop(op: Op, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    """Batching rule of any op: a call for each index of the new axis."""

    def call(i: int) -> Tensor:
        result: Tensor = op(*(x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True)))
        return result

    return torch.stack([call(i) for i in range(info.batch_size)]), 0


def is_traced() -> bool:
    """Whether torch.jit.trace records this call."""
    return bool(torch.jit.is_tracing())


def needs_autograd(*inputs: Tensor) -> bool:
    """Whether to pay for an autograd.Function, some ten times the price of a bare op.

    Under a transform of torch.func a tensor does not tell: inside vmap, requires_grad is that of the wrapper.
    """
    if torch._C._are_functorch_transforms_active():
        return any(x.is_floating_point() for x in inputs)
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
