"""The plots of reports: time along an axis, and the roofline. They need matplotlib, and no display."""

from functools import partial
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.machine import name_of, slug
from benchmarks.report import common_title, curves

COLOURS = ["#0b6e4f", "#c8553d", "#28536b", "#f0a202", "#7a5c99", "#5b8e7d", "#8d99ae", "#d17b88", "#444444", "#9a8c2c"]


def draw(reports: list[dict], stem: Path, names: "set[str] | None" = None) -> list[Path]:
    """Every plot that the reports have data for, or those of these names, as ``stem``_NAME.png."""
    found = [c for report in reports for c in report["cases"] if c["axis"] and curves(c)]
    drawn = {slug(common_title(c)): partial(curve, reports, c["suite"], common_title(c)) for c in found}
    for i, report in enumerate(reports, 1):
        if places(report):
            drawn[f"roofline-{i}" if len(reports) > 1 else "roofline"] = partial(roofline, report)
    paths = []
    for name in drawn if names is None else drawn.keys() & names:
        paths.append(stem.with_name(f"{stem.name}_{name}.png"))
        FigureCanvasAgg(drawn[name]()).print_png(str(paths[-1]))
    return paths


def curve(reports: list[dict], suite: str, title: str) -> Figure:
    """Time along the axis of a case, the machines over each other."""
    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    axes, colours = figure.subplots(), {}  # a series has one colour on every machine
    for number, report in enumerate(reports):
        case = next((c for c in report["cases"] if (c["suite"], common_title(c)) == (suite, title)), None)
        if case is None:
            continue
        axis, line, marker = case["axis"], ("-", "--", ":", "-.")[number % 4], "os^vDP*X"[number // 4 % 8]
        machine = f", {number + 1}: {name_of(report['environment'])}" if len(reports) > 1 else ""
        for i, (series, rows) in enumerate(curves(case).items()):
            at, colour = [row["at"] for row in rows], colours.setdefault(series, COLOURS[len(colours) % len(COLOURS)])
            median, p20, p80 = ([1e3 * row["seconds"][k] for row in rows] for k in ("median", "p20", "p80"))
            if axis.startswith("share") and len(at) == 1:  # what does not depend on it
                axes.axhline(median[0], ls=line, color=colour, label=series + machine)
                continue
            axes.plot(at, median, line, marker=marker, markersize=4, color=colour, label=series + machine)
            axes.fill_between(at, p20, p80, color=colour, alpha=0.2)
            if axis.startswith("pixels") and i == 0:
                slope_one = [median[-1] * x / at[-1] for x in at]
                axes.plot(at, slope_one, ":", color="0.4", label="slope 1 through the last point" + machine)
    axes.set(xlabel=axis, ylabel="ms", title=title)
    if axis.startswith("share"):
        axes.set_ylim(bottom=0)
    else:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
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


def roofline(report: dict) -> Figure:
    """Arithmetic per second against arithmetic per byte, under the measured ceilings of one thread (or of the GPU)."""
    copy, arithmetic = (report["ceilings"]["1"][f"{k}_per_second"] for k in ("copy_bytes", "operations"))
    figure = Figure(figsize=(10, 6), dpi=110, layout="constrained")
    axes, ridge = figure.subplots(), arithmetic / copy
    intensity = [ridge / 16, ridge / 2, ridge, max(64.0, 4 * ridge)]
    for style, most, label in (("-", 1, "measured ceilings"), (":", 0.5, "rounding after each operation")):
        axes.plot(intensity, [min(x * copy, most * arithmetic) for x in intensity], style, color="0.2", label=label)
    for i, (name, (x, y)) in enumerate(places(report).items()):
        axes.plot([x], [y], "os^vDP*X"[i % 8], color=COLOURS[i % len(COLOURS)], alpha=0.8, label=name)
    axes.set(xscale="log", yscale="log", xlabel="operations of the job for each byte", ylabel="operations a second")
    axes.set_title(f"Roofline, {name_of(report['environment'])}")
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize=8, loc="outside right upper")
    return figure
