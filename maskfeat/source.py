"""Where samples come from: folders, list files, tar shards and the photographs of scikit-image.

A source has a length, ``name(i)`` says which sample is the i-th, and ``read(i, choose)`` gives its clips, as lists of
frames, and its label; a still image is one clip of one frame. What cannot be decoded raises :class:`Unreadable`, which
the loader reports and skips. ``classes`` is the least number of classes that its labels need, 0 if it has no labels,
None if they are only read with the samples.
"""

import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from .augment import Frames

log = logging.getLogger(__name__)

Choose = Callable[[int, float], np.ndarray]
"""Of a video's number of frames and frames per second, the frames to read: ``[clips, T]``."""
Decode = Callable[["str | BytesIO", Choose], list[Frames]]

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

PLAYED_AT = 30
"""Frames per second at which the ``step`` of a clip counts, whatever the rate of the file."""


class Unreadable(Exception):
    """A sample that cannot be decoded; the message has its name and the reason."""


def open_source(data: str, split: str, video: bool, *, own_split: bool = False, train_data: str) -> "Files | Shards":
    """The files of a split.

    data: one of
        a folder with ``train`` and ``val`` in it, each a folder of files, a folder of tar shards, or a list ``.csv`` or
        ``.txt``; without ``train`` in it, the folder itself is for training. Files in folders have the number of the
        folder, in order of their names, as label;
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
    return Files(*read_folder(place, suffixes, class_names(place, train_data, suffixes)), decode)


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
    shards = [Path(pattern.replace(match[0], f"{number:0{len(match[1])}}")) for number in numbers]
    missing = [shard for shard in shards if not shard.is_file()]
    if 0 < len(missing) < len(shards):
        raise FileNotFoundError(
            f"{len(missing)} of {len(shards)} shards {pattern} are missing, the first is {missing[0]}"
        )
    return [] if missing else shards


def walk(folder: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Every folder below that has files with these suffixes, and their names, in order; nothing that is hidden."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found = sorted(name for name in names if name.lower().endswith(suffixes) and not name.startswith("."))
        if found:
            yield place, found


def class_names(folder: Path, train_data: str, suffixes: tuple[str, ...]) -> list[str]:
    """The folders of the classes: those to train on, where there are any, as a held-out folder may lack a class.

    A folder in which there is no sample is no class.
    """
    try:
        train = find(train_data, "train")
    except FileNotFoundError:
        train = folder
    apart = isinstance(train, Path) and train.is_dir() and not folder.is_relative_to(train)
    entries = (train if apart else folder).iterdir()
    folders = [entry for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(entry.name for entry in folders if any(walk(entry, suffixes)))


def read_folder(
    folder: Path, suffixes: tuple[str, ...], classes: list[str]
) -> tuple[list[str], list[int] | None]:  # paths, labels
    """All files with these suffixes, and the class of the folder that each is in; no labels if any is in none."""
    number = {name: i for i, name in enumerate(classes)}
    paths, labels = [], []
    for place, found in walk(folder, suffixes):
        inside = Path(place).relative_to(folder).parts
        if inside and inside[0] not in number:
            raise ValueError(f"{folder} has a class {inside[0]!r} that the training data have not")
        paths += [os.path.join(place, name) for name in found]
        labels += [number[inside[0]] if inside else -1] * len(found)
    if not paths:
        raise FileNotFoundError(f"there are no files {', '.join(suffixes)} in {folder}")
    return paths, None if -1 in labels else labels


def read_list(file: Path) -> tuple[list[str], list[int] | None]:  # paths, labels
    """A path and a label on each line, or a path only."""
    paths, labels = [], []
    for line in filter(None, map(str.strip, file.read_text(encoding="utf-8").splitlines())):
        match = re.fullmatch(r"(.+?)[\s,]+(\d+)", line)
        paths.append(str(file.parent / (match[1] if match else line)))
        labels.append(int(match[2]) if match else -1)
    if not paths:
        raise ValueError(f"{file} lists no files")
    if -1 not in labels:
        return paths, labels
    if max(labels) >= 0:
        raise ValueError(f"{paths[labels.index(-1)]} in {file} has no label, others have; a line must be 'path label'")
    return paths, None


def frame_numbers(
    total: int,
    rate: float,
    *,
    frames: int,
    step: int,
    clips: int = 1,
    sampling: str = "dense",
    rng: np.random.Generator | None = None,
) -> np.ndarray:  # [clips, frames] int64
    """Which of ``total`` frames make up the clips: at random places with ``rng``, else evenly spread over the video.

    dense: frames about ``step`` apart at 30 frames per second, so more or fewer of a file of another ``rate``.
    uniform: the video in as many parts as there are frames; of each a random frame, or the middle one.

    A video that is too short ends in copies of its last frame.

    Source: SlowFast's sampling (dense as for Kinetics, uniform as for Something-Something).
    """
    if sampling == "uniform":
        edges = np.linspace(0, total - 1, frames + 1).round()
        places = rng.random((clips, frames)) if rng else np.full((clips, frames), 0.5)
        numbers = edges[:-1] + places * (edges[1:] - edges[:-1])
    else:
        span = step * frames * rate / PLAYED_AT
        spare = max(total - span, 0)
        starts = rng.uniform(0, spare, clips) if rng else spare * (np.arange(clips) / (clips - 1) if clips > 1 else 0.5)
        numbers = np.linspace(starts, starts + span - 1, frames, axis=-1).reshape(clips, frames)
    return numbers.clip(0, total - 1).astype(np.int64)


def read_image(file: "str | BytesIO", choose: Choose) -> list[Frames]:
    with Image.open(file) as image:
        if image.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255
            return [[Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")]]
        if "transparency" in image.info:
            return [[image.convert("RGBA").convert("RGB")]]
        return [[image.convert("RGB")]]


def read_clips(
    file: "str | BytesIO",
    choose: Choose,
) -> list[Frames]:  # [clips][T]
    """The frames of the first video stream that ``choose`` names, decoded from the key frame before them.

    A header may promise a few frames more than there are: the last frame then stands for those. ValueError if more
    than half of the frames are missing.
    """
    import av  # needed for videos only

    with av.open(file) as container:
        if not container.streams.video:
            raise ValueError("the file has no video stream")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # the loader already runs one process for each core
        rate, start = float(stream.average_rate), stream.start_time or 0
        seconds = stream.duration * stream.time_base if stream.duration else container.duration / av.time_base
        wanted = choose(stream.frames or round(seconds * rate), rate)
        numbers = sorted(set(wanted.flatten().tolist()))
        container.seek(start + int(numbers[0] / rate / stream.time_base), stream=stream)
        pictures = []
        for frame in container.decode(stream):
            number = round((frame.pts - start) * stream.time_base * rate)
            while len(pictures) < len(numbers) and number >= numbers[len(pictures)]:
                pictures.append(frame.to_image())
            if len(pictures) == len(numbers):
                break
    if 2 * len(pictures) < len(numbers):
        raise ValueError(f"only {len(pictures)} of {len(numbers)} frames could be decoded")
    place = {number: min(i, len(pictures) - 1) for i, number in enumerate(numbers)}
    return [[pictures[place[number]] for number in clip] for clip in wanted.tolist()]


def decoded(decode: Decode, file: "str | BytesIO", name: str, choose: Choose) -> list[Frames]:
    try:
        return decode(file, choose)
    except ImportError:  # of PyAV: no fault of the file
        raise
    except Exception as error:  # a decoder may fail in any way on a damaged file
        raise Unreadable(f"{name} ({type(error).__name__}: {error})") from error


class Files:
    """Images or videos in files of their own."""

    def __init__(self, paths: list[str], labels: list[int] | None, decode: Decode):
        # Arrays, not lists: workers would copy a list of a million texts as they count references to them.
        self.paths, self.decode = np.array([os.fsencode(path) for path in paths]), decode
        self.labels = None if labels is None else np.array(labels)
        self.classes = 0 if labels is None else max(labels) + 1

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int, choose: Choose) -> tuple[list[Frames], int | None]:
        path = self.name(index)
        label = None if self.labels is None else int(self.labels[index])
        return decoded(self.decode, path, path, choose), label

    def name(self, index: int) -> str:
        return os.fsdecode(self.paths[index])


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

    def read(self, index: int, choose: Choose) -> tuple[list[Frames], None]:
        return [[self.pictures[index % len(self.pictures)]]], None

    def name(self, index: int) -> str:
        return self.names[index % len(self.names)]
