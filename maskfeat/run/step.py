"""One part of a batch: its random numbers, its pixels, and its loss."""

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Finetune, Recipe
from ..data.loader import derive_seeds
from .device import arithmetic
from .finetune import train_step_inputs


def seed_everything(seed: int, stream: int, step: int, part: int) -> torch.Generator:
    """Set every source of random numbers, as a function of the four numbers alone; one more, for augmentation."""
    first, second = derive_seeds(seed, stream, step, part)
    random.seed(first)
    np.random.seed(first)  # noqa: NPY002, for code that draws from it
    torch.manual_seed(first)
    return torch.Generator().manual_seed(second)


def part_loss(
    model: nn.Module,
    batch: dict[str, Any],  # of a Loader
    recipe: Recipe,
    generator: torch.Generator,  # of seed_everything()
    device: torch.device,
    count: Tensor | None = None,
) -> Tensor:  # scalar
    """The loss of a part; ``count`` as in :meth:`maskfeat.MaskFeat.forward`."""
    batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    pixels = normalise(batch["images"], recipe.mean, recipe.std)
    if isinstance(recipe, Finetune):
        pixels, labels = train_step_inputs(pixels, batch.get("labels"), recipe, generator)
        return F.cross_entropy(compute(model, recipe, device, pixels).float(), labels)
    return compute(model, recipe, device, pixels, batch["images"], batch["masks"], count)


def infer(
    network: Callable[[Tensor], Tensor],
    images: Tensor,  # [B, C, ...] uint8
    recipe: Recipe,
    device: torch.device,
) -> Tensor:
    """The result of ``network`` for images that are normalised as the recipe says."""
    images = images.to(device, non_blocking=True)
    return compute(network, recipe, device, normalise(images, recipe.mean, recipe.std))


def compute(network: Callable[..., Tensor], recipe: Recipe, device: torch.device, *inputs: Any) -> Tensor:
    """``network(*inputs)`` in the arithmetic of the recipe: the one place that turns autocast on."""
    kind = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[arithmetic(device, recipe.precision)]
    with torch.autocast(device.type, kind, enabled=kind is not None):
        return network(*inputs)


def normalise(
    images: Tensor,  # [B, C, ...] uint8
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Tensor:  # float32
    """(x / 255 - mean) / std for each channel."""
    offset, scale = _offset_and_scale(tuple(mean), tuple(std), images.ndim, images.device)
    return images.float().sub_(offset).mul_(scale)


@lru_cache(maxsize=32)
def _offset_and_scale(
    mean: tuple[float, ...], std: tuple[float, ...], ndim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    shape = (-1, *[1] * (ndim - 2))
    offset, scale = torch.tensor([mean, [1 / value for value in std]], dtype=torch.float64)
    return (255 * offset).float().view(shape).to(device), (scale / 255).float().view(shape).to(device)
