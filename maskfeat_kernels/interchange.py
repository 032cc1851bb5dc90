"""Arrays of other libraries in and out, by DLPack: what CuPy, JAX, NumPy and others share their memory by."""

import sys
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Array(Protocol):
    """An array of any library that has DLPack, on any device that torch has."""

    def __dlpack__(self, *, stream: Any = ...) -> Any: ...
    def __dlpack_device__(self) -> Any: ...


def through_tensors(
    function: Callable[..., Any],
    **arrays: Any,  # by their names
) -> Any:
    """What a function of tensors returns for arrays: arrays of the library of the first, on its device.

    Their memory is read in place. Arrays with negative strides are copied. So are NumPy arrays that are unaligned, of
    another byte order, or with strides that are no multiple of the item size.
    On a GPU each library waits for the other's stream, as DLPack's protocol has it.

    Raises TypeError that names what is no array, or is of a library or dtype without DLPack.
    """
    tensors = [_tensor(name, x) for name, x in arrays.items()]
    back = _way_back(*next(iter(arrays.items())))
    result = function(*tensors)
    return tuple(map(back, result)) if isinstance(result, tuple) else back(result)


def _tensor(name: str, x: Any) -> Tensor:
    """The memory of an array as a tensor."""
    if not hasattr(x, "__dlpack_device__"):
        raise TypeError(f"{name} must be a torch.Tensor, or an array with __dlpack__, got {type(x).__name__}")
    numpy = sys.modules.get("numpy")
    if numpy and isinstance(x, numpy.ndarray):
        if isinstance(x, numpy.ma.MaskedArray):
            raise TypeError(f"{name} must be a dense array, got a masked one; take its filled(value)")
        if not (x.flags.aligned and x.dtype.isnative and not any(step % x.itemsize for step in x.strides)):
            x = numpy.array(x, x.dtype.newbyteorder("="))
    if any(step < 0 for step in getattr(x, "strides", None) or ()):  # they would end the process
        x = x.copy()
    try:
        tensor: Tensor = torch.from_dlpack(x)
    except BufferError as error:
        raise TypeError(f"{name} is an array that DLPack cannot pass on: {error}") from None
    return tensor


def _way_back(name: str, x: Any) -> Callable[[Tensor], Any]:
    """The function that turns a tensor into an array of the library of ``x``."""
    numpy = sys.modules.get("numpy")
    if numpy and isinstance(x, numpy.ndarray):
        return Tensor.numpy
    library = type(x).__module__.partition(".")[0]
    home = x.__array_namespace__() if hasattr(x, "__array_namespace__") else sys.modules.get(library)
    if not hasattr(home, "from_dlpack"):
        raise TypeError(f"{name} is an array of {library}, which has no from_dlpack: give torch.from_dlpack({name})")
    return home.from_dlpack  # type: ignore[union-attr,no-any-return]
