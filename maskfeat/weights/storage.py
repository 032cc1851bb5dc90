"""Files that are whole or not there, that say when they are damaged, and whose reading runs nothing that is in them.

A safetensors file of ours has in its header the SHA-256 of all that it holds. The checkpoints of
torch.distributed.checkpoint are read and written as always, but for two things: pickles give only what a checkpoint
consists of, and an error of the file system names the file.
"""

import hashlib
import json
import logging
import os
import pathlib
import pickle
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint import filesystem as dcp_files
from torch.distributed.checkpoint import metadata as dcp_metadata

log = logging.getLogger(__name__)

CHECKSUM = "sha256"
"""The key under which a header holds the checksum. Where processors have instructions for SHA-256, as most have, it is
the fastest of hashlib."""

MOST_METADATA = 2**30
"""Bytes of a checkpoint's ``.metadata`` beyond which it is none; a sharded ViT-L on 64 ranks has some 10 MB."""


def write_atomically(path: Path, data: bytes) -> None:
    """A file that is either not there or whole, and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with writing(path), open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)  # it would take the room that is missing
        raise
    sync_folder(path.parent)


@contextmanager
def writing(path: "str | os.PathLike") -> Iterator[None]:
    """What is written to ``path``: the error of a full disk names it, which it does not by itself."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
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
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file with ``metadata`` and a checksum in its header."""
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


class Writer(FileSystemWriter):
    """Writes a checkpoint; an error names the file."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.fs = _NamingFiles()


class Reader(FileSystemReader):
    """Reads a checkpoint, whatever is in its pickle.

    files: the only ones that it reads tensors from.

    Raises ValueError if the metadata are none.
    """

    def __init__(self, path: Path, files: Collection[str]):
        super().__init__(path)
        file = path / ".metadata"
        if not file.is_file() or file.stat().st_size > MOST_METADATA:
            raise ValueError(f"the checkpoint {path} cannot be read: it has no metadata")
        try:
            self.metadata = _Unpickler(BytesIO(file.read_bytes())).load()
            outside = {info.relative_path for info in self.metadata.storage_data.values()} - set(files)
        except Exception as error:  # a damaged pickle may fail in any way
            raise ValueError(f"the checkpoint {path} cannot be read: {one_line(error)}") from error
        if outside:
            raise ValueError(f"{file} names a file that is not of the checkpoint, {min(outside)!r}")

    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp_metadata.Metadata:
        self.metadata.storage_meta = self.metadata.storage_meta or dcp_metadata.StorageMeta()
        self.metadata.storage_meta.load_id = self.load_id
        return self.metadata


class Planner(DefaultLoadPlanner):
    """Puts what is no tensor, as a learning rate, into the state, and reads it as tensors are read."""

    def load_bytes(self, read_item: Any, value: BytesIO) -> None:
        plain = torch.load(value, map_location="cpu", weights_only=True)
        safe = BytesIO()
        torch.save(plain, safe)
        safe.seek(0)
        super().load_bytes(read_item, safe)


class _NamingFiles(dcp_files.FileSystem):
    @contextmanager
    def create_stream(self, path: "str | os.PathLike", mode: str) -> Iterator[Any]:
        with writing(path):
            try:
                with super().create_stream(path, mode) as stream:
                    yield stream
            except RuntimeError as error:  # of torch.save(), which then ends a file that is not as long as it thinks
                raise _first_cause(error) from error


def _first_cause(error: BaseException) -> BaseException:
    while error.__context__ is not None:
        error = error.__context__
    return error


class _Unpickler(pickle._Unpickler):
    """Calls nothing but the classes of which the metadata of a checkpoint consist.

    It is the one in Python, as that in C takes whatever memory a damaged file asks for.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _HARMLESS:
            return _HARMLESS[module, name]
        kind = getattr(torch, name, None) if module == "torch" else None
        if isinstance(kind, torch.dtype):
            return kind
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no checkpoint needs")


_HARMLESS = {
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,  # looks a name up
    ("pathlib", "PosixPath"): pathlib.PurePosixPath,
    ("pathlib._local", "PosixPath"): pathlib.PurePosixPath,
    (dcp_files.__name__, "_StorageInfo"): dcp_files._StorageInfo,
} | {
    (dcp_metadata.__name__, name): getattr(dcp_metadata, name)
    for name in (
        *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
        *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
    )
}
