"""``make results``: the results in README.md, every number of them from a row of ``benchmarks/results/*.json``.

The tables beside these files and the plots that the README shows are made anew too, if they were made from another
report, or columns or drawings have changed.
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
from benchmarks.report import fingerprint, is_finished, markdown, write_at_once
from benchmarks.rows import Rows
from benchmarks.suites import SUITES, cases
from benchmarks.timing import Settings

README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: begin (make results) -->", "<!-- results: end -->"


def block(reports: dict[str, dict]) -> str:
    """What stands between the marks, from reports by file name."""
    quick = [stem for stem, report in reports.items() if report["quick"]]
    if quick:
        raise ValueError(f"the results must be of full runs; quick ones are {', '.join(quick)}")
    on_cpu = {stem: Rows(r) for stem, r in reports.items() if r["device"] == "cpu"}
    on_gpu = {stem: Rows(r) for stem, r in reports.items() if r["device"] == "cuda"}
    parts = [part for stem, rows in on_cpu.items() for part in cpu(stem, rows)]
    parts += [part for stem, rows in on_gpu.items() for part in gpu(stem, rows)]
    if not on_gpu:
        parts.append("On GPUs: **not yet measured**. `make gpu` measures.")
    return "\n\n".join([BEGIN, *parts, END])


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


def with_block(text: str, new: str) -> str:
    """``text`` with what stands between the marks replaced."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{README.name} must have one {BEGIN} and after it one {END}")
    return text[: text.index(BEGIN)] + new + text[text.index(END) + len(END) :]


def stale_plots(text: str, results: dict[str, dict]) -> dict[str, set[str]]:
    """The plots that a text shows and that are not drawn from the results, their names by that of the report."""
    stale: dict[str, set[str]] = {}
    for stem, name in re.findall(r"\(benchmarks/results/([^\s)]+)_([^\s_)]+)\.png\)", text):
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
    text, results = README.read_text(), reports()
    old = {stem: found for stem, report in results.items() if (found := outdated(report))}
    for stem, found in old.items():
        print(f"{stem}.json has other cases than a run would have now, run make bench: {'; '.join(found)}")
    new = {README: with_block(text, block(results))}
    new |= {RESULTS / f"{stem}.md": markdown(report) for stem, report in results.items()}
    stale = [path for path, made in new.items() if not path.exists() or path.read_text() != made]
    plots = stale_plots(new[README], results)
    if options.check:
        names = [path.name for path in stale] + [f"{stem}_{name}.png" for stem in plots for name in sorted(plots[stem])]
        print(f"stale, run make results: {', '.join(names)}" if names else "README.md, tables and plots are up to date")
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
