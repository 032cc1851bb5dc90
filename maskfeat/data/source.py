"""Where samples come from: folders, list files, tar shards and the photographs of scikit-image.

A source has a length, and ``name(i)`` says which sample is the i-th. ``read(i, choose)`` gives its clips, as lists of
frames, and its label; a still image is one clip of one frame. ``classes`` is the least number of classes that its
labels need, 0 if it has no labels, None if they are only read with the samples.

What cannot be decoded raises :class:`~maskfeat.data.decode.Unreadable`, which the loader reports and skips.
"""

import logging
import os
import re
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from .augment import Frames
from .decode import Choose, Decode, decoded, read_clips, read_image
from .shards import Shards

log = logging.getLogger(__name__)

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg")

SPLITS = {"train": ("train",), "val": ("val", "validation", "test"), "test": ("val", "validation", "test")}
"""Names under which a split is looked for. A folder named "test" often has no labels, so "val" comes first."""

PHOTOGRAPHS = {
    "train": (
        *("astronaut", "brick", "cell", "chelsea", "coins", "grass", "gravel", "hubble_deep_field"),
        *("immunohistochemistry", "moon", "retina", "stereo_motorcycle"),
    ),
    "val": ("camera", "coffee", "rocket"),
}


LONGEST_LINE = 4096
"""Characters of a line of a list: the longest path of Linux. All paths take as much memory as the longest."""

MOST_SHARDS = 10_000_000


def open_source(data: str, split: str, video: bool, *, own_split: bool = False, train_data: str) -> "Files | Shards":
    """The files of a split.

    data: one of
        a folder with ``train`` and ``val`` in it. Each is a folder of files, a folder of tar shards, or a list ``.csv``
        or ``.txt``. Without ``train`` in it, the folder itself is for training. The label of a file is the number of
        its folder, in order of their names;
        a list file: a path and a label on each line, separated by a space, a comma or a tab; or only a path. Paths are
        relative to the list;
        tar shards in the layout of WebDataset, named with wildcards or as ``name-{000..127}.tar``.
        ``{split}`` in the text stands for the name of the split.
    own_split: ``data`` is this split and needs no folder for it.
    train_data: where the folders are whose order numbers the labels.

    Raises FileNotFoundError with what is missing, ValueError for a list that cannot be understood.
    """
    decode = read_clips if video else read_image
    place = find(data, split, own_split)
    if not isinstance(place, Path):
        return Shards(place, decode, VIDEOS if video else IMAGES)
    if place.is_file():
        return Files(*read_list(place), decode)
    suffixes = VIDEOS if video else IMAGES
    return Files(*read_folder(place, suffixes, train_data), decode)


def find(data: str, split: str, own_split: bool = False) -> "Path | list[Path]":
    """The folder, list file or shards of a split."""
    candidates = []
    for name in SPLITS[split]:
        if "{split}" in data:
            candidates.append(data.replace("{split}", name))
        elif not data.endswith(".tar"):
            candidates += [f"{data}/{name}.csv", f"{data}/{name}.txt", f"{data}/{name}"]
    if (split == "train" or own_split) and "{split}" not in data:
        candidates.append(data)
    for candidate in candidates:
        shards = expand(candidate) if candidate.endswith(".tar") else sorted(Path(candidate).glob("*.tar"))
        if shards or Path(candidate).exists():
            return shards or Path(candidate)
    tried = f"there is none of {', '.join(candidates)}" if candidates else "it names no split"
    advice = (
        ""
        if split == "train" or own_split
        else ("; val_data=... names held-out data that are elsewhere, eval_every=0 trains without")
    )
    raise FileNotFoundError(f"no {split} data in {data!r}: {tried}{advice}")


def expand(pattern: str) -> list[Path]:
    """Shards named with one range ``{000..127}`` or with wildcards, in order; none if none exists."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        path = Path(pattern)
        return sorted(path.parent.glob(path.name))
    numbers = range(int(match[1]), int(match[2]) + 1)
    if len(match[0]) > 40 or len(numbers) > MOST_SHARDS:
        raise ValueError(f"{pattern!r} names more shards than {MOST_SHARDS}")
    shards = [Path(pattern.replace(match[0], f"{number:0{len(match[1])}}")) for number in numbers]
    missing = [shard for shard in shards if not shard.is_file()]
    if 0 < len(missing) < len(shards):
        raise FileNotFoundError(
            f"{len(missing)} of {len(shards)} shards {pattern} are missing, the first is {missing[0]}"
        )
    return [] if missing else shards


def walk(folder: Path, suffixes: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """Every folder below that has files with these suffixes, and their names, in order; nothing that is hidden.

    Links to folders are followed, but each real folder is read once: at its own place if that is below ``folder``, else
    through the first link. Pipes, sockets and devices are left out, with a warning that has their number.

    Raises OSError for a folder that may not be read.
    """
    found, seen, special, links, again = [], set(), [], [str(folder)], []
    while links:
        places = [links.pop(0)]
        while places:
            place = places.pop()
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                again.append(place)
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
            names = []
            for entry in visible:
                if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                    (links if entry.is_symlink() else places).append(entry.path)
                elif entry.name.lower().endswith(suffixes):
                    # A broken link is a sample that cannot be read, as others are.
                    known = entry.is_file(follow_symlinks=False)
                    regular = known or os.path.isfile(entry.path) or not os.path.exists(entry.path)
                    names.append(entry.name) if regular else special.append(entry.path)
            if names:
                found.append((place, names))
    if again:
        log.warning("left out %d links to folders that %s has elsewhere, such as %s", len(again), folder, again[0])
    if special:
        log.warning("skipped %d pipes, sockets or devices in %s, such as %s", len(special), folder, special[0])
    return sorted(found, key=lambda item: Path(item[0]).parts)


def read_folder(
    folder: Path, suffixes: tuple[str, ...], train_data: str
) -> tuple[list[str], list[int] | None]:  # paths, labels
    """All files with these suffixes, and the class of the folder that each is in; no labels if any is in none.

    The classes are the folders with samples among those to train on, where there are any, as a held-out folder may lack
    a class.
    """
    try:
        train = find(train_data, "train")
    except FileNotFoundError:
        train = folder
    places = walk(folder, suffixes)
    if isinstance(train, Path) and train.is_dir() and not folder.is_relative_to(train):
        root, known = train, walk(train, suffixes)
    else:
        root, known = folder, places
    inner = [Path(place).relative_to(root).parts for place, _ in known]
    number = {name: i for i, name in enumerate(sorted({parts[0] for parts in inner if parts}))}
    paths: list[str] = []
    labels: list[int] = []
    for place, found in places:
        inside = Path(place).relative_to(folder).parts
        if inside and inside[0] not in number:
            raise ValueError(f"{folder} has a class {inside[0]!r} that the training data have not")
        paths += [os.path.join(place, name) for name in found]
        labels += [number[inside[0]] if inside else -1] * len(found)
    if not paths:
        raise FileNotFoundError(f"there are no files {', '.join(suffixes)} in {folder}")
    return paths, None if -1 in labels else labels


def read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no list: it has to be text in UTF-8 ({error.reason} at {error.start})") from None


def read_list(file: Path) -> tuple[list[str], list[int] | None]:  # paths, labels
    """A path and a label on each line, or a path only."""
    paths, labels = [], []
    for line in filter(None, map(str.strip, read_text(file).splitlines())):
        if len(line) > LONGEST_LINE:
            raise ValueError(f"{file} has a line of {len(line)} characters, which is no path: {line[:40]!r}...")
        match = re.fullmatch(r"(.+?)[\s,]+([0-9]{1,18})", line)
        paths.append(str(file.parent / (match[1] if match else line)))
        labels.append(int(match[2]) if match else -1)
    if not paths:
        raise ValueError(f"{file} lists no files")
    if -1 not in labels:
        return paths, labels
    if max(labels) >= 0:
        raise ValueError(f"{paths[labels.index(-1)]} in {file} has no label, others have; a line must be 'path label'")
    return paths, None


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

    def __init__(self, paths: list[str], labels: list[int] | None, decode: Decode):
        # Arrays, not lists: workers would copy a list of a million texts as they count references to them.
        self.paths, self.decode = np.array([os.fsencode(path) for path in paths]), decode
        self.labels = None if labels is None else np.array(labels)
        self.classes = 0 if labels is None else max(labels) + 1

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, choose: Choose | None) -> tuple[list[Frames], int | None]:
        path = self.name(index)
        label = None if self.labels is None else int(self.labels[index])
        return decoded(self.decode, path, path, choose), label

    def name(self, index: int) -> str:
        return os.fsdecode(self.paths[index])


class Photographs:
    """Photographs that scikit-image ships, without labels; those to train on come 64 times, or ``samples`` in all."""

    classes = 0

    def __init__(self, split: str, samples: int = 0):
        from skimage import data  # a dependency of this source only

        self.names = PHOTOGRAPHS["train" if split == "train" else "val"]
        pictures = [getattr(data, name)() for name in self.names]
        pictures = [picture[0] if isinstance(picture, tuple) else picture for picture in pictures]
        self.pictures = [Image.fromarray(picture).convert("RGB") for picture in pictures]
        for picture in self.pictures:
            picture.thumbnail((640, 640))  # the largest of them would take most of the time
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
            size = sum(
                4 * frame.width * frame.height for clip in sample[0] for frame in clip
            )  # Pillow pads RGB to 4 bytes
            if size <= self.spare:
                self.kept[index], self.spare = sample, self.spare - size
        return sample
