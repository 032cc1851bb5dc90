"""What the README tells of a GPU."""

from benchmarks.readme_parts import COMPILED, LAYER, accuracy, head, jobs, losses, megabytes, scaling
from benchmarks.rows import Rows, amount, number, row_of, tell, times_slower
from benchmarks.tables import aligned, share

BYTES, FLOATS = "fused_hog uint8", "fused_hog float32"
OTHERS = ("fused_hog triton uint8", "fused_hog triton float32", LAYER, "reference layer fp16 autocast", COMPILED)
OTHERS += ("soft conv HOG float32",)


def gpu(stem: str, rows: Rows) -> list[str]:
    return [
        head(stem, rows, "by replay of CUDA graphs"),
        race(rows),
        scaling(stem, rows),
        jobs(rows),
        losses(rows),
        accuracy(stem, rows),
    ]


def race(rows: Rows) -> str:
    """The largest batch: time, share of the bandwidth of a copy, and memory; then float32 against bytes."""
    case = rows.largest()
    lines = [["", "us a batch", "of a copy", "times slower", "beyond the input", "of it the result"]]
    for name in (BYTES, FLOATS, *OTHERS):
        row, ours = row_of(case, name), row_of(case, BYTES if "uint8" in name else FLOATS)
        line = [name, tell(lambda row: amount(1e6 * row["seconds"]["median"]), row)]
        if "failed" in row:
            line += ["", "", "", ""]
        else:
            line.append(tell(lambda row: share(row["share_of_copy"]), row))
            line.append(tell(slower, row, ours) if name in OTHERS else "")
            line += [tell(megabytes, row), tell(lambda row: megabytes(row, "result_bytes"), row)]
        lines.append(line)
    floats = tell(slower, row_of(case, FLOATS), row_of(case, BYTES))
    return "\n".join([*aligned(lines), "", f"Times that float32 is slower than bytes: {floats}."])


def slower(theirs: dict, ours: dict) -> str:
    return number(times_slower(theirs, ours))
