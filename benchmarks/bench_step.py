"""A pre-training step with our targets and with the reference's, and the share of it that the target path takes.

The target path is what a step does beside encoder, head and optimizer: draw masks, hide tokens, gather the hidden ones
and their targets. The reference draws masks in Python, computes the HOG of all of the normalised float image by the
operations of its layer, indexes by a boolean mask and hides tokens by ``x * (1 - m) + token * m``. Paths are timed
forward only: what the gradients of hiding and gathering take is in the step, and not in the share of its path. On a GPU
the masks of both have been drawn by the workers of a loader, and a step copies them.
"""

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.rivals import hog_layer, photograph_batch
from benchmarks.timing import TOLERANCE, Rival, WrongResult
from maskfeat import HogTarget, MaskFeat, Masks, Target, make_masks, vit
from maskfeat.config import IMAGENET
from maskfeat.run.step import normalise
from maskfeat_kernels import fused_mask_tokens, fused_masked_gather

GRID, PATCH = (14, 14), 16


class ReferenceTarget(Target):
    """HOG of all patches of the normalised image, of which a boolean mask takes those that are hidden."""

    dim = 108

    def forward(self, pixels: Tensor, images: Tensor, masks: Masks) -> Tensor:  # [B, K, 108]
        cells = hog_layer(pixels).unflatten(4, (GRID[1], -1)).unflatten(3, (GRID[0], -1))  # [B, C, bins, 14, 2, 14, 2]
        labels = cells.permute(0, 3, 5, 1, 2, 4, 6).flatten(3).flatten(1, 2)  # [B, 196, 108]
        return labels[masks.mask.flatten(1)].view(len(pixels), -1, self.dim)


def drawn_masks(batch: int, device: "torch.device | str", compat: str | None) -> Callable[[], Masks]:
    """What gives the masks of a step."""
    draw = partial(make_masks, "block", batch, GRID, generator=torch.Generator().manual_seed(0), compat=compat)
    if torch.device(device).type == "cpu":
        return draw
    pool = [Masks(*(None if t is None else t.pin_memory() for t in draw())) for _ in range(16)]
    turns = itertools.cycle(pool)
    return lambda: next(turns).to(device, non_blocking=True)


def step_rivals(
    batch: int = 8,
    size: str = "base",  # of the ViT
    device: "torch.device | str" = "cpu",
    compiled: bool = False,
) -> list[Rival]:
    """A step and its target path, with our targets and the reference's; the ratio of a path is its share, forward.
    ``compiled``: instead, the step as it is and compiled by ``torch.compile``.

    On a GPU as it is trained there, under autocast to bfloat16. The same step once more says how much of a ratio is
    noise. Raises WrongResult where the two targets of bytes differ.
    """
    images = torch.from_numpy(photograph_batch(batch)).permute(0, 3, 1, 2).contiguous().to(device)
    pixels = normalise(images, **IMAGENET)
    on_gpu = torch.device(device).type == "cuda"
    mixed = partial(torch.autocast, torch.device(device).type, torch.bfloat16, enabled=on_gpu)
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

    if compiled:
        return [
            Rival("step, our targets", step_with(hog), [images]),
            Rival("step, our targets, compiled", step_with(hog, compiled=True), [images], versus="step, our targets"),
        ]
    return [
        Rival("step, our targets", step_with(hog), [images]),
        Rival("step, our targets, once more", step_with(hog), [images], versus="step, our targets"),
        Rival("step, reference targets", step_with(layer), [images], versus="step, our targets"),
        Rival("our target path, forward", our_path, [images], versus="step, our targets"),
        Rival("reference target path, forward", reference_path, [images], versus="step, reference targets"),
    ]
