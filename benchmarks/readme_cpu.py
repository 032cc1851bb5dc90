"""What the README tells of a CPU."""

from benchmarks.readme_parts import accuracy, head, jobs, losses, scaling
from benchmarks.rows import Rows, amount, ratio, row_of, seconds, tell
from benchmarks.tables import aligned, is_ours

CHANNELS = (
    "Of RGB, OpenCV, scikit-image and hogpp keep the strongest of the three channels at each pixel, a third of our "
    "histograms; of gray, everyone computes as many. RGB comes from memory, gray from the cache."
)


def cpu(stem: str, rows: Rows) -> list[str]:
    return [
        head(stem, rows, "one thread"),
        race(rows),
        CHANNELS,
        scaling(stem, rows),
        jobs(rows),
        losses(rows),
        accuracy(stem, rows),
    ]


def race(rows: Rows) -> str:
    """Everyone on colour and on gray, ours first; a cell is empty where a rival takes no part in a case."""
    cases = rows.largest(), rows.case("hog", "Gray")
    names = dict.fromkeys(["fused_hog uint8", *(row["name"] for case in cases for row in case["rows"])])
    lines = [["us an image", "RGB", "times slower", "gray", "times slower"]]
    for name in sorted(names, key=lambda name: not is_ours(name)):
        line = [name]
        for case in cases:
            row = row_of(case, name)
            if row in case["rows"] or "failed" in case:
                us = tell(lambda row: amount(1e6 * seconds(row)), row)
                line += [us, "" if is_ours(name) or "failed" in row else tell(ratio, row)]
            else:
                line += ["", ""]
        lines.append(line)
    return "\n".join(aligned(lines))
