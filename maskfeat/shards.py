"""Samples in tar files, in the layout of WebDataset."""

import logging
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np

from .augment import Frames
from .decode import Choose, Decode, Unreadable, decoded

log = logging.getLogger(__name__)


class Shards:
    """Tar files in the layout of WebDataset: ``key.jpg`` (or another suffix) and, for labels, ``key.cls``.

    A key ends at the first dot: ``key.mask.png`` is no image to it. A key with two images raises ValueError.

    The headers are read once, so that every sample can be reached and any order be resumed; so shards have to be files
    that can be sought in. A shard that ends too early gives what is before its end.
    """

    def __init__(self, shards: Iterable[Path], decode: Decode, suffixes: tuple[str, ...]):
        self.shards, self.decode = [str(shard) for shard in shards], decode
        keys, spans, labels = [], [], []
        for i, shard in enumerate(self.shards):
            samples, classes = self.index(shard, suffixes)
            keys += [os.fsencode(key) for key in samples]
            spans += [(i, *span) for span in samples.values()]
            labels += [classes.get(key, (0, 0)) for key in samples]
        if not keys:
            kinds = ", ".join(f"KEY{suffix}" for suffix in suffixes)
            raise FileNotFoundError(f"there are no files {kinds}, KEY without a dot, in {', '.join(self.shards)}")
        self.keys, self.spans, self.labels = np.array(keys), np.array(spans), np.array(labels)
        self.classes = None if self.labels.any() else 0

    @staticmethod
    def index(shard: str, suffixes: tuple[str, ...]) -> tuple[dict, dict]:
        """Where in the shard the data and the label of each key are: (offset, bytes)."""
        samples, classes = {}, {}
        try:
            for path, *span in members(shard):
                folder, _, name = path.rpartition("/")
                key, _, suffix = name.partition(".")
                key = f"{folder}/{key}"
                if f".{suffix.lower()}" in suffixes:
                    if key in samples:
                        raise ValueError(
                            f"{shard} holds two files {', '.join(suffixes)} of one key, the later is {path}"
                        )
                    samples[key] = span
                elif suffix == "cls":
                    classes[key] = span
        except tarfile.TarError as error:
            log.warning("%s is damaged after %d samples: %s", shard, len(samples), error)
        return samples, classes

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int, choose: Choose) -> tuple[list[Frames], int | None]:
        shard, offset, size = self.spans[index].tolist()
        label_offset, label_size = self.labels[index].tolist()
        name = self.name(index)
        try:
            with open(self.shards[shard], "rb") as file:
                file.seek(offset)
                data = file.read(size)
                file.seek(label_offset)
                label = file.read(label_size)
        except OSError as error:
            raise Unreadable(f"{name} ({error})") from error
        if label and not label.strip().isdigit():
            raise Unreadable(f"{name} (its label is {label[:20]!r}, not a number)")
        return decoded(self.decode, BytesIO(data), name, choose), int(label) if label else None

    def name(self, index: int) -> str:
        return f"{self.shards[self.spans[index][0]]}:{os.fsdecode(self.keys[index]).lstrip('/')}"


def members(shard: "str | Path") -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every regular file, from the headers alone and many times as fast as tarfile.

    Raises tarfile.ReadError where the file is no tar or ends within a member.
    """
    with open(shard, "rb") as file:
        end, offset, special = os.fstat(file.fileno()).st_size, 0, {}
        while offset < end:
            file.seek(offset)
            header = file.read(512)
            if not any(header):
                return
            if header[257:262] != b"ustar":
                raise tarfile.ReadError(f"there is no tar header at byte {offset}")
            kind = header[156:157]
            size = int(special.pop(b"size", 0)) or tarfile.nti(header[124:136])
            data, offset = offset + 512, offset + 512 + -(-size // 512) * 512
            if kind == b"x":  # key and value pairs for the next member, as pax writes them
                records = re.findall(rb"\d+ (path|size)=(.*)\n", file.read(size))
                special |= dict(records)
            elif kind == b"L":  # the long name of the next member, as GNU tar writes it
                special[b"path"] = file.read(size).rstrip(b"\0")
            elif kind in (b"0", b"\0"):
                prefix, name = (header[part].partition(b"\0")[0] for part in (slice(345, 500), slice(0, 100)))
                if header[262:263] == b"\0" and prefix:
                    name = prefix + b"/" + name
                yield os.fsdecode(special.pop(b"path", name)), data, size
                special.clear()
            else:
                special.clear()
            if offset > end:
                raise tarfile.ReadError(f"it ends within a member of {size} bytes at byte {data}")
