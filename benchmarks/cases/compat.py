"""The drop-in modules against the libraries whose place they take: the very same calls with the same defaults."""

import importlib
from functools import partial

import torch

from benchmarks import rivals as r
from benchmarks.timing import Case, Rival, Settings


def compat(settings: Settings) -> list[Case]:
    """Empty on a GPU, where the libraries do not run, and where a drop-in module or its library is absent."""
    cases = []
    if settings.device == "cpu":
        for library, rivals in (("skimage", skimage), ("opencv", opencv)):
            if r.is_there(r.NUMPY_OPS) and (library == "skimage" or r.is_there("cv2")):
                for side in (224,) if settings.quick else (224, 512):
                    cases.append(Case(f"compat.{library}, {side}x{side}, defaults", partial(rivals, side)))
    return cases


def skimage(side: int) -> list[Rival]:
    """``hog(image)`` and ``hog(image, channel_axis=-1)``: blocks of 3x3 cells, L2-Hys."""
    names = "maskfeat_kernels.compat.skimage", "skimage.feature"
    ours, theirs = (importlib.import_module(name).hog for name in names)
    runs = [lambda image, hog=hog: hog(image, channel_axis=-1 if image.ndim == 3 else None) for hog in (ours, theirs)]
    return _both(side, *runs, "skimage.hog", 5e-7)


def opencv(side: int) -> list[Rival]:
    """``HOGDescriptor(...).compute(image)``: blocks of 2x2 cells, votes shared between bins and cells, L2-Hys."""
    ours, theirs = (importlib.import_module(name) for name in ("maskfeat_kernels.compat.opencv", "cv2"))
    sizes = (side, side), (16, 16), (8, 8), (8, 8), 9
    runs = [module.HOGDescriptor(*sizes).compute for module in (ours, theirs)]
    return _both(side, *runs, "HOGDescriptor.compute", 5e-6)


def _both(side: int, ours, theirs, name: str, tolerance: float) -> list[Rival]:
    """In colour and gray; ``tolerance``: how closely rounding lets two implementations of the definition agree."""
    rivals = []
    for kind, batch in (("RGB", r.photograph_batch), ("gray", r.gray_batch)):
        image = batch(1, side)[0]
        truth = torch.as_tensor(theirs(image)).double()
        first = f"ours: {name}, {kind}"
        rivals.append(Rival(first, ours, [image], truth, tolerance=tolerance, items=1))
        rivals.append(Rival(f"theirs: {name}, {kind}", theirs, [image], versus=first, items=1))
    return rivals
