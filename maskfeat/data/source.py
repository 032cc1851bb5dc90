"""Where samples come from: folders, list files, tar shards and the photographs of scikit-image.

A source has a length, and ``name(i)`` says which sample is the i-th. ``read(i, choose)`` gives its clips, as lists of
frames, and its label; a still image is one clip of one frame. ``classes`` is the least number of classes that its
labels need, 0 if it has no labels, None if they are only read with the samples.

What cannot be decoded raises :class:`~maskfeat.data.decode.Unreadable`, which the loader reports and skips.
"""

import copy
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..keys import check_url, is_url, shown_url
from . import ahead
from .augment import Frames
from .bands import of_picture, size_in_memory
from .decode import Choose, Decode, Unreadable, around, decoded
from .folders import walk
from .images import IMAGES, read_image
from .lists import LISTS, numbered, read_list
from .shards import Shards
from .stores import MISSING, UNKNOWN, AnyPath, Url, file_statuses, no_bucket, path_of, read
from .videos import VIDEOS, read_clips

log = logging.getLogger(__name__)

SPLITS = {"train": ("train",), "val": ("val", "validation", "test"), "test": ("val", "validation", "test")}
"""Names under which a split is looked for. A folder named "test" often has no labels, so "val" comes first."""

ALL_SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing", "dev")

PHOTOGRAPHS = {
    "train": (
        *("astronaut", "brick", "cell", "chelsea", "coins", "grass", "gravel", "hubble_deep_field"),
        *("immunohistochemistry", "moon", "retina", "stereo_motorcycle"),
    ),
    "val": ("camera", "coffee", "rocket"),
}

MOST_SHARDS = 10_000_000


def open_source(
    data: str, split: str, video: bool, *, own_split: bool = False, train_data: str, index: str = "", **pixels: Any
) -> "Files | Shards":
    """The files of a split.

    data: one of
        a folder with ``train`` and ``val`` in it. Each is a folder of files, a folder of tar shards, or a list. Without
        ``train`` in it, the folder itself is for training. The label of a file is the number of its folder, in order of
        their names. Of video, a folder of pictures may stand in the place of a file;
        a list: a path and a label on each line, or only a path, or an annotation file, as :mod:`.lists` says;
        tar shards in the layout of WebDataset, named with wildcards or as ``name-{000..127}.tar``.
        ``{split}`` in the text stands for the name of the split. Any of them may be a URL, as :mod:`.stores` says.
    own_split: ``data`` is this split and needs no folder for it.
    train_data: where the folders are whose order numbers the labels.
    index: a folder for what was found in shards of a store; "" for none.
    pixels: ``autorotate``, ``channels`` and ``data_range`` of :func:`.images.read_image`.

    Raises FileNotFoundError with what is missing, ValueError for a list that cannot be understood, StoreError.
    """
    decode = partial(read_clips if video else read_image, **pixels)
    place = find(data, split, own_split)
    if isinstance(place, list):
        return open_shards(place, video, index=index, **pixels)
    suffixes = VIDEOS if video else IMAGES
    if place.is_file():
        listing = read_list(place, SPLITS[split], suffixes)
        known = partial(_classes, train_data, suffixes)
        labels = None if listing.labels is None else numbered(listing.labels, place, known)
        return Files(listing.paths, labels, decode, listing.times)
    return Files(*read_folder(place, suffixes, train_data), decode)


def open_shards(shards: list[AnyPath], video: bool, *, index: str = "", **pixels: Any) -> Shards:
    """The samples of tar files; ``index`` and ``pixels`` as in :func:`open_source`."""
    return Shards(shards, partial(read_clips if video else read_image, **pixels), VIDEOS if video else IMAGES, index)


def _classes(train_data: str, suffixes: tuple[str, ...]) -> list[str]:
    """The names of the classes to train on, in the order of their numbers."""
    train = find(train_data, "train")
    if isinstance(train, list):
        raise ValueError(f"the classes have names, and {train_data!r} numbers; write numbers")
    if train.is_file():
        return sorted(read_list(train, SPLITS["train"], suffixes).classes)
    inside = [path_of(place).relative_to(train).parts for place, _ in walk(train, suffixes)]
    return sorted({parts[0] for parts in inside if parts})


def find(data: str, split: str, own_split: bool = False) -> AnyPath | list[AnyPath]:
    """The folder, list file or shards of a split."""
    candidates = []
    if is_url(data):
        check_url("data", data)
        data = str(path_of(data))
    for name in SPLITS[split]:
        if "{split}" in data:
            candidates.append(data.replace("{split}", name))
        elif not data.endswith(".tar"):
            candidates += [f"{data.rstrip('/')}/{name}{suffix}" for suffix in (*LISTS, "")]
    if (split == "train" or own_split) and "{split}" not in data:
        candidates.append(data)
    for candidate in candidates:
        path = path_of(candidate)
        tar = candidate.endswith(".tar")
        shards: list[AnyPath] = expand(candidate) if tar else sorted(path.glob("*.tar"), key=str)
        if shards or path.exists():
            return shards or path
    tried = f"there is none of {', '.join(candidates)}" if candidates else "it names no split"
    advice = (
        ""
        if split == "train" or own_split
        else ("; val_data=... names held-out data that are elsewhere, eval_every=0 trains without")
    )
    advice += no_bucket(data) if is_url(data) else ""
    raise FileNotFoundError(f"no {split} data in {data!r}: {tried}{advice}; docs/data.md shows all that is read")


def expand(pattern: str) -> list[AnyPath]:
    """Shards named with one range ``{000..127}`` or with wildcards, in order; none if none exists."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        path = path_of(pattern)
        return sorted(path.parent.glob(path.name), key=str)
    numbers = range(int(match[1]), int(match[2]) + 1)
    if len(match[0]) > 40 or len(numbers) > MOST_SHARDS:
        raise ValueError(f"{pattern!r} names more shards than {MOST_SHARDS}")
    names = [pattern.replace(match[0], f"{number:0{len(match[1])}}") for number in numbers]
    shards = [path_of(name) for name in names]
    if is_url(pattern):
        missing = [shard for shard, (size, _) in zip(shards, file_statuses(names), strict=True) if size == MISSING]
    else:
        missing = [shard for shard in shards if not shard.is_file()]
    if 0 < len(missing) < len(shards):
        raise FileNotFoundError(
            f"{len(missing)} of {len(shards)} shards {pattern} are missing, the first is {missing[0]}"
        )
    return [] if missing else shards


def read_folder(
    folder: AnyPath, suffixes: tuple[str, ...], train_data: str
) -> tuple[list[str], list[int] | None]:  # paths, labels
    """All files with these suffixes, and the class of the folder that each is in; no labels if any is in none.

    The classes are the folders with samples among those to train on, where there are any, as a held-out folder may lack
    a class.
    """
    try:
        train = find(train_data, "train")
    except FileNotFoundError:
        train = folder
    others: list[str] = []
    places, kinds = walk(folder, suffixes, others), suffixes
    clips = suffixes == VIDEOS and not places
    if clips and isinstance(folder, Url):
        raise FileNotFoundError(
            f"there are no videos {', '.join(suffixes)} in {folder}; clips of pictures have to be in local folders"
        )
    if clips:  # a clip may be a folder of its frames
        kinds, others = IMAGES, []
        places = walk(folder, kinds, others)
        if places:
            log.warning("%s has no videos: each of its %d folders of pictures is a clip", folder, len(places))
    if others:
        counted = Counter(Path(path).suffix.lower() or "no suffix" for path in others).most_common(3)
        most = ", ".join(f"{count} {kind}" for kind, count in counted)
        log.warning("left out %d files of other kinds in %s (%s), such as %s", len(others), folder, most, others[0])
    if not isinstance(train, list) and train.is_dir() and not folder.is_relative_to(train):
        root, known = train, walk(train, kinds)
    else:
        root, known = folder, places
    inner = [path_of(place).relative_to(root).parts for place, _ in known]
    classes = {parts[0] for parts in inner if len(parts) > clips}  # that of a clip is above its own folder
    number = {name: i for i, name in enumerate(sorted(classes))}
    if len(number) > 1 and all(name.lower() in ALL_SPLITS for name in number):
        raise ValueError(
            f"{folder} has the folders {', '.join(number)}, which are splits, not classes; name them train and val, or "
            f"give data={root / max(number, key=lambda name: name.lower().startswith('train'))}"
        )
    paths: list[str] = []
    labels: list[int] = []
    for place, found in places:
        inside = path_of(place).relative_to(folder).parts
        if clips:
            inside, place, found = inside[:-1], os.path.dirname(place), [os.path.basename(place)]
        if inside and inside[0] not in number:
            raise ValueError(f"{folder} has a class {inside[0]!r} that the training data have not")
        paths += [os.path.join(place, name) for name in found]
        labels += [number[inside[0]] if inside else -1] * len(found)
    if not paths:
        raise FileNotFoundError(f"there are no files {', '.join(suffixes)} in {folder}")
    if -1 in labels and max(labels) >= 0:
        lost = paths[labels.index(-1)]
        log.warning(
            "no labels: %d of %d files of %s are in no class, such as %s", labels.count(-1), len(labels), folder, lost
        )
    return paths, None if -1 in labels else labels


class Source(Protocol):
    """Samples by number."""

    @property
    def classes(self) -> int | None:
        """The number of classes, 0 where samples have no label, None where it is not known."""

    def __len__(self) -> int: ...

    def __hash__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def read(self, index: int, choose: Choose | None) -> tuple[list[Frames], int | None]: ...


class Files:
    """Images or videos in files of their own."""

    def __init__(self, paths: list[str], labels: list[int] | None, decode: Decode, times: "list[float] | None" = None):
        # Arrays, not lists: workers would copy a list of a million texts as they count references to them.
        self.paths, self.decode = np.array([os.fsencode(path) for path in paths]), decode
        self.labels = None if labels is None else np.array(labels)
        self.times = None if times is None else np.array(times)
        self.classes = 0 if labels is None else max(labels) + 1
        # Of files in stores alone: so many bytes have to come, and of this version.
        self.sizes = self.versions = None
        if any("://" in path for path in paths):
            sizes, versions = zip(*file_statuses(paths), strict=True)
            self.sizes, self.versions = np.array(sizes), np.array(versions)

    @property
    def in_stores(self) -> bool:
        return self.sizes is not None

    def __len__(self) -> int:
        return len(self.paths)

    def absolute(self) -> "Files":
        """The same files for a process with another working folder."""
        some = copy.copy(self)
        paths = self.paths.tolist()
        some.paths = np.array([path if is_url(os.fsdecode(path)) else os.path.abspath(path) for path in paths])
        return some

    def take(self, chosen: "np.ndarray | slice") -> "Files":  # numbers [N] int64
        """Some of the files, as a source of their own."""
        some = copy.copy(self)
        some.paths = self.paths[chosen]
        some.labels = None if self.labels is None else self.labels[chosen]
        some.times = None if self.times is None else self.times[chosen]
        some.sizes = None if self.sizes is None else self.sizes[chosen]
        some.versions = None if self.versions is None else self.versions[chosen]
        return some

    def read(self, index: int, choose: Choose | None) -> tuple[list[Frames], int | None]:
        label = None if self.labels is None else int(self.labels[index])
        if self.times is not None and choose is not None:
            choose = around(choose, float(self.times[index]))
        path: str | BytesIO = os.fsdecode(self.paths[index])
        if self.sizes is not None and is_url(path):
            path = BytesIO(ahead.take(self, index))
        return decoded(self.decode, path, self.name(index), choose), label

    def groups(self, indices: Sequence[int]) -> list[list[int]]:
        return [[index] for index in indices]

    def fetch(self, group: Sequence[int]) -> list[bytes]:
        """The bytes of a file in a store."""
        assert self.sizes is not None and self.versions is not None
        [index] = group
        path, size = os.fsdecode(self.paths[index]), int(self.sizes[index])
        try:
            return [read(path, 0, UNKNOWN if size == MISSING else size, str(self.versions[index]))]
        except FileNotFoundError as error:
            raise Unreadable(self.name(index), f"FileNotFoundError: {error}") from error

    def name(self, index: int) -> str:
        path = shown_url(os.fsdecode(self.paths[index]))
        return path if self.times is None else f"{path} at {self.times[index]:g} s"


class Photographs:
    """Photographs that scikit-image ships, without labels; those to train on come 64 times, or ``samples`` in all."""

    classes = 0

    def __init__(self, split: str, samples: int = 0, channels: int = 3):
        from skimage import data  # a dependency of this source only

        self.names = PHOTOGRAPHS["train" if split == "train" else "val"]
        pictures = [getattr(data, name)() for name in self.names]
        pictures = [picture[0] if isinstance(picture, tuple) else picture for picture in pictures]
        photographs = [Image.fromarray(picture).convert("RGB") for picture in pictures]
        for photograph in photographs:
            photograph.thumbnail((640, 640))  # the largest of them would take most of the time
        self.pictures = [of_picture(photograph, channels) for photograph in photographs]
        self.samples = (samples or 64 * len(pictures)) if split == "train" else len(pictures)

    def __len__(self) -> int:
        return self.samples

    def read(self, index: int, choose: Choose | None) -> tuple[list[Frames], None]:
        return [[self.pictures[index % len(self.pictures)]]], None

    def name(self, index: int) -> str:
        return self.names[index % len(self.names)]


class DecodedOnce:
    """The images of another source, of which the first ``megabytes`` that are read stay in memory as they are decoded.

    An epoch reads every image once, so an image that is kept saves as much as any other; none makes place for another.
    """

    def __init__(self, source: Source, megabytes: int):
        self.source, self.spare = source, megabytes * 2**20
        self.kept: dict[int, tuple[list[Frames], int | None]] = {}

    def __len__(self) -> int:
        return len(self.source)

    @property
    def classes(self) -> int | None:
        return self.source.classes

    def name(self, index: int) -> str:
        return self.source.name(index)

    def read(self, index: int, choose: Choose | None) -> tuple[list[Frames], int | None]:
        sample = self.kept.get(index) or self.source.read(index, choose)
        if index not in self.kept:
            size = sum(size_in_memory(frame) for clip in sample[0] for frame in clip)
            if size <= self.spare:
                self.kept[index], self.spare = sample, self.spare - size
        return sample
