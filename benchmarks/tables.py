"""Rows as the lines of a Markdown table."""

from collections.abc import Callable

UNSTEADY = " (!)"
"""Behind a spread whose ends are more than a factor of two apart."""


def time_of(row: dict) -> str | None:
    if "failed" in row:
        return "failed"
    return f"{1e3 * row['seconds']['median']:.4g}" if "seconds" in row else None


OURS = ("fused", "ours", "our ", "step, our", "compat")


def is_ours(name: str) -> bool:
    """Whether a row is ours, which its name says, and no rival's."""
    return name.startswith(OURS)


def _spread(row: dict) -> str | None:
    if "seconds" not in row:
        return None
    p20, p80 = (1e3 * row["seconds"][k] for k in ("p20", "p80"))
    return f"{p20:.4g} to {p80:.4g}{UNSTEADY if p80 > 2 * p20 else ''}"


def _ratio(row: dict) -> str | None:
    return "{median:.3g} ({p20:.3g} to {p80:.3g})".format(**row["ratio"]) if "ratio" in row else None


def _error(row: dict) -> str | None:
    if "max_error" not in row:
        return None
    return "-" if row["max_error"] is None else f"{row['max_error']:.1e}"


def _number(key: str, scale: float = 1.0, unit: str = "", digits: int = 3) -> Callable[[dict], str | None]:
    return lambda row: f"{scale * row[key]:.{digits}g}{unit}" if key in row else None


def share(value: float) -> str:
    """0.1234 as "12.3 %"; small shares keep a digit, and nothing but zero becomes "0"."""
    return "0" if value == 0 else f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"


def wrong_pixels(row: dict) -> str:
    """Of a row of the accuracy: the share of pixels in the wrong bin."""
    return share(row["pixels_wrong"]) if "pixels_wrong" in row else "no single bin"


def _share(key: str) -> Callable[[dict], str | None]:
    return lambda row: share(row[key]) if key in row else None


COLUMNS: dict[str, Callable[[dict], str | None]] = {
    "": lambda row: row["name"],
    "input": lambda row: row.get("given"),
    "threads": lambda row: str(row["threads"]) if "threads" in row else None,
    "ms": time_of,
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
    "pixels in the wrong bin": lambda row: wrong_pixels(row) if "cells_off" in row else None,
    "cells off by more than 1e-3": _share("cells_off"),
    "largest error": lambda row: _error(row) or _number("largest_error", digits=2)(row),
}
"""What may be said of a row; a column is in a table if one of its rows has it."""


def table(rows: list[dict]) -> list[str]:
    """Rows as the lines of a Markdown table with aligned columns, and below it the errors of those that failed."""
    filled = {title: [say(row) for row in rows] for title, say in COLUMNS.items()}
    filled = {title: cells for title, cells in filled.items() if any(cell is not None for cell in cells)}
    lines = zip(*([title, *(cell or "" for cell in cells)] for title, cells in filled.items()), strict=True)
    errors = [f"* {row['name']} failed: {row['failed']}" for row in rows if "failed" in row]
    return [*aligned([list(line) for line in lines]), *([""] if errors else []), *errors]


def aligned(lines: list[list[str]]) -> list[str]:
    """The first line is the header."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["| " + " | ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return [text[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *text[1:]]
