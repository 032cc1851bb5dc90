"""The same cases, every rival alone: ``pytest benchmarks --benchmark-only [--bench-device cuda] [--bench-full]``."""

import functools
import warnings

import pytest
import torch

from benchmarks.__main__ import hold_memory
from benchmarks.cases import SUITES, cases
from benchmarks.cases.training import measure_steps
from benchmarks.machine import usable_cpus
from benchmarks.timing import Case, Rival, Settings, check, measure_rivals

COMPILER = "`torch.jit"
"""How a warning begins that torch's own compiler raises."""

# The other is of Python 3.12 and later, when a loader starts its workers beside the threads of torch.
pytestmark = pytest.mark.filterwarnings(
    f"ignore:{COMPILER}:DeprecationWarning", "ignore:.*use of fork:DeprecationWarning"
)


def pytest_generate_tests(metafunc):
    """Every rival of every case that is timed is a test, grouped by case."""
    hold_memory()
    option = metafunc.config.option
    settings = Settings(option.bench_device, usable_cpus() if option.bench_full else 1, quick=not option.bench_full)
    found = [(f"{suite}: {case.title}", case) for suite in SUITES for case in cases(suite, settings)]
    timed = [(title, case) for title, case in found if case.measure in (measure_rivals, measure_steps)]
    tests = [(title, case, rival.name) for title, case in timed for rival in rivals_of(case)]
    metafunc.parametrize(("title", "case", "name"), tests, ids=[f"{title}: {name}" for title, _, name in tests])


@functools.lru_cache(maxsize=1)
def rivals_of(case: Case) -> list[Rival]:
    """With their inputs, which of all full cases together would not fit in memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", COMPILER, DeprecationWarning)
        return case.prepare()


def test_rival(benchmark, pytestconfig, title: str, case: Case, name: str):
    device = pytestconfig.option.bench_device
    rival = next(rival for rival in rivals_of(case) if rival.name == name)
    benchmark.group = title
    benchmark.extra_info.update(check(rival, device), threads=rival.threads)

    def run():
        rival.run(rival.inputs[0])
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark(run)
