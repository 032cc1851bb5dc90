"""What lies in the folder of a checkpoint, read and checked; :mod:`maskfeat.run.checkpoint` writes it."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from .. import config
from ..config import Recipe
from .checkpoint_files import Planner, Reader
from .storage import file_checksum, json_checksum, one_line

FORMAT = 2
"""Format 1 had neither checksums nor a fingerprint of the data; it is read as well."""
AN_OLDER = "remove it to use an older one"


def read_model(path: Path) -> tuple[dict[str, Tensor], Recipe]:
    """The weights in a checkpoint and their recipe, as :func:`maskfeat.weights.files.read_weights` gives them.

    Raises ValueError if it is incomplete or damaged.
    """
    run = read_run(path)
    if problem := damage(path, sorted(run.get("checksums", {}).items())):
        raise ValueError(problem)
    reader = Reader(path, run["files"])
    try:
        weights = {
            name.removeprefix("model."): torch.empty(info.size, dtype=info.properties.dtype)
            for name, info in reader.metadata.state_dict_metadata.items()
            if name.startswith("model.") and isinstance(info, TensorStorageMetadata)
        }
    except (TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"the checkpoint {path} cannot be read: {one_line(error)}") from error
    fill({"model": weights}, path, reader)
    return weights, recipe_of(run["recipe"], path)


def fill(state: dict[str, Any], path: Path, reader: Reader, group: Any = None, alone: bool = True) -> None:
    """Fill the tensors of ``state``; alone: this process reads all of them, whatever other ranks do."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it is meant to be, if ``alone``
            dcp.load(state, storage_reader=reader, planner=Planner(), process_group=group, no_dist=alone)
    except (CheckpointException, Exception) as error:  # damage shows in any way where there is no checksum
        raise ValueError(f"the checkpoint {path} cannot be read: {one_line(error)}") from error


def read_run(path: Path) -> dict[str, Any]:
    """``run.json`` of the checkpoint at ``path``; ValueError if it is damaged, or a file is missing or cut short."""
    try:
        run = json.loads((path / "run.json").read_text())
        version, step, recipe = run["format"], run["step"], run["recipe"]
        files = {str(name): int(size) for name, size in run["files"].items()}
        checksums = dict(run.get("checksums", {}))
        if not (isinstance(recipe, dict) and isinstance(step, int)):
            raise TypeError("run.json has no recipe or no step")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the checkpoint {path} is half-written: its run.json is missing or damaged") from error
    if version not in (1, FORMAT):
        raise ValueError(f"the checkpoint {path} has format {version}, this version reads 1 and {FORMAT}")
    written = run.pop("checksum", None)
    if (version == FORMAT or written is not None) and (
        written != json_checksum(run) or checksums.keys() != files.keys()
    ):
        raise ValueError(f"the checkpoint {path} is damaged: run.json does not have its checksum; {AN_OLDER}")
    for name, size in files.items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise ValueError(f"the checkpoint {path} is half-written: {name} {state}; {AN_OLDER}")
    return run


def damage(path: Path, checksums: list[tuple[str, str]]) -> str | None:
    """The fault of the first of these files of a checkpoint that differs from what was written."""
    for name, checksum in checksums:
        try:
            damaged = file_checksum(path / name) != checksum
        except OSError as error:
            return f"the checkpoint {path} cannot be read: {error}; {AN_OLDER}"
        if damaged:
            return f"the checkpoint {path} is damaged: {name} does not have its checksum; {AN_OLDER}"
    return None


def recipe_of(values: Any, source: Path) -> Recipe:
    """The recipe that ``source`` holds as JSON; ValueError if it is damaged."""
    try:
        return config.from_dict(values)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"the recipe in {source} is damaged ({type(error).__name__}: {error})") from error
