"""Targets in pre-training: in the workers of a DataLoader or from the batch on the device; and a whole step.

The loader is measured end to end: its workers decode, crop and batch JPEG photographs.

The target path is what a step does beside encoder, head and optimizer: draw masks, hide tokens, gather the hidden ones
and their targets. The reference draws masks in Python, computes the HOG of all of the normalised float image by the
operations of its layer, indexes by a boolean mask and hides tokens by ``x * (1 - m) + token * m``. Paths are timed
forward only: what the gradients of hiding and gathering take is in the step, and not in the share of its path. On a GPU
the masks of both have been drawn by the workers of a loader, and a step copies them.
"""

import importlib
import io
import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import rivals as r
from benchmarks.cases.hog import photographs
from benchmarks.cases.memory import peak_bytes
from benchmarks.cases.tokens import KEPT, chosen_patches, take, to_tokens
from benchmarks.timing import TOLERANCE, Case, Rival, Settings, WrongResult
from maskfeat import HogTarget, MaskFeat, Masks, Target, make_masks, vit
from maskfeat.config import IMAGENET
from maskfeat.run.step import normalise
from maskfeat_kernels import fused_hog, fused_hog_tokens, fused_mask_tokens, fused_masked_gather

GRID = (14, 14)


class Photographs(Dataset):
    """Decodes a JPEG and cuts a crop of 224x224, at a place that its index says; with the target, if it is to."""

    def __init__(self, count: int, target: Callable[[Tensor], Tensor] | None = None):
        from PIL import Image

        self.count, self.target = count, target
        self.files = [io.BytesIO() for _ in r.PHOTOGRAPHS]
        for file, name in zip(self.files, r.PHOTOGRAPHS, strict=True):
            Image.fromarray(r.photograph(name)).save(file, "JPEG", quality=90)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        image = np.array(Image.open(self.files[index % len(self.files)]))
        y, x = (np.random.default_rng(index).integers(0, size - 223) for size in image.shape[:2])
        planes = torch.from_numpy(image[y : y + 224, x : x + 224]).permute(2, 0, 1).contiguous()
        return planes, self.target(planes) if self.target else torch.empty(0)


def loader(settings: Settings) -> list[Case]:
    workers = min(settings.threads, 8)
    title = f"Targets in the loader or on the device, {workers} worker{'s' if workers > 1 else ''}"
    return [Case(title, partial(places, settings, workers))]


def places(settings: Settings, workers: int) -> list[Rival]:
    batch = 4 if settings.quick else 16
    count = 4 * batch
    last = torch.stack([Photographs(count)[i][0] for i in range(count - batch, count)])
    truth, ids = r.exact(last), chosen_patches(batch, KEPT, settings.device)
    tokens = take(to_tokens(truth), ids.cpu())
    of_skimage = r.exact_skimage_hog(last.movedim(1, -1).numpy())[..., None, None, :]
    theirs, ours = (partial(skimage_target, name) for name in ("skimage.feature", "maskfeat_kernels.compat.skimage"))
    jobs = {  # what a worker does, what is done on the device, and the targets of the last batch
        "no targets": (None, None, None),
        "fused_hog_tokens on the device": (None, partial(fused_hog_tokens, token_ids=ids), tokens),
        "fused_hog on the device": (None, fused_hog, truth),
        "reference layer on the device": (None, lambda x: r.hog_layer(x.float()), truth),
        "fused_hog in the workers": (fused_hog, None, truth),
        "scikit-image in the workers": (theirs, None, of_skimage),
    }
    if r.is_there(r.NUMPY_OPS):
        jobs["compat.skimage in the workers"] = ours, None, of_skimage
    rows = []
    for name, (in_worker, on_device, expected) in jobs.items():
        images = Photographs(count, in_worker)
        data = DataLoader(images, batch_size=batch, num_workers=workers, persistent_workers=True)
        run = partial(epoch, on_device=on_device, device=settings.device)
        versus, gate = None if name == "no targets" else "no targets", {"items": count, "on_host": True}
        tolerance = r.SKIMAGE_TOLERANCE if "scikit-image" in name else TOLERANCE
        rows.append(Rival(name, run, [data], expected, versus, tolerance=tolerance, **gate))
    return rows


def skimage_target(module: str, planes: Tensor) -> Tensor:  # [3, H, W] uint8 -> blocks of one cell
    """scikit-image, or our drop-in module, on the array of an image."""
    hog = importlib.import_module(module).hog
    return torch.from_numpy(hog(planes.permute(1, 2, 0).numpy(), **r.SKIMAGE_OPTIONS))


def epoch(data: DataLoader, on_device: Callable | None, device: str) -> Tensor:
    """All batches, with their targets on the device; returns those of the last batch."""
    for images, targets in data:
        images, targets = images.to(device), targets.to(device)
        if on_device:
            targets = on_device(images)
    return targets


def step(settings: Settings) -> list[Case]:
    on_gpu = settings.device == "cuda"
    size, batch = "tiny" if settings.quick else "base", 128 if on_gpu and not settings.quick else 2
    title = f"Step of pre-training, ViT-{size}, batch {batch}" + (", bfloat16" if on_gpu else "")
    cases = [Case(title, partial(steps, settings, size, batch))]
    if on_gpu:  # for a CPU it takes minutes
        cases.append(Case(f"Compiled: {title}", partial(steps, settings, size, batch, True)))
    return cases


def peak(run: Callable, images: Tensor) -> dict:
    """On a CPU the peak memory of a step; on a GPU the check has told it already."""
    return {} if images.is_cuda else {"peak_bytes": peak_bytes(partial(run, images), "cpu")[1]}


class ReferenceTarget(Target):
    """HOG of all patches of the normalised image, of which a boolean mask takes those that are hidden."""

    dim = 108

    def forward(self, pixels: Tensor, images: Tensor, masks: Masks) -> Tensor:  # [B, K, 108]
        return to_tokens(r.hog_layer(pixels))[masks.mask.flatten(1)].view(len(pixels), -1, self.dim)


def drawn_masks(batch: int, device: str, compat: str | None) -> Callable[[], Masks]:
    """What gives the masks of a step."""
    draw = partial(make_masks, "block", batch, GRID, generator=torch.Generator().manual_seed(0), compat=compat)
    if device == "cpu":
        return draw
    pool = [Masks(*(None if t is None else t.pin_memory() for t in draw())) for _ in range(16)]
    turns = itertools.cycle(pool)
    return lambda: next(turns).to(device, non_blocking=True)


def steps(settings: Settings, size: str, batch: int, compiled: bool = False) -> list[Rival]:
    """A step and its target path, with our targets and the reference's; the ratio of a path is its share, forward.
    ``compiled``: instead, the step as it is and compiled by ``torch.compile``.

    On a GPU as it is trained there, under autocast to bfloat16. It is timed from the host: masks are drawn there, and
    optimizers take no part in a graph. The same step once more says how much of a ratio is noise. Raises WrongResult
    where the two targets of bytes differ.
    """
    device, on_gpu = settings.device, settings.device == "cuda"
    images = photographs(batch, device)
    pixels = normalise(images, **IMAGENET)
    mixed = partial(torch.autocast, device, torch.bfloat16, enabled=on_gpu)
    dtype = torch.bfloat16 if on_gpu else torch.float32
    tokens = torch.randn(batch, 197, vit(size).embed_dim, device=device, dtype=dtype)
    mask_token, hog, layer = tokens[0, 0], HogTarget(), ReferenceTarget()

    our_masks, reference_masks = (drawn_masks(batch, device, compat) for compat in (None, "mmpretrain"))
    masks = our_masks()
    error = (hog(pixels, images, masks) - layer(images.float(), images, masks)).abs().max().item()
    if not error <= TOLERANCE:
        raise WrongResult(f"targets of the two paths differ by {error:.2g}, allowed are {TOLERANCE:.2g}")

    def step_with(target: Target, compiled: bool = False) -> Callable[[Tensor], Tensor]:
        torch.manual_seed(0)
        model = MaskFeat(vit(size), target).to(device)
        if compiled:
            model.compile()
        optimizer = torch.optim.AdamW(model.parameters())

        def step(images: Tensor) -> Tensor:
            with mixed():
                loss = model(normalise(images, **IMAGENET), images, our_masks())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return step

    def our_path(images: Tensor) -> Tensor:
        masks = our_masks()
        fused_mask_tokens(tokens[:, 1:], mask_token, masks.mask.flatten(1))
        fused_masked_gather(tokens, masks.ids + 1)
        return hog(pixels, images, masks)

    def reference_path(images: Tensor) -> Tensor:
        masks = reference_masks()
        hidden = masks.mask.flatten(1)
        m = hidden.unsqueeze(-1).type_as(tokens)
        _ = tokens[:, 1:] * (1 - m) + mask_token * m
        _ = tokens[:, 1:][hidden]
        return layer(pixels, images, masks)

    first = "step, our targets"
    runs = [(first, step_with(hog), None)]
    if compiled:
        runs.append((f"{first}, compiled", step_with(hog, compiled=True), first))
    else:
        runs += [(f"{first}, once more", step_with(hog), first), ("step, reference targets", step_with(layer), first)]
        runs += [("our target path, forward", our_path, first)]
        runs += [("reference target path, forward", reference_path, "step, reference targets")]
    job = {"reads": 0, "items": batch, "on_host": True}  # what a step moves is not counted
    return [
        Rival(name, run, [images], versus=versus, more=partial(peak, run, images), **job) for name, run, versus in runs
    ]
