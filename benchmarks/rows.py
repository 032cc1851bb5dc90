"""The rows of a report by name, and their numbers in words; of what is missing or failed that is told instead."""

import statistics
import textwrap
from collections.abc import Callable

MISSING = "not measured"


class Rows:
    """The cases of a report, found by suite and the beginning (and end) of the title, and their rows by name.

    What is not there is given as if it had failed, :data:`MISSING` being its error.
    """

    def __init__(self, report: dict):
        self.report = report

    def case(self, suite: str, title: str, end: str = "") -> dict:
        for case in self.report["cases"]:
            if case["suite"] == suite and case["title"].startswith(title) and case["title"].endswith(end):
                return case
        return {"suite": suite, "title": title, "axis": None, "rows": [], "failed": MISSING}

    def largest(self) -> dict:
        """The case of the largest batch."""
        return self.case("hog", "RGB 224x224, batch", "from memory")


def row_of(case: dict, name: str) -> dict:
    for row in case["rows"]:
        if row["name"] == name:
            return row
    return {"name": name, "failed": case.get("failed", MISSING)}


def tell(say: Callable[..., str], *rows: dict) -> str:
    """What ``say`` makes of the rows, or, where one of them has not what it takes, the reason."""
    for row in rows:
        if "failed" in row:
            return textwrap.shorten(row["failed"], 60, placeholder=" ...")
    try:
        return say(*rows)
    except KeyError:
        return MISSING


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}" if value >= 1 else f"{value:.2f}"


def amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    return f"{amount(1e6 * seconds)} us" if seconds < 0.01 else f"{amount(1e3 * seconds)} ms"


def seconds(row: dict) -> float:
    """Of an image where the row counts images, else of a call."""
    return 1 / row["items_per_second"] if "items_per_second" in row else row["seconds"]["median"]


def ratio(row: dict) -> str:
    """As the report has it, to the row that it names."""
    return number(row["ratio"]["median"])


def times_slower(theirs: dict, ours: dict) -> float:
    """Their time over ours: the ratio of the report, or made as it is, the median of the ratios within a round."""
    if theirs.get("ratio", {}).get("to") == ours["name"]:
        return theirs["ratio"]["median"]
    return statistics.median(t / o for t, o in zip(theirs["samples"], ours["samples"], strict=False))
