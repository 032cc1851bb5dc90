"""The cases of a quick run for pytest-benchmark, every rival alone: ``pytest benchmarks --benchmark-only``.

They run on the GPU where there is one. This is for comparing our own versions (``--benchmark-autosave`` and
``--benchmark-compare``). Ratios to rivals come from ``python -m benchmarks``, where all take turns.
"""

import functools

import pytest
import torch

from benchmarks.cases import SUITES, cases
from benchmarks.timing import Case, Rival, Settings, check, measure_rivals

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, and of loaders that fork


def pytest_generate_tests(metafunc):
    found = {
        f"{suite}: {case.title}": case for suite in SUITES for case in cases(suite, Settings(DEVICE, 1, quick=True))
    }
    timed = {title: case for title, case in found.items() if case.measure is measure_rivals}
    tests = [(title, case, rival.name) for title, case in timed.items() for rival in rivals_of(case)]
    metafunc.parametrize(("title", "case", "name"), tests, ids=[f"{title}: {name}" for title, _, name in tests])


@functools.lru_cache(maxsize=1)
def rivals_of(case: Case) -> list[Rival]:
    """With their inputs, which of all cases together are large."""
    return case.prepare()


def test_rival(benchmark, title: str, case: Case, name: str):
    rival = next(rival for rival in rivals_of(case) if rival.name == name)
    benchmark.group = title
    benchmark.extra_info.update(check(rival, DEVICE), threads=rival.threads)

    def run():
        rival.run(rival.inputs[0])
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(run)
