"""Mean and standard deviation of each channel of the samples to train on."""

import dataclasses
import logging
import math
import sys

import torch
from tqdm import tqdm

from ..config import Recipe
from ..data.loader import make_loader

log = logging.getLogger(__name__)

BATCH = 64


def measure(recipe: Recipe) -> dict[str, tuple[float, ...]]:
    r"""``mean`` and ``std`` of each channel, :math:`\sqrt{E[x^2] - E[x]^2}`, on a scale of 0 to 1.

    The pixels are those of the central crops of all samples to train on, read once. The sums are of whole numbers, so
    they are exact. A channel that is the same everywhere has ``std`` 1, with a warning.

    Raises ValueError if no sample can be read.
    """
    one = dataclasses.replace(recipe, batch_size=BATCH, accumulate=1)
    loader = make_loader(one, "train", seed=recipe.seed, workers=recipe.workers, augment=False)
    sums, count, moves = torch.zeros(2, recipe.channels, dtype=torch.int64), 0, sys.stderr.isatty()
    for i, batch in enumerate(tqdm(loader, desc="stats", unit="batch", dynamic_ncols=True, disable=not moves)):
        x = batch["images"].transpose(0, 1).flatten(1).double()  # [C, pixels], whose sums are below 2^53
        sums += torch.stack([x.sum(1), x.square().sum(1)]).long()
        count += x.shape[1]
        if not moves and i % max(len(loader) // 10, 1) == 0:
            print(f"stats: batch {i + 1} of {len(loader)}", file=sys.stderr)
    if not count:
        raise ValueError(f"no sample of {recipe.data!r} could be read; the lines above say why")
    totals, squares = sums.tolist()
    spreads = [math.sqrt(count * square - total**2) / count for total, square in zip(totals, squares, strict=True)]
    if flat := [i + 1 for i, spread in enumerate(spreads) if not spread]:
        log.warning("the same everywhere, so that std is 1: channel %s", ", ".join(map(str, flat)))
    mean = tuple(total / count / 255 for total in totals)
    return {"mean": mean, "std": tuple(spread / 255 or 1.0 for spread in spreads)}
