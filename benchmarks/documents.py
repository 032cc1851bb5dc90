"""``make results``: the results in README.md and docs/benchmarks.md, from the reports in ``benchmarks/results/``.

Both have the same table, the README only the lines of :data:`MAIN`. The tables beside the reports, and the plots that
the documents show, are made anew too where they are stale.
"""

import argparse
import importlib.util
import json
import re
from pathlib import Path

from benchmarks.machine import ROOT, name_of, told_commit
from benchmarks.report import aligned, exponents, is_finished, markdown, share, table, write_at_once
from benchmarks.timing import is_ours

DOCUMENTS = ("README.md", "docs/benchmarks.md")
RESULTS = "benchmarks/results"
BEGIN, END = "<!-- results: begin (make results) -->", "<!-- results: end -->"
MAIN = r"hog: (RGB 224x224, batch \d+, from memory|Gray .*)"
"""The cases of the README."""

CHANNELS = "Of RGB, OpenCV, scikit-image and hogpp keep the strongest channel at each pixel: a third of our histograms."


def summary(report: dict, pattern: str = ".*") -> list[str]:
    """A line for each row that others are compared with: its time, and how many times as long each of them takes.

    Cases are those whose "suite: title" is all of ``pattern``. A rival that is faster is bold.
    """
    lines = [["case", "row", "its time", "how many times as long others take"]]
    for case in report["cases"]:
        title = f"{case['suite']}: {case['title']}"
        if not re.fullmatch(pattern, title):
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


def head(stem: str, report: dict) -> str:
    facts, cut = report["environment"], "" if is_finished(report) else " The run was cut short."
    how = "replay of CUDA graphs" if report["device"] == "cuda" else "one thread where nothing else is said"
    return (
        f"**{name_of(facts)}**, {how}. Times are of an image where images are counted, else of a call. Bold is faster "
        f"than ours. {CHANNELS} Commit {told_commit(facts['commit'])}, {facts['date'][:10]}, load before "
        f"{facts['load_before']}.{cut} [All tables]({RESULTS}/{stem}.md) have spread, settings and versions."
    )


def block(reports: dict[str, dict], whole: bool) -> str:
    """What stands between the marks, from reports by file name: all of it, or what the README has."""
    if quick := [stem for stem, report in reports.items() if report["quick"]]:
        raise ValueError(f"the results must be of full runs; quick ones are {', '.join(quick)}")
    parts = []
    for stem, report in reports.items():
        parts += [head(stem, report), "\n".join(summary(report, ".*" if whole else MAIN))]
        for case in report["cases"] if whole else []:
            if powers := exponents(case):
                told = ", ".join(f"{name} {power:.2f}" for name, power in powers.items())
                parts.append(f"![{case['title']}]({RESULTS}/{stem}_time-and-pixels.png)")
                parts.append(f"Time grows with the pixels to this power, from 256x256 on: {told}.")
                parts.append(
                    f"How far that is from what the machine can do: [roofline]({RESULTS}/{stem}_roofline.png)."
                )
            if case["suite"] in ("accuracy", "memory"):
                parts += [f"{case['title']}:", "\n".join(table(case))]
    if all(report["device"] == "cpu" for report in reports.values()):
        parts.append("On GPUs: **not yet measured**. `make gpu` measures.")
    return "\n\n".join([BEGIN, *parts, END])


def with_block(path: Path, new: str) -> str:
    """The text of a document with what stands between the marks replaced."""
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{path.name} must have one {BEGIN} and after it one {END}")
    return text[: text.index(BEGIN)] + new + text[text.index(END) + len(END) :]


def main(words: list[str], root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks results", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if it would change")
    options = parser.parse_args(words)
    reports = {path.stem: json.loads(path.read_text()) for path in sorted((root / RESULTS).glob("*.json"))}
    new = {root / RESULTS / f"{stem}.md": markdown(report) for stem, report in reports.items()}
    for name in DOCUMENTS:
        up = "../" * name.count("/")
        new[root / name] = with_block(root / name, block(reports, bool(up)).replace(f"({RESULTS}", f"({up}{RESULTS}"))
    stale = [path for path, text in new.items() if not path.exists() or path.read_text() != text]
    shown = set(re.findall(rf"\([./]*{RESULTS}/([^\s)]+)_([^\s_)]+)\.png\)", "".join(new.values())))
    if importlib.util.find_spec("matplotlib"):
        from benchmarks import plots

        for stem, name in sorted(shown):
            path = root / RESULTS / f"{stem}_{name}.png"
            if not plots.is_drawn_from(path, reports[stem]):
                stale.append(path)
                if not options.check:
                    plots.draw([reports[stem]], root / RESULTS / stem, {name})
    else:
        print("plots are not looked at: matplotlib is not installed")
    for path in [] if options.check else stale:
        if path in new:
            write_at_once(path, new[path])
    names = ", ".join(path.name for path in stale)
    print(f"{'stale, run make results' if options.check else 'written'}: {names}" if names else "all is up to date")
    return int(options.check and bool(stale))
