"""Lists of samples: a path and a label a line, and the annotation files of Kinetics, Something-Something v2 and AVA.

A path is relative to its list. The annotation files name videos without saying where they are. They are looked for
below the folder of the list, else below the folder that this one is in. Those that are not there are counted.
"""

import csv
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..keys import check_url, is_url
from .folders import walk
from .stores import AnyPath

log = logging.getLogger(__name__)

LISTS = (".csv", ".txt", ".tsv", ".json")

LONGEST_LINE = 4096
"""Characters of a line of a list: the longest path of Linux. All paths take as much memory as the longest."""

LONGEST_NUMBER = 18
"""Digits of a label that a tensor holds."""

PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "video", "video_path")
LABELS = ("label", "class", "target", "category", "label_id", "class_id", "class_name", "labels")
"""Columns of a header line; the first that a list has counts."""

SECONDS = (800.0, 2000.0)
"""Between which the key frames of AVA are: its films are annotated from minute 15 to 30."""


class Listing(NamedTuple):
    """The samples of a list; ``labels`` are all there or None. ``times``: the second in the middle of each clip.

    classes: all labels of the list, also of videos that are not there, as the numbers of the others depend on them.
    """

    paths: list[str]
    labels: "list[str] | None"
    times: "list[float] | None" = None
    classes: frozenset[str] = frozenset()


def read_list(file: AnyPath, split: "tuple[str, ...]", suffixes: "tuple[str, ...]") -> Listing:
    """What a list holds, whichever of the kinds that this module knows it is.

    split: names of the split, of those rows that count where a column ``split`` says so. suffixes: of the files wanted.

    ValueError for what cannot be understood, with the line; FileNotFoundError if no video of an annotation file is
    there.
    """
    text = _read_text(file)
    if file.suffix == ".json":
        return _something(file, text, suffixes)
    lines = [(i, line) for i, line in enumerate(map(str.strip, text.splitlines()), 1) if line]
    if not lines:
        raise ValueError(f"{file} lists no files")
    for _, line in lines:
        if len(line) > LONGEST_LINE:
            raise ValueError(f"{file} has a line of {len(line)} characters, which is no path: {line[:40]!r}...")
    delimiter = next((mark for mark in "\t;," if mark in lines[0][1]), None)
    head = [name.strip().lower() for name in _fields(lines[0][1], delimiter or " ")]
    if "youtube_id" in head or any(name in PATHS for name in head):
        return _with_header(file, head, [line for _, line in lines[1:]], delimiter or " ", split, suffixes)
    if any(name in LABELS for name in head) and not any(name.endswith(suffixes) for name in head):
        raise ValueError(f"the first line of {file}, {lines[0][1][:80]!r}, names no column of paths; call it 'path'")
    if _is_ava(head):
        return _ava(file, [line for _, line in lines], suffixes)
    rows = [_row(file, number, line, delimiter, suffixes) for number, line in lines]
    return _listing(file, [_beside(file, path) for path, _ in rows], [label for _, label in rows])


def numbered(labels: "list[str]", file: AnyPath, classes: "Callable[[], list[str]]") -> list[int]:
    """Labels as numbers: what they are, or the places of their names in ``classes()``, which are those to train on."""
    numbers = [label for label in labels if label.isdecimal()]
    for label in numbers:
        if len(label) > LONGEST_NUMBER:
            raise ValueError(f"{file} has the label {label[:40]!r}, which is too large for a number of a class")
    if len(numbers) == len(labels):
        return [int(label) for label in labels]
    name = next(label for label in labels if not label.isdecimal())
    if re.fullmatch(r"[-+]?[\d.,]+", name):
        raise ValueError(f"{file} has the label {name!r}; write whole numbers from 0 on, or names of classes")
    if numbers:
        raise ValueError(
            f"{file} has both numbers, as {numbers[0]!r}, and names, as {name!r}, for labels; write one kind"
        )
    places = {name: i for i, name in enumerate(classes())}
    for label in labels:
        if label not in places:
            raise ValueError(f"{file} has a class {label!r} that the training data have not")
    return [places[label] for label in labels]


def _read_text(file: AnyPath) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no list: it has to be text in UTF-8 ({error.reason} at {error.start})") from None


def _beside(file: AnyPath, path: str) -> str:
    """What a line of a list names: a path from the list on, or a URL of its own."""
    if not is_url(path):
        return str(file.parent / path)
    check_url(f"a line of {file}", path)
    return path


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]
    except csv.Error as error:
        raise ValueError(f"a line of a list cannot be split ({error}): {line[:80]!r}") from None


def _row(
    file: AnyPath, number: int, line: str, delimiter: "str | None", suffixes: tuple[str, ...]
) -> tuple[str, "str | None"]:
    """The path and the label of a line without quotes, or with them."""
    if '"' not in line:
        match = re.fullmatch(r"(.+?)[\s,;]+([0-9]+)", line)
        if match:
            first = re.split(r"[,;\t]", match[1])[0]  # a comma may be in a path, too
            if first == match[1] or match[1].lower().endswith(suffixes) or not first.lower().endswith(suffixes):
                return match[1], match[2]
        if line.lower().endswith(suffixes):
            return line, None
    fields = _fields(line, delimiter or " ") if delimiter or '"' in line else []
    if len(fields) > 2:
        raise ValueError(
            f"line {number} of {file} has {len(fields)} columns, which a first line has to name, as path and label; "
            f"without one a line is 'path,label': {line[:80]!r}"
        )
    if len(fields) == 2:
        return fields[0], fields[1]
    match = re.fullmatch(rf"(.+?(?:{'|'.join(map(re.escape, suffixes))}))\s+(\S.*)", line, re.IGNORECASE)
    return (match[1], match[2]) if match else ((fields or [line])[0], None)


def _listing(
    file: AnyPath, paths: list[str], labels: "list[str | None]", times: "list[float] | None" = None
) -> Listing:
    if not paths:
        raise ValueError(f"{file} lists no files")
    known = [label for label in labels if label is not None]
    if len(known) == len(labels):
        return Listing(paths, known, times, frozenset(known))
    if known:
        raise ValueError(
            f"{paths[labels.index(None)]} in {file} has no label, others have; a line must be 'path label'"
        )
    return Listing(paths, None, times)


def _with_header(
    file: AnyPath,
    head: list[str],
    lines: list[str],
    delimiter: str,
    split: tuple[str, ...],
    suffixes: tuple[str, ...],
) -> Listing:
    """A list whose first line names its columns, among them that of Kinetics."""
    rows = [dict(zip(head, _fields(line, delimiter), strict=False)) for line in lines]
    if any(row.get("split") in split for row in rows):
        rows = [row for row in rows if row.get("split") in split]
    label = next((name for name in LABELS if name in head), None)
    labels = [row.get(label) or None if label else None for row in rows]
    if "youtube_id" not in head:
        path = next(name for name in PATHS if name in head)
        if not all(row.get(path) for row in rows):
            raise ValueError(f"a line of {file} has no {path}")
        return _listing(file, [_beside(file, row[path]) for row in rows], labels)

    def names(row: dict[str, str]) -> list[str]:
        try:
            start, end = (round(float(row[name])) for name in ("time_start", "time_end"))
        except (KeyError, ValueError, OverflowError):
            return [row.get("youtube_id", "")]
        return [f"{row.get('youtube_id', '')}_{start:06}_{end:06}", row.get("youtube_id", "")]

    return _found(file, [names(row) for row in rows], labels, None, suffixes)


def _is_ava(fields: list[str]) -> bool:
    """video, second, box (left, top, right, bottom as shares), action, and as a rule person."""
    try:
        second, *box = (float(field) for field in fields[1:6])
    except ValueError:
        return False
    return len(fields) in (7, 8) and SECONDS[0] <= second <= SECONDS[1] and all(0 <= side <= 1 for side in box[:4])


def _ava(file: AnyPath, lines: list[str], suffixes: tuple[str, ...]) -> Listing:
    """A clip around every key frame, once, without labels: its boxes are for a detector."""
    rows = [_fields(line, ",") for line in lines]
    wrong = next((line for line, fields in zip(lines, rows, strict=True) if not _is_ava(fields)), None)
    if wrong is not None:
        raise ValueError(
            f"{file} is one of AVA's, with video,second,left,top,right,bottom,action, but for {wrong[:80]!r}"
        )
    keys = list(dict.fromkeys((fields[0], float(fields[1])) for fields in rows))
    return _found(file, [[video] for video, _ in keys], [None] * len(keys), [second for _, second in keys], suffixes)


def _something(file: AnyPath, text: str, suffixes: tuple[str, ...]) -> Listing:
    """Something-Something v2: videos by number, classes by a template, whose numbers are in ``labels.json``."""
    try:
        rows = json.loads(text)
        names = [[str(row["id"])] for row in rows]
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise ValueError
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{file} is no list of Something-Something v2, the only JSON that is read: [{{'id': ..., 'template': ...}}]"
        ) from None
    templates = [re.sub(r"[\[\]]", "", str(row.get("template", ""))) for row in rows]
    if not any(templates):
        return _found(file, names, [None] * len(names), None, suffixes)
    places = [file.parent / "labels.json", file.parent / "something-something-v2-labels.json"]
    place = next((place for place in places if place.is_file()), None)
    if place is None:
        raise FileNotFoundError(f"{file} needs the numbers of its classes, and there is no {places[0]}")
    try:
        numbers = {name: str(int(number)) for name, number in json.loads(_read_text(place)).items()}
        return _found(file, names, [numbers[name] for name in templates], None, suffixes)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{place} does not say the number of every class ({error})") from None
    except KeyError as error:
        raise ValueError(f"{place} has no class {error}, which {file} has") from None


def _found(
    file: AnyPath,
    names: "list[list[str]]",  # of each video, those under which it may be found
    labels: "list[str | None]",
    times: "list[float] | None",
    suffixes: tuple[str, ...],
) -> Listing:
    """The videos that are there, by their names without suffixes."""
    for folder in (file.parent, file.parent.resolve().parent):
        stems = {
            Path(name).stem: os.path.join(place, name) for place, names_ in walk(folder, suffixes) for name in names_
        }
        paths = [next((stems[name] for name in options if name in stems), None) for options in names]
        there = [i for i, path in enumerate(paths) if path]
        if there:
            break
    else:
        tried = " or ".join(f"{name}{suffixes[0]}" for name in names[0]) if names else "its videos"
        raise FileNotFoundError(f"none of the {len(names)} videos of {file} is below its folder: looked for {tried}")
    if len(there) < len(paths):
        lost = names[paths.index(None)][0]
        log.warning("%d of %d videos of %s are not there, such as %s", len(paths) - len(there), len(paths), file, lost)
    kept = None if times is None else [times[i] for i in there]
    listing = _listing(file, [path for path in paths if path], [labels[i] for i in there], kept)
    return listing._replace(classes=frozenset(filter(None, labels)))
