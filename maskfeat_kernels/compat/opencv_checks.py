"""The arguments of OpenCV's methods, checked."""

import operator
from typing import Any

import numpy as np

from .arrays import Array, is_tensor


class error(ValueError):
    """What ``cv2.error`` is in OpenCV: an argument that makes no sense."""


def as_pixels(img: Any) -> Array:  # [C, H, W] or [H, W]
    """Bring an image from OpenCV's axes, [H, W], [H, W, 1] or [H, W, 3], to the axes of the kernels."""
    if not (is_tensor(img) or isinstance(img, np.ndarray)):
        raise error(f"img must be a NumPy array or a torch tensor, got {type(img).__name__}")
    if str(img.dtype) != "torch.uint8" if is_tensor(img) else img.dtype != np.uint8:
        raise error(f"img must be uint8, got {img.dtype}")
    if img.ndim not in (2, 3) or (img.ndim == 3 and img.shape[2] not in (1, 3)) or 0 in img.shape:
        raise error(f"img must be [H, W], [H, W, 1] or [H, W, 3], got shape {tuple(img.shape)}")
    if img.ndim == 2 or img.shape[2] == 1:
        return img.reshape(img.shape[:2])
    return img.permute(2, 0, 1) if is_tensor(img) else img.transpose(2, 0, 1)


def as_pair(name: str, value: Any, least: int | None = None) -> tuple[int, int]:
    """Check a size: two integers in a tuple, a list or an array, or None for (0, 0)."""
    value = (0, 0) if value is None else value
    try:
        first, second = value
    except (TypeError, ValueError):
        raise error(f"{name} must be (width, height), got {value!r}") from None
    pair = as_integer(name, first), as_integer(name, second)
    if least is not None and min(pair) < least:
        raise error(f"{name} must be at least {least}, got {value!r}")
    return pair


def as_integer(name: str, value: Any, least: int | None = None) -> int:
    """Check an integer: it fits into 32 bits, and is no truth value."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise error(f"{name} must be an integer, got {value!r}") from None
    if not -(1 << 31) <= number < 1 << 31 or (least is not None and number < least):
        raise error(f"{name} must be at least {least or -(1 << 31)} and below 2^31, got {value!r}")
    return number


def as_number(name: str, value: Any) -> float:
    """Check a number and return it as a float. OpenCV takes no truth value for a number."""
    try:
        if isinstance(value, (bool, np.bool_, str, bytes)) or np.ndim(value):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise error(f"{name} must be a number, got {value!r}") from None


def as_bool(name: str, value: Any) -> bool:
    """Check a truth value, of Python or NumPy, or an integer in its place."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return as_integer(name, value) != 0


def as_places(locations: Any) -> np.ndarray:  # [N, 2] int64
    """Check a list of (x, y), both integers."""
    try:
        places = np.asarray(locations)
    except ValueError:  # rows of several lengths
        places = np.empty(0)
    if places.ndim != 2 or places.shape[1] != 2 or places.dtype.kind not in "iu":
        raise error(f"locations must be integers (x, y), got {locations!r}")
    return places.astype(np.int64)
