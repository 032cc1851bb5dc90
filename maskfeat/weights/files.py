"""Weights of our models in files, with their recipe, and how they are put into a model."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import config
from ..build import build
from ..config import Pretrain, Recipe
from ..encoders.mvit import resize_relative_positions
from ..encoders.vit import resize_patches, resize_positions
from ..keys import Size
from ..model import trunk
from .checkpoints import read_model, recipe_of
from .storage import one_line, read_tensors, save_tensors

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
    """The weights in a file of :func:`save_weights`, in a run folder or in one of its checkpoints, and their recipe.

    Raises FileNotFoundError or ValueError if there are none, or if they are damaged.
    """
    path = Path(path)
    if (path / "run.json").exists():
        return read_model(path)
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


def load_model(
    source: Path, change: Callable[[Recipe], Recipe], predicts: bool = True
) -> tuple[nn.Module, Recipe, str]:
    """The model of weights in evaluation mode, its recipe, and a note on what was resized or is new.

    change: gives the recipe of the model, from that of the weights. predicts: as in :func:`put`.

    Raises FileNotFoundError or ValueError as :func:`read_weights` and :func:`put`.
    """
    weights, trained = read_weights(source)
    recipe = change(trained)
    if predicts and isinstance(recipe, Pretrain) and trained.channels != recipe.channels:
        raise ValueError(
            f"{source} predicts {trained.channels} channels, got channels={recipe.channels}; pre-train with "
            f"init={source} channels={recipe.channels} first"
        )
    model = build(recipe)
    note = put(model, weights, trained, source, predicts=predicts)
    return model.eval(), recipe, note


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


def put(
    model: nn.Module,
    weights: dict[str, Tensor],
    recipe: Recipe,
    source: Any,
    fresh: tuple[str, ...] = (),
    predicts: bool = True,
) -> str:
    """Put weights of ``recipe`` into a model that may be for images of another shape, other patches or channels.

    fresh: beginnings of names that may be missing.
    predicts: False keeps the model's own prediction layers where other patches or channels change their shape.

    Returns a note on what was resized or is new. Raises ValueError as :func:`load_strictly`.
    """
    weights, notes = resize_weights(model, weights, recipe)
    if not predicts and any(note.startswith(("patches", "channels")) for note in notes):
        heads = ((name, own) for name, own in model.state_dict().items() if name.startswith("pred_head.projections."))
        new = tuple(name for name, own in heads if name in weights and own.shape != weights[name].shape)
        weights, fresh = {name: tensor for name, tensor in weights.items() if name not in new}, fresh + new
        notes += [f"new: {', '.join(new)}"] if new else []
    load_strictly(model, weights, source, fresh)
    return "; ".join(notes)


def resize_weights(model: nn.Module, weights: dict[str, Tensor], recipe: Recipe) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of ``recipe`` with patches, channels and positions as ``model`` has them, and notes on what was changed.

    What else has another shape stays as it is.
    """
    own, resized, notes, tables = model.state_dict(), dict(weights), [], 0
    old_grid, new_grid = None, getattr(trunk(model), "grid", None)
    known = [name for name in weights if name in own and weights[name].ndim == own[name].ndim]
    for name in sorted(known, key=lambda name: "patch_embed" not in name):  # which says the grid of the positions
        tensor, old, new = weights[name], weights[name].shape, own[name].shape
        if name.endswith("patch_embed.proj.weight"):
            if tensor.ndim == 4:
                old_grid = recipe.image_size.height // old[2], recipe.image_size.width // old[3]
            if tensor.ndim == 4 and old[2:] != new[2:]:
                resized[name] = resize_patches(tensor, (new[2], new[3]))
                notes.append(f"patches resized from {Size(*old[2:])} to {Size(*new[2:])} pixels")
            if old[1] != new[1]:
                resized[name] = spread_channels(resized[name], new[1])
                how = "their sum" if new[1] == 1 else "they are repeated, and scaled to the same sum"
                notes.append(f"channels from {old[1]} to {new[1]}: {how}")
        elif re.search(r"(^|\.)pos_embed$", name) and new_grid and old[2:] == new[2:]:
            prefix = new[1] - math.prod(new_grid)
            grid = grid_of(old[1] - prefix, old_grid)
            if grid and grid != new_grid:
                resized[name] = resize_positions(tensor, grid, new_grid)
                notes.append("positions resized from {} x {} to {} x {} patches".format(*grid, *new_grid))
        elif ".rel_pos_" in name and old[0] != new[0] and old[1] == new[1]:
            resized[name] = resize_relative_positions(tensor, new[0])
            tables += 1
    return resized, notes + ([f"{tables} tables of relative positions resized"] if tables else [])


def grid_of(patches: int, stated: tuple[int, int] | None) -> tuple[int, int] | None:
    """Rows and columns of a grid of ``patches``: those stated, if they fit; else a square, if any; else None."""
    side = math.isqrt(max(patches, 0))
    return stated if stated and math.prod(stated) == patches else (side, side) if 0 < side**2 == patches else None


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
