"""Files that are whole or not there, that say when they are damaged, and whose reading runs nothing that is in them.

A safetensors file of ours has in its header the SHA-256 of all that it holds.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

log = logging.getLogger(__name__)

CHECKSUM = "sha256"
"""The key under which a header holds the checksum. Most processors have instructions for SHA-256. With them it is the
fastest checksum of hashlib."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that after a crash it is either missing or whole. It is on disk when this returns."""
    with replacing(path, path.with_name(path.name + ".partial")) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, partial: Path) -> Iterator[BinaryIO]:
    """The file ``partial`` to write to. At the end of the block it is on disk, and then takes the name ``path``.

    Whatever is raised in the block leaves neither of them changed at ``path``, and no ``partial``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with writing(path), open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # it would take the room that is missing
        raise
    sync_folder(path.parent)


def check_writable(path: Path) -> None:
    """OSError where :func:`write_atomically` could not write to ``path``, before long work is done for it."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file, such as {path / 'picture.png'}")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise PermissionError(f"{folder} is no folder that can be written to; choose another place for {path.name}")


@contextmanager
def writing(path: "str | os.PathLike[str]") -> Iterator[None]:
    """Around what writes to ``path``: an error of a full disk then names the path, which Python leaves out."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:  # the system numbers its errors; ours say all
            raise
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_checksum(path: Path) -> str:
    """SHA-256 of a regular file; OSError if it is none, as opening a pipe would wait for ever."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    digest, buffer = hashlib.sha256(), memoryview(bytearray(2**20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def json_checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 of what JSON says, however it is laid out."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def tensors_checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the names, types, shapes and bytes of tensors, and of texts."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with ``metadata`` and a checksum in its header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(Path(path), save(tensors, {**metadata, CHECKSUM: tensors_checksum(tensors, metadata)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and the texts in its header.

    Raises ValueError if it is none, or not what was written.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    except (SafetensorError, OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path} is no safetensors file ({one_line(error)})") from error
    written = metadata.pop(CHECKSUM, None)
    if written is not None and written != tensors_checksum(tensors, metadata):
        raise ValueError(f"{path} is damaged: it does not have the checksum in its header")
    if written is None and "recipe" in metadata:
        log.warning("%s was written without a checksum: damage to it would not be noticed", path)
    return tensors, metadata


def one_line(error: BaseException) -> str:
    """The reason in short: the first line of the first error that it carries."""
    failures = getattr(error, "failures", None)  # of torch.distributed.checkpoint, by rank
    if failures:
        error = next(iter(failures.values()))[0]
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
