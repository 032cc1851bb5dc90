"""Files in stores: s3://, gs://, az://, hf://, http(s):// and memory://, read through fsspec.

A read is tried again, with growing pauses, where the store fails, is too slow or gives fewer bytes than it should. What
stays broken raises :class:`StoreError`, which ends a run: a sample is left out only where its file is not there.

Credentials are those that the library of the store finds in the environment. Texts that name a URL leave out what could
hold one (:func:`~maskfeat.keys.shown_url`).
"""

import errno
import fnmatch
import logging
import posixpath
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from ..keys import check_url, is_url, shown_url
from .disk_cache import cache

log = logging.getLogger(__name__)
T = TypeVar("T")

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
    "memory": "fsspec",
}
"""Stores that are read, and what fsspec needs for each."""

TRIES, FIRST_PAUSE = 5, 0.5
"""How often a read is tried, and seconds before the second time; each later pause is twice as long."""

PATIENCE, SLOWEST = 60.0, 2**20
"""Seconds that an answer may take, and one more for so many bytes of it."""

THREADS = 16
"""Requests at a time: most of their time is waiting."""

PERMANENT = (errno.EINVAL, errno.EPERM, errno.ENOSYS)
"""What s3fs makes of a request that will fail again."""

PASSING_STATUS = (408, 425, 429)
"""Of the answers 400 to 499 of HTTP, those that another try may not get."""

CREDENTIALS = (
    "credentials come from the environment, as AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS or HF_TOKEN; "
    "FSSPEC_S3_ANON=true reads a public bucket without"
)
MARKS = ("ETag", "etag", "generation", "blob_id", "LastModified", "Last-Modified", "mtime", "created")
"""What stores say of a file that distinguishes it from another one of its name; the first that is there counts."""

MISSING, UNKNOWN = -1, -2
"""In the place of a size."""

_chance = random.SystemRandom()  # the random numbers of a run are its own


class StoreError(OSError):
    """A store that does not answer, refuses, or answers wrongly, however often it is asked."""


class ShortRead(OSError):
    """Fewer bytes than asked for."""


def read(url: str, start: int, size: int, version: str = "") -> bytes:  # [size]
    """``size`` bytes of a file from byte ``start`` on; all there are from there on where ``size`` is UNKNOWN.

    version: what distinguishes this file from another one that was there. The cache keeps nothing without.

    Raises FileNotFoundError if it is not there, else StoreError.
    """
    if not size:
        return b""
    kept = cache() if size > 0 and version else None
    key = f"{url}\n{version}\n{start}\n{size}"
    data = kept.get(key) if kept else None
    if data is None:
        data = _from_store(url, start, size)
        if kept:
            kept.put(key, data)
    return data


def _from_store(url: str, start: int, size: int) -> bytes:
    def call(fs: Any, path: str) -> bytes:
        if size == UNKNOWN:
            return bytes(fs.cat_file(path, **_limit(fs, 0)))
        data = bytes(fs.cat_file(path, start=start, end=start + size, **_limit(fs, size)))
        if len(data) > size:
            raise StoreError(f"{shown_url(url)}: the server gives whole files where a part is asked for; use another")
        if len(data) < size:
            raise ShortRead(f"{len(data)} of {size} bytes came from byte {start} on")
        return data

    return _tried(url, call)


def _limit(fs: Any, size: int) -> dict[str, float]:
    """How long a call may take, for those file systems that can be told."""
    return {"timeout": PATIENCE + size / SLOWEST} if fs.async_impl else {}


def _tried(url: str, call: Callable[[Any, str], T]) -> T:
    """``call(file system, path)``, again where it fails in a way that may pass."""
    begun, fs_and_path = time.monotonic(), _filesystem(url)
    for number in range(1, TRIES + 1):
        try:
            return call(*fs_and_path)
        except StoreError:
            raise
        except Exception as error:
            failure = _cause(error)
            reason = _reason(failure)
            refusal = _refusal(url, failure, reason)
            if refusal:
                raise refusal from None  # its cause may show what the text leaves out
            if number == TRIES:
                seconds = time.monotonic() - begun
                raise StoreError(
                    f"{shown_url(url)} cannot be read: {reason} (tried {TRIES} times in {seconds:.0f} s); "
                    "give the same command again once the store answers"
                ) from None
            pause = FIRST_PAUSE * 2 ** (number - 1) * _chance.uniform(0.5, 1)
            log.log(
                logging.INFO if number == 1 else logging.WARNING,  # one failure in a while is as usual
                "%s: %s; try %d of %d in %.1f s", shown_url(url), reason, number + 1, TRIES, pause,
            )  # fmt: skip
            time.sleep(pause)
    raise AssertionError("unreachable")


def _cause(error: Exception) -> Exception:
    """What kept a file from being found: fsspec says of a server that fails, too, that the file is not there."""
    cause = error.__cause__
    hides = isinstance(error, FileNotFoundError) and isinstance(cause, Exception)
    return cause if hides and _status(cause) not in (0, 404, 410) else error  # type: ignore[return-value]


def _status(error: BaseException | None) -> int:
    """The status of an answer over HTTP; 0 of what is none, but 500 where there was no answer."""
    status = getattr(error, "status", getattr(getattr(error, "response", None), "status_code", None))
    if isinstance(status, int):
        return status
    return 500 if type(error).__module__.partition(".")[0] in ("aiohttp", "asyncio") else 0


def _reason(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    text = re.sub(r"([a-z0-9+]+://)[^\s/'\"]+@", r"\1", text)
    return re.sub(r"([a-z0-9+]+://[^\s?'\")]+)\?[^\s'\")]+", r"\1?...", text)


def _refusal(url: str, error: Exception, reason: str) -> "Exception | None":
    """What to raise at once, as another try would fail in the same way."""
    status, shown = _status(error), shown_url(url)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(f"{shown} is not there")
    if isinstance(error, PermissionError) or status in (401, 403):
        return StoreError(f"no permission to read {shown} ({reason}); {CREDENTIALS}")
    if "Credential" in type(error).__name__ or "TokenRetrieval" in type(error).__name__:
        return StoreError(f"no credentials to read {shown} ({reason}); {CREDENTIALS}")
    if isinstance(error, ImportError):
        return _needs(url, error)
    refused = 400 <= status < 500 and status not in PASSING_STATUS
    if refused or isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno in PERMANENT):
        return StoreError(f"{shown} cannot be read: {reason}")
    return None


def _needs(url: str, error: ImportError) -> ValueError:
    package = PACKAGES[url.partition("://")[0].lower()]
    packages = package if package == "fsspec" else f"fsspec {package}"
    return ValueError(f"{shown_url(url)} is read by {packages.replace(' ', ' and ')}: pip install {packages} ({error})")


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, of this process, and the path in it."""
    check_url("a URL", url)
    protocol = url.partition("://")[0].lower()
    if protocol not in PACKAGES:
        raise ValueError(f"{shown_url(url)}: there is no store {protocol}://; there are {', '.join(PACKAGES)}")
    try:
        import fsspec
        from fsspec.config import conf

        options: dict[str, Any] = {"use_listings_cache": False}  # it would hide what has changed
        if PACKAGES[protocol] == "s3fs":  # it is tried again here, where it is said
            said = conf.get(protocol, {}).get("config_kwargs", {})
            options["config_kwargs"] = {**said, "retries": {"max_attempts": 1}}
        # Not url_to_fs, to which a name with "::" in it is a chain of file systems.
        kind = fsspec.get_filesystem_class(protocol)
        fs = fsspec.filesystem(protocol, **{**kind._get_kwargs_from_urls(url), **options})
    except ImportError as error:
        raise _needs(url, error) from None
    return fs, str(kind._strip_protocol(url))


class Status(NamedTuple):
    """The bytes of a file, MISSING or UNKNOWN; and what distinguishes it from another one of its name, or ""."""

    size: int
    version: str


def _of_info(info: dict[str, Any]) -> Status:
    size = info.get("size")
    version = next((str(info[mark]) for mark in MARKS if info.get(mark)), "")
    return Status(UNKNOWN if size is None else int(size), version)


def file_statuses(paths: list[str]) -> list[Status]:  # [N]
    """Of files in stores. Folders of which many files are asked for are listed instead."""
    folders: dict[str, list[str]] = defaultdict(list)
    paths, all_paths = list(filter(is_url, paths)), paths
    for path in paths:
        folders[path.rpartition("/")[0]].append(path)
    with ThreadPoolExecutor(THREADS) as pool:
        listings = dict(zip(folders, pool.map(_statuses_in, folders, map(len, folders.values())), strict=True))
        known = {path: status for listing in listings.values() for path, status in listing.items()}
        single = [path for path in paths if path not in known and not listings[path.rpartition("/")[0]]]
        known |= dict(zip(single, pool.map(_status_of, single), strict=True))
    return [known.get(path, Status(MISSING, "")) for path in all_paths]


def _statuses_in(folder: str, asked: int) -> dict[str, Status]:
    """Of the files of a folder, by their URLs; {} if too few are asked for, or if it is not listed with their sizes."""
    if asked <= 4:
        return {}
    try:
        entries = Url(folder).entries()
    except StoreError:  # that lists nothing, and may still give the files
        return {}
    if any(status.size == UNKNOWN for status in entries.values()):
        return {}
    return {f"{folder}/{name}": status for name, status in entries.items()}


def _status_of(url: str) -> Status:
    return Url(url).status()


@dataclass(frozen=True, order=True)
class Url:
    """A file or folder of a store, with what of :class:`pathlib.Path` is used of data."""

    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", self.text.rstrip("/"))

    def __str__(self) -> str:
        return self.text

    def __fspath__(self) -> str:
        return self.text

    @property
    def name(self) -> str:
        return self.text.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "Url":
        return Url(self.text.rpartition("/")[0])

    def __truediv__(self, path: str) -> "Url":
        protocol, _, place = self.text.partition("://")
        return Url(f"{protocol}://{posixpath.normpath(f'/{place}/{path}').lstrip('/')}")

    def absolute(self) -> "Url":
        return self

    def resolve(self) -> "Url":
        return self

    def is_relative_to(self, other: "Path | Url") -> bool:
        return self.text == str(other) or self.text.startswith(f"{other}/")

    def relative_to(self, other: "Path | Url") -> PurePosixPath:
        if not self.is_relative_to(other):
            raise ValueError(f"{self} is not below {other}")
        return PurePosixPath(self.text[len(str(other)) :].lstrip("/"))

    def info(self) -> dict[str, Any]:
        """What the store says of it; {} if there is none."""
        try:
            return dict(_tried(self.text, lambda fs, path: fs.info(path)))
        except FileNotFoundError:
            return {}

    def status(self) -> Status:
        info = self.info()
        return _of_info(info) if info.get("type", "") == "file" else Status(MISSING, "")

    def exists(self) -> bool:
        return bool(self.info())

    def is_file(self) -> bool:
        info = self.info()
        return info.get("type") == "file" and not _is_index(self.text, info)

    def is_dir(self) -> bool:
        info = self.info()
        return info.get("type") == "directory" or _is_index(self.text, info)

    def entries(self) -> dict[str, Status]:
        """The files of a folder by their names; {} if there is no folder."""
        try:
            found = _tried(self.text, lambda fs, path: fs.ls(path, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        files = [info for info in found if info["type"] == "file"]
        return {info["name"].rpartition("/")[2]: _of_info(info) for info in files}

    def glob(self, pattern: str) -> "list[Url]":
        """The files of a folder whose names fit; the one of this name without a request for a list."""
        if not re.search(r"[*?\[]", pattern):
            return [self / pattern] if (self / pattern).is_file() else []
        return [self / name for name in sorted(self.entries()) if fnmatch.fnmatchcase(name, pattern)]

    def read_text(self, encoding: str) -> str:
        size, version = self.status()
        if size == MISSING:
            raise FileNotFoundError(f"{self} is not there")
        return read(self.text, 0, size, version).decode(encoding)

    def walk(self, suffixes: tuple[str, ...], others: "list[str] | None" = None) -> list[tuple[str, list[str]]]:
        """As :func:`.folders.walk`."""
        found: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for path, info in _tried(self.text, _found).items():
            *folders, name = path.split("/")
            if info["type"] != "file" or not name or any(part.startswith(".") for part in (*folders, name)):
                continue
            if name.lower().endswith(suffixes):
                found[tuple(folders)].append(name)
            elif others is not None:
                others.append(f"{self}/{path}")
        return [("/".join((self.text, *folders)), sorted(names)) for folders, names in sorted(found.items())]


def _found(fs: Any, root: str) -> dict[str, Any]:
    """All files below a folder, by their paths from it on."""
    root = root.rstrip("/")
    return {path[len(root) :].lstrip("/"): info for path, info in fs.find(root, detail=True).items()}


def _is_index(url: str, info: dict[str, Any]) -> bool:
    """Whether a server shows a folder as a page of links."""
    return url.startswith("http") and str(info.get("mimetype", "")).startswith("text/html")


def no_bucket(url: str) -> str:
    """A clause that the bucket of a URL is not there; "" if it is, or if the store has none."""
    protocol, _, place = url.partition("://")
    bucket = Url(f"{protocol}://{place.partition('/')[0]}")
    buckets = PACKAGES.get(protocol) in ("s3fs", "gcsfs")
    return "" if not buckets or bucket.exists() else f"; there is no bucket {bucket}"


AnyPath = Path | Url


def path_of(text: "str | Path | Url") -> AnyPath:
    return Url(str(text)) if is_url(text) else Path(text)
