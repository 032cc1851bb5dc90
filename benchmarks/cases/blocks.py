"""HOG of blocks in the dialects of other libraries, and gradients: our backends beside plain torch and a copy."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.cases.hog import our_backends, photographs, short
from benchmarks.rivals import SKIMAGE_TOLERANCE
from benchmarks.timing import Case, Rival, Settings
from maskfeat_kernels import MASKFEAT, OPENCV, SKIMAGE, HogSpec, fused_hog
from maskfeat_kernels.hog import api
from maskfeat_kernels.hog.plan import whole

DIALECTS = {"MASKFEAT": MASKFEAT, "SKIMAGE": SKIMAGE, "OPENCV": OPENCV}
GRADIENT_TOLERANCE = 2e-5
"""A gradient is at most 1, the inverse of the weakest length. A hundred roundings of float32 are on its way back."""
EXACT = {"MASKFEAT": torch.float64, "SKIMAGE": torch.float64, "OPENCV": torch.float32}
"""Plain torch computes the truth in these. OPENCV takes roots of pixels, and where two channels are equally strong the
rounding of the roots decides, so that the truth has roots of float32, as OpenCV itself has. What OpenCV may differ by
is said where it is a rival: OPENCV_TOLERANCE."""


def blocks(settings: Settings) -> list[Case]:
    """SKIMAGE and OPENCV. The suite hog has MASKFEAT; here it is once more, by the kernels of blocks."""
    more = f"RGB 224x224, batch {settings.batch(2, 16, 256)}, from memory"
    cases = [Case(f"{name}, {more}", partial(forward, settings, name)) for name in ("SKIMAGE", "OPENCV")]
    return [*cases, Case(f"MASKFEAT by the kernels of blocks, {more}", partial(one_cell_blocks, settings))]


def gradients(settings: Settings) -> list[Case]:
    more = f"RGB 224x224, batch {settings.batch(2, 16, 256)}, float32"
    return [Case(f"{name} and its gradient, {more}", partial(backward, settings, name)) for name in DIALECTS]


def forward(settings: Settings, name: str) -> list[Rival]:
    """Bytes and float32. The copy reads the pixels and writes them, which is the least that a pass over them takes."""
    spec, batch = DIALECTS[name], settings.batch(2, 16, 256)
    planes, rivals = photographs(batch, settings.device)[0], []
    truth = repeated(planes, lambda x: fused_hog(x.to(EXACT[name]), spec, backend="reference"))
    for x in (planes, planes.float()):
        inputs, dtype = timing.rotating(x, settings.device), short(x.dtype)
        for row, backend in {**our_backends(settings, "blocks"), "plain torch": "reference"}.items():
            versus = None if row == "fused_hog" else f"fused_hog {dtype}"
            run, gate = partial(call, spec, backend), {"tolerance": SKIMAGE_TOLERANCE, "items": batch}
            rivals.append(Rival(f"{row} {dtype}", run, inputs, truth, versus, **gate))
        copy = f"copy of the pixels {dtype}"
        rivals.append(Rival(copy, Tensor.clone, inputs, x.double(), f"fused_hog {dtype}", items=batch))
    return rivals


def one_cell_blocks(settings: Settings) -> list[Rival]:
    """MASKFEAT by its own kernels, and as blocks of one cell by those of blocks: what its own kernels are worth."""
    planes, rivals = photographs(settings.batch(2, 16, 256), settings.device)[0], []
    truth = repeated(planes, lambda x: fused_hog(x.double(), backend="reference"))
    gate = {"tolerance": SKIMAGE_TOLERANCE, "items": len(planes)}
    for x in (planes, planes.float()):
        inputs, dtype = timing.rotating(x, settings.device), short(x.dtype)
        for row, backend in our_backends(settings, "blocks").items():
            own, versus = f"{row} {dtype}", None if row == "fused_hog" else f"fused_hog {dtype}"
            rivals.append(Rival(own, partial(call, MASKFEAT, backend), inputs, truth, versus, **gate))
            rivals.append(Rival(f"kernels of blocks, {own}", partial(by_blocks, backend), inputs, truth, own, **gate))
    return rivals


def by_blocks(backend: str, x: Tensor) -> Tensor:
    """MASKFEAT of a region, for which no backend has kernels of its own: here the image."""
    return api.hog(x, MASKFEAT, whole(MASKFEAT, *x.shape[-2:]), backend)


def backward(settings: Settings, name: str) -> list[Rival]:
    """A call computes the histograms, and the gradient of their weighted sum to the pixels."""
    spec, batch = DIALECTS[name], settings.batch(2, 16, 256)
    planes, rivals = photographs(batch, settings.device)[0].float(), []
    truth = repeated(planes, lambda x: gradient(spec, "reference", x.to(EXACT[name], copy=True).requires_grad_()))
    inputs = [x.requires_grad_() for x in timing.rotating(planes, settings.device)]
    for row, backend in {**our_backends(settings, "gradients"), "plain torch": "reference"}.items():
        versus = None if row == "fused_hog" else "fused_hog"
        run, gate = partial(gradient, spec, backend), {"tolerance": GRADIENT_TOLERANCE, "items": batch}
        rivals.append(Rival(row, run, inputs, truth, versus, **gate))
    copy = Rival("copy of the pixels", lambda x: x.detach().clone(), inputs, planes.double(), "fused_hog", items=batch)
    return [*rivals, copy]


def call(spec: HogSpec, backend: str, x: Tensor) -> Tensor:
    return fused_hog(x, spec, backend=backend)


def gradient(spec: HogSpec, backend: str, x: Tensor) -> Tensor:
    result = fused_hog(x, spec, backend=backend)
    weights = torch.linspace(-1, 1, result[0].numel(), dtype=result.dtype, device=x.device).view_as(result[0])
    return torch.autograd.grad(result, x, weights.expand_as(result))[0]


def repeated(planes: Tensor, exact: Callable[[Tensor], Tensor]) -> Tensor:
    """``exact`` of the first 32 photographs. A large batch repeats them."""
    some = torch.cat([exact(part) for part in planes[:32].split(4)])  # what plain torch has memory for
    return some.repeat(-(-len(planes) // 32), *[1] * (some.ndim - 1))[: len(planes)]
