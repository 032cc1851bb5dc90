"""Pictures of what a model predicts: masked input, predicted HOG, target HOG and original."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from maskfeat_kernels import fused_hog, hog_image

from ..config import IMAGENET
from ..mask import Masks
from ..model import MaskFeat
from ..target import HogTarget, MixTarget, Target, brightness, frames_of
from ..weights.storage import write_atomically
from .step import normalise

TITLES = ("masked input", "predicted HOG", "target HOG", "original")
GREY, GAP, MARGIN = 0.5, 6, 22
SEEN = 0.35
"""Brightness of the histograms of visible patches, which are not predicted, beside the predicted ones."""


def panel(
    model: MaskFeat,
    images: Tensor,  # [B, C, H, W] or [B, C, T, H, W] uint8
    masks: Masks,
    path: "str | Path",
    *,
    mean: tuple[float, ...] = IMAGENET["mean"],
    std: tuple[float, ...] = IMAGENET["std"],
) -> None:
    """Write a PNG: for every image a row of four pictures, for every clip four strips of the frames that are predicted.

    The picture of the prediction shows the visible patches dimmed, with their true histograms. Of more than three
    channels the images are the first three, of fewer the first; a histogram is drawn as the mean over all channels.

    Raises ValueError if the model does not predict HOG, or for images or masks that do not fit it.
    """
    tiles = torch.stack(pictures(model, images, masks, mean, std))  # [4, B, T, 3, h, w]
    video = images.ndim == 5
    tiles = tiles.transpose(0, 1)  # [B, 4, T, 3, h, w]
    rows = tiles.flatten(0, 1) if video else tiles.squeeze(2)  # [rows, columns, 3, h, w]
    rows = F.pad(rows, (GAP // 2, GAP - GAP // 2) * 2, value=1.0)
    sheet = rows.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # [rows * h, columns * w, 3]
    sheet = F.pad(sheet, (0, 0, 0, 0, MARGIN, 0), value=1.0)
    picture = Image.fromarray((sheet * 255).round().byte().cpu().numpy())
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    titles = [*TITLES[:3], TITLES[3] + {1: "", 2: ", band 1", 3: ""}.get(images.shape[1], ", bands 1, 2, 3")]
    if video:
        draw.text((GAP, 3), ", ".join(titles) + "; time runs to the right", "black", font)
    else:
        for i, title in enumerate(titles):
            draw.text((GAP + i * rows.shape[-1], 3), title, "black", font)
    file = BytesIO()
    picture.save(file, "png")
    write_atomically(Path(path), file.getvalue())


@torch.no_grad()
def pictures(
    model: MaskFeat,
    images: Tensor,  # [B, C, H, W] or [B, C, T, H, W] uint8
    masks: Masks,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> list[Tensor]:  # four of [B, T', 3, h, w] float32 in [0, 1]
    """Masked input, predicted HOG, target HOG and original, at the predicted frames, on the CPU.

    A HOG picture has 16 pixels to a cell, and the others are enlarged to its size.
    """
    training = model.training
    model.eval()
    prediction, masked = model.predict(normalise(images, mean, std), masks)[-1]
    model.train(training)
    target, first = hog_part(model.targets[-1])
    prediction = prediction[..., first : first + target.dim].float()
    frames = frames_of(images, target.temporal_stride)
    frames = frames if images.ndim == 5 else frames.unsqueeze(1)  # [B, T', C, H, W]
    seen = brightness(frames) if target.gray else frames.contiguous()
    wanted = fused_hog(seen, target.spec, backend=target.backend)  # [B, T', C, bins, rows, columns]
    grid = tuple(masked.mask.shape[1:]) if images.ndim == 5 else (1, *masked.mask.shape[1:])
    hidden = masked.mask.view(-1, *grid)
    sides = [cells // patches for cells, patches in zip(wanted.shape[-2:], grid[1:], strict=True)]
    predicted = cells_of(prediction, masked, grid, wanted.shape[2], target.spec.bins, sides)

    hidden_cells = hidden.repeat_interleave(sides[0], 2).repeat_interleave(sides[1], 3)[:, :, None, None]
    drawn = hog_image(torch.where(hidden_cells, predicted, SEEN * wanted))
    target_drawn = hog_image(wanted)
    size = drawn.shape[-2:]
    colour = (-1, -1, 3, -1, -1)
    original = enlarge(frames[:, :, : 3 if frames.shape[2] > 2 else 1].float() / 255, size).expand(colour)
    shade = enlarge(hidden.unsqueeze(2).float(), size)
    masked_input = torch.where(shade > 0, GREY, original)
    return [
        masked_input.cpu(),
        drawn.unsqueeze(2).expand(colour).cpu(),
        target_drawn.unsqueeze(2).expand(colour).cpu(),
        original.cpu(),
    ]


def hog_part(target: Target) -> tuple[HogTarget, int]:
    """The HOG among what a model predicts, and where it begins in a prediction."""
    if isinstance(target, HogTarget):
        return target, 0
    first = 0
    for part in target.targets if isinstance(target, MixTarget) else ():
        if isinstance(part, HogTarget):
            return part, first
        first += part.dim
    raise ValueError(f"the panel shows predicted HOG, but the model predicts {type(target).__name__}")


def cells_of(
    prediction: Tensor,  # [B, K, C * bins * u * v]
    masks: Masks,
    grid: tuple[int, ...],  # (T, rows, columns)
    channels: int,
    bins: int,
    sides: list[int],  # u and v, cells of a patch
) -> Tensor:  # [B, T, C, bins, rows * u, columns * v]
    """Predictions put where their patches are; zero elsewhere."""
    every = prediction.new_zeros(len(prediction), grid[0] * grid[1] * grid[2], prediction.shape[-1])
    every.scatter_(1, masks.ids.unsqueeze(-1).expand_as(prediction), prediction)
    cells = every.unflatten(-1, (channels, bins, *sides)).unflatten(1, grid)  # [B, T, rows, columns, C, bins, u, v]
    return cells.permute(0, 1, 4, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5)


def enlarge(frames: Tensor, size: Sequence[int]) -> Tensor:  # [B, T, C, H, W] -> [B, T, C, *size]
    return F.interpolate(frames.flatten(0, 1), size=tuple(size), mode="nearest").unflatten(0, frames.shape[:2])
