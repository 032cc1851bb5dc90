"""``extract``: settings, refusals, the folder of the result, and what is left to do in it."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from maskfeat_kernels import HogSpec

from ..config import Recipe, override
from ..data.loader import forget_sources
from ..keys import nearest
from ..run.distributed import World
from ..run.lock import RunLock
from ..weights.storage import write_atomically
from .features import READ_BY, Encoded, Hog, Reading, encoded, reading_of
from .options import PRESETS, Options, options_of, spec_of

FORMAT = 1
SAID = 30
"""Seconds between lines where there is no terminal."""

BATCH, HOG_BATCH = 64, 16
"""Samples that are computed at once, where nothing is said. HOG finds so few images in the cache still."""


def extract(
    what: "str | Path | HogSpec",
    data: "str | Path" = "",
    out: "str | Path" = "",
    **settings: Any,
) -> dict[str, int]:
    """Features of all samples of ``data``, as Parquet files in the folder ``out``.

    Each row has ``name`` (string), ``label`` (int64, null where there is none) and ``features``, a fixed-size list of
    numbers. What they are stands as JSON under the key ``maskfeat`` in the metadata of the schema.

    A second call does what is missing. Samples that cannot be read are listed in ``out/_unreadable.jsonl``.

    what: "hog", a :class:`HogSpec`, or a run folder, a checkpoint or a file of weights, whose encoder is used.
    data: as ``data`` of a recipe; by default that of the run.
    settings: ``preset`` and the words of HogSpec for "hog", keys of the recipe for an encoder, and those of
        :class:`Options`. ``maskfeat extract --help`` has them.

    Returns ``samples`` (rows), ``unreadable`` and ``files`` in the folder, and how many files are ``new``.

    Raises ValueError or OSError for what cannot be read, does not fit together, or belongs to another folder.
    """
    values: dict[str, Any] = {**({"data": str(data)} if data else {}), **({"out": str(out)} if out else {}), **settings}
    result, _ = run(what, values)
    return result


def run(
    what: "str | Path | HogSpec", settings: dict[str, Any], look: Callable[[], object] = lambda: None
) -> tuple[dict[str, int], str]:
    """What :func:`extract` returns, and a note on weights that were resized. ``look`` is called after each file."""
    _check_pyarrow()
    forget_sources()
    from . import engines
    from .parts import PLAN, Job, check_row, clear, divide, finished

    options, feature, reading, note = _understood(what, settings)
    folder = Path(options.out).absolute()
    shape = feature.shape(reading)
    size = check_row(shape, options.dtype)
    with RunLock(folder, World(0, 1, torch.device("cpu"), None), "_extract.lock"):  # type: ignore[arg-type]
        before = _read_plan(folder / PLAN)
        team = engines.team(options, feature, reading)
        with team:
            parts, rows, data = divide(reading, options.split, options.rows, before.get("rows", 0), size)
            plan = {
                "format": FORMAT,
                "feature": feature.says(),
                "reading": reading.says(),
                "data": {"split": options.split, "fingerprint": data},
                "shape": list(shape),
                "dtype": options.dtype,
                "rows": rows,
                "files": len(parts),
            }
            text = json.dumps(plan, indent=1)
            _check_same(folder, before, json.loads(text))
            if not before:
                write_atomically(folder / PLAN, text.encode())
            clear(folder)
            job = Job(feature, reading, options.split, folder, shape, options.dtype, (folder / PLAN).read_text())
            done = finished(folder)
            left = [part for part in parts if part.number not in done]
            with _progress(len(parts), len(parts) - len(left)) as advance:
                team.run(job, left, lambda: (advance(), look()))
    return _result(folder, len(left)), note


def _understood(what: "str | Path | HogSpec", settings: dict[str, Any]) -> tuple[Options, Hog | Encoded, Reading, str]:
    """The settings by whom they are for: options, the feature, how samples are read; and a note on weights."""
    options, others = options_of(settings)
    others = {"samples": 0, **({"val_data": ""} if "data" in others else {}), **others}
    if isinstance(what, HogSpec) or str(what) == "hog":
        if "data" not in others:
            raise ValueError("extract hog needs data=..., a folder, a list or tar shards of images or videos")
        spec, others = spec_of(others, what if isinstance(what, HogSpec) else None, READ_BY)
        kind = "vit" if str(others.get("frames", 0)) == "0" else "mvit"  # which says whether clips are read
        reading = Reading(name="extract hog", device="cpu", batch_size=HOG_BATCH)
        return options, Hog(spec), override(reading, {**others, "encoder": kind}, silent=True), ""
    if not Path(what).exists():
        close = nearest(str(what), ["hog"]) or (f"; did you mean hog preset={what}?" if str(what) in PRESETS else "")
        raise ValueError(f"extract takes hog, a run folder or a file of weights, and there is no {str(what)!r}{close}")

    def change(trained: Recipe) -> Recipe:
        return override(trained, {"batch_size": BATCH, "accumulate": 1, "lr": trained.lr, **others})

    feature, note = encoded(Path(what), change, options.features == "pooled")
    return options, feature, reading_of(feature.recipe), note


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[], object]]:
    """A line that moves on a terminal; elsewhere a line every ``SAID`` seconds."""
    moves, said = sys.stderr.isatty(), time.monotonic()
    with tqdm(desc="extract", total=total, initial=done, unit="file", disable=not moves) as line:

        def advance() -> None:
            nonlocal done, said
            done += 1
            line.update()
            if not moves and time.monotonic() - said > SAID:
                said = time.monotonic()
                tqdm.write(f"extract  file {done} of {total}", file=sys.stderr)

        yield advance


def _read_plan(path: Path) -> dict[str, Any]:
    """What an earlier call has begun in the folder; {} if none has.

    Raises FileExistsError for a folder that holds other files, which a reader would take for features.
    """
    try:
        plan = json.loads(path.read_bytes())
    except FileNotFoundError:
        others = [name for name in os.listdir(path.parent) if not name.startswith(("_", "."))]
        if others:
            raise FileExistsError(f"{path.parent} holds other files, such as {others[0]}; choose another out") from None
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); choose another out") from error
    if not isinstance(plan, dict) or plan.get("format") != FORMAT:
        raise ValueError(f"{path} is of another version of maskfeat; choose another out")
    return plan


def _check_same(folder: Path, before: dict[str, Any], plan: dict[str, Any]) -> None:
    """ValueError, with what differs, if an earlier call was for another feature or other data."""
    old, new = _flat(before), _flat(plan)
    different = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    if not before or not different:
        return
    if "data.fingerprint" in different:
        what, why = "other data", "names, sizes or classes of the samples differ"
    else:
        name = different[0]
        what, why = "another extraction", f"{name.rpartition('.')[2]} was {old.get(name)}, is {new.get(name)}"
    raise ValueError(f"{folder} holds features of {what} ({why}); choose another out, or remove it")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _result(folder: Path, new: int) -> dict[str, int]:
    """Counts of what the folder holds; ValueError if no sample could be read."""
    import pyarrow.parquet as pq

    from .parts import UNREADABLE, gather_unreadable

    unreadable = gather_unreadable(folder)
    files = sorted(folder.glob("part-*.parquet"))

    def rows(path: Path) -> int:
        try:
            return int(pq.read_metadata(path).num_rows)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}); remove it, and give the same command again") from error

    with ThreadPoolExecutor(16) as pool:
        samples = sum(pool.map(rows, files))
    if not samples:
        raise ValueError(f"none of the samples could be read; {folder / UNREADABLE}.jsonl has the reasons")
    return {"samples": samples, "unreadable": unreadable, "files": len(files), "new": new}


def _check_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ValueError(f"features are written by pyarrow: pip install pyarrow ({error})") from error
