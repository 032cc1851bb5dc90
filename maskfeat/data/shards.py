"""Samples in tar files, in the layout of WebDataset."""

import logging
import os
import posixpath
import re
import stat
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .augment import Frames
from .decode import Choose, Decode, Unreadable, decoded

log = logging.getLogger(__name__)
Place = tuple[int, int]  # offset and length in a shard, in bytes
_number = tarfile.nti  # type: ignore[attr-defined]  # a number of a header; tarfile's own, which it does not document


class Shards:
    """Tar files in the layout of WebDataset: ``key.jpg`` (or another suffix) and, for labels, ``key.cls``.

    A key ends at the first dot: ``key.mask.png`` is no image to it. A key with two images raises ValueError.
    Links within a shard are followed. Links to nothing, pipes, devices and sparse files are left out, with a warning
    that has their number.

    The headers are read once. Every sample can then be reached, and any order be resumed. So a shard has to be a file
    in which one can seek. A shard that ends too early gives what is before its end.
    """

    def __init__(self, shards: Iterable[Path], decode: Decode, suffixes: tuple[str, ...]):
        self.shards, self.decode = [str(shard) for shard in shards], decode
        special = [shard for shard in self.shards if not stat.S_ISREG(os.stat(shard).st_mode)]
        if special:
            log.warning("skipped %d shards that are no regular files, such as %s", len(special), special[0])
            self.shards = [shard for shard in self.shards if shard not in special]
        keys, spans, labels = [], [], []
        self.damage: dict[str, str] = {}  # of each shard that ends too early
        for i, shard in enumerate(self.shards):
            samples, classes, damage = self.index(shard, suffixes)
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
    def index(shard: str, suffixes: tuple[str, ...]) -> tuple[dict[str, Place], dict[str, Place], Exception | None]:
        """Where in the shard the data and the label of each key are, (offset, bytes), and what ended it too early."""
        samples: dict[str, Place] = {}
        classes: dict[str, Place] = {}
        found, damage = listed(shard)
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

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int, choose: Choose | None) -> tuple[list[Frames], int | None]:
        shard, offset, size = self.spans[index].tolist()
        label_offset, label_size = self.labels[index].tolist()
        name = self.name(index)
        try:
            with open(self.shards[shard], "rb") as file:
                file.seek(offset)
                data = file.read(size)
                file.seek(label_offset)
                label = file.read(min(label_size, 99))
        except (OSError, MemoryError) as error:
            raise Unreadable(name, f"{error or 'too large for the memory'}") from error
        if label and not re.fullmatch(rb"\s*\d{1,18}\s*", label):
            raise Unreadable(name, f"its label is {label[:20]!r}, not a number")
        return decoded(self.decode, BytesIO(data), name, choose), int(label) if label else None

    def name(self, index: int) -> str:
        return f"{self.shards[self.spans[index][0]]}:{os.fsdecode(self.keys[index]).lstrip('/')}"


FILE, LINK, FOLDER, SPECIAL = "file", "link", "folder", "special"
KINDS = {b"0": FILE, b"\0": FILE, b"7": FILE, b"1": LINK, b"2": LINK, b"5": FOLDER}

LONGEST_RECORD = 1 << 20
"""Bytes of the names that precede a member; a name itself has 4096 at most, as all take as much as the longest."""


class Member(NamedTuple):
    """An entry of a tar file: its data are ``size`` bytes from ``offset`` on, or it is a link to ``target``."""

    path: str
    kind: str
    offset: int
    size: int
    target: str


def followed(path: str, links: dict[str, str]) -> str:
    """Where a chain of links ends; nowhere ("") if it is a loop."""
    seen = set()
    while path in links:
        if path in seen:
            return ""
        seen.add(path)
        path = links[path]
    return path


def listed(shard: "str | Path") -> tuple[list[Member], Exception | None]:
    """The members before the first damage, and the damage."""
    found = []
    try:
        for member in members(shard):
            found.append(member)
    except tarfile.TarError as error:
        return found, error
    return found, None


def members(shard: "str | Path") -> Iterator[Member]:
    """Every entry, from the headers alone, in a quarter of the time of tarfile.

    Raises tarfile.ReadError where the file is no tar, ends within a member or has a header that is damaged.
    """
    with open(shard, "rb") as file:
        end, offset = os.fstat(file.fileno()).st_size, 0
        special: dict[bytes, bytes] = {}
        while offset < end:
            file.seek(offset)
            header = file.read(512)
            if not any(header):
                return
            if header[257:262] != b"ustar":
                raise tarfile.ReadError(f"there is no tar header at byte {offset}")
            # The sum of the bytes, with eight spaces for its own; Adler's is a faster way to it, modulo 65521.
            total = (zlib.adler32(header[156:], zlib.adler32(header[:148]) & 0xFFFF) & 0xFFFF) + 255
            if (_number(header[148:156]) - total) % 65521:
                raise tarfile.ReadError(f"the checksum of the header at byte {offset} is wrong")
            type_ = header[156:157]
            try:
                size = int(special.pop(b"size", b"0")) or _number(header[124:136])
            except ValueError:
                size = -1
            data = offset + 512
            offset = data + -(-size // 512) * 512
            if size < 0 or offset > end:
                raise tarfile.ReadError(f"it ends within a member of {size} bytes at byte {data}")
            if type_ in b"xLK" and size > LONGEST_RECORD:
                raise tarfile.ReadError(f"a name of {size} bytes at byte {data}")
            if type_ == b"x":  # key and value pairs for the next member, as pax writes them
                records = re.findall(rb"\d+ (path|linkpath|size|GNU\.sparse\.major)=(.*)\n", file.read(size))
                special |= dict(records)
            elif type_ in b"LK":  # the long name or target of the next member, as GNU tar writes it
                special[b"path" if type_ == b"L" else b"linkpath"] = file.read(size).rstrip(b"\0")
            elif type_ != b"g":
                prefix, name, target = (
                    header[part].partition(b"\0")[0] for part in (slice(345, 500), slice(100), slice(157, 257))
                )
                if header[262:263] == b"\0" and prefix:
                    name = prefix + b"/" + name
                kind = SPECIAL if b"GNU.sparse.major" in special else KINDS.get(type_, SPECIAL)
                path = os.fsdecode(special.get(b"path", name))
                if len(path) > 4096:
                    raise tarfile.ReadError(f"a name of {len(path)} characters at byte {data}")
                if kind == LINK:
                    linked = os.fsdecode(special.get(b"linkpath", target))
                    # A symbolic link is relative to its own folder, a hard link to the archive.
                    linked = posixpath.normpath(
                        posixpath.join(posixpath.dirname(path) if type_ == b"2" else "", linked)
                    )
                yield Member(path, kind, data, size, linked if kind == LINK else "")
                special.clear()
