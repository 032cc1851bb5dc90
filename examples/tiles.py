"""How the kernels walk over an image: ``python -m examples.tiles`` draws both into docs/pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path

HALO, PIXEL, NOW, CELL = "#e3e5ec", "#c5d3f5", "#f6b26b", "#bfe0c4"
SIDE = 12  # of a pixel in the drawings
HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" font-family="sans-serif" font-size="12">
<title>{title}</title>
<rect width="760" height="{height}" fill="white"/>"""


def main(folder: Path = Path("docs/pictures")) -> None:
    for name, drawing in (("tile-cpu.svg", cpu()), ("tiles-gpu.svg", gpu())):
        (folder / name).write_text("\n".join([*drawing, "</svg>", ""]))
        print(f"wrote {folder / name}")


def cpu() -> list[str]:
    """A tile of three cells, of which a vector of four columns is at its third row; and the stages beside it."""
    drawing = [HEAD.format(height=230, title="A tile of cells on the CPU, and its five stages")]
    drawing += pixels(20, 42, 26, 10, now=lambda x, y: 9 <= x < 13 and y == 3)
    drawing += cells(20 + SIDE, 42 + SIDE, 3)
    drawing += [text(20, 22, "a tile: whole cells, about 256 columns", bold=True)]
    drawing += [arrow(20 + 11 * SIDE, 42 + 4 * SIDE + 2, 42 + 10 * SIDE + 14)]
    drawing += [
        text(20, 194, "A vector of columns walks down the rows, with S_0 to S_8"),
        text(20, 210, "in registers."),
    ]
    stages = ("load", "the pixels and their halo (grey), widened"), ("gradient", "gx, gy and the magnitude of a pixel")
    stages += ("bin", "S_k of each column, down the rows"), ("histogram", "S_k of a cell, across its 8 columns")
    stages += (("normalise", "h_k = S_k - S_(k+1), divided by the norm"),)
    return drawing + listed(420, 58, stages)


def gpu() -> list[str]:
    """On the left a cell that one thread does; on the right a strip whose columns have a thread each."""
    drawing = [HEAD.format(height=290, title="A cell for each thread, and a strip with a thread for each column")]
    drawing += [text(20, 22, "MaskFeat: a thread does a cell", bold=True)]
    drawing += pixels(20, 42, 10, 10, now=lambda x, y: 1 <= x < 9 and y == 4)
    drawing += [*cells(20 + SIDE, 42 + SIDE, 1), arrow(20 + 5 * SIDE, 42 + 5 * SIDE + 2, 42 + 10 * SIDE + 14)]
    drawing += [
        text(20, 194, "It walks down. Three rows of ten pixels"),
        text(20, 210, "and the S_k of eight columns are in"),
    ]
    drawing += [text(20, 226, "registers. Threads exchange nothing.")]
    drawing += [text(300, 22, "Blocks: a thread block walks down a strip, a thread does a column", bold=True)]
    drawing += pixels(300, 42, 34, 6, now=lambda x, y: x == 14 and 1 <= y < 5)
    drawing += [arrow(300 + 14.5 * SIDE, 42 + 5 * SIDE + 2, 42 + 6 * SIDE + 14)]
    for first, shift in ((0, 0), (1, 1), (2, 0)):
        left, top = 300 + SIDE * (1 + 8 * first), 134 + 22 * shift
        drawing.append(f'<rect x="{left}" y="{top}" width="{16 * SIDE}" height="18" fill="{CELL}" stroke="#3f7d4a"/>')
        drawing.append(text(left + 8 * SIDE, top + 13, "block of 2 x 2 cells", middle=True))
    stages = ("load", "four rows and their halo (grey)"), ("vote", "a thread a column, into a histogram of its own")
    stages += ("cells", "a thread a cell and bin, across the columns"), ("normalise", "8 lanes a block")
    return drawing + listed(300, 208, stages, apart=20)


def pixels(left: int, top: int, columns: int, rows: int, now: Callable[[int, int], bool]) -> list[str]:
    drawing = []
    for y in range(rows):
        for x in range(columns):
            border = x in (0, columns - 1) or y in (0, rows - 1)
            fill = NOW if now(x, y) else HALO if border else PIXEL
            at = f'x="{left + SIDE * x}" y="{top + SIDE * y}"'
            drawing.append(
                f'<rect {at} width="{SIDE}" height="{SIDE}" fill="{fill}" stroke="#9aa8d6" stroke-width=".5"/>'
            )
    return drawing


def cells(left: int, top: int, count: int) -> list[str]:
    side = 8 * SIDE
    outline = f'width="{side}" height="{side}" fill="none" stroke="#2f3f80" stroke-width="2"/>'
    return [f'<rect x="{left + side * cell}" y="{top}" {outline}' for cell in range(count)]


def arrow(x: float, top: int, bottom: int) -> str:
    head = f"M{x - 4} {bottom - 6} L{x} {bottom} L{x + 4} {bottom - 6}"
    return f'<path d="M{x} {top} L{x} {bottom} {head}" fill="none" stroke="#c2410c" stroke-width="2"/>'


def listed(left: int, top: int, stages: Sequence[tuple[str, str]], apart: int = 24) -> list[str]:
    drawing = []
    for row, (stage, words) in enumerate(stages):
        drawing += [text(left, top + apart * row, stage, bold=True), text(left + 75, top + apart * row, words)]
    return drawing


def text(x: int, y: int, words: str, bold: bool = False, middle: bool = False) -> str:
    style = ' font-weight="bold"' * bold + ' text-anchor="middle"' * middle
    return f'<text x="{x}" y="{y}"{style}>{words}</text>'


if __name__ == "__main__":
    main()
