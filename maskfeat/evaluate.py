"""What a model is worth: held-out loss, accuracy of a classifier or of nearest neighbours, a picture."""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import Finetune, Pretrain, Recipe
from .data import HELD_OUT, Loader, make_loader
from .distributed import World
from .finetune import evaluate, feature_maps, knn
from .model import MaskFeat
from .show import panel
from .step import part_loss, seed_part


def evaluate_model(model: nn.Module, recipe: Recipe, world: World, split: str = "val") -> dict[str, float]:
    """Accuracy of a classifier; held-out loss, and kNN accuracy where there are labels, of a pre-trained model."""
    if isinstance(recipe, Finetune):
        return evaluate(model, held_out(recipe, world, split), recipe, world)
    results = {"val_loss": held_out_loss(model, recipe, world)}
    if recipe.knn and _has_labels(recipe):
        results["knn_accuracy"] = knn_accuracy(model, recipe, world)
    return results


def held_out(recipe: Recipe, world: World, split: str = "val") -> Loader:
    """This rank's share of the held-out data."""
    return make_loader(recipe, split, seed=recipe.seed, rank=world.rank, world=world.size, workers=recipe.workers)


@torch.no_grad()
def held_out_loss(model: nn.Module, recipe: Pretrain, world: World) -> float:
    """The mean loss of the held-out samples, under the same masks at every evaluation.

    Raises ValueError if none of them can be read.
    """
    device = world.device
    total = torch.zeros(2, device=device)
    for i, batch in enumerate(held_out(recipe, world)):
        generator = seed_part(recipe.seed, HELD_OUT, i * world.size + world.rank, 0)
        loss, samples = part_loss(model, batch, recipe, generator, device), len(batch["images"])
        total += torch.stack([loss, torch.ones_like(loss)]) * samples
    loss, samples = world.sum(total).tolist()
    if not samples:
        raise ValueError(
            f"no held-out sample of {recipe.val_data or recipe.data!r} could be read; repair them, name others with "
            "val_data=..., or train without them with eval_every=0"
        )
    return loss / samples


def knn_accuracy(model: nn.Module, recipe: Recipe, world: World) -> float:
    """Accuracy of the nearest of ``knn_samples`` training samples, without augmentation, on the held-out data.

    Every rank computes all of it.
    """
    encoder = model.encoder if isinstance(model, MaskFeat) else _Trunk(model)
    samples = min(filter(None, (recipe.samples, recipe.knn_samples)), default=0)
    queries = dataclasses.replace(recipe, batch_size=recipe.rank_batch(world.size), accumulate=1)
    bank = dataclasses.replace(queries, samples=samples)
    loaders = [
        make_loader(part, split, seed=recipe.seed, workers=recipe.workers, augment=False)
        for part, split in ((bank, "train"), (queries, "val"))
    ]
    return knn(encoder, loaders, recipe.knn or Recipe.knn, world.device)


def show_panel(model: MaskFeat, recipe: Recipe, path: Path, number: int = 8) -> None:
    """Write the picture of ``number`` held-out samples; ValueError for a model that was not pre-trained."""
    if not isinstance(recipe, Pretrain):
        raise ValueError(f"show needs a pre-trained model that predicts HOG; {recipe.name} is a classifier")
    one = dataclasses.replace(recipe, batch_size=number, accumulate=1)
    batch = next(iter(make_loader(one, "val", seed=recipe.seed)), None)
    if batch is None:
        raise ValueError(f"no held-out sample of {recipe.val_data or recipe.data!r} could be read to be shown")
    panel(model, batch["images"], batch["masks"], path, mean=recipe.mean, std=recipe.std)


class _Trunk(nn.Module):
    """The features that a classifier classifies."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> Tensor:  # [B, D]
        return feature_maps(self.classifier, pixels).flatten(2).mean(2)


def _has_labels(recipe: Recipe) -> bool:
    one = dataclasses.replace(recipe, batch_size=1, accumulate=1)
    return all(make_loader(one, split, seed=recipe.seed).batches.source.classes != 0 for split in ("train", "val"))
