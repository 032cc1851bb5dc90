"""The plots of reports: curves, times, accuracy at a glance, and the roofline. Needs matplotlib, and no display."""

from functools import partial
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.machine import name_of, slug
from benchmarks.report import common_title, curves, fingerprint
from benchmarks.tables import is_ours, share

COLOURS = ["#0b6e4f", "#c8553d", "#28536b", "#f0a202", "#7a5c99", "#5b8e7d", "#8d99ae", "#d17b88", "#444444", "#9a8c2c"]
FLOOR = 1e-6
"""Where a share of zero is drawn on a logarithmic axis."""


def draw(reports: list[dict], stem: Path, names: "set[str] | None" = None) -> list[Path]:
    """Every plot that the reports have data for, or those of these names, as ``stem``_NAME.png."""
    figures = {}
    along = dict.fromkeys(
        (case["suite"], common_title(case))
        for report in reports
        for case in report["cases"]
        if case["axis"] and curves(case)
    )
    for suite, title in along:
        figures[slug(title)] = partial(curve, reports, suite, title)
    for i, report in enumerate(reports):
        number = f"-{i + 1}" if len(reports) > 1 else ""
        timed = [c for c in report["cases"] if not c["axis"] and any("seconds" in row for row in c["rows"])]
        for suite in dict.fromkeys(case["suite"] for case in timed):
            panels = [case for case in timed if case["suite"] == suite]
            figures[f"{suite}-times{number}"] = partial(times, panels, name_of(report["environment"]))
        judged = [case for case in report["cases"] if any("cells_off" in row for row in case["rows"])]
        if judged:
            figures[f"accuracy{number}"] = partial(accuracy, judged[0], name_of(report["environment"]))
        if any("operations" in row for case in report["cases"] if case["suite"] == "hog" for row in case["rows"]):
            figures[f"roofline{number}"] = partial(roofline, report)
    paths, metadata = [], {"Report": fingerprint(reports)}
    for name, figure in figures.items():
        if names is None or name in names:
            paths.append(stem.with_name(f"{stem.name}_{name}.png"))
            FigureCanvasAgg(figure()).print_png(str(paths[-1]), metadata=metadata)
    return paths


def _figure(width: float, height: float, **options):
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    return figure, figure.subplots(**options)


def curve(reports: list[dict], suite: str, title: str) -> Figure:
    """Time along the axis of a case, the machines over each other."""
    figure, axes = _figure(9, 5)
    colours = {}  # by series, on every machine
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


def times(cases: list[dict], machine: str) -> Figure:
    """A panel for each case of a machine: medians, with whiskers from p20 to p80."""
    heights = [1.2 + 0.3 * len(case["rows"]) for case in cases]
    figure, axes = _figure(9, sum(heights), nrows=len(cases), squeeze=False, height_ratios=heights)
    for axis, case in zip(axes[:, 0], cases, strict=True):
        for row in [row for row in case["rows"] if "seconds" in row][::-1]:
            median, p20, p80 = (1e3 * row["seconds"][k] for k in ("median", "p20", "p80"))
            spread = [[max(median - p20, 0)], [max(p80 - median, 0)]]
            colour = COLOURS[0] if is_ours(row["name"]) else COLOURS[1]
            axis.errorbar([median], [row["name"]], xerr=spread, fmt="o", capsize=3, color=colour)
        axis.set(xscale="log", xlabel="ms", title=case["title"])
        axis.grid(alpha=0.3, which="both")
    figure.suptitle(machine)
    return figure


def accuracy(case: dict, machine: str) -> Figure:
    """What rounding moves, on bytes and on normalised floats; zero is a bar that is not there."""
    rows = [row for row in case["rows"] if "failed" not in row]
    names, inputs = list(dict.fromkeys(r["name"] for r in rows))[::-1], list(dict.fromkeys(r["given"] for r in rows))
    figure, axes = _figure(12, 1.5 + 0.42 * len(names), ncols=2, sharey=True)
    for axis, key, title in zip(
        axes, ("pixels_wrong", "cells_off"), ("Pixels in the wrong bin", "Cells off by more than 1e-3"), strict=True
    ):
        for row in rows:
            i = inputs.index(row["given"])
            value, y = row.get(key, 0.0), names.index(row["name"]) + 0.2 - 0.4 * i
            if value:
                axis.barh(y, value - FLOOR, 0.38, left=FLOOR, color=COLOURS[i])
            word = share(value) if key in row else "no single bin"
            axis.text(max(value, FLOOR) * 1.15, y, word, va="center", fontsize=8)
        axis.set(xscale="log", xlim=(FLOOR, 5), ylim=(-0.6, len(names) - 0.4), title=title)
        at = [10.0**power for power in range(-6, 1, 2)]
        axis.set_xticks(at, ["0.0001 %", "0.01 %", "1 %", "100 %"])
        axis.set_yticks(range(len(names)), names)
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle(f"{case['title']}, {machine}")
    handles = [Patch(color=COLOURS[i], label=given) for i, given in enumerate(inputs)]
    figure.legend(handles=handles, fontsize=9, loc="outside lower center", ncols=len(inputs))
    return figure


def roofline(report: dict) -> Figure:
    """Arithmetic per second against arithmetic per byte, under the measured ceilings of one thread (or of the GPU)."""
    ceilings = report["ceilings"]["1"]
    copy, arithmetic = ceilings["copy_bytes_per_second"], ceilings["operations_per_second"]
    points = {}
    for case in report["cases"]:
        if case["suite"] == "hog" and case["title"].startswith(("RGB", "Gray")):
            for row in case["rows"]:
                if row.get("operations") and row.get("bytes") and "seconds" in row:
                    amount = row["operations"]
                    place = amount / row["bytes"], amount / row["seconds"]["median"]
                    points[f"{row['name']}, {case['title']}"] = place
    figure, axes = _figure(10, 6)
    ridge = arithmetic / copy
    intensity = [ridge / 16, ridge / 2, ridge, max(64.0, 4 * ridge)]
    axes.plot(intensity, [min(x * copy, arithmetic) for x in intensity], "-", color="0.2", label="measured ceilings")
    unfused = [min(x * copy, arithmetic / 2) for x in intensity]
    axes.plot(intensity, unfused, ":", color="0.2", label="rounding after each operation")
    for i, (name, (x, y)) in enumerate(points.items()):
        axes.plot([x], [y], "os^vDP*X"[i % 8], color=COLOURS[i % len(COLOURS)], alpha=0.8, label=name)
    axes.set(xscale="log", yscale="log", xlabel="operations of the job for each byte", ylabel="operations a second")
    axes.set_title(f"Roofline, {name_of(report['environment'])}")
    axes.grid(alpha=0.3, which="both")
    figure.legend(fontsize=8, loc="outside right upper")
    return figure
