"""What a model is worth: held-out loss, accuracy of a classifier or of nearest neighbours, a picture, its features."""

import dataclasses
import json
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Finetune, Pretrain, Recipe
from ..data.loader import HELD_OUT, Loader, make_loader
from ..model import MaskFeat
from ..weights.storage import save_tensors
from .distributed import World
from .show import panel
from .step import infer, part_loss, seed_everything

log = logging.getLogger(__name__)


def evaluate_model(model: nn.Module, recipe: Recipe, world: World, split: str = "val") -> dict[str, float]:
    """Accuracy of a classifier; held-out loss, and kNN accuracy where there are labels, of a pre-trained model."""
    if isinstance(recipe, Finetune):
        return classifier_accuracy(model, held_out(recipe, world, split), recipe, world)
    assert isinstance(recipe, Pretrain)
    results = {"val_loss": held_out_loss(model, recipe, world)}
    if recipe.knn and has_labels(recipe):
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
        generator = seed_everything(recipe.seed, HELD_OUT, i * world.size + world.rank, 0)
        loss, samples = part_loss(model, batch, recipe, generator, device), len(batch["images"])
        total += torch.stack([loss, torch.ones_like(loss)]) * samples
    loss, samples = world.sum(total).tolist()
    if not samples:
        raise ValueError(
            f"no held-out sample of {recipe.val_data or recipe.data!r} could be read; repair them, name others with "
            "val_data=..., or train without them with eval_every=0"
        )
    return loss / samples


@torch.no_grad()
def classifier_accuracy(
    model: nn.Module,
    loader: Loader,
    recipe: Finetune,
    world: World,
) -> dict[str, float]:
    """Cross-entropy and accuracy (0 to 1) on labelled samples, over all ranks.

    The class probabilities of a sample are the mean over its views; a "test" loader gives all of them at once.

    Returns ``val_loss``, ``top1``, ``top5`` and ``samples``. Raises ValueError if there is no labelled sample.
    """
    device = world.device
    sums = torch.zeros(4, device=device)
    for probabilities, labels in _classified(model, loader, recipe, device):
        right = probabilities.topk(min(5, probabilities.shape[1])).indices == labels.unsqueeze(1)
        losses = F.nll_loss(probabilities.clamp_min(torch.finfo(torch.float32).tiny).log(), labels, reduction="sum")
        sums += torch.stack([losses, right[:, 0].sum(), right.sum(), torch.full_like(losses, len(labels))])
    loss, first, fifth, samples = world.sum(sums).tolist()
    if not samples:
        raise ValueError(f"there is no labelled sample to evaluate in {recipe.val_data or recipe.data!r}")
    return {"val_loss": loss / samples, "top1": first / samples, "top5": fifth / samples, "samples": int(samples)}


@torch.no_grad()
def confusion_matrix(model: nn.Module, loader: Loader, recipe: Finetune, world: World) -> Tensor:
    """How many samples of each class (row) were taken for each class (column), over all ranks: int64 ``[C, C]``."""
    counts = torch.zeros(recipe.classes, recipe.classes, dtype=torch.int64, device=world.device)
    for probabilities, labels in _classified(model, loader, recipe, world.device):
        counts.index_put_((labels, probabilities.argmax(1)), torch.ones_like(labels), accumulate=True)
    return world.sum(counts).cpu()


def _classified(
    model: nn.Module, loader: Loader, recipe: Finetune, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:  # [B, classes], [B]
    """Probabilities, the mean over the views of a sample, and labels."""
    training = model.training
    model.eval()
    for batch in loader:
        if "labels" not in batch:
            raise ValueError(f"evaluation needs labels, and {recipe.val_data or recipe.data!r} has none")
        labels = batch["labels"].to(device, non_blocking=True)
        scores = infer(model, batch["images"], recipe, device)
        yield scores.float().softmax(-1).unflatten(0, (len(labels), -1)).mean(1), labels
    model.train(training)


def knn_accuracy(model: nn.Module, recipe: Recipe, world: World) -> float:
    """Accuracy of the nearest of ``knn_samples`` training samples, without augmentation, on the held-out data."""
    encoder = model.encoder if isinstance(model, MaskFeat) else _Features(model)
    samples = min(filter(None, (recipe.samples, recipe.knn_samples)), default=0)
    options: dict[str, Any] = dict(
        seed=recipe.seed, rank=world.rank, world=world.size, workers=recipe.workers, augment=False
    )
    bank = make_loader(dataclasses.replace(recipe, samples=samples), "train", **options)
    return knn(encoder, (bank, make_loader(recipe, "val", **options)), recipe.knn or Recipe.knn, world)


@torch.no_grad()
def knn(
    encoder: nn.Module,
    loaders: tuple[Loader, Loader],
    k: int,
    world: World,
    temperature: float = 0.07,
) -> float:
    r"""Accuracy (0 to 1) of a vote of the k nearest samples of the first loader on those of the second.

    The features are what ``encoder(pixels)`` gives, compared by the cosine c; a neighbour's vote is
    :math:`e^{c / \mathrm{temperature}}`. The loaders are a rank's share of the samples; all ranks return the same.

    Raises ValueError if no sample of one of the loaders has a label.

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018.
    """
    bank, bank_labels = map(world.gather, features(encoder, loaders[0], world.device))
    queries, labels = features(encoder, loaders[1], world.device)
    classes = int(bank_labels.max()) + 1 if len(bank) else 0
    right = torch.tensor([0, len(labels)], device=world.device)
    for i in range(0, len(queries) if classes else 0, 1024):
        query, label = queries[i : i + 1024], labels[i : i + 1024]
        cosines, neighbours = (query @ bank.T).topk(min(k, len(bank)))
        votes = torch.zeros(len(query), classes, device=query.device)
        votes.scatter_add_(1, bank_labels[neighbours], (cosines / temperature).exp())
        right[0] += (votes.argmax(1) == label).sum()
    correct, asked = world.sum(right).tolist()
    for loader, samples in zip(loaders, (len(bank), asked), strict=True):
        if not samples:
            data = loader.data
            raise ValueError(f"the kNN accuracy needs labels, and no sample of {data!r} that can be read has one")
    return correct / asked


def features(
    encoder: nn.Module, loader: Loader, device: "torch.device | str"
) -> tuple[Tensor, Tensor]:  # [N, D] of unit length, [N]
    """Features and labels of the samples of a loader that have a label; the others are counted in a warning."""
    device, recipe, training = torch.device(device), loader.recipe, encoder.training
    encoder.eval()
    found, labels, unlabelled = [], [torch.empty(0, dtype=torch.int64, device=device)], 0
    for batch in loader:
        known = batch.get("labels", batch["indices"].new_full(batch["indices"].shape, -1)) >= 0
        unlabelled += int((~known).sum())
        if not known.any():
            continue
        outputs = infer(encoder, batch["images"][known], recipe, device)
        found.append(F.normalize(outputs.float(), dim=-1))
        labels.append(batch["labels"][known].to(device))
    encoder.train(training)
    if unlabelled:
        log.warning("the kNN accuracy leaves out %d samples of %s that have no label", unlabelled, loader.data)
    return torch.cat(found) if found else torch.empty(0, 0, device=device), torch.cat(labels)


def show_panel(model: nn.Module, recipe: Recipe, path: Path, number: int = 8) -> None:
    """Write the picture of ``number`` held-out samples; ValueError for a model that was not pre-trained."""
    if not isinstance(recipe, Pretrain):
        raise ValueError(f"show needs a pre-trained model that predicts HOG; {recipe.name} is a classifier")
    assert isinstance(model, MaskFeat)
    one = dataclasses.replace(recipe, batch_size=number, accumulate=1)
    batch = next(iter(make_loader(one, "val", seed=recipe.seed)), None)
    if batch is None:
        raise ValueError(f"no held-out sample of {recipe.val_data or recipe.data!r} could be read to be shown")
    panel(model, batch["images"], batch["masks"], path, mean=recipe.mean, std=recipe.std)


class _Features(nn.Module):
    """The features that a classifier classifies."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> Tensor:  # [B, D]
        return feature_maps(self.classifier, pixels).flatten(2).mean(2)


def feature_maps(
    encoder: Any,  # as MaskFeat takes it
    pixels: Tensor,  # [B, C, (T,) H, W], normalised
) -> Tensor:  # [B, D, (T',) rows, columns]
    """Outputs of the last block on its grid: what a detector, as for AVA, crops the features of its boxes from.

    Gradients flow, so that a detector can train the encoder as well.
    """
    tokens, grid = encoder.embed(pixels)
    [(x, grid)] = encoder.encode(tokens, grid, (len(encoder.widths) - 1,))
    return x[:, encoder.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)


@torch.no_grad()
def export_features(encoder: nn.Module, loader: Loader, folder: "str | Path", device: "torch.device | str") -> None:
    """Write ``features`` (float16, :func:`feature_maps`), ``labels`` and ``indices`` of a batch to a safetensors file.

    A row of each is one view of a sample. Its number in the data is in ``indices``. Its file or key is in ``names``, a
    JSON list in the metadata. Samples that cannot be read have no row.

    Raises FileExistsError if the folder holds features already: those of another call would be mixed with them.
    """
    if any(Path(folder).glob("batch_*.safetensors")):
        raise FileExistsError(f"{folder} holds features already; choose another --output, or remove it")
    device, recipe, training = torch.device(device), loader.recipe, encoder.training
    Path(folder).mkdir(parents=True, exist_ok=True)
    encoder.eval()
    for i, batch in enumerate(loader, start=loader.start):
        maps = infer(partial(feature_maps, encoder), batch["images"], recipe, device).half().cpu().contiguous()
        views = len(maps) // len(batch["indices"])
        rows: dict[str, Tensor] = {
            name: batch[name].repeat_interleave(views) for name in ("labels", "indices") if name in batch
        }
        metadata = {"names": json.dumps(loader.names(rows["indices"]))}
        save_tensors(Path(folder) / f"batch_{i:06}.safetensors", {"features": maps, **rows}, metadata)
    encoder.train(training)


def has_labels(recipe: Recipe) -> bool:
    """Whether the samples of both splits have labels, or may have some."""
    one = dataclasses.replace(recipe, batch_size=1, accumulate=1)
    return all(make_loader(one, split, seed=recipe.seed).source.classes != 0 for split in ("train", "val"))
