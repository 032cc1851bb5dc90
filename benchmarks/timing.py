"""The timer: correct first, then rivals taken in turn, then medians and ratios of the same run."""

import dataclasses
import datetime
import functools
import gc
import itertools
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import maskfeat_kernels

TOLERANCE = 2e-6


@dataclasses.dataclass
class Rival:
    """One line of a table: a callable and the inputs it takes in turn.

    expected: float64 result for ``inputs[0]``; None where the definition is another one, so that nothing but
        finiteness can be checked.
    versus: name of the rival of the same case to which the ratio is taken; None for no ratio.
    threads: CPU threads that torch and OpenCV are given, pinned around every sample.
    """

    name: str
    run: Callable[[Any], Any]
    inputs: list
    expected: Tensor | None = None
    versus: str | None = None
    threads: int = 1


class WrongResult(RuntimeError):
    """A rival did not compute what it should; no time of its case is given."""


def measure(
    rivals: list[Rival],
    *,
    rounds: int = 30,
    sample_seconds: float = 0.01,
    device: "torch.device | str" = "cpu",
    tolerance: float = TOLERANCE,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict]:
    """Time the rivals round-robin, after all of them have passed :func:`check`; one row each, seconds and bytes.

    A round takes one sample of every rival, as many calls as fill ``sample_seconds``. A ratio is the median over the
    rounds of the ratio within a round: a machine that slows down for a while slows both, so that this is steadier than
    the ratio of two medians.

    Raises WrongResult, before anything is timed, if one result differs by more than ``tolerance``.
    """
    device = torch.device(device)
    threads_before = torch.get_num_threads()
    try:
        rows = [{"name": r.name, "threads": r.threads, **check(r, tolerance)} for r in rivals]
        bandwidth = {threads: copy_bandwidth(device, threads) for threads in {r.threads for r in rivals}}
        samplers = [_sampler(r, sample_seconds, device, clock) for r in rivals]
        samples: list[list[float]] = [[] for _ in rivals]
        gc.disable()
        for _ in range(rounds):
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
        row["seconds"] = summary(taken)
        if rival.versus:
            ratios = [mine / other for mine, other in zip(taken, by_name[rival.versus], strict=True)]
            row["ratio"] = {"to": rival.versus, **summary(ratios)}
        row["bytes_per_second"] = row["bytes"] / row["seconds"]["median"]
        row["share_of_copy"] = row["bytes_per_second"] / bandwidth[rival.threads]
        row["samples"] = taken
    return rows


def check(rival: Rival, tolerance: float = TOLERANCE) -> dict:
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
    facts["bytes"] = x.nbytes + result.nbytes
    if not result.isfinite().all():
        raise WrongResult(f"{rival.name}: the result is not finite")
    if rival.expected is not None:
        if result.shape != rival.expected.shape:
            raise WrongResult(f"{rival.name}: shape {tuple(result.shape)}, expected {tuple(rival.expected.shape)}")
        facts["max_error"] = (result.double() - rival.expected.to(result.device)).abs().max().item()
        if facts["max_error"] > tolerance:
            raise WrongResult(f"{rival.name}: off by {facts['max_error']:.2g}, allowed are {tolerance:.2g}")
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


def cache_bytes(device: "torch.device | str" = "cpu") -> int:
    """Size of the last-level cache; 64 MiB where the system does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    name = "SC_LEVEL3_CACHE_SIZE"
    size = os.sysconf(name) if name in getattr(os, "sysconf_names", ()) else 0
    return size if size > 0 else 64 << 20


@functools.cache
def copy_bandwidth(device: torch.device, threads: int = 1) -> float:
    """Bytes read and written per second by a copy larger than the cache: what this machine's memory can do."""
    set_threads(threads)
    source = torch.ones(max(2 * cache_bytes(device), 64 << 20), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rival = Rival("copy", target.copy_, [source], threads=threads)
    sampler = _sampler(rival, 0.0, device, time.perf_counter)
    return 2 * source.nbytes / summary([sampler() for _ in range(9)])["median"]


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
    if device.type == "cuda":
        return _cuda_sampler(rival, inputs, sample_seconds)

    def sample() -> float:
        taken = list(itertools.islice(inputs, calls))
        start = clock()
        for x in taken:
            rival.run(x)
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


def environment(device: "torch.device | str" = "cpu") -> dict:
    """Hardware, versions, compiler, commit and date: what a number means nothing without. No host name."""
    device = torch.device(device)
    facts = {
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cache_bytes": cache_bytes(device),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {
            name: str(sys.modules[name].__version__)
            for name in ("maskfeat_kernels", "torch", "triton", "numpy", "cv2", "skimage")
            if name in sys.modules
        },
        "compiler": compiler(),
        "backends": maskfeat_kernels.available_backends(device),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={device.index or 0}"]
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
        facts["cuda"] = torch.version.cuda
    return facts


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return models[0] if models else platform.processor() or platform.machine()


def compiler() -> str | None:
    """The compiler that left its name in the extension; None if there is none, or it is not built."""
    for extension in sorted(Path(maskfeat_kernels.__file__).parent.glob("_torch_ops*.so")):
        name = re.search(rb"GCC: [^\0]+|clang version [^\0]+", extension.read_bytes())
        if name:
            return name[0].decode()
    return None


def commit() -> str | None:
    """The commit of the sources, with "+" if tracked files differ from it; None outside a git repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return None
    changes = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
    )
    return head.stdout.strip() + ("+" if changes.stdout else "")


def slug(name: str) -> str:
    """A file name of lower-case words: "AMD EPYC (TM) 7B13" becomes "amd-epyc-7b13"."""
    return "-".join(re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)", "", name.lower())))


def write_report(report: dict, path: Path) -> None:
    """Write ``path`` (.json, raw samples included) and beside it the tables made from what was written (.md)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(json.loads(path.read_text())))


def markdown(report: dict) -> str:
    """A report ``{"title", "environment", "rounds", "cases": [{"title", "rows"}]}`` as text with tables."""
    machine = report["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"# {report['title']}",
        "",
        f"{machine.get('gpu', machine['cpu'])}, {machine['cpus']} CPUs, {machine['instruction_set']}, "
        f"{machine['system']}; Python {machine['python']}, {versions}; compiler {machine['compiler']}; "
        f"commit {machine['commit']}; {machine['date']}.",
        "",
        f"Median (p20 to p80) of {report['rounds']} samples, the rivals taken in turn; a time ratio is the median of "
        "the ratios within a round. GB/s counts each input read and each result written once, and is also given as a "
        "share of what a plain copy reaches. Peak MB is the GPU memory of a call, its result included. Errors are "
        "against float64; a dash means another definition of HOG.",
    ]
    for case in report["cases"]:
        lines += ["", f"## {case['title']}", "", *table(case["rows"])]
    return "\n".join(lines) + "\n"


def table(rows: list[dict]) -> list[str]:
    """Rows of :func:`measure` as the lines of a Markdown table with aligned columns."""
    cells = [("", "threads", "ms", "p20 to p80", "time ratio", "to", "GB/s", "of a copy", "peak MB", "largest error")]
    for row in rows:
        seconds, ratio, error = row["seconds"], row.get("ratio"), row["max_error"]
        cells.append(
            (
                row["name"],
                str(row["threads"]),
                f"{1e3 * seconds['median']:.4g}",
                f"{1e3 * seconds['p20']:.4g} to {1e3 * seconds['p80']:.4g}",
                f"{ratio['median']:.3g} ({ratio['p20']:.3g} to {ratio['p80']:.3g})" if ratio else "",
                ratio["to"] if ratio else "",
                f"{row['bytes_per_second'] / 1e9:.3g}",
                f"{100 * row['share_of_copy']:.2g} %",
                f"{row['peak_bytes'] / 1e6:.4g}" if "peak_bytes" in row else "",
                "-" if error is None else f"{error:.1e}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]
