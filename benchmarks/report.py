"""A report: JSON with every sample, and Markdown tables that are made from that JSON alone; the README has a short one.

``{"device", "quick", "threads", "environment", "ceilings", "cannot", "absent", "finished", "cases"}``. "finished" is
false while cases are to come. A "note" may be added by hand. A case is ``{"suite", "title", "axis", "rows"}``. A case
or a row that could not be measured has ``"failed"`` with an error in place of what it lacks. docs/benchmarks.md says
what the columns mean.
"""

import json
import math
import os
import re
import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import name_of, told_commit
from benchmarks.timing import is_ours

RESULTS = "benchmarks/results"
BEGIN, END = "<!-- results: begin (make results) -->", "<!-- results: end -->"
MAIN = {
    "cpu": r"hog: (RGB 224x224, batch \d+, from memory|Gray .*)",
    "cuda": r"hog: RGB 224x224, batch \d+, from memory|tokens: Targets .*",
}
"""The cases of the README, by device."""

ABOUT = """\
Times are of an image where images are counted, else of a call. Others' times are divided by ours, of the same run, in \
which all take turns. Bold is faster than ours. Of RGB, OpenCV, scikit-image \
and hogpp keep the strongest channel at each pixel: a third of our histograms."""

HEAD = """\
**{name}**, {how}. Commit {commit}, {date}, load before {load}.{cut} [All tables]({tables}) have spread, settings and \
versions."""


def share(value: float) -> str:
    """0.1234 as "12 %". Small shares keep two digits, and nothing but zero becomes "0"."""
    return "0" if value == 0 else f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"


def _number(key: str, scale: float = 1.0, digits: int = 3) -> Callable[[dict], str | None]:
    return lambda row: f"{scale * row[key]:.{digits}g}" if key in row else None


def _share(key: str) -> Callable[[dict], str | None]:
    return lambda row: share(row[key]) if key in row else None


def _time(row: dict) -> str | None:
    return "failed" if "failed" in row else f"{1e3 * row['seconds']['median']:.4g}" if "seconds" in row else None


def _spread(row: dict) -> str | None:
    if "seconds" not in row:
        return None
    p20, p80 = (1e3 * row["seconds"][k] for k in ("p20", "p80"))
    return f"{p20:.4g} to {p80:.4g}{' (!)' if p80 > 2 * p20 else ''}"


def _ratio(row: dict) -> str | None:
    return "{median:.3g} ({p20:.3g} to {p80:.3g})".format(**row["ratio"]) if "ratio" in row else None


def _error(row: dict) -> str | None:
    if "max_error" in row:
        return "-" if row["max_error"] is None else f"{row['max_error']:.1e}"
    return _number("largest_error", digits=2)(row)


def _pixels(row: dict) -> str | None:
    return share(row["pixels_wrong"]) if "pixels_wrong" in row else "no single bin" if "cells_off" in row else None


COLUMNS: dict[str, Callable[[dict], str | None]] = {
    "": lambda row: row["name"],
    "input": lambda row: row.get("given"),
    "threads": lambda row: str(row["threads"]) if "threads" in row else None,
    "ms": _time,
    "p20 to p80": _spread,
    "time ratio": _ratio,
    "to": lambda row: row["ratio"]["to"] if "ratio" in row else None,
    "images/s": _number("items_per_second", digits=4),
    "GB/s": _number("bytes_per_second", 1e-9),
    "of a copy": _share("share_of_copy"),
    "of arithmetic": _share("share_of_arithmetic"),
    "import ms": _number("import_seconds", 1e3),
    "peak MB": _number("peak_bytes", 1e-6),
    "result MB": _number("result_bytes", 1e-6),
    "pixels in the wrong bin": _pixels,
    "cells off by more than 1e-3": _share("cells_off"),
    "largest error": _error,
}
"""What may be said of a row. A table has the columns that one of its rows has."""


def table(case: dict) -> list[str]:
    """The lines of the table of a case, and below it the errors of the rows that failed; or why there is none."""
    if "failed" in case or not case["rows"]:
        return [f"Failed: {case['failed']}" if "failed" in case else "Nothing was measured."]
    columns = [[title, *(say(row) for row in case["rows"])] for title, say in COLUMNS.items()]
    columns = [column for column in columns if any(cell is not None for cell in column[1:])]
    lines = [[cell or "" for cell in line] for line in zip(*columns, strict=True)]
    errors = [f"* {row['name']} failed: {row['failed']}" for row in case["rows"] if "failed" in row]
    return [*aligned(lines), *([""] if errors else []), *errors]


def aligned(lines: list[list[str]]) -> list[str]:
    """A Markdown table whose first line is the header. A long cell moves the rest of its line alone."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [min(max(map(len, column)), 60) for column in zip(*lines, strict=True)]
    text = ["| " + " | ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return [text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]]


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
        f"{'is held' if report['holds_memory'] else 'may be given back'}. This machine: {can}."
        + (" A quick run: its numbers are rough." if report["quick"] else "")
        + (f" Only the cases of {report['only']!r}." if report.get("only") else "")
        + ("" if report["finished"] else " The run was cut short: cases are missing.")
        + (" The extension is not built: fused_hog is plain torch." if facts["backends"] == ["reference"] else "")
        + (f" {report['note']}" if "note" in report else "")
    )


def markdown(report: dict) -> str:
    """Every table, and what the rivals cannot do."""
    lines = [f"# Benchmarks on {name_of(report['environment'])}", "", about(report)]
    for case in report["cases"]:
        lines += ["", f"## {case['suite']}: {case['title']}", "", *table(case)]
        if powers := exponents(case):
            lines += ["", f"Exponent of time against pixels, from 256x256 on: {powers}."]
    lines += ["", "## What the rivals cannot do", "", *(f"* {name}: {note}" for name, note in report["cannot"].items())]
    lines += ["", "Absent from this run:", "", *(f"* {name}: {why}" for name, why in report["absent"].items())]
    return "\n".join(lines) + "\n"


def curves(case: dict) -> dict[str, list[dict]]:
    """The measured rows of each series of a case, along its axis."""
    result: dict[str, list[dict]] = {}
    for row in sorted((row for row in case["rows"] if "at" in row and "seconds" in row), key=lambda row: row["at"]):
        result.setdefault(row["series"], []).append(row)
    return result


def exponents(case: dict) -> str:
    """The power of the pixels that time grows with, for each series of three sizes or more: 1 means proportional."""
    told = []
    for series, rows in curves(case).items() if (case["axis"] or "").startswith("pixels") else ():
        points = [(math.log(r["at"]), math.log(r["seconds"]["median"])) for r in rows if r["at"] >= 256**2]
        if len(points) >= 3:
            told.append(f"{series} {statistics.linear_regression(*zip(*points, strict=True)).slope:.2f}")
    return ", ".join(told)


def write(report: dict, path: Path) -> None:
    """Write ``path`` (.json, raw samples included), and beside it the tables made from what was written (.md)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    six_digits = json.loads(json.dumps(report), parse_float=lambda digits: float(f"{float(digits):.6g}"))
    text = json.dumps(six_digits, indent=1)
    # A list of samples on one line.
    text = re.sub(r"\[\s+(-?[\d.][^\[\]{}\"]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
    write_at_once(path, text + "\n")
    write_at_once(path.with_suffix(".md"), markdown(six_digits))


def write_at_once(path: Path, text: str) -> None:
    """Write a file at once: a run that is killed meanwhile leaves the old one."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(text)
    os.replace(beside, path)


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
        "finished": all(report["finished"] for report in reports),
        "only": "",
        "seconds": sum(report.get("seconds", 0.0) for report in reports),
    }


def summary(report: dict) -> list[str]:
    """A line for each row of the main cases that others are compared with: its time, and how long others take.

    A rival that is faster is bold.
    """
    lines = [["case", "row", "its time", "how many times as long others take"]]
    for case in report["cases"]:
        title = f"{case['suite']}: {case['title']}"
        if not re.fullmatch(MAIN[report["device"]], title):
            continue
        if "failed" in case:
            lines.append([title, f"failed: {case['failed']}", "", ""])
        for row in case["rows"]:
            others = "; ".join(times(o) for o in case["rows"] if o.get("ratio", {}).get("to") == row["name"])
            if others or "failed" in row:
                words = ["", f"failed: {row['failed']}"] if "failed" in row else [time_of(row), others]
                lines.append([title, row["name"], *words])
                title = ""
    return aligned(lines)


def times(row: dict) -> str:
    name, ratio = row["name"].removeprefix("theirs: "), row["ratio"]["median"]
    word = f"{name} {ratio:,.0f}" if ratio >= 10 else f"{name} {ratio:.2g}"
    return f"**{word}**" if ratio < 1 and is_ours(row["ratio"]["to"]) and not is_ours(row["name"]) else word


def time_of(row: dict) -> str:
    """Of an image where the row counts images, else of a call; and the share of a copy's bandwidth."""
    us = 1e6 / row["items_per_second"] if "items_per_second" in row else 1e6 * row["seconds"]["median"]
    word = f"{us:.3g} us" if us < 100 else f"{us:,.0f} us" if us < 1e4 else f"{us / 1e3:,.0f} ms"
    return word + (f", {share(row['share_of_copy'])} of a copy" if "share_of_copy" in row else "")


def block(reports: dict[str, dict]) -> str:
    """What stands between the marks of the README, from reports by file name: the newest of each device."""
    if quick := [stem for stem, report in reports.items() if report["quick"]]:
        raise ValueError(f"the results must be of full runs; quick ones are {', '.join(quick)}")
    by_date = sorted(reports, key=lambda stem: reports[stem]["environment"]["date"])
    newest = {reports[stem]["device"]: stem for stem in by_date}
    parts = []
    for stem in sorted(newest.values()):
        report = reports[stem]
        facts, on_gpu = report["environment"], report["device"] == "cuda"
        head = HEAD.format(
            name=name_of(facts),
            how="replay of CUDA graphs" if on_gpu else "one thread where nothing else is said",
            commit=told_commit(facts["commit"]),
            date=facts["date"][:10],
            load=facts["load_before"],
            cut="" if report["finished"] else " The run was cut short.",
            tables=f"{RESULTS}/{stem}.md",
        )
        parts += [head, "\n".join(summary(report))]
    if all(report["device"] == "cpu" for report in reports.values()):
        parts.append("On GPUs: **not yet measured**. `make gpu` measures.")
    return "\n\n".join([BEGIN, ABOUT, *parts, END])


def with_block(path: Path, new: str) -> str:
    """The text of a document with what stands between the marks replaced."""
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end or BEGIN in rest or END in before + after:
        raise ValueError(f"{path.name} must have one {BEGIN} and after it one {END}")
    return before + new + after
