"""Weights of our models in files, with their recipe, and how they are put into a model."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import config
from ..config import Recipe
from ..encoders.mvit import resize_relative_positions
from ..encoders.vit import resize_positions
from ..model import MaskFeat, trunk
from .storage import one_line, read_tensors, save_tensors

log = logging.getLogger(__name__)

WEIGHTS, EMA_WEIGHTS, BEST_WEIGHTS = "weights.safetensors", "weights_ema.safetensors", "best.safetensors"


def save_weights(path: Path, weights: dict[str, Tensor], recipe: Recipe, step: int, **header: str) -> None:
    """Weights alone, as safetensors with the recipe in the header."""
    header |= {"format": "pt", "recipe": json.dumps(config.to_dict(recipe)), "step": str(step)}
    save_tensors(path, weights, header)


def save_if_best(path: Path, weights: dict[str, Tensor], recipe: Recipe, step: int, results: dict[str, float]) -> None:
    """Save weights unless those at ``path`` were better by the measure ``recipe.keep_best``.

    Raises ValueError if this measure is not among the results.
    """
    if recipe.keep_best not in results:
        raise ValueError(f"keep_best must be one of {', '.join(map(repr, results))} here, got {recipe.keep_best!r}")
    value = results[recipe.keep_best]
    before = float(read_tensors(path)[1].get(recipe.keep_best, "nan")) if path.exists() else math.nan
    if math.isnan(before) or (value < before if recipe.keep_best == "val_loss" else value > before):
        save_weights(path, weights, recipe, step, **{recipe.keep_best: repr(value)})


def forget_best(path: Path, step: int) -> None:
    """Remove weights of :func:`save_if_best` from after ``step``, where a run goes on or begins anew."""
    if path.exists() and int(read_tensors(path)[1].get("step", 0)) > step:
        path.unlink()


def read_weights(path: Path) -> tuple[dict[str, Tensor], Recipe]:
    """The weights in a file of :func:`save_weights` or in a run folder, and their recipe.

    Raises FileNotFoundError or ValueError if there are none, or if they are damaged.
    """
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"there are no weights {file}")
    try:
        tensors, metadata = read_tensors(file)
    except ValueError as error:
        raise ValueError(f"{error}; `maskfeat convert` reads other formats") from error
    if "recipe" not in metadata:
        raise ValueError(f"{file} names no recipe; `maskfeat convert` reads files of other projects")
    try:
        values = json.loads(metadata["recipe"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the recipe in {file} is damaged ({one_line(error)})") from error
    return tensors, recipe_of(values, file)


def recipe_of(values: Any, source: Path) -> Recipe:
    """The recipe that ``source`` holds as JSON; ValueError if it is damaged."""
    try:
        return config.from_dict(values)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"the recipe in {source} is damaged ({type(error).__name__}: {error})") from error


def initialise(model: nn.Module, path: Path) -> None:
    """Put the weights at ``path`` into ``model``; positions are resized.

    A classifier takes the encoder of a pre-trained model and keeps its own norm and head. A classifier's own weights
    must fit whole.

    Raises ValueError with the names that are missing, left over or of another shape.
    """
    weights, _ = read_weights(path)
    fresh: tuple[str, ...] = ()
    if not isinstance(model, MaskFeat) and any(name.startswith("encoder.") for name in weights):
        weights = {name.removeprefix("encoder."): t for name, t in weights.items() if name.startswith("encoder.")}
        fresh = ("fc_norm.", "norm.", "head.")
    load_strictly(model, resize_weights(model, weights, predicts=False), path, fresh)


def spread_channels(
    weight: Tensor,  # [D, old, ...]
    channels: int,
) -> Tensor:  # [D, channels, ...]
    """A patch embedding for another number of channels, which gives of a gray picture about what it gave.

    One channel has the sum of the old; others repeat the old in order, scaled by old / channels.

    Raises ValueError for several channels from others than 1 or 3, as bands differ too much to stand for each other.

    Source: timm's ``adapt_input_conv``.
    """
    old = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    if old not in (1, 3):
        raise ValueError(
            f"weights of {old} channels fit {old} or 1, got channels={channels}; those of 3 fit any number"
        )
    order = torch.arange(channels) % old
    return weight[:, order] * (old / channels)


def resize_weights(model: nn.Module, weights: dict[str, Tensor], predicts: bool = True) -> dict[str, Tensor]:
    """Absolute positions (of square images) and relative ones, brought to the lengths of ``model``, and its channels.

    predicts: False lets the model keep its own layers that predict where other channels need others.
    """
    encoder, own, resized = trunk(model), model.state_dict(), {}
    patch = next((name for name in weights if name.endswith("patch_embed.proj.weight")), "")
    spread = patch in own and weights[patch].shape[1] != own[patch].shape[1]
    if spread:
        log.warning(
            "the patch embedding of %d channels becomes one of %d: %s",
            *(weights[patch].shape[1], own[patch].shape[1]),
            "their sum" if own[patch].shape[1] == 1 else "they are repeated, and scaled to the same sum",
        )
    for name, tensor in weights.items():
        if name in own and own[name].shape != tensor.shape:
            if name.endswith("pos_embed"):
                side = round((tensor.shape[1] - 1) ** 0.5)
                if side**2 + 1 == tensor.shape[1] and tensor.shape[2] == encoder.embed_dim:
                    tensor = resize_positions(tensor, (side, side), encoder.grid)
            elif name == patch and spread:
                tensor = spread_channels(tensor, own[name].shape[1])
            elif spread and not predicts and name.startswith("pred_head.projections."):
                tensor = own[name]
                log.warning("new, as it predicts other channels: %s", name)
            elif ".rel_pos_" in name and tensor.shape[1] == own[name].shape[1]:
                tensor = resize_relative_positions(tensor, len(own[name]))
        resized[name] = tensor
    return resized


def load_strictly(model: nn.Module, weights: dict[str, Tensor], source: Any, fresh: tuple[str, ...] = ()) -> None:
    """``load_state_dict`` that says what does not fit; names that start with one of ``fresh`` may be missing."""
    own = model.state_dict()
    missing = [name for name in own if name not in weights and not name.startswith(fresh or ("\0",))]
    unexpected = [name for name in weights if name not in own]
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    problems = {"missing": missing, "not in the model": unexpected, "of another shape": shapes}
    if any(problems.values()):
        parts = [f"{kind}: {_some(names)}" for kind, names in problems.items() if names]
        raise ValueError(f"the weights of {source} do not fit the model; {'; '.join(parts)}")
    model.load_state_dict(weights, strict=False)


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
