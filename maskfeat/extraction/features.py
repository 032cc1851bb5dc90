"""What is extracted of an image or a clip: its HOG in any dialect, or what an encoder gives for it.

A feature says what it is (``says``, for JSON), how it is read (``reading``), the shape of a row, and ``load(device)``
gives the function from uint8 images to rows.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskfeat_kernels import HogSpec, fused_hog

from ..config import Recipe, check_test_size, to_dict
from ..keys import Size, key
from ..model import trunk
from ..run.evaluate import feature_maps
from ..run.step import infer
from ..weights.files import load_model
from ..weights.storage import tensors_checksum

Compute = Callable[[Tensor], Tensor]
"""From uint8 images ``[B, C, H, W]`` or clips ``[B, C, T, H, W]`` to features ``[B, ...]``."""

MATTERS = (
    *("channels", "autorotate", "data_range", "image_size", "test_size", "interpolation"),
    *("frames", "frame_step", "sampling", "samples"),
)
"""Keys of a recipe that say which pixels are seen."""

READ_BY = (*MATTERS, "data", "val_data", "batch_size", "device")
"""Keys of a recipe that concern reading."""


@dataclass(frozen=True, kw_only=True)
class Reading(Recipe):
    """How samples are read. It is no recipe to train by, so samples need no labels."""

    test_size: Size = key(  # noqa: RUF009, a field
        Size(0, 0), "pixels that a sample is resized to cover before its centre is cropped; 0 for 8/7 of image_size"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_test_size(self.test_size, self.image_size)

    def one(self) -> tuple[int, ...]:
        """The shape of a batch of one sample."""
        return (1, self.channels, *([self.frames] if self.frames else []), *self.image_size)

    def says(self) -> dict[str, Any]:
        return {name: value for name, value in to_dict(self).items() if name in MATTERS}


def reading_of(recipe: Recipe) -> Reading:
    """What of a recipe concerns reading."""
    values = {name: getattr(recipe, name) for name in READ_BY if hasattr(recipe, name)}
    kind = "mvit" if recipe.frames else "vit"  # which says whether clips are read
    return Reading(name="extract", encoder=kind, mean=recipe.mean, std=recipe.std, **values)


@dataclass(frozen=True)
class Hog:
    """Histograms of oriented gradients. Those of a clip are of each of its frames."""

    spec: HogSpec

    def says(self) -> dict[str, Any]:
        return {"hog": dataclasses.asdict(self.spec)}

    def shape(self, reading: Reading) -> tuple[int, ...]:
        """Of one row; ValueError if the spec does not fit the image."""
        return tuple(self(torch.empty(reading.one(), dtype=torch.uint8, device="meta")).shape[1:])

    def load(self, device: torch.device) -> Compute:
        return lambda images: self(images.to(device))

    def __call__(self, images: Tensor) -> Tensor:
        return fused_hog(images if images.ndim == 4 else images.transpose(1, 2), self.spec)


@dataclass(frozen=True)
class Encoded:
    """The outputs of the last block of an encoder, on its grid, or their mean."""

    weights: Path
    recipe: Recipe
    pooled: bool
    checksum: str

    def says(self) -> dict[str, Any]:
        model = ("encoder", "size", "patch_size", "mean", "std", "precision")
        values = {name: value for name, value in to_dict(self.recipe).items() if name in model}
        return {"encoder": {**values, "weights": self.checksum, "pooled": self.pooled}}

    def shape(self, reading: Reading) -> tuple[int, ...]:
        """Of one row."""
        model, _, _ = load_model(self.weights, lambda _: self.recipe, predicts=False)
        with torch.no_grad():
            maps = feature_maps(trunk(model).to("meta"), torch.empty(reading.one(), device="meta"))
        return tuple(maps.shape[1:2] if self.pooled else maps.shape[1:])

    def load(self, device: torch.device) -> Compute:
        """ValueError if the weights are no longer those that the extraction began with."""
        model, _, _ = load_model(self.weights, lambda _: self.recipe, predicts=False)
        if checksum_of(model) != self.checksum:
            raise ValueError(f"{self.weights} has changed since the extraction began; copy its weights.safetensors")
        return partial(self._compute, trunk(model).to(device), device)

    def _compute(self, encoder: Any, device: torch.device, images: Tensor) -> Tensor:
        maps = infer(partial(feature_maps, encoder), images, self.recipe, device).float()
        return maps.flatten(2).mean(2) if self.pooled else maps


def encoded(weights: Path, change: Callable[[Recipe], Recipe], pooled: bool) -> tuple[Encoded, str]:
    """The feature of the encoder in a run folder, a checkpoint or a file of weights; and a note on what was resized.

    change: gives the recipe to extract by, from that of the weights.
    """
    model, recipe, note = load_model(weights, change, predicts=False)
    return Encoded(weights.absolute(), recipe, pooled, checksum_of(model)), note


def checksum_of(model: torch.nn.Module) -> str:
    return tensors_checksum(trunk(model).state_dict(), {})
