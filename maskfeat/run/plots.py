"""Pictures of a run: learning curves, and the confusion matrix of a classifier. They need matplotlib."""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from torch import Tensor

from ..weights.storage import check_writable, write_atomically

CURVES = ("loss", "val_loss", "top1", "knn_accuracy", "lr")


def curves(folders: Sequence[Path], path: Path) -> None:
    """Learning curves of runs, side by side for each measure that one of them has, as a PNG.

    Raises FileNotFoundError for a folder without a log, ValueError for a log without a line.
    """
    logs = {folder: _log(folder) for folder in folders}
    names = [name for name in CURVES if any(name in line for lines in logs.values() for line in lines)]
    figure = _figure(4.5 * len(names), 3.5)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for folder, lines in logs.items():
            points = [(line["step"], line[name]) for line in lines if name in line]
            label = f" {folder}".replace("$", r"\$")  # no formula; "_" at the beginning would hide it
            axes.plot(*zip(*points, strict=True), label=label) if points else None
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    _save(figure, path)


def confusion(matrix: Tensor, path: Path) -> None:  # [true class, predicted class], numbers of samples
    """A PNG of the shares of each true class; the numbers stand in the cells of up to 20 classes."""
    shares, size = matrix.double() / matrix.sum(1, keepdim=True).clamp_min(1), len(matrix)
    figure = _figure(*[max(4.0, min(0.4 * size, 20))] * 2)
    axes = figure.subplots()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted class", ylabel="true class", title=f"accuracy {_accuracy(matrix):.1%}")
    if size <= 20:
        axes.set(xticks=range(size), yticks=range(size))
        for row in range(size):
            for column in range(size):
                colour = "white" if shares[row, column] > 0.5 else "black"
                text = dict(ha="center", va="center", fontsize="small", color=colour)
                axes.text(column, row, str(int(matrix[row, column])), **text)
    _save(figure, path)


def _accuracy(matrix: Tensor) -> float:
    return (matrix.trace() / matrix.sum().clamp_min(1)).item()


def _log(folder: Path) -> list[dict[str, float]]:
    """Step and measures of every whole line that has one."""
    file = folder / "log.jsonl"
    if not file.exists():
        raise FileNotFoundError(f"there is no log {file}; name the folder of a run")
    lines: list[dict[str, float]] = []
    try:
        text = file.read_text()
        for line in map(json.loads, text[: text.rfind("\n") + 1].splitlines()):  # a run may be at its last line
            values = {name: float(line[name]) for name in CURVES if line.get(name) is not None}
            lines += [{"step": float(line["step"]), **values}] if values else []
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error})") from error
    if not lines:
        raise ValueError(f"{file} is empty: the run has logged nothing yet")
    return lines


def check_picture(path: Path) -> None:
    """Raises what would keep a picture from being drawn or written to ``path``, before long work is done for it."""
    _figure(1, 1)
    check_writable(path)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"pictures of a run need matplotlib: pip install matplotlib ({error})") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=100)
    write_atomically(path, file.getvalue())
