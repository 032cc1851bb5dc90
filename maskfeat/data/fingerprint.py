"""Whether data are those that a run began with, from names, sizes and classes: no sample is read."""

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import numpy as np

from ..keys import is_url
from .shards import Shards
from .source import DecodedOnce, Files
from .stores import THREADS, file_statuses, read

PART = 1000
"""Files whose sizes a thread asks for, one after the other: a file server takes its time for each."""

LABELS_READ = 256
"""Labels of shards that are read, evenly spaced: they are files in the shards."""


def fingerprint(source: Any) -> str:
    """SHA-256 of what distinguishes the samples of a source from others, in their order.

    Files: their names below the folder that all have in common, their sizes and their classes. Shards: their names and
    sizes, the keys and places of the samples, and some labels. Of any other source the name of its class counts.

    Raises OSError naming a file that cannot be read. One that is not there counts as that, as its sample is skipped.
    """
    if isinstance(source, DecodedOnce):
        source = source.source
    digest = hashlib.sha256(type(source).__name__.encode())
    if isinstance(source, Files):
        _add_files(digest, source.paths.tolist(), None if source.sizes is None else source.sizes.tolist())
        digest.update(b"" if source.labels is None else source.labels.astype("<i8").tobytes())
        digest.update(b"" if source.times is None else source.times.astype("<f8").tobytes())
    elif isinstance(source, Shards):
        _add_files(digest, [os.fsencode(shard) for shard in source.shards])
        digest.update(b"\0".join(source.keys.tolist()))
        for places in (source.spans, source.labels):
            digest.update(places.astype("<i8").tobytes())
        chosen = np.linspace(0, len(source) - 1, min(len(source), LABELS_READ)).round().astype(int)
        with ThreadPoolExecutor(THREADS) as pool:
            labels = list(pool.map(partial(_label, source), chosen.tolist()))
        digest.update(json.dumps(labels).encode())
    return digest.hexdigest()


def fingerprint_of_shards(shards: Iterable[str]) -> str:
    """SHA-256 of the names and sizes of tar files, which are not opened."""
    digest = hashlib.sha256(b"shards")
    _add_files(digest, [os.fsencode(shard) for shard in shards])
    return digest.hexdigest()


def _add_files(digest: Any, paths: list[bytes], in_stores: "list[int] | None" = None) -> None:
    """``in_stores``: sizes of those that are named by a URL."""
    common = cast("bytes", os.path.commonprefix([min(paths), max(paths)]))  # noqa: RUF071, paths may be absolute and relative
    folder = common.rpartition(b"/")[0]
    parts = [paths[i : i + PART] for i in range(0, len(paths), PART)]
    with ThreadPoolExecutor(16) as pool:
        sizes = [size for part in pool.map(_sizes, parts) for size in part]
    if any(b"://" in path for path in paths):
        names = list(map(os.fsdecode, paths))
        for i, size in enumerate(in_stores or [status.size for status in file_statuses(names)]):
            sizes[i] = size if is_url(names[i]) else sizes[i]
    digest.update(b"\0".join(path[len(folder) :] for path in paths))
    digest.update(np.array(sizes, "<i8").tobytes())


def _sizes(paths: Iterable[bytes]) -> list[int]:
    """Bytes of files, the number of entries of folders, -1 of what is not there."""
    sizes = []
    for path in paths:
        try:
            status = os.stat(path)  # the bytes of a folder are a matter of the file system
            sizes.append(len(os.listdir(path)) if stat.S_ISDIR(status.st_mode) else status.st_size)
        except (FileNotFoundError, NotADirectoryError):
            sizes.append(-1)
    return sizes


def _label(source: Shards, index: int) -> str:
    offset, size = source.labels[index].tolist()
    if not size:
        return ""
    shard = source.shards[source.spans[index][0]]
    if is_url(shard):
        return read(shard, offset, min(size, 64), source.versions[shard]).hex()
    try:
        with open(shard, "rb") as file:
            file.seek(offset)
            return file.read(min(size, 64)).hex()
    except OSError as error:  # reading does not say which file it was
        raise OSError(f"{shard}: a label cannot be read ({error})") from error
