"""The timer: correct first, then rivals taken in turn, then medians and ratios of the same run."""

import collections
import contextlib
import dataclasses
import functools
import gc
import itertools
import math
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 2e-6

OURS = ("fused", "ours", "our ", "step, our", "compat")


def is_ours(name: str) -> bool:
    """Whether a row is ours, which its name says, and no rival's."""
    return name.startswith(OURS)


@dataclasses.dataclass
class Rival:
    """One line of a table: a callable and the inputs it takes in turn.

    expected: float64 result for ``inputs[0]`` by the definition of this rival, met to ``tolerance``; None where there
        is none, so that nothing but finiteness can be checked.
    versus: name of the rival of the same case to which the ratio is taken; None for no ratio.
    threads: CPU threads that torch and OpenCV are given, pinned around every sample.
    operations: arithmetic that the job needs, however it is done; 0 where there is none or it is not counted.
    on_average: the tolerance is for the mean of the errors, not for the largest: for those who put a few pixels into
        another bin, which changes a cell with few of them altogether.
    reads: bytes of an input that its result needs; None for all of them.
    items: images that a call takes, for the throughput; 0 for no such column.
    at: the place of this line on the axis of its case, whose curves are drawn through the lines of one ``series``.
    on_host: timed by the clock also on a GPU, which is idle before and after: for work that no CUDA graph can hold.
    more: gives further facts of the row, after the times.
    """

    name: str
    run: Callable[[Any], Any]
    inputs: list
    expected: Tensor | None = None
    versus: str | None = None
    threads: int = 1
    tolerance: float = TOLERANCE
    on_average: bool = False
    reads: int | None = None
    operations: int = 0
    items: int = 0
    at: float | None = None
    series: str | None = None
    on_host: bool = False
    more: Callable[[], dict] = dict


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is asked for; a quick one takes small cases and few samples."""

    device: str = "cpu"
    threads: int = 1  # the most that a case takes: all take one, but for the curve over threads
    quick: bool = False
    without: frozenset[str] = frozenset()  # "backend:op", of those that are known to be wrong

    @property
    def limits(self) -> dict:
        """For :func:`measure`: a case ends after its rounds, or earlier when its seconds have passed."""
        return {"rounds": 3, "seconds": 0.0} if self.quick else {"rounds": 30, "seconds": 5.0}

    def batch(self, quick: int, cpu: int, gpu: int) -> int:
        """Images of a batch."""
        return quick if self.quick else cpu if self.device == "cpu" else gpu


def measure_rivals(rivals: list[Rival], settings: Settings) -> list[dict]:
    return measure(rivals, device=settings.device, **settings.limits)


@dataclasses.dataclass(frozen=True)
class Case:
    """A table: its title, the function that prepares its lines, and the one that measures them, one row each.

    axis: what varies along the curves of the case, None if it has none.
    """

    title: str
    prepare: Callable[[], list]
    axis: str | None = None
    measure: Callable[[list, Settings], list[dict]] = measure_rivals


class WrongResult(RuntimeError):
    """A rival did not compute what it should; no time of its case is given."""


def measure(
    rivals: list[Rival],
    *,
    rounds: int = 30,
    seconds: float = math.inf,
    sample_seconds: float = 0.01,
    device: "torch.device | str" = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict]:
    """Time the rivals round-robin, after all of them have passed :func:`check`; one row each, seconds and bytes.

    A round takes one sample of every rival, as many calls as fill ``sample_seconds``. After ``seconds`` no more rounds
    begin, but three are always taken. A ratio is the median over the rounds of the ratio within a round: a machine
    that slows down for a while slows both, so that this is steadier than the ratio of two medians.

    A rival that is not ours and fails (a wrong result, no memory, no compiler) has its error as "failed" in place of
    times. Raises what one of ours raises, before anything is timed: WrongResult where it is off by too much.
    """
    device, threads_before = torch.device(device), torch.get_num_threads()
    rows = [{"name": rival.name, "threads": rival.threads} for rival in rivals]
    able: list[tuple[Rival, dict, Callable[[], float]]] = []
    try:
        for rival, row in zip(rivals, rows, strict=True):
            with failing_alone(row):
                row |= check(rival, device)
        ceilings = {threads: ceilings_of(device, threads) for threads in {r.threads for r in rivals}}
        for rival, row in zip(rivals, rows, strict=True):
            with failing_alone(row):
                if "failed" not in row:
                    able.append((rival, row, _sampler(rival, sample_seconds, device, clock)))
        samples: dict[str, list[float]] = {rival.name: [] for rival, *_ in able}
        gc.disable()
        begin = clock()
        for turn in range(rounds):
            if turn >= 3 and clock() - begin > seconds:
                break
            for rival, _, sample in able:
                if torch.get_num_threads() != rival.threads:
                    set_threads(rival.threads)
                    rival.run(rival.inputs[0])  # wakes the threads
                samples[rival.name].append(sample())
    finally:
        gc.enable()
        set_threads(threads_before)

    for rival, row, _ in able:
        row |= times(rival.name, rival.versus, samples)
        median, most = row["seconds"]["median"], ceilings[rival.threads]
        if row["bytes"]:
            row["bytes_per_second"] = row["bytes"] / median
            row["share_of_copy"] = row["bytes_per_second"] / most["copy_bytes_per_second"]
        if rival.operations:
            row["operations"] = rival.operations
            row["share_of_arithmetic"] = rival.operations / median / most["operations_per_second"]
        if rival.items:
            row["items_per_second"] = rival.items / median
        if rival.at is not None:
            row |= {"at": rival.at, "series": rival.series}
        row |= rival.more()
    return rows


def times(name: str, versus: str | None, samples: dict[str, list[float]]) -> dict:
    """The seconds of a row, and their ratio to those of another row within each round."""
    facts = {"seconds": summary(samples[name]), "samples": samples[name]}
    if versus in samples:
        ratios = [mine / other for mine, other in zip(samples[name], samples[versus], strict=True)]
        facts["ratio"] = {"to": versus, **summary(ratios)}
    return facts


@contextlib.contextmanager
def failing_alone(row: dict):
    """Where a rival fails, its row says so and the others go on; ours may not fail."""
    try:
        yield
    except Exception as error:  # a library may fail in any way: a wrong result, no memory, no compiler
        if is_ours(row["name"]):
            raise
        traceback.print_exc()
        row["failed"] = told(error)


def told(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def check(rival: Rival, device: "torch.device | str" = "cpu") -> dict:
    """The gate: run ``rival`` once on its first input. Returns bytes read and written, and the largest error.

    On a GPU also the memory that a call takes beyond its input, at its peak, and the part of it that is the result.
    """
    set_threads(rival.threads)
    facts = {"inputs": len(rival.inputs), "max_error": None}
    x, on_gpu = rival.inputs[0], torch.device(device).type == "cuda"
    if on_gpu:
        rival.run(x)  # compiles
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    result = rival.run(x)  # several results are one for the gate
    result = torch.cat([r.flatten() for r in result]) if isinstance(result, tuple) else torch.as_tensor(result)
    if on_gpu:
        facts |= {"peak_bytes": torch.cuda.max_memory_allocated() - before, "result_bytes": result.nbytes}
    reads = getattr(x, "nbytes", 0) if rival.reads is None else rival.reads
    facts["bytes"] = reads + result.nbytes if reads else 0
    if not result.isfinite().all():
        raise WrongResult(f"{rival.name}: the result is not finite")
    if rival.expected is not None:
        if result.shape != rival.expected.shape:
            raise WrongResult(f"{rival.name}: shape {tuple(result.shape)}, expected {tuple(rival.expected.shape)}")
        errors = (result.double() - rival.expected.to(result.device)).abs()
        facts["max_error"] = errors.max().item()
        error, how = (errors.mean().item(), " on average") if rival.on_average else (facts["max_error"], "")
        if error > rival.tolerance:
            raise WrongResult(f"{rival.name}: off by {error:.2g}{how}, allowed are {rival.tolerance:.2g}")
    return facts


def summary(samples: list[float]) -> dict:
    """Median and 20th and 80th percentile, interpolated."""
    return dict(zip(("median", "p20", "p80"), np.quantile(samples, (0.5, 0.2, 0.8)).tolist(), strict=True))


def rotating(x, device: "torch.device | str" = "cpu") -> list:
    """``x`` and at least one copy of it (tensor or array), together twice as large as the last-level cache.

    Taken in turn, none of them is still in the cache when it is read again.
    """
    copy = x.clone if isinstance(x, Tensor) else x.copy
    return [x, *(copy() for _ in range(max(1, 2 * cache_bytes(device) // x.nbytes)))]


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return models[0] if models else platform.processor() or platform.machine()


def cache_bytes(device: "torch.device | str" = "cpu") -> int:
    """Size of the last-level cache; 64 MiB where the system does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    name = "SC_LEVEL3_CACHE_SIZE"
    size = os.sysconf(name) if name in getattr(os, "sysconf_names", ()) else 0
    return size if size > 0 else 64 << 20


@functools.cache
def ceilings_of(device: torch.device, threads: int = 1) -> dict:
    """What this machine can do, measured once in this process.

    copy_bytes_per_second: bytes read and written by a copy larger than the cache; on a GPU by a kernel that inverts all
        bits, 16 bytes at a time, if that is faster than the copy.
    operations_per_second: float32 multiplications and additions in a product of matrices or, on a CPU, in a convolution
        if that is faster: the libraries behind the two do not use the same vectors on every CPU. Both fuse them, so
        that arithmetic which rounds after each operation reaches half of it at most.

    The best of 15 samples each, for these are to be ceilings. On a GPU samples are as long as those of the rivals, and
    half a second of them comes first, in which its clocks rise.
    """
    set_threads(threads)
    on_gpu = device.type == "cuda"

    def rate(amount, run, x):
        fill = 0.02 if on_gpu else 0.0
        sampler = _sampler(Rival("ceiling", run, [x], threads=threads), fill, device, time.perf_counter)
        return amount / min([sampler() for _ in range(40 if on_gpu else 15)][-15:])

    size = 1 << 30 if on_gpu else max(2 * cache_bytes(device), 64 << 20)
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = rate(2 * source.nbytes, target.copy_, source)
    if on_gpu:
        words, inverted = source.view(torch.int32), target.view(torch.int32)
        copied = max(copied, rate(2 * source.nbytes, partial(torch.bitwise_not, out=inverted), words))
    side, channels, rows = 4096 if on_gpu else 1024, 256, 32
    matrix = torch.rand(side, side, device=device)
    product = torch.empty_like(matrix)
    computed = rate(2 * side**3, lambda m: torch.mm(m, m, out=product), matrix)
    if not on_gpu:
        image, weight = torch.rand(1, channels, rows, rows), torch.rand(channels, channels, 3, 3)
        amount = 2 * 9 * channels**2 * (rows - 2) ** 2
        computed = max(computed, rate(amount, partial(torch.conv2d, weight=weight), image))
    return {"copy_bytes_per_second": copied, "operations_per_second": computed}


def set_threads(threads: int) -> None:
    """Give torch, and OpenCV if it is loaded, this many CPU threads."""
    torch.set_num_threads(threads)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(threads)


def _sampler(rival: Rival, sample_seconds: float, device: torch.device, clock) -> Callable[[], float]:
    """Warm up, find how many calls fill a sample, and return a function that takes one: seconds per call."""
    set_threads(rival.threads)
    inputs = itertools.cycle(rival.inputs)
    calls, elapsed = 1, 0.0
    if device.type == "cuda" and not rival.on_host:
        return _cuda_sampler(rival, inputs, sample_seconds)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def sample() -> float:
        taken = list(itertools.islice(inputs, calls))
        wait()
        start = clock()
        for x in taken:
            rival.run(x)
        wait()
        return (clock() - start) / len(taken)

    rival.run(next(inputs))
    while (elapsed := sample() * calls) < sample_seconds:
        # Grow at most tenfold: the first calls are slower than the later ones.
        calls = min(10 * calls, max(calls + 1, math.ceil(1.1 * calls * sample_seconds / max(elapsed, 1e-9))))
    return sample


def _cuda_sampler(rival: Rival, inputs, sample_seconds: float) -> Callable[[], float]:
    """The same by CUDA events around the replay of a graph that holds all calls of a sample."""

    def capture(calls: int) -> Callable[[], float]:
        graph = torch.cuda.CUDAGraph()
        results = collections.deque(maxlen=4)  # each in memory of its own, or the cache would take them all
        with torch.cuda.graph(graph):
            for x in itertools.islice(inputs, calls):
                results.append(rival.run(x))
            results.clear()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

        def sample() -> float:
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1000 / calls

        return sample

    # Capture refuses the allocations and compilations of a first call: those happen here, on another stream.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        rival.run(next(inputs))
    side.synchronize()
    first = capture(len(rival.inputs))
    first()
    return capture(max(len(rival.inputs), math.ceil(sample_seconds / first())))
