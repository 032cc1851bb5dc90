"""``make results``: the results in the documents, every number of them from a row of ``benchmarks/results/*.json``.

README.md has a few rows of them, docs/benchmarks.md has more. The tables beside the results, and the plots that a
document shows, are made anew too, if they were made from another report, or columns or drawings have changed.
"""

import argparse
import importlib.util
import json
import re
from pathlib import Path

from benchmarks import rivals
from benchmarks.machine import ROOT
from benchmarks.readme_cpu import cpu
from benchmarks.readme_gpu import gpu
from benchmarks.readme_parts import LAYER, head
from benchmarks.report import fingerprint, is_finished, markdown, write_at_once
from benchmarks.rows import Rows, amount, ratio, row_of, seconds, tell
from benchmarks.suites import SUITES, cases
from benchmarks.tables import aligned, is_ours
from benchmarks.timing import Settings

README = ROOT / "README.md"
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: begin (make results) -->", "<!-- results: end -->"
FEW = ("fused_hog uint8", "fused_hog float32", "OpenCV uint8", "scikit-image float32", LAYER)


def summary(reports: dict[str, dict]) -> str:
    """What stands between the marks of the README: a few rows of each machine, from reports by file name."""
    parts = [part for stem, report in reports.items() for part in few_rows(stem, Rows(report))]
    return "\n\n".join([BEGIN, *parts, END])


def few_rows(stem: str, rows: Rows) -> list[str]:
    """The machine, and :data:`FEW` on colour and on gray; a rival that took no part has no line."""
    found = {"RGB": rows.largest(), "gray": rows.case("hog", "Gray")}
    found = {word: case for word, case in found.items() if word == "RGB" or case["rows"]}
    lines = [["us an image", *(title for word in found for title in (word, "times slower"))]]
    for name in FEW:
        if not is_ours(name) and all(row_of(case, name) not in case["rows"] for case in found.values()):
            continue
        line = [name]
        for case in found.values():
            row = row_of(case, name)
            known = row in case["rows"] or "failed" in case
            us = tell(lambda row: amount(1e6 * seconds(row)), row) if known else ""
            line += [us, tell(ratio, row) if known and not is_ours(name) and "failed" not in row else ""]
        lines.append(line)
    where = "one thread" if rows.report["device"] == "cpu" else "by replay of CUDA graphs"
    return [head(stem, rows, where), "\n".join(aligned(lines))]


def block(reports: dict[str, dict]) -> str:
    """What stands between the marks of docs/benchmarks.md, from reports by file name."""
    quick = [stem for stem, report in reports.items() if report["quick"]]
    if quick:
        raise ValueError(f"the results must be of full runs; quick ones are {', '.join(quick)}")
    on_cpu = {stem: Rows(r) for stem, r in reports.items() if r["device"] == "cpu"}
    on_gpu = {stem: Rows(r) for stem, r in reports.items() if r["device"] == "cuda"}
    parts = [part for stem, rows in on_cpu.items() for part in cpu(stem, rows)]
    parts += [part for stem, rows in on_gpu.items() for part in gpu(stem, rows)]
    if not on_gpu:
        parts.append("On GPUs: **not yet measured**. `make gpu` measures.")
    return "\n\n".join([BEGIN, *parts, END]).replace("(benchmarks/results/", "(../benchmarks/results/")


def reports() -> dict[str, dict]:
    """The committed results by file name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def outdated(report: dict) -> list[str]:
    """The cases that only the report has or only a run of today would, unless the run was cut short.

    Those of compat need libraries that may be absent.
    """
    absent = {*report["absent"], *rivals.absent(report["device"])} & {"OpenCV", "compat.skimage and compat.opencv"}
    suites = [suite for suite in SUITES if suite != "compat" or not absent]
    settings = Settings(report["device"], report.get("threads", 1))
    today = {f"{suite}: {case.title}" for suite in suites for case in cases(suite, settings)}
    measured = {f"{c['suite']}: {c['title']}" for c in report["cases"] if c["suite"] in suites}
    return sorted(today ^ measured if is_finished(report) else measured - today)


def with_block(path: Path, new: str) -> str:
    """The text of a document with what stands between the marks replaced."""
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{path.name} must have one {BEGIN} and after it one {END}")
    return text[: text.index(BEGIN)] + new + text[text.index(END) + len(END) :]


def stale_plots(text: str, results: dict[str, dict]) -> dict[str, set[str]]:
    """The plots that a document shows and that are not drawn from the results, their names by that of the report."""
    stale: dict[str, set[str]] = {}
    for stem, name in re.findall(r"\((?:\.\./)?benchmarks/results/([^\s)]+)_([^\s_)]+)\.png\)", text):
        if drawn_from(RESULTS / f"{stem}_{name}.png") != fingerprint([results[stem]]):
            stale.setdefault(stem, set()).add(name)
    return stale


def drawn_from(plot: Path) -> str | None:
    """The fingerprint in a plot; None where there is none."""
    found = re.search(rb"Report\0([0-9a-f]{64})", plot.read_bytes()) if plot.exists() else None
    return found[1].decode() if found else None


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if it would change")
    options = parser.parse_args(words)
    results = reports()
    old = {stem: found for stem, report in results.items() if (found := outdated(report))}
    for stem, found in old.items():
        print(f"{stem}.json has other cases than a run would have now, run make bench: {'; '.join(found)}")
    new = {README: with_block(README, summary(results)), PAGE: with_block(PAGE, block(results))}
    plots = stale_plots("\n".join(new.values()), results)
    new |= {RESULTS / f"{stem}.md": markdown(report) for stem, report in results.items()}
    stale = [path for path, made in new.items() if not path.exists() or path.read_text() != made]
    if options.check:
        names = [path.name for path in stale] + [f"{stem}_{name}.png" for stem in plots for name in sorted(plots[stem])]
        print(f"stale, run make results: {', '.join(names)}" if names else "documents, tables and plots are up to date")
        return int(bool(names or old))
    for path in stale:
        write_at_once(path, new[path])
    if plots and not importlib.util.find_spec("matplotlib"):
        print("no plots: matplotlib is not installed")
        return 1
    for stem, names in plots.items():
        from benchmarks.plots import draw

        draw([results[stem]], RESULTS / stem, names)
    return 0
