"""What the README tells of every machine: how time grows, other jobs, where we lose, and what rounding moves."""

from collections.abc import Callable

from benchmarks.machine import name_of, told_commit
from benchmarks.report import curves, exponents, is_finished
from benchmarks.rows import MISSING, Rows, amount, duration, number, ratio, row_of, seconds, tell, times_slower
from benchmarks.tables import aligned, is_ours, share, wrong_pixels

DTYPES = {"uint8": "bytes", "float32": "float32"}
GATHERS = ("index_select", "tokens[rows, ids]", "torch.gather")
MIXES = ("torch.lerp", "torch.where", "x * (1 - m) + token * m")
LOADERS = ("no targets", "reference layer on the device", "scikit-image in the workers")
LAYER, COMPILED = "reference layer float32", "reference layer compiled"
CALLS = {"compat.skimage": "skimage.hog", "compat.opencv": "HOGDescriptor.compute"}
JUDGED = ("fused_hog uint8", "fused_hog float32", "fused_hog bfloat16", LAYER, "reference layer fp16 autocast")
ROUNDING = (
    "**Give bytes**: on them every pixel is exact, except under autocast. On normalised floats every implementation of "
    "this definition loses pixels to rounding. The libraries, which have definitions of their own, are in"
)


def head(stem: str, rows: Rows, where: str) -> str:
    facts = rows.report["environment"]
    return (
        f"**{name_of(facts)}**, {where}, {rows.largest()['title']}, photographs; medians of one run, in which everyone "
        f"takes turns (commit {told_commit(facts['commit'])}, {facts['date'][:10]}, load before {facts['load_before']}"
        f"{'' if is_finished(rows.report) else '; cut short'}). [All tables](benchmarks/results/{stem}.md), with "
        "spread, settings and versions."
    )


def time_of(row: dict) -> str:
    return duration(seconds(row))


def of_a_copy(row: dict) -> str:
    return f"{time_of(row)}, {share(row['share_of_copy'])} of a copy"


def of_a_step(row: dict) -> str:
    return f"{duration(row['seconds']['median'])}, {share(row['ratio']['median'])} of a step"


def megabytes(row: dict, key: str = "peak_bytes") -> str:
    return f"{amount(row[key] / 1e6)} MB"


def peaks(theirs: dict, ours: dict) -> float:
    return theirs["peak_bytes"] / ours["peak_bytes"]


def scaling(stem: str, rows: Rows) -> str:
    """Time along pixels and threads, and the plots of both."""
    case = rows.case("hog", "Time and pixels")
    powers = exponents(case)
    told = " and ".join(
        f"{powers[name]:.2f} ({word})" for dtype, word in DTYPES.items() if (name := f"fused_hog {dtype}") in powers
    )
    parts = [f"![{case['title']}](benchmarks/results/{stem}_time-and-pixels.png)\n"] if curves(case) else []
    parts.append(f"Time grows with the pixels to the power of {told or MISSING}, from 256x256 on.")
    case = rows.case("hog", "Time and threads")
    most = max((row.get("at", 1) for row in case["rows"]), default=1)
    if most > 1:
        times = (
            f"{tell(ratio, row_of(case, f'fused_hog {dtype}, threads {most}'))} ({word})"
            for dtype, word in DTYPES.items()
        )
        parts.append(f"{most} threads take {' and '.join(times)} of the time of one.")
    if any("operations" in row and "seconds" in row for row in rows.largest()["rows"]):
        parts.append(
            f"How far that is from what the machine can do: [roofline](benchmarks/results/{stem}_roofline.png)."
        )
    return "\n".join(parts)


class Jobs:
    """A table: a job, what ours takes, what each of the others takes, and how many times slower that is."""

    def __init__(self):
        self.lines = [["job", "ours", "instead", "times slower"]]

    def add(
        self, job: str, case: dict, ours: str, *others: str, say: Callable[[dict], str] = time_of, slower=times_slower
    ) -> None:
        """A line for each of the others; ``say`` and ``slower``: the words for a row, and the number for two."""
        mine = row_of(case, ours)
        first = [job, tell(say, mine)]
        for name in others:
            row = row_of(case, name)
            times = tell(lambda row, mine: number(slower(row, mine)), row, mine)
            self.lines.append([*first, f"{name.removeprefix('theirs: ')}: {tell(say, row)}", times])
            first = ["", ""]


def jobs(rows: Rows) -> str:
    """A drop-in module has a line where it was measured, and one image where a GPU waits for its host."""
    table, on_gpu = Jobs(), rows.report["device"] == "cuda"
    if on_gpu:
        table.add("one image, from call to result", rows.case("hog", "One image"), "fused_hog uint8", LAYER, COMPILED)
    case = rows.case("tokens", "Targets of")
    for dtype, word in DTYPES.items():
        others = [f"gather after fused_hog {dtype}"] + [f"gather after {LAYER}"] * (dtype == "float32")
        table.add(f"targets of 78 of 196 patches, {word}", case, f"fused_hog_tokens {dtype}", *others)
    case = rows.case("tokens", "Time and mask")
    for dtype, word in DTYPES.items():
        names = f"fused_hog_tokens of 40 % of the patches, {dtype}", f"fused_hog of the whole image, {dtype}"
        table.add(f"targets of 40 % of the patches, {word}, {end_of(case)}", case, *names)
    moved = "78 of 196 tokens, width 768"
    table.add(f"taking {moved}", rows.case("gather", "Gather: "), "fused_masked_gather", *GATHERS, say=of_a_copy)
    table.add(f"masking {moved}", rows.case("mask", "Mask: "), "fused_mask_tokens", *MIXES, say=of_a_copy)
    for case in rows.report["cases"]:
        if case["suite"] == "compat":
            module, size, _ = case["title"].split(", ")
            names = (f"{whose}: {CALLS[module]}, RGB" for whose in ("ours", "theirs"))
            table.add(f"`{module}`, {size}", case, *names)
    case, ours = rows.case("memory", "Cold"), "fused_hog uint8"
    result = tell(lambda row: megabytes(row, "result_bytes"), row_of(case, ours))
    memory = f"memory beyond the input, {end_of(case)} (the result: {result})"
    table.add(memory, case, ours, LAYER, say=megabytes, slower=peaks)
    table.add("from the start of Python to the first result", case, ours, LAYER)
    table.add("one call on one cell", rows.case("hog", "One call"), "fused_hog", "torch.mul")
    case = rows.case("loader", "Targets")
    table.add(f"loading JPEG with targets, {end_of(case)}", case, "fused_hog_tokens on the device", *LOADERS)
    case = rows.case("step", "Step")
    names = (f"{whose} target path, forward" for whose in ("our", "reference"))
    table.add(f"target path of a step, {end_of(case)}", case, *names, say=of_a_step)
    return "\n".join(aligned(table.lines))


def end_of(case: dict) -> str:
    """What a title says last: of how many images, or with how many workers."""
    return case["title"].rpartition(", ")[2]


def losses(rows: Rows) -> str:
    """Every row that took less time than the row of ours which it is compared with; and ours that lose to ours.

    Not a target path, whose ratio is its share of a step.
    """
    lines = [
        f"{row['name']} took {spread(row)} of our time: {case['title']}"
        for case in rows.report["cases"]
        for row in case["rows"]
        if "ratio" in row and is_ours(row["ratio"]["to"]) and not is_ours(row["name"])
        if row["ratio"]["median"] < 1 and "target path" not in row["name"]
    ]
    lines = [*(lines or ["No rival of this run took less time than ours."]), all_patches(rows), whole_step(rows)]
    return "\n".join(["**Where we lose** (median, and p20 to p80 in brackets):", "", *(f"* {line}" for line in lines)])


def spread(row: dict) -> str:
    return "{median:.2f} ({p20:.2f} to {p80:.2f})".format(**row["ratio"])


def all_patches(rows: Rows) -> str:
    """How much slower than the whole image, and from which share of the patches on."""
    case, told = rows.case("tokens", "Time and mask"), []
    for dtype, word in DTYPES.items():
        along = curves(case).get(f"fused_hog_tokens {dtype}", [])
        slower = [share(row["at"]) for row in along if row.get("ratio", {"median": 0})["median"] > 1]
        times = tell(ratio, row_of(case, f"fused_hog_tokens of 100 % of the patches, {dtype}"))
        told.append(f"{times} on {word}" + (f" (slower from {slower[0]} of them on)" if slower else ""))
    return f"fused_hog_tokens of all patches, times slower than fused_hog of the image: {', '.join(told)}"


def whole_step(rows: Rows) -> str:
    """Whether the targets make a difference to a step that is more than between two steps with the same targets."""
    case = rows.case("step", "Step")

    def say(theirs: dict, again: dict) -> str:
        differs = theirs["ratio"]["p20"] > again["ratio"]["p80"]
        return (
            f"{'a' if differs else 'no'} difference as a whole. With the targets of the reference layer it took "
            f"{spread(theirs)} of our time, with ours once more {spread(again)}"
        )

    names = "step, reference targets", "step, our targets, once more"
    return f"{case['title']}: {tell(say, *(row_of(case, name) for name in names))}"


def accuracy(stem: str, rows: Rows) -> str:
    """Ours and the reference layer."""
    case = rows.case("accuracy", "Accuracy")
    judged = [row for row in case["rows"] if row["name"] in JUDGED] or [row_of(case, JUDGED[0])]
    lines = [["", "input", "pixels in the wrong bin", "cells off by more than 1e-3"]]
    for row in judged:
        cells = tell(wrong_pixels, row), tell(lambda row: share(row["cells_off"]), row)
        lines.append([row["name"], row.get("given", ""), *cells])
    where = f"[all tables](benchmarks/results/{stem}.md)"
    if any("cells_off" in row for row in case["rows"]):
        where += f" and the [plot](benchmarks/results/{stem}_accuracy.png)"
    return "\n".join([f"{ROUNDING} {where}.", "", *aligned(lines)])
