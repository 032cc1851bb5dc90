"""Every rival of the quick cases alone, under pytest-benchmark: ``pytest benchmarks --benchmark-only``."""

import pytest

from benchmarks.__main__ import hold_memory
from benchmarks.bench_training import measure_steps
from benchmarks.suites import SUITES, cases
from benchmarks.timing import Rival, Settings, check, measure_rivals

# Python 3.12 and later warn when a loader starts its workers beside the threads of torch.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def pytest_generate_tests(metafunc):
    """Every rival of every case that is timed is a test, grouped by case."""
    hold_memory()
    settings, timed = Settings(quick=True), (measure_rivals, measure_steps)
    found = [(f"{suite}: {case.title}", case) for suite in SUITES for case in cases(suite, settings)]
    prepared = [(title, rival) for title, case in found if case.measure in timed for rival in case.prepare()]
    metafunc.parametrize(("title", "rival"), prepared, ids=[f"{title}: {rival.name}" for title, rival in prepared])


def test_rival(benchmark, title: str, rival: Rival):
    benchmark.group = title
    benchmark.extra_info.update(check(rival), threads=rival.threads)
    benchmark(rival.run, rival.inputs[0])
