"""Samples in tar files, in the layout of WebDataset."""

import logging
import os
import posixpath
import re
import stat
from collections.abc import Iterable, Sequence
from io import BytesIO

import numpy as np

from ..keys import is_url, shown_url
from . import ahead
from .augment import Frames
from .decode import Choose, Decode, Unreadable, decoded
from .headers import FILE, FOLDER, LINK, Headers, Member, all_headers, followed
from .stores import AnyPath, read

log = logging.getLogger(__name__)
Place = tuple[int, int]  # offset and length in a shard, in bytes

NEAR = 2**16
"""Bytes between data and label that are rather read than left out, which takes a second request."""

LARGEST_READ = 2**22
"""Bytes of samples that one request gives, where they are asked for in the order of the shard."""


class Shards:
    """Tar files in the layout of WebDataset: ``key.jpg`` (or another suffix) and, for labels, ``key.cls``.

    A key ends at the first dot: ``key.mask.png`` is no image to it. A key with two images raises ValueError.
    Links within a shard are followed. Links to nothing, pipes, devices and sparse files are left out, with a warning
    that has their number.

    The headers are read once. Every sample can then be reached, and any order be resumed. So a shard has to be a file
    in which one can seek. A shard that ends too early gives what is before its end.

    Of a shard in a store, parts alone are read. What its headers say is kept in the folder ``kept``, "" for none.
    """

    def __init__(self, shards: Iterable[AnyPath], decode: Decode, suffixes: tuple[str, ...], kept: str = ""):
        self.shards, self.decode = [str(shard) for shard in shards], decode
        local = [shard for shard in self.shards if not is_url(shard)]
        special = [shard for shard in local if not stat.S_ISREG(os.stat(shard).st_mode)]
        if special:
            log.warning("skipped %d shards that are no regular files, such as %s", len(special), special[0])
            self.shards = [shard for shard in self.shards if shard not in special]
        keys, spans, labels = [], [], []
        self.damage: dict[str, str] = {}  # of each shard that ends too early
        self.versions: dict[str, str] = {}  # of each shard in a store
        for i, (shard, headers) in enumerate(zip(self.shards, all_headers(self.shards, kept), strict=True)):
            if is_url(shard):
                self.versions[shard] = headers.version
            samples, classes, damage = self.index(shard, suffixes, headers)
            if damage:
                self.damage[shard] = f"damaged after {len(samples)} samples: {damage}"
                log.warning("%s is %s", shard, self.damage[shard])
            keys += [os.fsencode(key) for key in samples]
            spans += [(i, *span) for span in samples.values()]
            labels += [classes.get(key, (0, 0)) for key in samples]
        if not keys:
            wanted = ", ".join(f"KEY{suffix}" for suffix in suffixes)
            why = "".join(f"; {shard} is {damage}" for shard, damage in self.damage.items())
            raise FileNotFoundError(f"there are no files {wanted}, KEY without a dot, in {', '.join(self.shards)}{why}")
        self.keys, self.spans, self.labels = np.array(keys), np.array(spans), np.array(labels)
        self.classes = None if self.labels.any() else 0

    @staticmethod
    def index(
        shard: str, suffixes: tuple[str, ...], headers: Headers
    ) -> tuple[dict[str, Place], dict[str, Place], str]:
        """Where in the shard the data and the label of each key are, (offset, bytes), and what ended it too early."""
        samples: dict[str, Place] = {}
        classes: dict[str, Place] = {}
        found, damage, _ = headers
        links = {posixpath.normpath(path): target for path, kind, _, _, target in found if kind == LINK}
        files = {posixpath.normpath(member.path): member for member in found if member.kind == FILE} if links else {}
        lost = []
        for listed_member in found:
            member: Member | None = listed_member
            path, kind, *_ = listed_member
            folder, _, name = path.rpartition("/")
            key, _, suffix = name.partition(".")
            key, image = f"{folder}/{key}", f".{suffix.lower()}" in suffixes
            if kind == FOLDER or not (image or suffix == "cls"):
                continue
            if kind == LINK:
                member = files.get(followed(posixpath.normpath(path), links))
            if member is None or member.kind != FILE:
                lost.append(path)
            elif image and key in samples:
                raise ValueError(f"{shard} holds two files {', '.join(suffixes)} of one key, the later is {path}")
            else:
                (samples if image else classes)[key] = (member.offset, member.size)
        if lost:
            what = "links to nothing, pipes, devices or sparse files"
            log.warning("skipped %d members of %s that are %s, such as %s", len(lost), shard, what, lost[0])
        return samples, classes, damage

    @property
    def in_stores(self) -> bool:
        return bool(self.versions)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int, choose: Choose | None) -> tuple[list[Frames], int | None]:
        shard, offset, size = self.spans[index].tolist()
        label_offset, label_size = self.labels[index].tolist()
        name = self.name(index)
        if self.in_stores and is_url(self.shards[shard]):
            both = ahead.take(self, index)
            return self._decoded(both[:size], both[size:], name, choose)
        try:
            with open(self.shards[shard], "rb") as file:
                file.seek(offset)
                data = file.read(size)
                file.seek(label_offset)
                label = file.read(min(label_size, 99))
        except (OSError, MemoryError) as error:
            raise Unreadable(name, f"{error or 'too large for the memory'}") from error
        return self._decoded(data, label, name, choose)

    def groups(self, indices: Sequence[int]) -> list[list[int]]:
        """The samples, in order, divided into those that one request gives: neighbours in a shard."""
        groups: list[list[int]] = []
        first = last = 0
        for index in indices:
            start, end = self._extent(index)
            near = bool(groups) and self.spans[index][0] == self.spans[groups[-1][-1]][0] and 0 <= start - last < NEAR
            if near and end - first <= LARGEST_READ:
                groups[-1].append(index)
            else:
                groups.append([index])
                first = start
            last = end
        return groups

    def _extent(self, index: int) -> tuple[int, int]:
        """From where to where a sample is in its shard, with its label if that is near."""
        _, offset, size = self.spans[index].tolist()
        label_offset, label_size = self.labels[index].tolist()
        start, end = min(offset, label_offset), max(offset + size, label_offset + label_size)
        near = label_size and end - start - size - label_size < NEAR
        return (start, end) if near else (offset, offset + size)

    def fetch(self, group: Sequence[int]) -> list[bytes]:
        """Data and label of samples in a store, one after the other."""
        url = self.shards[self.spans[group[0]][0]]
        try:
            start, end = self._extent(group[0])[0], self._extent(group[-1])[1]
            block = read(url, start, end - start, self.versions[url])

            def part(offset: int, size: int) -> bytes:
                if start <= offset and offset + size <= end:
                    return block[offset - start : offset - start + size]
                return read(url, offset, size, self.versions[url])

            places = ((*self.spans[index].tolist()[1:], *self.labels[index].tolist()) for index in group)
            return [part(at, size) + part(label, min(label_size, 99)) for at, size, label, label_size in places]
        except (FileNotFoundError, MemoryError) as error:
            raise Unreadable(self.name(group[0]), f"{error or 'too large for the memory'}") from error

    def _decoded(self, data: bytes, label: bytes, name: str, choose: Choose | None) -> tuple[list[Frames], int | None]:
        if label and not re.fullmatch(rb"\s*\d{1,18}\s*", label):
            raise Unreadable(name, f"its label is {label[:20]!r}, not a number")
        return decoded(self.decode, BytesIO(data), name, choose), int(label) if label else None

    def name(self, index: int) -> str:
        return f"{shown_url(self.shards[self.spans[index][0]])}:{os.fsdecode(self.keys[index]).lstrip('/')}"
