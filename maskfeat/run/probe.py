"""Linear probes: classifiers on the frozen features of an encoder, for several blocks, poolings and rates at once."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Recipe
from ..data.loader import Loader, make_loader
from ..model import trunk
from .distributed import World
from .step import infer

RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Learning rates of the probes, for standardised features."""

BATCH, MOMENTUM = 256, 0.9


def probe(
    model: nn.Module,
    recipe: Recipe,
    world: World,
    depths: Sequence[int] = (),
    rates: Sequence[float] = RATES,
    epochs: int = 30,
) -> list[dict[str, Any]]:
    """Accuracies (0 to 1) on the held-out data of logistic regressions on frozen features, the best one first.

    The features of a block are pooled in two ways: "mean" of all patch tokens, and the "class" token where there is
    one. They are standardised, and are those of central crops. Each probe is trained by SGD with momentum and a cosine.

    depths: blocks, from 0; by default the last of each quarter of the encoder.
    rates, epochs: learning rates that are tried, and passes over the training samples.

    Returns ``depth``, ``pooling``, ``lr`` and ``top1`` of every probe. As the held-out data choose among them, the best
    is a little better than it would be on new data.

    Raises ValueError for a block that the encoder does not have, or if there are no labels.
    """
    encoder, seed = trunk(model), recipe.seed
    blocks = len(encoder.widths)
    depths = tuple(depths) or tuple(sorted({max(1, blocks * i // 4) - 1 for i in range(1, 5)}))
    if wrong := [depth for depth in depths if not 0 <= depth < blocks]:
        raise ValueError(f"depths must be from 0 to {blocks - 1}, got {wrong[0]}")
    encoder.eval()
    options: dict[str, Any] = dict(seed=seed, rank=world.rank, world=world.size, workers=recipe.workers, augment=False)
    train, test = (pooled(encoder, make_loader(recipe, split, **options), depths, world) for split in ("train", "val"))
    found = []
    for (depth, pooling), x in train[0].items():
        mean, std = x.mean(0), x.std(0, correction=0) + 1e-6
        samples = ((x - mean) / std, train[1]), ((test[0][depth, pooling] - mean) / std, test[1])
        for rate, top1 in zip(rates, accuracies(*samples, rates, epochs, seed), strict=True):
            found.append({"depth": depth, "pooling": pooling, "lr": rate, "top1": top1})
    return sorted(found, key=lambda entry: -entry["top1"])


@torch.no_grad()
def pooled(
    encoder: Any, loader: Loader, depths: Sequence[int], world: World
) -> tuple[dict[tuple[int, str], Tensor], Tensor]:  # [N, D] by block and pooling, [N]
    """Features of all samples with a label, over all ranks."""
    device, recipe, prefix = world.device, loader.recipe, encoder.num_prefix_tokens
    poolings = ("mean", "class") if prefix else ("mean",)

    def pool(pixels: Tensor) -> Tensor:  # [B, the features of all blocks and poolings side by side]
        found = [x for x, _ in encoder.encode(*encoder.embed(pixels), tuple(depths))]
        parts = [[x[:, prefix:].mean(1), x[:, 0]][: len(poolings)] for x in found]
        return torch.cat(list(itertools.chain(*parts)), 1)

    rows, labels = [], []
    for batch in loader:
        known = batch["labels"] >= 0 if "labels" in batch else batch["indices"] < 0
        if known.any():
            rows.append(infer(pool, batch["images"][known], recipe, device).float())
            labels.append(batch["labels"][known].to(device))
    if not world.any(bool(rows)):
        raise ValueError(f"a probe needs labels, and no sample of {loader.data!r} that can be read has one")
    widths = [encoder.widths[depth] for depth in depths for _ in poolings]
    all_rows = world.gather(torch.cat(rows) if rows else torch.empty(0, sum(widths), device=device))
    all_labels = world.gather(torch.cat(labels) if labels else torch.empty(0, dtype=torch.int64, device=device))
    return dict(zip(itertools.product(depths, poolings), all_rows.split(widths, 1), strict=True)), all_labels


@torch.enable_grad()
def accuracies(
    train: tuple[Tensor, Tensor],  # [N, D], [N]
    test: tuple[Tensor, Tensor],
    rates: Sequence[float],
    epochs: int,
    seed: int,
) -> list[float]:
    """Accuracy on ``test`` of a probe for each rate; all see the same batches."""
    (x, labels), (y, wanted) = train, test
    classes = int(torch.cat([labels, wanted]).max()) + 1
    probes = nn.ModuleList(nn.Linear(x.shape[1], classes, device=x.device) for _ in rates)
    for parameter in probes.parameters():
        nn.init.zeros_(parameter)
    groups = [{"params": linear.parameters(), "lr": rate} for linear, rate in zip(probes, rates, strict=True)]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM)
    steps = -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=order).to(x.device).split(BATCH):
            scores = torch.stack([linear(x[chosen]) for linear in probes])  # [rates, B, classes]
            loss = F.cross_entropy(scores.flatten(0, 1), labels[chosen].repeat(len(rates)), reduction="sum")
            (loss / len(chosen)).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    with torch.no_grad():
        found = torch.stack([linear(y) for linear in probes])  # [rates, N, classes]
        right = (found.argmax(2) == wanted) & found.isfinite().all(2)  # a rate that is too high is right nowhere
        return right.double().mean(1).tolist()
