"""Checkpoints of torch, read as tensors: whatever else they hold is not made."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch

from .storage import one_line, read_tensors


class Inert:
    """Stands for an object of a class that is not needed, such as arguments or a history; its data are dropped."""

    def __init__(self, *values: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_file(path: Path) -> dict[str, Any]:
    """The dictionary in a safetensors file or in a file of ``torch.save``. Objects that are no tensors are inert.

    Raises FileNotFoundError, or ValueError for a file that cannot be read so. That is a pickle which calls a function
    of the system, for example.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        return dict(read_tensors(path)[0])
    with open(path, "rb") as file:
        first = file.read(8)
    if not first.startswith((b"PK", b"\x80")):  # a zip file, or in old versions a pickle
        raise ValueError(f"{path} is no checkpoint of torch, and not named .safetensors; it begins with {first!r}")
    try:
        found = _load(path, first)
    except Exception as error:  # loading may fail in any way on a damaged or unsafe file
        # The reason stands amid advice, such as to read the file without precaution.
        match = re.search(r"(?:WeightsUnpickler error:\s*|Trying to load )(.*?)(?:\. Please use|\.?\n|$)", str(error))
        reason = match[1] if match else f"{type(error).__name__} {one_line(error)}"
        raise ValueError(f"{path} cannot be read as tensors alone: {reason}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a dictionary of tensors")
    return found


def _load(path: Path, first: bytes) -> Any:
    """By torch's unpickler for weights, which calls only what it is allowed: here a class that does nothing."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if first.startswith(b"PK") else []
    stand_ins: list[Any] = [
        (type(name.rpartition(".")[2], (Inert,), {}), name)  # so messages tell what it is
        for name in names
        if name.rpartition(".")[0] not in SYSTEM
    ]
    with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
        warnings.filterwarnings("ignore", category=FutureWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


SYSTEM = {"os", "posix", "nt", "sys", "subprocess", "builtins", "shutil", "importlib", "runpy", "pickle", "ctypes"}
"""Modules whose functions a checkpoint has no reason to name: such a file is refused, though it could do nothing."""
