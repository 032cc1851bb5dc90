"""The arguments of OpenCV's methods, checked."""

import operator

import numpy as np

from .arrays import is_tensor


class error(ValueError):
    """What ``cv2.error`` is in OpenCV: an argument that makes no sense."""


def as_pixels(img):  # [C, H, W] or [H, W]
    """An image of OpenCV's axes, [H, W], [H, W, 1] or [H, W, 3], with those of the kernels."""
    if not (is_tensor(img) or isinstance(img, np.ndarray)):
        raise error(f"img must be a NumPy array or a torch tensor, got {type(img).__name__}")
    if str(img.dtype) != "torch.uint8" if is_tensor(img) else img.dtype != np.uint8:
        raise error(f"img must be uint8, got {img.dtype}")
    if img.ndim not in (2, 3) or (img.ndim == 3 and img.shape[2] not in (1, 3)) or 0 in img.shape:
        raise error(f"img must be [H, W], [H, W, 1] or [H, W, 3], got shape {tuple(img.shape)}")
    if img.ndim == 2 or img.shape[2] == 1:
        return img.reshape(img.shape[:2])
    return img.permute(2, 0, 1) if is_tensor(img) else img.transpose(2, 0, 1)


def as_pair(name: str, value, least: int | None = None) -> tuple[int, int]:
    """A size, (0, 0) for None."""
    value = (0, 0) if value is None else value
    if not hasattr(value, "__len__") or len(value) != 2:
        raise error(f"{name} must be (width, height), got {value!r}")
    pair = as_integer(name, value[0]), as_integer(name, value[1])
    if least is not None and min(pair) < least:
        raise error(f"{name} must be at least {least}, got {value!r}")
    return pair


def as_integer(name: str, value) -> int:
    """An int, if it is one."""
    try:
        return operator.index(value)
    except TypeError:
        raise error(f"{name} must be an integer, got {value!r}") from None


def as_places(locations) -> np.ndarray:  # [N, 2] int64
    """A list of (x, y)."""
    places = np.asarray(locations)
    if places.ndim != 2 or places.shape[1] != 2 or places.dtype.kind not in "iu":
        raise error(f"locations must be integers (x, y), got {locations!r}")
    return places.astype(np.int64)
