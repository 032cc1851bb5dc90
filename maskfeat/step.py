"""One part of a batch: its random numbers, its masks and its loss."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Finetune, Pretrain, Recipe
from .data import normalise
from .finetune import train_step_inputs
from .mask import Masks, make_masks

TRAINING, HELD_OUT = 0, 1  # streams of random numbers


def make_generator(recipe: Recipe, device: torch.device) -> torch.Generator:
    """The generator of masks and augmentation, where they are made."""
    return torch.Generator("cpu" if getattr(recipe, "mask_compat", "") else device)


def seed_part(generator: torch.Generator, seed: int, stream: int, step: int, part: int) -> None:
    """Set every source of random numbers, as a function of the four numbers alone."""
    first, second = np.random.SeedSequence((seed, stream, step, part)).generate_state(2).tolist()
    random.seed(first)
    np.random.seed(first)  # noqa: NPY002, for code that draws from it
    torch.manual_seed(first)
    generator.manual_seed(second)


def recipe_masks(recipe: Pretrain, batch: int, generator: torch.Generator, device: torch.device) -> Masks:
    """Masks of ``batch`` samples as the recipe says."""
    return make_masks(
        recipe.mask,
        batch,
        recipe.mask_grid,
        recipe.mask_ratio,
        generator=generator,
        device=device,
        compat=recipe.mask_compat or None,
    )


def part_loss(
    model: nn.Module,
    batch: dict[str, Tensor],
    recipe: Recipe,
    generator: torch.Generator,
    device: torch.device,
    count: Tensor | None = None,
) -> Tensor:  # scalar
    """The loss of a part; ``count`` as in :meth:`maskfeat.model.MaskFeat.forward`."""
    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
        if isinstance(recipe, Finetune):
            pixels, labels = train_step_inputs(batch, recipe, generator)
            return F.cross_entropy(model(pixels).float(), labels)
        pixels = normalise(batch["images"], recipe.mean, recipe.std)
        return model(pixels, batch["images"], recipe_masks(recipe, len(pixels), generator, device), count)
