"""``make results``: the results in README.md, every number of them from a row of ``benchmarks/results/*.json``.

The tables beside these files are written anew too, as the columns may have changed.
"""

import argparse
import json

from benchmarks import rivals
from benchmarks.machine import ROOT, name_of, told_commit
from benchmarks.report import exponents, is_finished, markdown, write_at_once
from benchmarks.suites import SUITES, cases
from benchmarks.tables import aligned, is_ours, share, wrong_pixels
from benchmarks.timing import Settings

README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
ROUNDING = (
    "What rounding moves, against exact arithmetic in the definition of each on the bytes of the photographs "
    "(libraries: of their green channel):"
)
BEGIN, END = "<!-- results: begin (make results) -->", "<!-- results: end -->"


class Rows:
    """The rows of a report, found by suite, the beginning of the title, and name."""

    def __init__(self, report: dict):
        self.report = report

    def case(self, suite: str, title: str) -> dict:
        for case in self.report["cases"]:
            if case["suite"] == suite and case["title"].startswith(title):
                return case
        raise LookupError(f"no case {suite}: {title}... in the report of {name_of(self.report['environment'])}")

    def row(self, suite: str, title: str, name: str) -> dict:
        case = self.case(suite, title)
        for row in case["rows"]:
            if row["name"] == name:
                return row
        raise LookupError(f"no row {name} in {suite}: {case['title']}")

    def ms(self, *place: str) -> float:
        return 1e3 * self.row(*place)["seconds"]["median"]


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}" if value >= 1 else f"{value:.2f}"


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
        parts.append("On GPUs: **not yet measured**. `make gpu` measures, and writes its results beside these.")
    return "\n\n".join([BEGIN, *parts, END])


def head(stem: str, rows: Rows, where: str) -> str:
    facts, case = rows.report["environment"], largest(rows)
    return (
        f"**{name_of(facts)}**, {where}, photographs, {case['title']}; all rivals in one run, medians (commit "
        f"{told_commit(facts['commit'])}, {facts['date'][:10]}, load before {facts['load_before']}). "
        f"[All tables](benchmarks/results/{stem}.md), with spread, settings and versions."
    )


def largest(rows: Rows) -> dict:
    """The case with the largest batch."""
    return [c for c in rows.report["cases"] if c["suite"] == "hog" and c["title"].startswith("RGB 224x224, batch")][-1]


def speed(case: dict) -> str:
    """The rivals of a case against ours."""
    lines = [["", "us an image", "time over ours"]]
    for row in case["rows"]:
        theirs = not is_ours(row["name"])
        us, ratio = 1e6 / row["items_per_second"], row.get("ratio", {}).get("median")
        time = f"{us:,.0f}" if us >= 100 else f"{us:.3g}"
        lines.append([row["name"], time, f"{number(ratio)} x" if theirs else ""])
    return "\n".join(aligned(lines))


def accuracy(rows: Rows) -> str:
    lines = [["", "input", "pixels in the wrong bin", "cells off by more than 1e-3"]]
    for row in rows.case("accuracy", "Accuracy")["rows"]:
        lines.append([row["name"], row["given"], wrong_pixels(row), share(row["cells_off"])])
    return "\n".join(aligned(lines))


def losses(rows: Rows) -> str:
    """Every row that took less time than the row of ours which it is compared with; no target path is a step."""
    lost = [
        f"{row['name']} ({case['title']}: {number(row['ratio']['median'])} of our time)"
        for case in rows.report["cases"]
        for row in case["rows"]
        if "ratio" in row and is_ours(row["ratio"]["to"]) and not is_ours(row["name"])
        if row["ratio"]["median"] < 1 and "target path" not in row["name"]
    ]
    return f"Faster than ours: {'; '.join(lost) or 'none of all rivals of this run'}."


def facts(rows: Rows) -> str:
    """What else is claimed, a line each."""
    power = exponents(rows.case("hog", "Time and pixels"))
    peak, result = (rows.row("memory", "Cold", "fused_hog uint8")[key] / 1e6 for key in ("peak_bytes", "result_bytes"))
    layer = rows.row("memory", "Cold", "reference layer float32")["peak_bytes"] / 1e6
    overhead = [1e3 * rows.ms("hog", "One call", name) for name in ("fused_hog", "torch.mul")]
    start = [rows.ms("memory", "Cold", name) / 1e3 for name in ("fused_hog uint8", "reference layer float32")]

    def over(suite, title, *names):
        return ", ".join(f"{number(rows.row(suite, title, name)['ratio']['median'])} x" for name in names)

    whole = [f"gather after fused_hog {dtype}" for dtype in ("uint8", "float32")]
    places = "fused_hog_tokens on the device", "fused_hog in the workers", "reference layer on the device"
    fewer, every = (
        [f"fused_hog_tokens of {percent} % of the patches, {dtype}" for dtype in ("uint8", "float32")]
        for percent in (40, 100)
    )
    lines = {
        "40 % of the patches by `fused_hog_tokens`, over `fused_hog` (bytes, float32)": over(
            "tokens", "Time and mask", *fewer
        ),
        "All of the patches by `fused_hog_tokens`, over `fused_hog` (bytes, float32)": over(
            "tokens", "Time and mask", *every
        ),
        "Their targets by `fused_hog` and a gather, over `fused_hog_tokens` (bytes, float32)": over(
            "tokens", "Targets of", *whole
        ),
        "Power of the pixels that time grows with, 256x256 to 4096x4096 (bytes, float32)": (
            f"{power['fused_hog uint8']:.2f}, {power['fused_hog float32']:.2f}"
        ),
        "A call on one cell (`torch.mul`)": "{:.2g} us ({:.2g} us)".format(*overhead),
        "Memory of a call beyond its input, batch 16; its result (the reference layer)": (
            f"{peak:.3g} MB; {result:.3g} MB ({layer:.3g} MB)"
        ),
        "From the start of Python to the first result (the reference layer)": "{:.2g} s ({:.2g} s)".format(*start),
        "Tokens by `index_select`, by indexing, by `torch.gather`, over `fused_masked_gather`": over(
            "gather", "Gather: ", "index_select", "tokens[rows, ids]", "torch.gather"
        ),
        "The mask token by `torch.lerp`, by `torch.where`, by arithmetic, over `fused_mask_tokens`": over(
            "mask", "Mask: ", "torch.lerp", "torch.where", "x * (1 - m) + token * m"
        ),
        f"Loading JPEG with targets ({', '.join(places)}), over without": over("loader", "Targets", *places),
    }
    most = max(row["at"] for row in rows.case("hog", "Time and threads")["rows"])
    if most > 1:
        name = f"{most} threads, over one (bytes, float32)"
        series = [f"fused_hog {dtype}, threads {most}" for dtype in ("uint8", "float32")]
        lines[name] = over("hog", "Time and threads", *series)
    step = rows.case("step", "Step")
    lines[f"{step['title']}: with the reference layer, over ours"] = over("step", "Step", "step, reference targets")
    paths = [rows.row("step", "Step", f"{whose} target path, forward") for whose in ("our", "reference")]
    lines["Share of the target path, forward only, in the step (the reference layer)"] = "{} ({})".format(
        *(share(path["ratio"]["median"]) for path in paths)
    )
    for case in rows.report["cases"]:
        if case["suite"] == "compat":
            ours, size, _ = case["title"].split(", ")
            theirs = [row["name"] for row in case["rows"] if "ratio" in row]
            kinds = ", ".join(name.rpartition(", ")[2] for name in theirs)
            lines[f"The library over `{ours}`, {size} ({kinds})"] = over("compat", case["title"], *theirs)
    return "\n".join(aligned([["", "time or amount"], *map(list, lines.items())]))


def cpu(stem: str, rows: Rows) -> list[str]:
    slower = "On gray, where everyone computes as many histograms (in colour, OpenCV, scikit-image and hogpp a third):"
    return [
        head(stem, rows, "one thread"),
        speed(largest(rows)),
        slower,
        speed(rows.case("hog", "Gray")),
        facts(rows),
        losses(rows),
        ROUNDING,
        accuracy(rows),
    ]


def gpu(stem: str, rows: Rows) -> list[str]:
    return [head(stem, rows, "by replay of CUDA graphs"), speed(largest(rows)), losses(rows), ROUNDING, accuracy(rows)]


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


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail if it would change")
    options = parser.parse_args(words)
    text, results = README.read_text(), reports()
    old = {stem: found for stem, report in results.items() if (found := outdated(report))}
    for stem, found in old.items():
        print(f"{stem}.json has other cases than a run would have now, run make bench: {'; '.join(found)}")
    try:
        new = {README: with_block(text, block(results))}
        new |= {RESULTS / f"{stem}.md": markdown(report) for stem, report in results.items()}
    except LookupError as error:
        print(f"README.md cannot be made from these results, run make bench: {error}")
        return 1
    stale = [path for path, made in new.items() if not path.exists() or path.read_text() != made]
    if options.check:
        names = ", ".join(path.name for path in stale)
        print(f"stale, run make results: {names}" if stale else "README.md and the tables are up to date")
        return int(bool(stale or old))
    for path in stale:
        write_at_once(path, new[path])
    return 0
