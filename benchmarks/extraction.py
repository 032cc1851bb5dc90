"""How fast features are extracted, as shares of decoding alone, of one worker, and of the other engine.

::

    python -m benchmarks.extraction DATA [--rounds 5] [--ray]

DATA is a folder of JPEGs. All rows take turns. A rate is that of a call between its third file and its last, as
starting processes is measured apart; beside it are CPU seconds for a thousand images, of all processes.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

import maskfeat
from maskfeat.data.loader import Batches, Loader
from maskfeat.extraction.features import Hog, Reading
from maskfeat.extraction.parts import Job, Worker, divide
from maskfeat_kernels import MASKFEAT

ROWS = 60
Measured = dict[str, float]


def decoding(reading: Reading) -> Measured:
    """Reading, resizing and cutting alone, in this process."""
    start, cpu, images = time.perf_counter(), time.process_time(), 0
    for batch in Loader(Batches(reading, "train"), 0, 0):
        images += len(batch["images"])
    return rate(images, time.perf_counter() - start, time.process_time() - cpu)


def one_process(reading: Reading, out: Path) -> Measured:
    """The same with HOG and files, in this process."""
    feature = Hog(MASKFEAT)
    (out / "_extract.json").write_text("{}")
    job = Job(feature, reading, "train", out, feature.shape(reading), "float32", "{}")
    worker, (parts, _, _) = Worker(job, "cpu", 0), divide(reading, "train", ROWS, 1)
    start, cpu = time.perf_counter(), time.process_time()
    for part in parts:
        worker(part)
    return rate(len(parts) * ROWS, time.perf_counter() - start, time.process_time() - cpu)


def call(reading: Reading, out: Path, **settings: object) -> Measured:
    """A whole call of ``maskfeat.extract``: its rate once it has begun, and the CPU seconds of its workers."""
    start, before = time.perf_counter(), seconds_of_others()
    spent, ends = dict(before), threading.Event()

    def watch() -> None:
        while not ends.wait(0.05):
            spent.update(seconds_of_others())

    watching = threading.Thread(target=watch)
    watching.start()
    maskfeat.extract("hog", reading.data, out, rows=ROWS, image_size=reading.image_size, **settings)
    ends.set()
    watching.join()
    cpu = sum(seconds - before.get(process, 0.0) for process, seconds in spent.items())
    written = sorted(path.stat().st_mtime for path in out.glob("*.parquet"))
    whole = {"seconds": time.perf_counter() - start, "cpu_per_1000": 1000 * cpu / (ROWS * len(written))}
    return rate(ROWS * (len(written) - 3), written[-1] - written[2], 0.0) | whole


def seconds_of_others() -> Measured:
    """CPU seconds of the processes that stand below this one, by number and start."""
    found = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid, words = place.parent.name, place.read_text().rpartition(")")[2].split()
            found[pid] = words[1], words[19], (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    ours = {str(os.getpid())}
    for _ in range(4):  # a fork server, or a raylet, and its workers
        ours |= {pid for pid, (parent, *_) in found.items() if parent in ours}
    return {f"{pid} {found[pid][1]}": found[pid][2] for pid in ours if pid in found}


def rate(images: int, seconds: float, cpu: float) -> Measured:
    return {"rate": images / seconds, "cpu_per_1000": 1000 * cpu / images}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ray", action="store_true", help="also on Ray, which starts once, on this machine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reading = Reading(data=options.data, device="cpu", batch_size=16, workers=0)
    rows: dict[str, Callable[[Path], Measured]] = {
        "decoding alone": lambda out: decoding(reading),
        "this process": lambda out: one_process(reading, out),
        "one worker": lambda out: call(reading, out, workers=1),
        "two workers": lambda out: call(reading, out, workers=2),
    }
    if options.ray:
        import ray

        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        rows["two workers of Ray"] = lambda out: call(reading, out, workers=2, engine="ray")
    found: dict[str, list[Measured]] = {name: [] for name in rows}
    for _ in range(options.rounds):
        for name, measure in rows.items():
            out = Path(tempfile.mkdtemp())
            found[name].append(measure(out))
            shutil.rmtree(out)
    for name, measured in found.items():
        rates = [each["rate"] for each in measured]
        others = {key: statistics.median(each[key] for each in measured) for key in measured[0] if key != "rate"}
        others = {key: round(value, 3) for key, value in others.items()}
        print(f"{name:20} {statistics.median(rates):7.1f} images/s ({min(rates):.1f} to {max(rates):.1f})  {others}")
    for one, other in (
        ("this process", "decoding alone"),
        ("two workers", "one worker"),
        ("two workers of Ray", "two workers"),
    ):
        if one in found:
            pairs = list(zip(found[one], found[other], strict=True))
            ratios = [a["rate"] / b["rate"] for a, b in pairs]
            cpu = statistics.median(b["cpu_per_1000"] / a["cpu_per_1000"] for a, b in pairs)
            spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
            print(f"{one} / {other}: {statistics.median(ratios):.3f} {spread}; an image's CPU seconds say {cpu:.3f}")


if __name__ == "__main__":
    main()
