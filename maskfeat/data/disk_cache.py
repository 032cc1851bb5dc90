"""Copies on the local disk of what was read from stores, up to a size; the one that was used longest ago goes first."""

import hashlib
import logging
import math
import os
import uuid
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

log = logging.getLogger(__name__)

SHARE = 64
"""A process looks at the size of the whole after it has written this part of the limit."""


def cache() -> "DiskCache | None":
    """The cache that the environment asks for; ValueError if that makes no sense.

    MASKFEAT_CACHE_GB is its size in gigabytes, MASKFEAT_CACHE the folder, by default ``~/.cache/maskfeat``.
    """
    size = os.environ.get("MASKFEAT_CACHE_GB", "")
    folder = os.environ.get("MASKFEAT_CACHE", "")
    return _cache(folder, size) if size or folder else None


@lru_cache(maxsize=4)
def _cache(folder: str, size: str) -> "DiskCache | None":
    try:
        gigabytes = float(size)
    except ValueError:
        gigabytes = math.nan
    if not 0 <= gigabytes < math.inf:
        raise ValueError(f"MASKFEAT_CACHE_GB must be the gigabytes of the cache, as 50, or 0 for none, got {size!r}")
    place = Path(folder) if folder else Path.home() / ".cache" / "maskfeat"
    return DiskCache(place, int(gigabytes * 1e9)) if gigabytes else None


class DiskCache:
    """Up to ``limit`` bytes below ``folder``, which processes share.

    A copy is written under a hidden name and renamed, and ends in its checksum: one that is there is whole.
    A full or broken disk costs the copies, not the run.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        self.written = limit  # so that the first copy looks at what is there
        self.is_full = False

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(os.fsencode(key)).hexdigest()
        return self.folder / name[:2] / name[2:]

    def get(self, key: str) -> "bytes | None":
        path = self._path(key)
        try:
            whole = path.read_bytes()
            data = whole[:-4]
            if whole[-4:] != zlib.crc32(data).to_bytes(4, "little"):
                path.unlink()
                return None
        except OSError:
            return None
        with suppress(OSError):  # another user's copy
            os.utime(path)  # the time of its last use
        return data

    def put(self, key: str, data: bytes) -> None:
        path, size = self._path(key), len(data) + 4
        if self.is_full or size > self.limit // SHARE:
            return  # it would drive out many others
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # threads and machines may write the same
        try:
            if self.written + size > self.limit // SHARE:
                self.sweep()
                self.written = 0
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data + zlib.crc32(data).to_bytes(4, "little"))
            partial.replace(path)
            self.written += size
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            log.warning("no copy in %s (%s)", self.folder, error)
            self.is_full = True  # once is enough to hear of it

    def sweep(self) -> None:
        """Remove copies until a quarter of the limit is free, so that 16 processes may write their parts of it."""
        copies = []
        for folder in self.folder.glob("[0-9a-f][0-9a-f]"):
            for entry in os.scandir(folder):
                with suppress(FileNotFoundError):  # another process sweeps too
                    status = entry.stat()
                    copies.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total <= self.limit * 3 // 4:
                return
            with suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
