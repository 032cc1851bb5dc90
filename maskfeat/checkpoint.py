"""Checkpoints of a run, from which it goes on bit for bit, and light weights.

A checkpoint is a folder ``OUT/checkpoints/step_00001234``, written by torch.distributed.checkpoint; beside the tensors
lies ``run.json`` with the recipe, the step and the size of every file. It is written under another name and renamed
when it is complete and on disk, so a folder of that name is whole, whenever the process dies.

The schedule, the position in the data, the masks and every random number of a step are functions of the recipe and the
step (:func:`maskfeat.step.seed_part`), so the step stands for all of them.
"""

import dataclasses
import json
import logging
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from . import config
from .config import Recipe
from .distributed import World
from .model import MaskFeat
from .mvit import resize_relative_positions
from .vit import resize_positions

log = logging.getLogger(__name__)

# Keys that a run may go on with under other values. Other parts of a batch draw other masks; the rest changes nothing.
FREE = {
    "accumulate", "cache_mb", "compile", "device", "eval_every", "init", "keep", "knn", "knn_samples", "log_every",
    "name", "out", "parallel", "recompute", "resume", "save_every", "tensorboard", "val_data", "workers",
}  # fmt: skip
FORMAT = 1
WEIGHTS, EMA_WEIGHTS = "weights.safetensors", "weights_ema.safetensors"


class Checkpoints:
    """The checkpoints of the run in the folder ``out``, written while training goes on; the newest ``keep`` stay.

    samples: how many the data to train on have; a run goes on from data that moved if they have as many.
    """

    def __init__(self, out: Path, recipe: Recipe, world: World, samples: int = 0):
        self.folder, self.recipe, self.world, self.samples = Path(out) / "checkpoints", recipe, world, samples
        self._writer = ThreadPoolExecutor(1)
        self._pending: Future | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy ``state`` and return; it is written in the background, after the one before."""
        self.wait()
        partial = self.folder / f"partial_{step:08d}"
        if self.world.rank == 0:
            for stale in self.folder.glob("partial_*"):  # of a process that was killed
                shutil.rmtree(stale, ignore_errors=True)
            partial.mkdir(parents=True, exist_ok=True)
        written = dcp.async_save(state, checkpoint_id=partial, process_group=self.world.group)
        self._pending = self._writer.submit(self._finish, written, partial, step)

    def wait(self) -> None:
        """Until the last checkpoint is on disk; raises what kept it from getting there."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def load(self, path: Path, state: dict[str, Any]) -> int:
        """Fill the tensors of ``state`` from the checkpoint at ``path``; the step at which it was taken.

        Raises ValueError if it is incomplete or belongs to another recipe.
        """
        run = read_run(path)
        saved = config.from_dict(run["recipe"])
        moved = saved.data != self.recipe.data and run.get("samples") == self.samples
        if moved and self.world.rank == 0:
            log.warning(
                "%s was trained on %s; it goes on with %s, which has as many samples (%d)",
                *(path, saved.data, self.recipe.data, self.samples),
            )
        check_recipe(path, dataclasses.replace(saved, data=self.recipe.data) if moved else saved, self.recipe)
        if run.get("samples", self.samples) != self.samples:
            raise ValueError(
                f"{path} was trained on {run['samples']} samples, and {self.recipe.data!r} now has {self.samples}; "
                "choose another out, or the same data"
            )
        dcp.load(state, checkpoint_id=path, process_group=self.world.group)
        return run["step"]

    def _finish(self, written: Future, partial: Path, step: int) -> None:
        written.result()  # on rank 0 this waits for all ranks
        if self.world.rank:
            return
        files = {file.name: file.stat().st_size for file in partial.iterdir()}
        run = {"format": FORMAT, "step": step, "recipe": config.to_dict(self.recipe), "samples": self.samples}
        run["files"] = files
        write_atomically(partial / "run.json", json.dumps(run, indent=1).encode())
        whole = self.folder / f"step_{step:08d}"
        shutil.rmtree(whole, ignore_errors=True)
        os.replace(partial, whole)
        _sync(self.folder)
        for old in whole_checkpoints(self.folder)[: -self.recipe.keep]:
            shutil.rmtree(old)


def whole_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder of them, oldest first."""
    return sorted(path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at ``path``, or the newest one of the run folder ``path``.

    Raises FileNotFoundError if there is no such folder, ValueError if it holds no complete checkpoint.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path} to resume from")
    if (path / "run.json").exists() and not path.name.startswith("partial_"):
        return path
    whole = whole_checkpoints(path / "checkpoints") or whole_checkpoints(path)
    if whole:
        return whole[-1]
    if path.name.startswith(("step_", "partial_")):
        others = whole_checkpoints(path.parent)
        advice = f"; resume from {others[-1]}" if others else ""
        raise ValueError(f"the checkpoint {path} is half-written{advice}")
    raise ValueError(f"{path} is not the folder of a run: it holds no complete checkpoint")


def read_run(path: Path) -> dict:
    """``run.json`` of the checkpoint at ``path``; ValueError if a file is missing or cut short."""
    try:
        run = json.loads((path / "run.json").read_text())
        files, version = run["files"], run["format"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"the checkpoint {path} is half-written: its run.json is missing or damaged") from error
    if version != FORMAT:
        raise ValueError(f"the checkpoint {path} has format {version}, this version reads {FORMAT}")
    for name, size in files.items():
        found = (path / name).stat().st_size if (path / name).exists() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise ValueError(f"the checkpoint {path} is half-written: {name} {state}; remove it to use an older one")
    return run


def check_recipe(path: Path, saved: Recipe, wanted: Recipe) -> None:
    """ValueError unless the two recipes train alike."""
    saved, wanted = config.to_dict(saved), config.to_dict(wanted)
    differ = [name for name in saved.keys() | wanted.keys() if name not in FREE and saved.get(name) != wanted.get(name)]
    if differ:
        details = ", ".join(f"{name}={saved.get(name)} there and {wanted.get(name)} here" for name in sorted(differ))
        raise ValueError(f"{path} belongs to another run: {details}; choose another out, or the same settings")


def save_weights(path: Path, weights: dict[str, Tensor], recipe: Recipe, step: int) -> None:
    """Weights alone, as safetensors with the recipe in the header."""
    metadata = {"format": "pt", "recipe": json.dumps(config.to_dict(recipe)), "step": str(step)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_atomically(Path(path), save(tensors, metadata))


def read_weights(path: Path) -> tuple[dict[str, Tensor], Recipe]:
    """The weights in a file of :func:`save_weights` or in a run folder, and their recipe.

    Raises FileNotFoundError or ValueError if there are none.
    """
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(f"there are no weights {file}")
    try:
        with safe_open(file, framework="pt") as weights:
            recipe = (weights.metadata() or {}).get("recipe")
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118, no mapping
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file ({error}); `maskfeat convert` reads other formats") from error
    if recipe is None:
        raise ValueError(f"{file} names no recipe; `maskfeat convert` reads files of other projects")
    return tensors, config.from_dict(json.loads(recipe))


def initialise(model: nn.Module, path: Path) -> None:
    """Put the weights at ``path`` into ``model``; positions are resized.

    A classifier takes the encoder of a pre-trained model and keeps its own norm and head. A classifier's own weights
    must fit whole.

    Raises ValueError with the names that are missing, left over or of another shape.
    """
    weights, _ = read_weights(path)
    fresh = ()
    if not isinstance(model, MaskFeat) and any(name.startswith("encoder.") for name in weights):
        weights = {name.removeprefix("encoder."): t for name, t in weights.items() if name.startswith("encoder.")}
        fresh = ("fc_norm.", "norm.", "head.")
    load_strictly(model, resize_weights(model, weights), path, fresh)


def load_slowfast(file: "str | Path") -> nn.Module:
    """The model of a SlowFast checkpoint with its weights, as :func:`maskfeat.convert.load_slowfast` reads it."""
    from . import convert  # which needs this module

    return convert.load_slowfast(file)


def resize_weights(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Absolute positions (of square images) and relative ones, brought to the lengths of ``model``."""
    encoder, own, resized = getattr(model, "encoder", model), model.state_dict(), {}
    for name, tensor in weights.items():
        if name in own and own[name].shape != tensor.shape:
            if name.endswith("pos_embed"):
                side = round((tensor.shape[1] - 1) ** 0.5)
                if side**2 + 1 == tensor.shape[1] and tensor.shape[2] == encoder.embed_dim:
                    tensor = resize_positions(tensor, (side, side), encoder.grid)
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


def write_atomically(path: Path, data: bytes) -> None:
    """A file that is either not there or whole, and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
