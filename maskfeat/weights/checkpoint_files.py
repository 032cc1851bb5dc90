"""The files of torch.distributed.checkpoint, whose pickles run nothing here and whose errors name the file.

All else is as torch has it. A pickle gives only what a checkpoint consists of.
"""

import math
import os
import pathlib
import pickle
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint import filesystem as dcp_files
from torch.distributed.checkpoint import metadata as dcp_metadata

from .storage import one_line, writing

MOST_METADATA = 2**30
"""Bytes of a checkpoint's ``.metadata`` beyond which it is none; a sharded ViT-L on 64 ranks has some 10 MB."""


class Writer(FileSystemWriter):
    """Writes a checkpoint; an error names the file."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.fs = _NamingFiles()


class Reader(FileSystemReader):
    """Reads a checkpoint. Nothing in its pickle is executed.

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
            for name, info in self.metadata.state_dict_metadata.items():
                if isinstance(info, dcp_metadata.TensorStorageMetadata):  # else its memory would stay as it was
                    parts = sum(math.prod(chunk.sizes) for chunk in info.chunks)
                    if parts != math.prod(info.size):
                        raise ValueError(f"it has {parts} numbers of {name}, not {math.prod(info.size)}")
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
    """Puts what is no tensor, as a learning rate, into the state, and reads it with ``weights_only=True``."""

    def load_bytes(self, read_item: Any, value: BytesIO) -> None:
        plain = torch.load(value, map_location="cpu", weights_only=True)
        safe = BytesIO()
        torch.save(plain, safe)
        safe.seek(0)
        super().load_bytes(read_item, safe)


class _NamingFiles(dcp_files.FileSystem):
    @contextmanager
    def create_stream(self, path: "str | os.PathLike[str]", mode: str) -> Iterator[Any]:
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
