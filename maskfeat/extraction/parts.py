"""The parts of an extraction: each is read, computed and written as one Parquet file, which is whole or not there.

A part is a tar shard, or a slice of other samples. What a reader of Parquet should not take has a name that begins
with ``_`` or ``.``, which pandas, DuckDB, Ray and Spark pass over.
"""

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ..data.augment import Frames
from ..data.decode import Choose
from ..data.fingerprint import fingerprint, fingerprint_of_shards
from ..data.loader import RENDERED, Batches, Loader, evenly, place_of, samples_of
from ..data.source import Files, Source, find, open_shards
from ..data.stores import StoreError, path_of
from ..weights.storage import replacing, write_atomically
from .features import Encoded, Hog, Reading

PLAN = "_extract.json"
UNREADABLE = "_unreadable"

LARGEST_ROW = 2**31 - 2**16
"""Bytes of one row: a page of Parquet has less than 2 GiB, and holds whole rows."""

FILE_BYTES, GROUP_BYTES = 2**27, 2**25
"""About as large are a file of a slice and a row group, which is what a worker holds in memory."""

MOST_ROWS, LEAST_ROWS, LEAST_FILES = 10_000, 64, 64
"""Of a slice; and how many files there are unless slices would become too small, so that all workers have some."""

WRITING: dict[str, Any] = dict(
    compression="none", use_dictionary=["label"], write_statistics=["name", "label"], write_batch_size=2**18
)
"""Features hardly get smaller. A large batch takes two thirds of the time."""

TYPES = {"float32": pa.float32(), "float16": pa.float16()}


class Part(NamedTuple):
    """Samples of one file of the result: a tar shard, files, or numbers of rendered samples."""

    number: int
    samples: "str | Files | range"


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know, on whatever machine it is."""

    feature: Hog | Encoded
    reading: Reading
    split: str
    out: Path
    shape: tuple[int, ...]
    dtype: str
    plan: str
    """The text of the file PLAN."""

    @cached_property
    def size(self) -> int:
        """Numbers of a row."""
        return int(np.prod(self.shape, dtype=np.int64))

    def schema(self) -> pa.Schema:
        """Columns, and what the features are, as JSON under the key ``maskfeat``."""
        values = pa.list_(pa.field("element", TYPES[self.dtype], nullable=False), self.size)
        features = pa.field("features", values, nullable=False)
        columns = [pa.field("name", pa.string()), pa.field("label", pa.int64()), features]
        return pa.schema(columns, {"maskfeat": self.plan})

    def path(self, number: int) -> Path:
        return self.out / f"part-{number:06}.parquet"


def check_row(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a row of features; ValueError if Parquet cannot hold it, or if it is empty."""
    size = int(np.prod(shape, dtype=np.int64)) * TYPES[dtype].bit_width // 8
    if not size:
        raise ValueError(f"the feature has the shape {tuple(shape)}, no numbers; choose a larger image_size")
    if size > LARGEST_ROW:
        raise ValueError(
            f"a feature of {size} bytes, shape {tuple(shape)}, does not fit a page of Parquet, which has at most "
            f"{LARGEST_ROW}; choose a smaller image_size, larger cells or features=pooled"
        )
    return size


def divide(reading: Reading, split: str, rows: int, before: int, size: int) -> tuple[list[Part], int, str]:
    """The parts of the data, how many samples make a slice, and a fingerprint. Tar shards are not opened.

    rows: samples of a slice, 0 for as many as ``before``, or for what suits features of ``size`` bytes if that is 0
        too; 0 is returned where shards are parts.

    Raises FileNotFoundError or ValueError for data that are missing or cannot be understood.
    """
    place, own = place_of(reading, split)
    found = None if place in RENDERED else find(place, split, own)
    if isinstance(found, list):
        if reading.samples:
            raise ValueError(
                f"samples={reading.samples} chooses among files; of shards name some, as name-{{0..9}}.tar"
            )
        if rows:
            raise ValueError(f"rows={rows} slices what is in no shard; a tar shard is one file, so leave out rows")
        shards = [str(shard.absolute()) for shard in found]
        return [Part(i, shard) for i, shard in enumerate(shards)], 0, fingerprint_of_shards(shards)
    source = samples_of(reading, split)
    chosen = evenly(reading.samples, len(source))
    rows = rows or before or max(min(max(len(chosen) // LEAST_FILES, LEAST_ROWS), MOST_ROWS, FILE_BYTES // size), 1)
    starts = range(0, len(chosen), rows)
    if isinstance(source, Files):
        source = source.take(chosen).absolute()
        return [Part(i, source.take(np.s_[at : at + rows])) for i, at in enumerate(starts)], rows, fingerprint(source)
    return [Part(i, range(at, min(at + rows, len(source)))) for i, at in enumerate(starts)], rows, fingerprint(source)


class Slice:
    """Some samples of another source."""

    classes = None

    def __init__(self, source: Source, numbers: range):
        self.source, self.numbers = source, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def name(self, index: int) -> str:
        return self.source.name(self.numbers[index])

    def read(self, index: int, choose: Choose | None) -> tuple[list[Frames], int | None]:
        return self.source.read(self.numbers[index], choose)


class PartLoader(Loader):
    """Batches of one part. What cannot be read is kept in ``failures``: names and reasons."""

    def __init__(self, batches: Batches, workers: int, failures: list[tuple[str, str]]):
        super().__init__(batches, 0, workers)
        self.failures = failures

    def skip(self, name: str, reason: str) -> None:
        self.failures.append((name, reason))


class Worker:
    """Reads, computes and writes one part after the other: what every engine calls.

    device: a name of torch's. loaders: processes that decode for this worker; 0 for none.

    Raises OSError if this machine does not see the folder of the result.
    """

    def __init__(self, job: Job, device: str, loaders: int):
        try:
            same = (job.out / PLAN).read_text() == job.plan
        except OSError:
            same = False
        if not same:
            raise OSError(
                f"{job.out} on {platform.node()} is not the folder that the extraction began in; out= has to be a "
                "folder that all machines share"
            )
        self.job, self.loaders, self.schema = job, loaders, job.schema()
        self.compute = job.feature.load(torch.device(device))

    def __call__(self, part: Part) -> int:
        """Write the file of a part, unless it is there; its number."""
        path = self.job.path(part.number)
        if path.exists():  # of another worker, which died before it could say so
            return part.number
        with replacing(path, own_partial(path)) as file:
            failures: list[tuple[str, str]] = []
            with pq.ParquetWriter(file, self.schema, **WRITING) as writer:
                for table in grouped(self.tables(part, failures)):
                    writer.write_table(table, row_group_size=len(table))
            list_unreadable(self.job.out, part.number, failures)
        return part.number

    @torch.no_grad()
    def tables(self, part: Part, failures: list[tuple[str, str]]) -> Iterator[pa.Table]:
        """The rows of a part, a batch at a time, in the order of its samples; what cannot be read goes to failures."""
        source = self.open(part, failures)
        if source is None:
            return
        loader = PartLoader(Batches(self.job.reading, self.job.split, source=source), self.loaders, failures)
        for batch in loader:
            rows = self.compute(batch["images"]).flatten(1).to("cpu", getattr(torch, self.job.dtype)).contiguous()
            if self.job.dtype == "float16" and rows.isinf().any():
                raise ValueError("a feature is too large for dtype=float16; use dtype=float32")
            values = pa.array(rows.numpy().reshape(-1))
            labels = batch["labels"].tolist() if "labels" in batch else [-1] * len(rows)
            columns = [
                pa.array([printable(name) for name in loader.names(batch["indices"])], pa.string()),
                pa.array([None if label < 0 else label for label in labels], pa.int64()),
                pa.FixedSizeListArray.from_arrays(values, type=self.schema.field("features").type),
            ]
            yield pa.Table.from_arrays(columns, schema=self.schema)

    def open(self, part: Part, failures: list[tuple[str, str]]) -> Source | None:
        if isinstance(part.samples, Files):
            return part.samples
        if isinstance(part.samples, range):
            return Slice(samples_of(self.job.reading, self.job.split), part.samples)
        reading = self.job.reading
        pixels: dict[str, Any] = {name: getattr(reading, name) for name in ("autorotate", "channels", "data_range")}
        try:
            shards = open_shards([path_of(part.samples)], reading.frames > 0, **pixels)
        except StoreError:
            raise  # or a store that fails would cost rows
        except (OSError, ValueError) as error:
            failures.append((part.samples, f"{type(error).__name__}: {error}"))
            return None
        failures += shards.damage.items()
        return shards


def grouped(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Tables put together until they make up a row group."""
    group: list[pa.Table] = []
    for table in tables:
        group.append(table)
        if sum(table.nbytes for table in group) >= GROUP_BYTES:
            yield pa.concat_tables(group)
            group = []
    if group:
        yield pa.concat_tables(group)


def printable(name: str) -> str:
    """A name as UTF-8: bytes of a path that are none become ``\\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def own_partial(path: Path) -> Path:
    """A hidden name beside ``path``, of this process alone: a part may be in work twice, after a node was given up."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")


def list_unreadable(out: Path, number: int, failures: list[tuple[str, str]]) -> None:
    """Write what of a part cannot be read, before its rows are there: a file that is there is complete."""
    path = out / UNREADABLE / f"part-{number:06}.jsonl"
    if not failures:
        path.unlink(missing_ok=True)  # of a worker that died before its rows were there
        return
    lines = [json.dumps({"name": printable(name), "reason": reason, "part": number}) for name, reason in failures]
    with replacing(path, own_partial(path)) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())


def gather_unreadable(out: Path) -> int:
    """Put all that cannot be read into one file, _unreadable.jsonl; how many they are."""
    listed = b"".join(path.read_bytes() for path in sorted((out / UNREADABLE).glob("part-*.jsonl")))
    if listed:
        write_atomically(out / f"{UNREADABLE}.jsonl", listed)
    return listed.count(b"\n")


def finished(out: Path) -> set[int]:
    """Numbers of the parts that are there."""
    names = (entry.name for entry in os.scandir(out))
    return {int(name[5:-8]) for name in names if name.startswith("part-") and name.endswith(".parquet")}


def clear(out: Path) -> set[int]:
    """Remove what workers that were killed had begun to write; the numbers of these parts."""
    begun = [*out.glob(".part-*.partial"), *(out / UNREADABLE).glob(".part-*.partial")]
    for path in begun:
        path.unlink(missing_ok=True)
    return {int(path.name[6:].partition(".")[0]) for path in begun}
