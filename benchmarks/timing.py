"""The timer: correct first, then rivals taken in turn, then medians and ratios of the same run."""

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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.tables import table as table  # for those who measure a few rivals and print them

TOLERANCE = 2e-6


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


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run is asked for; a quick one takes small cases and few samples."""

    device: str = "cpu"
    threads: int = 1  # the most that a case takes: all take one, but for the curve over threads
    quick: bool = False

    @property
    def limits(self) -> dict:
        """For :func:`measure`: a case ends after its rounds, or earlier when its seconds have passed."""
        return {"rounds": 3, "seconds": 0.0} if self.quick else {"rounds": 30, "seconds": 5.0}


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

    Raises WrongResult, before anything is timed, if one result differs by more than its tolerance.
    """
    device = torch.device(device)
    threads_before = torch.get_num_threads()
    try:
        rows = [{"name": r.name, "threads": r.threads, **check(r)} for r in rivals]
        ceilings = {threads: ceilings_of(device, threads) for threads in {r.threads for r in rivals}}
        samplers = [_sampler(r, sample_seconds, device, clock) for r in rivals]
        samples: list[list[float]] = [[] for _ in rivals]
        gc.disable()
        begin = clock()
        for turn in range(rounds):
            if turn >= 3 and clock() - begin > seconds:
                break
            for rival, sampler, taken in zip(rivals, samplers, samples, strict=True):
                if torch.get_num_threads() != rival.threads:
                    set_threads(rival.threads)
                    rival.run(rival.inputs[0])  # wakes the threads
                taken.append(sampler())
    finally:
        gc.enable()
        set_threads(threads_before)

    by_name = {r.name: taken for r, taken in zip(rivals, samples, strict=True)}
    for row, rival, taken in zip(rows, rivals, samples, strict=True):
        row |= {"seconds": summary(taken), **_rates(row["bytes"], rival, taken, ceilings[rival.threads])}
        if rival.versus:
            ratios = [mine / other for mine, other in zip(taken, by_name[rival.versus], strict=True)]
            row["ratio"] = {"to": rival.versus, **summary(ratios)}
        if rival.at is not None:
            row |= {"at": rival.at, "series": rival.series}
        row["samples"] = taken
    return rows


def _rates(nbytes: int, rival: Rival, taken: list[float], ceilings: dict) -> dict:
    """What is done per second, and the share of what the machine can do."""
    median, rates = summary(taken)["median"], {}
    if nbytes:
        rates["bytes_per_second"] = nbytes / median
        rates["share_of_copy"] = nbytes / median / ceilings["copy_bytes_per_second"]
    if rival.operations:
        rates["operations"] = rival.operations
        rates["share_of_arithmetic"] = rival.operations / median / ceilings["operations_per_second"]
    if rival.items:
        rates["items_per_second"] = rival.items / median
    return rates


def check(rival: Rival) -> dict:
    """The gate: run ``rival`` once on its first input. Returns bytes read and written, and the largest error."""
    set_threads(rival.threads)
    facts = {"inputs": len(rival.inputs), "max_error": None}
    x, on_gpu = rival.inputs[0], torch.cuda.is_available() and getattr(rival.inputs[0], "is_cuda", False)
    if on_gpu:
        rival.run(x)  # compiles
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    result = torch.as_tensor(rival.run(x))
    if on_gpu:
        facts["peak_bytes"] = torch.cuda.max_memory_allocated() - before
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


def summary(samples: list[float]) -> dict:  # median, p20, p80
    """Median and 20th and 80th percentile, interpolated."""
    quantiles = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    values = torch.quantile(torch.tensor(samples, dtype=torch.float64), quantiles)
    return dict(zip(("median", "p20", "p80"), values.tolist(), strict=True))


def rotating(x, device: "torch.device | str" = "cpu") -> list:
    """``x`` and copies of it (tensor or array), together twice as large as the last-level cache.

    Taken in turn, none of them is still in the cache when it is read again.
    """
    copy = x.clone if isinstance(x, Tensor) else x.copy
    return [x, *(copy() for _ in range(2 * cache_bytes(device) // x.nbytes))]


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

    copy_bytes_per_second: bytes read and written by a copy larger than the cache.
    operations_per_second: float32 multiplications and additions in a product of matrices or, on a CPU, in a convolution
        if that is faster: the libraries behind the two do not use the same vectors on every CPU. Both fuse them, so
        that arithmetic which rounds after each operation reaches half of it at most.

    The best of 15 samples each, for these are to be ceilings.
    """
    set_threads(threads)

    def rate(amount, run, x):
        sampler = _sampler(Rival("ceiling", run, [x], threads=threads), 0.0, device, time.perf_counter)
        return amount / min(sampler() for _ in range(15))

    source = torch.ones(max(2 * cache_bytes(device), 64 << 20), dtype=torch.uint8, device=device)
    copied = rate(2 * source.nbytes, torch.empty_like(source).copy_, source)
    side, channels, rows = 4096 if device.type == "cuda" else 1024, 256, 32
    matrix = torch.rand(side, side, device=device)
    product = torch.empty_like(matrix)
    computed = rate(2 * side**3, lambda m: torch.mm(m, m, out=product), matrix)
    if device.type == "cpu":
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
        with torch.cuda.graph(graph):
            for x in itertools.islice(inputs, calls):
                rival.run(x)
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
    with torch.cuda.stream(side):
        rival.run(next(inputs))
    side.synchronize()
    first = capture(len(rival.inputs))
    first()
    return capture(max(len(rival.inputs), math.ceil(sample_seconds / first())))
