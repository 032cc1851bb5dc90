"""The benchmarks: one command, every rival, and what it wrote as tables, plots and the results in the documents.

::

    python -m benchmarks [hog|tokens|blocks|gradients|gather|mask|loader|step|compat|accuracy|memory|all ...]
                         [--device cpu|cuda] [--threads N] [--quick] [--out FOLDER] [--base COMMIT]
                         [--only PATTERN] [--without BACKEND:OP ...]
    python -m benchmarks report FILE... [--to JSON]    one report of runs of different cases, its tables and plots
    python -m benchmarks results [--check]             the table of README.md, from benchmarks/results
"""

import argparse
import re
import sys
import time
import traceback
from pathlib import Path

import torch

import maskfeat_kernels
from benchmarks import commits, machine, plots, report, rivals, timing
from benchmarks.cases import OPS, SUITES, cases
from benchmarks.timing import Settings
from maskfeat_kernels.backend import BACKENDS

RESULTS = machine.ROOT / report.RESULTS


def run(suites: list[str], settings: Settings, folder: Path | None, only: str) -> dict:
    """Measure, telling the progress; the report has all that tables and plots are made from.

    It is written into ``folder`` after each case, under the name of device and hardware, so that a run which is cut
    short is not lost.
    """
    threads = sorted({1, settings.threads}) if settings.device == "cpu" else [1]
    absent = rivals.absent(settings.device)
    if settings.quick:
        absent["reference layer compiled"] = "left out of a quick run: compiling takes longer than all of it"
    absent |= dict.fromkeys(sorted(settings.without), "left out of this run, as it was found to be wrong")
    result = {
        "device": settings.device,
        "quick": settings.quick,
        "threads": settings.threads,
        "holds_memory": machine.hold_memory(),
        "environment": machine.environment(settings.device),
        "ceilings": {str(n): timing.ceilings_of(torch.device(settings.device), n) for n in threads},
        "cannot": rivals.CANNOT,
        "absent": absent,
        "finished": False,
        "only": only,
        "cases": [],
    }
    # Curves take longest and say least: they come last, so that a run that is cut short has all the rest.
    todo = [(suite, case) for suite in suites for case in cases(suite, settings, only)]
    todo.sort(key=lambda suite_and_case: suite_and_case[1].axis is not None)
    begin = time.monotonic()
    for i, (suite, case) in enumerate(todo):
        print(f"## [{i + 1}/{len(todo)}, {time.monotonic() - begin:.0f} s] {suite}: {case.title}\n", flush=True)
        done = {"suite": suite, "title": case.title, "axis": case.axis, "rows": []}
        try:
            done["rows"] = case.measure(case.prepare(), settings)
        except Exception as error:  # in any way: a wrong result, no memory, no compiler; the other cases follow
            traceback.print_exc()
            done["failed"] = timing.told(error)
        result["cases"].append(done)
        print(*report.table(done), "", sep="\n", flush=True)
        if i == len(todo) - 1:
            result |= {"finished": True, "seconds": round(time.monotonic() - begin, 1)}
        if folder:
            name = f"{settings.device}_{machine.slug(machine.name_of(result['environment']))}"
            report.write(result, folder / f"{name}.json")
    return result


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = [*SUITES, "all"]
    add = parser.add_argument
    add("suites", nargs="*", default="all", choices=choices, metavar="SUITE", help=f"of {', '.join(choices)}")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=machine.usable_cpus(), metavar="N", help="the most to use, for the curve")
    add("--quick", action="store_true", help="small cases and few samples")
    add("--out", type=Path, metavar="FOLDER", help="where to write (default for a full run: benchmarks/results)")
    add("--only", default="", metavar="PATTERN", help='cases in whose "suite: title" this regular expression is found')
    known = [f"{backend}:{op}" for backend in BACKENDS for op in OPS]
    add("--without", nargs="+", default=[], choices=known, metavar="BACKEND:OP", help="leave out what is wrong there")
    add("--base", metavar="COMMIT", help="compare with this commit, built in a throw-away worktree")
    options = parser.parse_args(words)
    if not 1 <= options.threads <= machine.usable_cpus():
        parser.error(f"--threads must be from 1 to the {machine.usable_cpus()} usable CPUs, got {options.threads}")
    try:
        re.compile(options.only)
    except re.error as error:
        parser.error(f"--only must be a regular expression, got {options.only!r}: {error}")
    if options.base and (options.only or options.without):
        parser.error("--base compares whole suites: neither --only nor --without")
    if options.base and options.suites == ["accuracy"]:
        parser.error("--base compares times, and accuracy has none")
    options.suites = list(SUITES) if "all" in options.suites else list(dict.fromkeys(options.suites))
    return options


def main(words: list[str]) -> int:
    if words[:1] == ["report"]:
        return one_report(words[1:])
    if words[:1] == ["results"]:
        return results(words[1:])
    options = parse(words)
    settings = Settings(options.device, options.threads, options.quick, frozenset(options.without))
    complete = set(options.suites) == set(SUITES) and not (options.quick or options.only or options.without)
    folder = options.out or (RESULTS if complete and not options.base else None)
    refused = refusal(options, for_results=folder == RESULTS)
    if refused:
        print(f"python -m benchmarks: {refused}", file=sys.stderr)
        return 2
    if options.base:
        try:
            print(commits.compare(options.base, options.suites, settings, options.out))
        except RuntimeError as error:
            print(f"python -m benchmarks: {error}", file=sys.stderr)
            return 2
        return 0
    print(f"commit {machine.told_commit(machine.commit())}\n", flush=True)
    if maskfeat_kernels.available_backends(options.device) == ["reference"]:
        print("The extension is not built (make setup): fused_hog below is the plain torch backend.\n", flush=True)
    result = run(options.suites, settings, folder, options.only)
    if not result["cases"]:
        print("python -m benchmarks: no case is left of --only and --without", file=sys.stderr)
        return 2
    if folder:
        print(f"wrote the report and its tables into {folder}, in {result['seconds']:.0f} s")
    failed = []
    for case in result["cases"]:
        title = f"{case['suite']}: {case['title']}"
        failed += [title] * ("failed" in case)
        failed += [f"{row['name']} ({title})" for row in case["rows"] if "failed" in row]
    if failed:
        print(f"failed: {'; '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def one_report(words: list[str]) -> int:
    """``python -m benchmarks report``: from the JSON of runs alone."""
    parser = argparse.ArgumentParser("python -m benchmarks report")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--to", type=Path, metavar="JSON", help="what to write (default: FILE, if there is only one)")
    options = parser.parse_args(words)
    if len(options.files) > 1 and not options.to:
        parser.error("--to JSON must say where the report of several files goes")
    to = options.to or options.files[0]
    try:
        one = report.joined([report.read(path) for path in options.files])
    except (OSError, ValueError) as error:
        parser.error(str(error))
    report.write(one, to)
    print(f"wrote {to}, and beside it", *[path.name for path in plots.draw(one, to.with_suffix(""))], "and the tables")
    return 0


def results(words: list[str], root: Path = machine.ROOT) -> int:
    """``make results``: the table of the README; tables and plots beside the reports in ``benchmarks/results/``.

    With --check nothing is written, and it fails if a table is stale.
    """
    if words not in ([], ["--check"]):
        raise SystemExit(f"python -m benchmarks results [--check], got {' '.join(words)}")
    reports = {path: report.read(path) for path in sorted((root / report.RESULTS).glob("*.json"))}
    new = {path.with_suffix(".md"): report.markdown(found) for path, found in reports.items()}
    block = report.block({path.stem: found for path, found in reports.items()})
    new[root / "README.md"] = report.with_block(root / "README.md", block)
    stale = [path for path, text in new.items() if not path.exists() or path.read_text() != text]
    if stale and not words:
        for path in stale:
            report.write_at_once(path, new[path])
        for path, found in reports.items():
            plots.draw(found, path.with_suffix(""), {"time-and-pixels", "roofline"})
    names = ", ".join(path.name for path in stale)
    print(f"{'stale, run make results' if words else 'written'}: {names}" if names else "all is up to date")
    return int(bool(words and stale))


def refusal(options: argparse.Namespace, for_results: bool) -> str | None:
    """Why a run with these options cannot be made, or its numbers could not be trusted; None if they can."""
    load, cpus = machine.load(), machine.usable_cpus()
    if not rivals.is_there("skimage"):
        return "scikit-image, whose photographs every suite takes, is not installed: pip install '.[bench]'"
    if options.device == "cuda" and not torch.cuda.is_available():
        return "--device cuda: torch finds no GPU"
    if options.base and not commits.is_commit(options.base):
        return f"--base {options.base}: git knows no such commit"
    if for_results and maskfeat_kernels.available_backends(options.device) == ["reference"]:
        return "the extension is not built (make setup), and results would be those of plain torch"
    if for_results and not options.out and load is not None and load > cpus / 2:
        return (
            f"the load is {load:.2g} on {cpus} CPUs, and results need an idle machine (at most {cpus / 2:g}): wait, "
            "or write them elsewhere with --out FOLDER"
        )
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
