"""The plots of a report: time along an axis, and the roofline. They need matplotlib, and no display."""

import importlib.util
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import name_of, slug
from benchmarks.report import curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(report: dict, stem: Path, names: "set[str] | None" = None) -> list[Path]:
    """Every plot that the report has data for, or those of these names, as ``stem``_NAME.png."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed")
        return []
    drawn = {slug(case["title"]): partial(curve, case) for case in report["cases"] if case["axis"] and curves(case)}
    if places(report):
        drawn["roofline"] = partial(roofline, report)
    paths = []
    for name in drawn if names is None else drawn.keys() & names:
        figure = drawn[name]()
        figure.axes[0].grid(alpha=0.3, which="both")
        figure.legend(fontsize=8, loc="outside right upper")
        paths.append(stem.with_name(f"{stem.name}_{name}.png"))
        figure.savefig(paths[-1])
    return paths


def curve(case: dict) -> "Figure":
    """Time along the axis of a case."""
    figure, axis = _figure(), case["axis"]
    axes = figure.subplots()
    for i, (series, rows) in enumerate(curves(case).items()):
        at, line = [row["at"] for row in rows], {"color": f"C{i}", "label": series}
        median, p20, p80 = ([1e3 * row["seconds"][k] for row in rows] for k in ("median", "p20", "p80"))
        if axis.startswith("share") and len(at) == 1:  # what does not depend on it
            axes.axhline(median[0], **line)
            continue
        axes.plot(at, median, marker="o", markersize=4, **line)
        axes.fill_between(at, p20, p80, color=line["color"], alpha=0.2)
        if axis.startswith("pixels") and i == 0:
            slope_one = [median[-1] * x / at[-1] for x in at]
            axes.plot(at, slope_one, ":", color="0.4", label="slope 1 through the last point")
    axes.set(xlabel=axis, ylabel="ms", title=case["title"])
    if axis.startswith("share"):
        axes.set_ylim(bottom=0)
    else:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    return figure


def places(report: dict) -> dict[str, tuple[float, float]]:
    """Operations for each byte, and operations a second, of every row on the common images that counts both."""
    return {
        f"{row['name']}, {case['title']}": (
            row["operations"] / row["bytes"],
            row["operations"] / row["seconds"]["median"],
        )
        for case in report["cases"]
        if case["suite"] == "hog" and case["title"].startswith(("RGB", "Gray"))
        for row in case["rows"]
        if row.get("operations") and row.get("bytes") and "seconds" in row
    }


def roofline(report: dict) -> "Figure":
    """Arithmetic per second against arithmetic per byte, under the measured ceilings of one thread (or of the GPU)."""
    copy, arithmetic = (report["ceilings"]["1"][f"{k}_per_second"] for k in ("copy_bytes", "operations"))
    figure, ridge = _figure(), arithmetic / copy
    axes = figure.subplots()
    intensity = [ridge / 16, ridge / 2, ridge, max(64.0, 4 * ridge)]
    for style, most, label in (("-", 1, "measured ceilings"), (":", 0.5, "rounding after each operation")):
        axes.plot(intensity, [min(x * copy, most * arithmetic) for x in intensity], style, color="0.2", label=label)
    for i, (name, (x, y)) in enumerate(places(report).items()):
        axes.plot([x], [y], "os^vDP*X"[i % 8], color=f"C{i}", alpha=0.8, label=name)
    axes.set(xscale="log", yscale="log", xlabel="operations of the job for each byte", ylabel="operations a second")
    axes.set_title(f"Roofline, {name_of(report['environment'])}")
    return figure


def _figure() -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(10, 6), dpi=110, layout="constrained")
