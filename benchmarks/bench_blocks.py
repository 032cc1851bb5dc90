"""HOG of blocks in the dialects of other libraries, and the gradients of all: our backends, plain torch and a copy."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.bench_hog import SKIMAGE_TOLERANCE, our_backends, photographs, short
from benchmarks.timing import Case, Rival, Settings
from maskfeat_kernels import MASKFEAT, OPENCV, SKIMAGE, HogSpec, fused_hog

DIALECTS = {"MASKFEAT": MASKFEAT, "SKIMAGE": SKIMAGE, "OPENCV": OPENCV}
TOLERANCE, GRADIENT_TOLERANCE = SKIMAGE_TOLERANCE, 2e-5
"""Of a gradient up to 1, the inverse of the weakest length: a hundred roundings of float32, on their way back."""
EXACT = {"MASKFEAT": torch.float64, "SKIMAGE": torch.float64, "OPENCV": torch.float32}
"""What plain torch computes the truth in. Of roots of pixels, rounding decides which of two channels is the stronger
where they are equal but for that, so that the truth has to round them alike."""


def blocks(settings: Settings) -> list[Case]:
    """SKIMAGE and OPENCV; MASKFEAT is the suite hog. On a CPU, with its rivals in compat, quick runs only."""
    if settings.device == "cpu" and not settings.quick:
        return []
    more = f"RGB 224x224, batch {batch_of(settings)}, from memory"
    return [Case(f"{name}, {more}", partial(forward, settings, name)) for name in ("SKIMAGE", "OPENCV")]


def gradients(settings: Settings) -> list[Case]:
    """Of all three; on a CPU quick runs only."""
    if settings.device == "cpu" and not settings.quick:
        return []
    more = f"RGB 224x224, batch {batch_of(settings)}, float32"
    return [Case(f"{name} and its gradient, {more}", partial(backward, settings, name)) for name in DIALECTS]


def batch_of(settings: Settings) -> int:
    return 2 if settings.quick else 256


def forward(settings: Settings, name: str) -> list[Rival]:
    """Bytes and float32; the copy reads the pixels and writes them, the least that a pass over them takes."""
    spec, batch = DIALECTS[name], batch_of(settings)
    planes = photographs(batch, settings.device)[0]
    truth = repeated(planes, lambda x: fused_hog(x.to(EXACT[name]), spec, backend="reference"))
    job = {"tolerance": TOLERANCE, "items": batch}
    rivals = []
    for x in (planes, planes.float()):
        inputs, dtype = timing.rotating(x, settings.device), short(x.dtype)
        for row, backend in our_backends(settings, "blocks").items():
            versus = None if row == "fused_hog" else f"fused_hog {dtype}"
            rivals.append(Rival(f"{row} {dtype}", call(spec, backend), inputs, truth, versus, **job))
        versus = f"fused_hog {dtype}"
        rivals.append(Rival(f"plain torch {dtype}", call(spec, "reference"), inputs, truth, versus, **job))
        rivals.append(Rival(f"copy of the pixels {dtype}", Tensor.clone, inputs, x.double(), versus, items=batch))
    return rivals


def backward(settings: Settings, name: str) -> list[Rival]:
    """The gradient of a weighted sum of the histograms to the pixels, with the histograms themselves."""
    spec, batch = DIALECTS[name], batch_of(settings)
    planes = photographs(batch, settings.device)[0].float()
    truth = repeated(planes, lambda x: gradient(spec, "reference", x.to(EXACT[name], copy=True).requires_grad_()))
    inputs = [x.requires_grad_() for x in timing.rotating(planes, settings.device)]
    job = {"tolerance": GRADIENT_TOLERANCE, "items": batch}
    rivals = []
    for row, backend in our_backends(settings, "gradients").items():
        versus = None if row == "fused_hog" else "fused_hog"
        rivals.append(Rival(row, partial(gradient, spec, backend), inputs, truth, versus, **job))
    plain = partial(gradient, spec, "reference")
    rivals.append(Rival("plain torch", plain, inputs, truth, "fused_hog", **job))
    copy = Rival("copy of the pixels", lambda x: x.detach().clone(), inputs, planes.double(), "fused_hog", items=batch)
    return [*rivals, copy]


def call(spec: HogSpec, backend: str) -> Callable[[Tensor], Tensor]:
    return lambda x: fused_hog(x, spec, backend=backend)


def gradient(spec: HogSpec, backend: str, x: Tensor) -> Tensor:
    result = fused_hog(x, spec, backend=backend)
    weights = torch.linspace(-1, 1, result[0].numel(), dtype=result.dtype, device=x.device).view_as(result[0])
    return torch.autograd.grad(result, x, weights.expand_as(result))[0]


def repeated(planes: Tensor, exact: Callable[[Tensor], Tensor]) -> Tensor:
    """``exact`` of the first 32 photographs, of which a large batch is made."""
    some = torch.cat([exact(part) for part in planes[:32].split(4)])  # what plain torch has memory for
    return some.repeat(-(-len(planes) // 32), *[1] * (some.ndim - 1))[: len(planes)]
