"""The drop-in modules against the libraries whose place they take: the very same calls with the same defaults."""

import importlib
from collections.abc import Callable
from functools import partial

import torch

from benchmarks import rivals as r
from benchmarks.timing import Case, Rival, Settings


def skimage_hog(module: str, side: int) -> Callable:
    """``hog(image)`` and ``hog(image, channel_axis=-1)``: blocks of 3x3 cells, L2-Hys."""
    hog = importlib.import_module(module).hog
    return lambda image: hog(image, channel_axis=-1 if image.ndim == 3 else None)


def opencv_hog(module: str, side: int) -> Callable:
    """``HOGDescriptor(...).compute(image)``: blocks of 2x2 cells, votes shared between bins and cells, L2-Hys."""
    return importlib.import_module(module).HOGDescriptor((side, side), (16, 16), (8, 8), (8, 8), 9).compute


PAIRS = {
    "skimage": (skimage_hog, "skimage.feature", "skimage.hog", 5e-7),
    "opencv": (opencv_hog, "cv2", "HOGDescriptor.compute", 5e-6),
}
"""What makes the call, the library, the name of the call, and how closely rounding lets the two agree."""


def compat(settings: Settings) -> list[Case]:
    """Empty on a GPU, where the libraries do not run, and where a drop-in module or its library is absent."""
    if settings.device != "cpu" or not r.is_there(r.NUMPY_OPS):
        return []
    return [
        Case(f"compat.{name}, {side}x{side}, defaults", partial(both, name, side))
        for name, (_, library, *_) in PAIRS.items()
        for side in ((224,) if settings.quick else (224, 512))
        if r.is_there(library)
    ]


def both(name: str, side: int) -> list[Rival]:
    """In colour and gray."""
    call, library, words, tolerance = PAIRS[name]
    our, their = call(f"maskfeat_kernels.compat.{name}", side), call(library, side)
    rows = []
    for kind, batch in (("RGB", r.photograph_batch), ("gray", r.gray_batch)):
        image, first = batch(1, side)[0], f"ours: {words}, {kind}"
        truth = torch.as_tensor(their(image)).double()
        rows.append(Rival(first, our, [image], truth, tolerance=tolerance, items=1))
        rows.append(Rival(f"theirs: {words}, {kind}", their, [image], versus=first, items=1))
    return rows
