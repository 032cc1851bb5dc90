"""``python -m examples.photographs.baselines DATA``: how well a target can be predicted without a network.

A loss says little alone. Here are those of simple predictors, on the central crops that the runs are tested on: a
constant; the mean at the place of the patch; a linear map from the true target of the patch beside it, and from those
of the patches above, below, left and right. They are fitted to the photographs that the models train on.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from maskfeat.data.loader import make_loader
from maskfeat.mask import Masks
from maskfeat.run.step import normalise
from maskfeat.target import HogTarget, PixelTarget, Target
from maskfeat.weights.storage import write_atomically

from .runs import machine
from .settings import Settings, pretraining

FILE = Path(__file__).parent / "results" / "baselines.json"
SETTINGS = Settings()
PENALTY = 1e-3  # of a linear map, times the number of patches


def measured(data: str, target: Target) -> dict[str, float]:
    """The loss of each predictor on the held-out photographs; the last is of patches that are not at the border."""
    known, wanted = (every_patch(data, split, target) for split in ("train", "val"))
    constant, placed = known.mean((0, 1, 2)), known.mean(0)
    beside = linear(known[:, :, :-1], known[:, :, 1:], wanted[:, :, :-1], wanted[:, :, 1:])
    around = linear(neighbours(known), known[:, 1:-1, 1:-1], neighbours(wanted), wanted[:, 1:-1, 1:-1])
    return {"constant": loss(wanted, constant), "placed": loss(wanted, placed), "beside": beside, "around": around}


def every_patch(data: str, split: str, target: Target) -> Tensor:  # [photographs, rows, columns, dim]
    """The targets of all patches of the central crops."""
    recipe = pretraining(SETTINGS, "hog", data, Path("unused"), seed=0, rate=1e-3, epochs=1)
    rows, columns = (side // recipe.patch_size for side in recipe.image_size)
    found = []
    for batch in make_loader(recipe, split, seed=0, augment=False):
        images = batch["images"]
        masks = Masks.from_bool(torch.ones(len(images), rows, columns, dtype=torch.bool))
        found.append(target(normalise(images, recipe.mean, recipe.std), images, masks).unflatten(1, (rows, columns)))
    return torch.cat(found)


def neighbours(patches: Tensor) -> Tensor:  # [N, rows - 2, columns - 2, 4 * dim]
    """The patches above, below, left and right of each that is not at the border."""
    inner = slice(1, -1)
    near = (patches[:, :-2, inner], patches[:, 2:, inner], patches[:, inner, :-2], patches[:, inner, 2:])
    return torch.cat(near, -1)


def linear(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """The loss of ridge regression with an intercept, fitted to (x, y)."""
    x, y = x.flatten(0, -2), y.flatten(0, -2)
    x_mean, y_mean = x.mean(0), y.mean(0)
    x = x - x_mean
    gram = x.T @ x + PENALTY * len(x) * torch.eye(x.shape[1])
    factors = torch.linalg.solve(gram, x.T @ (y - y_mean))
    return loss(y_test, (x_test - x_mean) @ factors + y_mean)


def loss(wanted: Tensor, predicted: Tensor) -> float:
    return (wanted - predicted).square().mean().item()


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.photographs.baselines", description=__doc__)
    parser.add_argument("data", help="photographs, as data= takes them")
    parser.add_argument("--to", type=Path, default=FILE, help="the JSON file to write (%(default)s)")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    patch = SETTINGS.model["patch_size"]
    found = {"hog": measured(options.data, HogTarget(patch)), "pixel": measured(options.data, PixelTarget(patch))}
    write_atomically(options.to, (json.dumps({**found, **machine()}) + "\n").encode())
    for name, losses in found.items():
        print(name, {predictor: round(value, 4) for predictor, value in losses.items()})


if __name__ == "__main__":
    main()
