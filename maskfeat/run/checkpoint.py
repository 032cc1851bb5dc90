"""Checkpoints of a run, from which it goes on bit for bit.

A checkpoint is a folder ``OUT/checkpoints/step_00001234``, written by torch.distributed.checkpoint. Beside the tensors
lies ``run.json``. It has the recipe, the step, a fingerprint of the data, and the size and SHA-256 of every file.

A checkpoint is written under another name, and renamed when it is complete and on disk. So a folder of that name is
whole, whenever the process dies. What is damaged later is refused.

The step stands for the schedule, the position in the data, the masks and every random number. All of them are functions
of the recipe and the step (:func:`maskfeat.run.step.seed_everything`).
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
from torch.distributed.checkpoint.api import CheckpointException

from .. import config
from ..config import Recipe
from ..encoders.timm import library as timm
from ..keys import text_of
from ..weights.checkpoint_files import Reader, Writer
from ..weights.checkpoints import FORMAT, damage, fill, read_run, recipe_of
from ..weights.storage import file_checksum, json_checksum, sync_folder, write_atomically
from .distributed import World

log = logging.getLogger(__name__)

# A run may go on with other values of these keys. Another `accumulate` draws other masks; the rest changes nothing.
FREE = {
    "accumulate", "cache_mb", "change", "compile", "device", "eval_every", "extend", "init", "keep", "keep_best", "knn",
    "knn_samples", "log_every", "name", "out", "parallel", "recompute", "resume", "save_every", "tensorboard",
    "val_data", "wandb", "workers",
}  # fmt: skip


class Checkpoints:
    """The checkpoints of the run in the folder ``out``, written while training goes on; the newest ``keep`` stay.

    samples: how many the data to train on have.
    data: their fingerprint. A run goes on from data that moved, not from others.
    """

    def __init__(self, out: Path, recipe: Recipe, world: World, samples: int = 0, data: str = ""):
        self.folder, self.recipe, self.world = Path(out) / "checkpoints", recipe, world
        self.samples, self.data = samples, data
        self._writer = ThreadPoolExecutor(1)
        self._pending: Future[Any] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy ``state`` and return; it is written in the background, after the one before."""
        self.wait()
        partial = self.folder / f"partial_{step:08d}"
        if self.world.rank == 0:
            for stale in self.folder.glob("partial_*"):  # of a process that was killed
                shutil.rmtree(stale, ignore_errors=True)
            partial.mkdir(parents=True, exist_ok=True)
        written = dcp.async_save(state, storage_writer=Writer(partial), process_group=self.world.group)
        assert isinstance(written, Future)
        self._pending = self._writer.submit(self._finish, written, partial, step)

    def wait(self) -> None:
        """Until the last checkpoint is on disk; raises what kept it from getting there."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def load(self, path: Path, state: dict[str, Any]) -> tuple[int, Recipe]:
        """Fill the tensors of ``state`` from the checkpoint at ``path``; its step and its recipe.

        Raises ValueError if it is incomplete, damaged or belongs to another recipe or other data.
        """
        run = read_run(path)
        saved = recipe_of(run["recipe"], path)
        self._check_timm(path, run)
        self._check_data(path, run, saved)
        check_recipe(path, dataclasses.replace(saved, data=self.recipe.data), self.recipe)
        checksums = sorted(run.get("checksums", {}).items())
        mine = checksums[self.world.rank :: self.world.size]
        problem = next(filter(None, self.world.every(damage(path, mine))), None)
        if problem:
            raise ValueError(problem)
        if not checksums and self.world.rank == 0:
            log.warning("%s was written without checksums: damage to it would not be noticed", path)
        fill(state, path, Reader(path, run["files"]), self.world.group, alone=False)
        return run["step"], saved

    def _check_timm(self, path: Path, run: dict[str, Any]) -> None:
        """ValueError unless timm, where it makes the encoder, is of the version that made it before."""
        if not self.recipe.timm or "timm" in self.recipe.change:
            return
        there, here = run.get("timm"), timm().__version__
        if there not in (None, here):
            raise ValueError(
                f"{path} was trained with timm {there}, and here is timm {here}; pip install timm=={there}, "
                "or add change=timm"
            )

    def _check_data(self, path: Path, run: dict[str, Any], saved: Recipe) -> None:
        """ValueError unless the samples are those of the checkpoint, wherever they are now."""
        data = self.recipe.data
        if "data" in self.recipe.change:
            return
        if run.get("samples", self.samples) != self.samples:
            raise ValueError(
                f"{path} was trained on {run['samples']} samples, and {data!r} now has {self.samples}; "
                "choose another out, the same data, or change=data"
            )
        known = run.get("data")
        if known is not None and known != self.data:
            raise ValueError(
                f"{path} was trained on other data than {data!r} now has, with as many samples: names, sizes or "
                "classes differ; choose another out, the same data, or change=data"
            )
        if saved.data == data or self.world.rank:
            return
        same = "as many samples" if known is None else "the same samples"
        log.warning(
            "%s was trained on %s; it goes on with %s, which has %s (%d)", path, saved.data, data, same, self.samples
        )

    def _finish(self, written: Future[Any], partial: Path, step: int) -> None:
        try:
            files = self._written(written, partial)
            if self.world.rank == 0:
                self._complete(files, partial, step)
        except OSError:
            if self.world.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)  # it would take the room that is missing
            raise

    def _written(self, written: Future[Any], partial: Path) -> list[tuple[str, int, str]]:
        """Name, size and checksum of every file; raises, on all ranks, what kept one of them from writing its own."""
        own: Any
        try:
            written.result()  # on rank 0 this waits for all ranks
            files = sorted(file for file in partial.iterdir() if _writer(file.name) == self.world.rank)
            # Each rank reads what it has just written, which its machine still has in memory.
            own = [(file.name, file.stat().st_size, file_checksum(file)) for file in files]
        except CheckpointException as failed:
            own = next(iter(failed.failures.values()))[0]
        except OSError as failed:
            own = failed
        parts = self.world.every(own)
        for failure in parts:
            if isinstance(failure, BaseException):
                raise failure
        return [file for part in parts for file in part]

    def _complete(self, files: list[tuple[str, int, str]], partial: Path, step: int) -> None:
        run = {"format": FORMAT, "step": step, "recipe": config.to_dict(self.recipe), "samples": self.samples}
        run |= {"data": self.data, "files": {name: size for name, size, _ in files}}
        if self.recipe.timm:
            run["timm"] = timm().__version__
        run["checksums"] = {name: checksum for name, _, checksum in files}
        run["checksum"] = json_checksum(run)
        write_atomically(partial / "run.json", json.dumps(run, indent=1).encode())
        whole = self.folder / f"step_{step:08d}"
        shutil.rmtree(whole, ignore_errors=True)
        os.replace(partial, whole)
        sync_folder(self.folder)
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


def _writer(name: str) -> int:
    """The rank that writes the file of this name."""
    numbered = re.match(r"__(\d+)_", name)
    return int(numbered[1]) if numbered else 0


def differences(saved: Recipe, wanted: Recipe) -> dict[str, tuple[Any, Any]]:
    """Of the keys that decide how a run trains: those that differ, with both values."""
    there, here = config.to_dict(saved), config.to_dict(wanted)
    names = sorted((there.keys() | here.keys()) - FREE)
    return {name: (there.get(name), here.get(name)) for name in names if there.get(name) != here.get(name)}


def check_recipe(path: Path, saved: Recipe, wanted: Recipe) -> None:
    """ValueError unless the two recipes train alike, but for what ``extend`` and ``change`` of the second allow."""
    allowed = {"epochs", "steps", "warmup_epochs"} if wanted.extend else set()
    allowed |= {"lr", "warmup_lr", "end_lr"} if "lr" in wanted.change else set()
    allowed |= {"samples"} if "data" in wanted.change else set()
    differ = {name: values for name, values in differences(saved, wanted).items() if name not in allowed}
    if differ:
        details = ", ".join(
            f"{name}={text_of(there)} there and {text_of(here)} here" for name, (there, here) in differ.items()
        )
        keys = {"epochs": "extend=true", "steps": "extend=true", "lr": "change=lr", "samples": "change=data"}
        advice = "".join(f", or add {key}" for key in sorted({keys[name] for name in differ if name in keys}))
        raise ValueError(f"{path} belongs to another run: {details}; choose another out, or the same settings{advice}")
