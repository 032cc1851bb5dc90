"""One part of a batch: its random numbers and its loss."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Finetune, Recipe
from ..data.loader import normalise, part_seeds
from .distributed import autocast
from .finetune import train_step_inputs


def seed_part(seed: int, stream: int, step: int, part: int) -> torch.Generator:
    """Set every source of random numbers, as a function of the four numbers alone; one more, for augmentation."""
    first, second = part_seeds(seed, stream, step, part)
    random.seed(first)
    np.random.seed(first)  # noqa: NPY002, for code that draws from it
    torch.manual_seed(first)
    return torch.Generator().manual_seed(second)


def part_loss(
    model: nn.Module,
    batch: dict,  # of a Loader
    recipe: Recipe,
    generator: torch.Generator,  # of seed_part()
    device: torch.device,
    count: Tensor | None = None,
) -> Tensor:  # scalar
    """The loss of a part; ``count`` as in :meth:`maskfeat.model.MaskFeat.forward`."""
    batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    with autocast(device, recipe.precision):
        if isinstance(recipe, Finetune):
            pixels, labels = train_step_inputs(batch, recipe, generator)
            return F.cross_entropy(model(pixels).float(), labels)
        pixels = normalise(batch["images"], recipe.mean, recipe.std)
        return model(pixels, batch["images"], batch["masks"], count)
