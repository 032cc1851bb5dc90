"""A report as text: written as JSON, and as Markdown tables made from that JSON alone, machines side by side.

``{"device", "quick", "threads", "environment", "ceilings", "cannot", "absent", "cases"}``, and ``"finished"``, false
while cases are to come; a case being ``{"suite", "title", "axis", "rows"}``. A case or a row that could not be measured
has ``"failed"`` with an error in place of what it lacks.
"""

import argparse
import hashlib
import importlib.util
import json
import math
import os
import re
from pathlib import Path

from benchmarks.machine import name_of, told_commit
from benchmarks.tables import aligned, share, table, time_of, wrong_pixels

LEGEND = """\
Median (p20 to p80) of the samples, the rivals taken in turn. A time ratio is the median of the ratios within a round: \
more than 1 is slower than the row it is taken to. Nothing is timed before its result has passed the check. Errors are \
against float64 in the definition of the row, and a dash means that only finiteness is checked. "(!)" marks a spread \
of more than a factor of two. Where freed memory is held (above), nobody pays for page faults. A cold start finds its \
files in the cache of the system. GB/s counts once each byte of the input that the result needs, and each result. \
"Of a copy" is a share of what a plain copy reaches on the same number of threads (above). What stays in the cache can \
be faster than a copy. "Of arithmetic" is a share of what a float32 matrix product or convolution reaches. float32 \
arithmetic that rounds after each operation reaches half of that. It counts the operations that the definition needs, \
however a rival does them. Peak MB is memory beyond the input, the result included. Pixels in the wrong bin and cells \
that are off are judged on the bytes of the same photographs, against exact arithmetic in the definition of the row. A \
cell is off where one of its bins differs by more than 1e-3. The libraries are judged on gray. hogpp and fasthog are \
judged by their own results in float64, since their definitions are written nowhere else."""


def about(report: dict) -> str:
    """The machine, the build, and what the machine can do."""
    facts = report["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    flags = "; ".join(f"{name} {words}" for name, words in facts["flags"].items())
    gpu = f"{facts['gpu']}, driver {facts['driver']}, CUDA {facts['cuda']}; " if "gpu" in facts else ""
    can = ", ".join(
        f"{c['copy_bytes_per_second'] / 1e9:.3g} GB/s copied and {c['operations_per_second'] / 1e9:.4g} Gop/s with {n} "
        f"thread{'s' if n != '1' else ''}"
        for n, c in report["ceilings"].items()
    )
    return (
        f"{gpu}{facts['cpu']}, {facts['cpus']} CPUs, {facts['instruction_set']}, {facts['system']}; Python "
        f"{facts['python']}, {versions}; compiler {facts['compiler']}, {flags}; commit {told_commit(facts['commit'])}; "
        f"{facts['date']}; load before {facts['load_before']}; freed memory "
        f"{'is held' if report.get('holds_memory') else 'may be given back'}. This machine: {can}."
        + (" A quick run: its numbers are rough." if report["quick"] else "")
        + (f" Only the cases of {report['only']!r}." if report.get("only") else "")
        + ("" if is_finished(report) else " The run was cut short: cases are missing.")
        + ("" if is_built(report) else " The extension is not built: fused_hog is the plain torch backend.")
    )


def is_built(report: dict) -> bool:
    return report["environment"]["backends"] != ["reference"]


def is_finished(report: dict) -> bool:
    return report.get("finished", True)


def markdown(report: dict) -> str:
    """One machine: every table, and what the rivals cannot do."""
    lines = [f"# Benchmarks on {name_of(report['environment'])}", "", about(report), "", LEGEND]
    above = above_the_ceiling(report)
    if above:
        lines += ["", f"Warning: more arithmetic than the measured ceiling, which cannot be trusted: {above}."]
    for case in report["cases"]:
        lines += ["", f"## {case['suite']}: {case['title']}", "", *lines_of(case)]
        powers = exponents(case)
        if powers:
            told = ", ".join(f"{series} {power:.2f}" for series, power in powers.items())
            lines += ["", f"Exponent of time against pixels, from 256x256 on: {told}."]
    lines += ["", "## What the rivals cannot do", "", *(f"* {name}: {note}" for name, note in report["cannot"].items())]
    lines += ["", "Absent from this run:", "", *(f"* {name}: {why}" for name, why in report["absent"].items())]
    return "\n".join(lines) + "\n"


def lines_of(case: dict) -> list[str]:
    """The table of a case, or why there is none."""
    if "failed" in case:
        return [f"Failed: {case['failed']}"]
    return table(case["rows"]) if case["rows"] else ["Nothing was measured."]


def above_the_ceiling(report: dict) -> str:
    """The rows that did more arithmetic than the machine was found to be able to; empty if there is none."""
    return "; ".join(
        f"{row['name']} ({case['title']}: {100 * row['share_of_arithmetic']:.0f} %)"
        for case in report["cases"]
        for row in case["rows"]
        if row.get("share_of_arithmetic", 0) > 1
    )


def exponents(case: dict) -> dict[str, float]:
    """By least squares on logarithms, for each series over pixels with three sizes or more; 1 means proportional."""
    result = {}
    if case["axis"] and case["axis"].startswith("pixels"):
        for series, rows in curves(case).items():
            points = [(math.log(r["at"]), math.log(r["seconds"]["median"])) for r in rows if r["at"] >= 256**2]
            if len(points) >= 3:
                x0, y0 = (sum(column) / len(points) for column in zip(*points, strict=True))
                covariance = sum((x - x0) * (y - y0) for x, y in points)
                result[series] = covariance / sum((x - x0) ** 2 for x, _ in points)
    return result


def curves(case: dict) -> dict[str, list[dict]]:
    """The measured rows of each series of a case, along its axis."""
    result: dict[str, list[dict]] = {}
    for row in sorted((row for row in case["rows"] if "at" in row and "seconds" in row), key=lambda row: row["at"]):
        result.setdefault(row["series"], []).append(row)
    return result


def side_by_side(reports: list[dict]) -> str:
    """Several machines: of each row the time and the ratio, or the accuracy, on each machine that has it."""
    names = [f"{i}: {name_of(r['environment'])}, {r['environment']['commit']}" for i, r in enumerate(reports, 1)]
    lines = ["# Benchmarks side by side", "", *(f"{i}. {about(r)}" for i, r in enumerate(reports, 1)), "", LEGEND]
    tables: dict[str, list[dict[str, str]]] = {}  # by title, for each machine its cells by name
    for i, report in enumerate(reports):
        for case in report["cases"]:
            title = f"{case['suite']}: {common_title(case)}"
            columns = tables.setdefault(title, [{} for _ in reports])
            for row in case["rows"]:
                columns[i][", ".join(filter(None, [row["name"], row.get("given")]))] = _brief(row)
    for title, columns in tables.items():
        rows = dict.fromkeys(name for column in columns for name in column)
        body = [[name, *(column.get(name, "") for column in columns)] for name in rows]
        if body:
            lines += ["", f"## {title}", "", *aligned([["", *names], *body])]
    return "\n".join(lines) + "\n"


def common_title(case: dict) -> str:
    """The title without the size of a batch, which differs between machines."""
    return re.sub(r", batch [0-9]+", ", batch", case["title"])


def _brief(row: dict) -> str:
    """Time of an image where it is known, as batches differ between machines, and the ratio; or pixels and cells."""
    if "failed" in row:
        return f"failed: {row['failed']}"
    if "seconds" not in row:
        return f"pixels {wrong_pixels(row)}, cells {share(row['cells_off'])}"
    time = f"{1e6 / row['items_per_second']:.4g} us an image" if "items_per_second" in row else f"{time_of(row)} ms"
    return time + (f" ({row['ratio']['median']:.3g} x)" if "ratio" in row else "")


def write(report: dict, path: Path) -> None:
    """Write ``path`` (.json, raw samples included), and beside it the tables made from what was written (.md)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_rounded(report), indent=1)
    # A list of samples on one line.
    text = re.sub(r"\[\s+(-?[\d.][^\[\]{}\"]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
    write_at_once(path, text + "\n")
    write_at_once(path.with_suffix(".md"), markdown(json.loads(text)))


def write_at_once(path: Path, text: str) -> None:
    """Write a file at once: a run that is killed meanwhile leaves the old one."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text)
    os.replace(beside, path)


def _rounded(value):
    """With six digits, more than any clock has to say."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


def fingerprint(reports: list[dict]) -> str:
    """Of all that plots are made from: reports and the code that draws them. Each plot holds it as its "Report".

    Versions of matplotlib draw other pixels of the same.
    """
    drawing = Path(__file__).with_name("plots.py").read_bytes()
    return hashlib.sha256(json.dumps(reports, sort_keys=True).encode() + drawing).hexdigest()


def read(path: Path) -> dict:
    """Raises OSError or ValueError, both naming the file, if it cannot be read or is no report."""
    try:
        report = json.loads(path.read_text())
        markdown(report)  # which needs all of it
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no report of the benchmarks ({type(error).__name__}: {error})") from error
    return report


def joined(reports: list[dict]) -> dict:
    """One report of runs that measured different cases; ValueError unless machine, commit and device are the same."""
    facts = {(name_of(r["environment"]), r["environment"]["commit"], r["device"], r["quick"]) for r in reports}
    if len(facts) > 1:
        told = "; ".join(sorted(", ".join(map(str, fact)) for fact in facts))
        raise ValueError(f"runs to be joined must be of one machine, commit, device and size, got {told}")
    cases = {(case["suite"], case["title"]): case for report in reports for case in report["cases"]}
    return reports[0] | {
        "cases": sorted(cases.values(), key=lambda case: case["axis"] is not None),
        "absent": {name: why for report in reports for name, why in report["absent"].items()},
        "finished": all(map(is_finished, reports)),
        "only": "",
        "seconds": sum(report.get("seconds", 0.0) for report in reports),
    }


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks report", description="Tables and plots from JSON alone.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: beside the first file)")
    parser.add_argument("--join", type=Path, metavar="JSON", help="write one report of runs of different cases instead")
    options = parser.parse_args(words)
    try:
        reports = [read(path) for path in options.files]
        if options.join:
            write(joined(reports), options.join)
            print(f"wrote {options.join}, and the tables beside it")
            return 0
    except (OSError, ValueError) as error:
        parser.error(str(error))
    folder = options.out or options.files[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    one = len(reports) == 1
    text = folder / (f"{options.files[0].stem}.md" if one else "side_by_side.md")
    text.write_text(markdown(reports[0]) if one else side_by_side(reports))
    written = [text]
    if importlib.util.find_spec("matplotlib"):
        from benchmarks import plots

        written += plots.draw(reports, folder / text.stem)
    else:
        print("no plots: matplotlib is not installed")
    print("\n".join(f"wrote {path}" for path in written))
    return 0
