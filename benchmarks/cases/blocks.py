"""HOG of blocks in the dialects of other libraries, and gradients: our backends beside plain torch and a copy."""

from functools import partial

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.cases.hog import our_backends, ours, photographs, short, truth_of
from benchmarks.rivals import SKIMAGE_TOLERANCE
from benchmarks.timing import Case, Rival, Settings
from maskfeat_kernels import MASKFEAT, OPENCV, SKIMAGE, HogSpec, fused_hog
from maskfeat_kernels.hog import api
from maskfeat_kernels.hog.plan import whole

DIALECTS = {"MASKFEAT": MASKFEAT, "SKIMAGE": SKIMAGE, "OPENCV": OPENCV}
GRADIENT_TOLERANCE = 2e-5
"""A gradient is at most 1, the inverse of the weakest length. A hundred roundings of float32 are on its way back."""
EXACT = {MASKFEAT: torch.float64, SKIMAGE: torch.float64, OPENCV: torch.float32}
"""Plain torch computes the truth in these. OPENCV takes roots of pixels, and where two channels are equally strong the
rounding of the roots decides, so that the truth has roots of float32, as OpenCV itself has."""


def blocks(settings: Settings) -> list[Case]:
    """SKIMAGE and OPENCV. The suite hog has MASKFEAT; here it is once more, by the kernels of blocks."""
    more = f"RGB 224x224, batch {settings.batch(2, 16, 256)}, from memory"
    cases = [Case(f"{name}, {more}", partial(forward, settings, DIALECTS[name])) for name in ("SKIMAGE", "OPENCV")]
    return [*cases, Case(f"MASKFEAT by the kernels of blocks, {more}", partial(one_cell_blocks, settings))]


def gradients(settings: Settings) -> list[Case]:
    more = f"RGB 224x224, batch {settings.batch(2, 16, 256)}, float32"
    return [Case(f"{name} and its gradient, {more}", partial(backward, settings, DIALECTS[name])) for name in DIALECTS]


def forward(settings: Settings, spec: HogSpec) -> list[Rival]:
    """Bytes and float32. The copy reads the pixels and writes them, which is the least that a pass over them takes."""
    planes = photographs(settings.batch(2, 16, 256), settings.device)
    truth = truth_of(len(planes), settings.device, spec=spec, dtype=EXACT[spec])
    inputs = [timing.rotating(x, settings.device) for x in (planes, planes.float())]
    backends, gate = our_backends(settings, "blocks"), {"tolerance": SKIMAGE_TOLERANCE, "items": len(planes)}
    rows = ours(backends | {"plain torch": "reference"}, inputs, truth, partial(fused_hog, spec=spec), **gate)
    for x in inputs:
        dtype, pixels = short(x[0].dtype), planes.double()
        versus = f"fused_hog {dtype}"
        rows.append(Rival(f"copy of the pixels {dtype}", Tensor.clone, x, pixels, versus, items=len(planes)))
    return rows


def one_cell_blocks(settings: Settings) -> list[Rival]:
    """MASKFEAT by its own kernels, and as blocks of one cell by those of blocks: what its own kernels are worth."""
    planes = photographs(settings.batch(2, 16, 256), settings.device)
    truth = truth_of(len(planes), settings.device)
    inputs = [timing.rotating(x, settings.device) for x in (planes, planes.float())]
    gate = {"tolerance": SKIMAGE_TOLERANCE, "items": len(planes)}
    own = ours(our_backends(settings, "blocks"), inputs, truth, **gate)
    rows = []
    for row in own:
        run = partial(by_blocks, **row.run.keywords)
        rows += [row, Rival(f"kernels of blocks, {row.name}", run, row.inputs, truth, row.name, **gate)]
    return rows


def by_blocks(x: Tensor, backend: str) -> Tensor:
    """MASKFEAT of a region, for which no backend has kernels of its own: here the image."""
    return api.hog(x, MASKFEAT, whole(MASKFEAT, *x.shape[-2:]), backend)


def backward(settings: Settings, spec: HogSpec) -> list[Rival]:
    """A call computes the histograms, and the gradient of their weighted sum to the pixels."""
    planes = photographs(settings.batch(2, 16, 256), settings.device).float()
    some = [part.to(EXACT[spec], copy=True).requires_grad_() for part in planes[:32].split(4)]  # what memory allows
    truth = torch.cat([gradient(part, spec, "reference") for part in some])
    truth = truth.repeat(-(-len(planes) // 32), 1, 1, 1)
    inputs, rows = [x.requires_grad_() for x in timing.rotating(planes, settings.device)], []
    for row, backend in {**our_backends(settings, "gradients"), "plain torch": "reference"}.items():
        versus = None if row == "fused_hog" else "fused_hog"
        run, gate = partial(gradient, spec=spec, backend=backend), {"tolerance": GRADIENT_TOLERANCE}
        rows.append(Rival(row, run, inputs, truth, versus, items=len(planes), **gate))
    truth = planes.double()
    copy = Rival("copy of the pixels", lambda x: x.detach().clone(), inputs, truth, "fused_hog", items=len(planes))
    return [*rows, copy]


def gradient(x: Tensor, spec: HogSpec, backend: str) -> Tensor:
    result = fused_hog(x, spec, backend=backend)
    weights = torch.linspace(-1, 1, result[0].numel(), dtype=result.dtype, device=x.device).view_as(result[0])
    return torch.autograd.grad(result, x, weights.expand_as(result))[0]
