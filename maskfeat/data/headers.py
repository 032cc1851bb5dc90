"""What the headers of a tar file say, on a disk or in a store, of which only the headers are read."""

import hashlib
import json
import logging
import os
import posixpath
import re
import tarfile
import time
import uuid
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..keys import is_url, shown_url
from .stores import MISSING, THREADS, UNKNOWN, StoreError, Url, read

log = logging.getLogger(__name__)
_number = tarfile.nti  # type: ignore[attr-defined]  # a number of a header; tarfile's own, which it does not document

FILE, LINK, FOLDER, SPECIAL = "file", "link", "folder", "special"
KINDS = {b"0": FILE, b"\0": FILE, b"7": FILE, b"1": LINK, b"2": LINK, b"5": FOLDER}

FORMAT = 1
"""Of the files of headers."""

SAID = 30
"""Seconds between lines on headers that are read."""

SMALLEST_WINDOW, LARGEST_WINDOW = 2**12, 2**20
"""Bytes of a shard in a store that are read for a header, and for those of small members one after the other."""

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


class Headers(NamedTuple):
    """The members of a shard before the first damage, the damage or "", and which file of a store it was."""

    members: list[Member]
    damage: str
    version: str


def local_headers(shard: "str | Path") -> Headers:
    with open(shard, "rb") as file:
        return _headers(file, "")


def _headers(file: "BinaryIO | Ranged", version: str) -> Headers:
    found: list[Member] = []
    try:
        for member in members(file):
            found.append(member)
    except tarfile.TarError as error:
        return Headers(found, str(error), version)
    return Headers(found, "", version)


def all_headers(shards: list[str], kept: str) -> Iterator[Headers]:
    """Of each shard, in order. Those in stores are read several at a time, as a store takes long to answer."""
    pool, said = ThreadPoolExecutor(THREADS), time.monotonic()
    try:
        remote = {shard: pool.submit(stored_headers, shard, kept) for shard in shards if is_url(shard)}
        for i, shard in enumerate(shards):
            yield remote[shard].result() if shard in remote else local_headers(shard)
            if remote and time.monotonic() - said > SAID:
                said = time.monotonic()
                log.warning("the headers of %d of %d shards are read", i + 1, len(shards))
    finally:
        pool.shutdown(cancel_futures=True)


def stored_headers(shard: str, kept: str) -> Headers:
    """Of a shard in a store: what is kept in the folder ``kept``, if the file is still that, else from the store."""
    size, version = Url(shard).status()
    if size == MISSING:
        raise FileNotFoundError(f"{shown_url(shard)} is not there")
    if size == UNKNOWN:
        raise StoreError(f"{shown_url(shard)} has no length, so that no part of it can be read; use another server")
    kept = kept if version else ""  # another file of this size would look the same
    mark = [FORMAT, shown_url(shard), size, version]
    path = Path(kept) / f"{hashlib.sha256(shard.encode()).hexdigest()[:32]}.json"
    if kept and path.exists():
        try:
            before, damage, entries = json.loads(path.read_text())
            if before == mark:
                found = [Member(str(p), str(k), int(o), int(s), str(to)) for p, k, o, s, to in entries]
                return Headers(found, str(damage), version)
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s is damaged (%s); the headers of %s are read again", path, error, shown_url(shard))
    headers = _headers(Ranged(shard, size, version), version)
    if kept:
        with suppress(OSError):  # a folder that may only be read
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # every rank writes it
            partial.write_text(json.dumps([mark, headers.damage, headers.members]))
            partial.replace(path)
    return headers


class Ranged:
    """A file of a store in which one can seek. Windows of it are read, which grow while there are no gaps between."""

    def __init__(self, url: str, size: int, version: str):
        self.url, self.size, self.version = url, size, version
        self.at, self.start, self.window, self.next = 0, 0, b"", SMALLEST_WINDOW

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + (self.size if whence == os.SEEK_END else 0)
        return self.at

    def read(self, size: int) -> bytes:
        end = self.start + len(self.window)
        if not self.start <= self.at <= self.at + size <= end:
            self.next = min(2 * self.next, LARGEST_WINDOW) if self.start <= self.at <= end else SMALLEST_WINDOW
            wanted = min(max(size, self.next), self.size - self.at)
            self.start, self.window = self.at, read(self.url, self.at, wanted, self.version)
        data = self.window[self.at - self.start :][:size]
        self.at += len(data)
        return data


def members(file: "BinaryIO | Ranged") -> Iterator[Member]:
    """Every entry, from the headers alone, in a quarter of the time of tarfile.

    Raises tarfile.ReadError where the file is no tar, ends within a member or has a header that is damaged.
    """
    end, offset = file.seek(0, os.SEEK_END), 0
    special: dict[bytes, bytes] = {}
    while offset < end:
        file.seek(offset)
        header = file.read(512)
        if not any(header):
            return
        if header[257:262] != b"ustar":
            what = "" if offset else ", so it is no tar file, or a compressed one, which has to be unpacked"
            raise tarfile.ReadError(f"there is no tar header at byte {offset}{what}")
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
                linked = posixpath.normpath(posixpath.join(posixpath.dirname(path) if type_ == b"2" else "", linked))
            yield Member(path, kind, data, size, linked if kind == LINK else "")
            special.clear()
