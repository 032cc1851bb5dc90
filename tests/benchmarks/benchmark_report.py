"""A small report for the tests of what is made of one: rows, and all that a report has."""

from benchmarks import machine


def row(name, ms, **more):
    seconds = {"median": ms / 1e3, "p20": ms / 1e3, "p80": 2 * ms / 1e3}
    return {"name": name, "threads": 1, "seconds": seconds, "samples": [ms / 1e3], **more}


def ratio(to, value):
    return {"to": to, "median": value, "p20": value, "p80": value}


def small_report():
    """A small report: a race, a curve whose time grows as the pixels to the power 1.5, and a judgement."""
    race = [
        row("fused_hog uint8", 1.0, max_error=1e-7, bytes=1000, operations=5000, items_per_second=1000.0),
        row("OpenCV uint8", 4.0, max_error=None, ratio=ratio("fused_hog uint8", 4.0), items_per_second=250.0),
        row("a wonder", 0.5, max_error=None, ratio=ratio("fused_hog uint8", 0.5), items_per_second=2000.0),
    ]
    curve = [row(f"fused_hog, {side}", 1e-3 * side**3, at=side**2, series="fused_hog") for side in (512, 64, 1024, 256)]
    judged = [
        {"name": "fused_hog uint8", "given": "bytes", "pixels_wrong": 0.0, "cells_off": 0.0, "largest_error": 4e-7},
        {"name": "soft", "given": "bytes", "cells_off": 0.25, "largest_error": 0.5},
    ]
    return {
        "device": "cpu",
        "quick": True,
        "threads": 1,
        "holds_memory": True,
        "finished": True,
        "environment": machine.environment(),
        "ceilings": {"1": {"copy_bytes_per_second": 1e10, "operations_per_second": 1e11}},
        "cannot": {"OpenCV": "no batch"},
        "absent": {"hogpp": "not installed"},
        "cases": [
            {"suite": "hog", "title": "RGB 224x224, batch 2, from memory", "axis": None, "rows": race},
            {"suite": "hog", "title": "Time and pixels", "axis": "pixels of one RGB image", "rows": curve},
            {"suite": "accuracy", "title": "Accuracy", "axis": None, "rows": judged},
        ],
    }
