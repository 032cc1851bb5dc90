"""The timer (gate, turns, ratios, threads) under a clock that the rivals move, and graphs without a GPU."""

import contextlib
import itertools
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import timing
from benchmarks.timing import Rival, WrongResult, check, measure

ONE = torch.ones(1)


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    timing.set_threads(before)


class Clock:
    """Seconds that pass only when a rival works, ``slowness`` times as many."""

    now = 0.0
    slowness = 1.0

    def __call__(self):
        return self.now

    def rival(self, name, seconds, log=None, **options):
        def run(x):
            self.now += seconds * self.slowness
            if log is not None:
                log.append(name)
            return x

        return Rival(name, run, **{"inputs": [ONE], **options})


@pytest.fixture
def clock(monkeypatch):
    ceilings = {"copy_bytes_per_second": 1000.0, "operations_per_second": 400.0}
    monkeypatch.setattr(timing, "ceilings_of", lambda device, threads: ceilings)
    return Clock()


def test_times_ratios_and_rates(clock):
    ours = clock.rival("ours", 0.25, operations=50, items=3, at=64, series="ours")
    ours, theirs = measure([ours, clock.rival("theirs", 0.75, versus="ours")], rounds=4, clock=clock)
    assert ours["seconds"] == {"median": 0.25, "p20": 0.25, "p80": 0.25}
    assert theirs["ratio"] == {"to": "ours", "median": 3.0, "p20": 3.0, "p80": 3.0}
    assert "ratio" not in ours
    assert len(ours["samples"]) == len(theirs["samples"]) == 4
    assert ours["bytes"] == 8, "four bytes read and four written"
    assert (ours["bytes_per_second"], ours["share_of_copy"], ours["share_of_arithmetic"]) == (32, 0.032, 0.5)
    assert (ours["items_per_second"], ours["at"], ours["series"]) == (12, 64, "ours")
    assert "at" not in theirs and "items_per_second" not in theirs
    assert timing.summary([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == {"median": 3.5, "p20": 2.0, "p80": 5.0}, "interpolated"


def test_a_case_ends_after_its_seconds_but_not_before_three_rounds(clock):
    for seconds, rounds in ((0.0, 3), (6.5, 7), (100.0, 20)):
        (row,) = measure([clock.rival("ours", 1.0)], rounds=20, seconds=seconds, sample_seconds=0.0, clock=clock)
        assert len(row["samples"]) == rounds


def test_ratios_survive_a_machine_that_slows_down(clock):
    def slow_down(x):
        clock.now += 1
        clock.slowness *= 2
        return x

    rivals = [
        clock.rival("ours", 1.0),
        clock.rival("theirs", 3.0, versus="ours"),
        Rival("other load", slow_down, [ONE]),
    ]
    ours, theirs, _ = measure(rivals, rounds=3, sample_seconds=0.0, clock=clock)
    assert ours["samples"][2] == 4 * ours["samples"][0]
    assert theirs["ratio"]["p20"] == theirs["ratio"]["p80"] == 3.0


def test_rivals_are_taken_in_turn_and_fast_ones_repeated(clock):
    log = []
    rivals = [clock.rival("fast", 0.25, log), clock.rival("slow", 1.0, log)]
    measure(rivals, rounds=3, sample_seconds=1.0, clock=clock)
    turns = [(name, len(list(calls))) for name, calls in itertools.groupby(log)]
    calls_of_fast = turns[-2][1]
    assert 1.0 <= 0.25 * calls_of_fast <= 2.0
    assert turns[-6:] == 3 * [("fast", calls_of_fast), ("slow", 1)]


def test_inputs_are_taken_in_turn(clock):
    seen = []

    def run(x):
        clock.now += 1
        seen.append(int(x))
        return x

    measure([Rival("reader", run, [torch.tensor(i) for i in range(3)])], rounds=6, clock=clock)
    gate, *turns = seen
    assert gate == 0
    assert turns == [i % 3 for i in range(len(turns))]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.tensor([1.0, 2.0 + 1e-4]), "our wrong one: off by 0.0001"),
        (torch.tensor([1.0]), r"our wrong one: shape \(1,\), expected \(2,\)"),
        (torch.tensor([1.0, float("nan")]), "our wrong one: the result is not finite"),
    ],
)
def test_nothing_is_timed_when_a_result_is_wrong(result, message):
    truth = torch.tensor([1.0, 2.0], dtype=torch.float64)
    rivals = [Rival("right one", lambda x: truth, [ONE], truth), Rival("our wrong one", lambda x: result, [ONE], truth)]

    def stopped():
        pytest.fail("the clock was asked")

    with pytest.raises(WrongResult, match=message):
        measure(rivals, clock=stopped)


def test_a_rival_that_fails_has_no_time_and_the_others_have(clock, capsys):
    def no_memory(x):
        raise MemoryError("no memory\nfor this")

    truth = torch.full((1,), 2.0)
    rivals = [
        clock.rival("ours", 0.25),
        Rival("none", no_memory, [ONE]),
        clock.rival("wrong", 0.5, expected=truth, versus="ours"),
        clock.rival("against one that fails", 0.75, versus="none"),
    ]
    ours, none, wrong, last = measure(rivals, rounds=3, clock=clock)
    assert ours["seconds"]["median"] == 0.25
    assert none["failed"] == "MemoryError: no memory"
    assert wrong["failed"] == "WrongResult: wrong: off by 1, allowed are 2e-06"
    assert "seconds" not in none | wrong
    assert last["seconds"]["median"] == 0.75
    assert "ratio" not in last
    assert "for this" in capsys.readouterr().err


def test_the_gate_gives_the_error_and_takes_arrays():
    truth = torch.tensor([0.5], dtype=torch.float64)
    rival = Rival("array", lambda x: x + 2.0**-20, [np.array([0.5])], truth)
    assert check(rival) == {"bytes": 16, "inputs": 1, "max_error": 2.0**-20}
    assert check(Rival("another definition", lambda x: x, [ONE]))["max_error"] is None


def test_threads_are_pinned_for_each_rival_and_given_back(clock):
    seen = {1: set(), 2: set()}

    def rival(threads):
        def run(x):
            clock.now += 1
            seen[threads].add(torch.get_num_threads())
            return x

        return Rival(f"{threads} threads", run, [ONE], threads=threads)

    before = torch.get_num_threads()
    rows = measure([rival(1), rival(2)], rounds=3, clock=clock)
    assert seen == {1: {1}, 2: {2}}
    assert [row["threads"] for row in rows] == [1, 2]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("cache", [10, 10_000])
@pytest.mark.parametrize("x", [torch.zeros(2, 5, 5, 3, dtype=torch.uint8).permute(0, 3, 1, 2), np.zeros((150,))])
def test_rotating_inputs_exceed_the_cache(x, cache, monkeypatch):
    monkeypatch.setattr(timing, "cache_bytes", lambda device: cache)
    copies = timing.rotating(x)
    assert copies[0] is x
    assert len(copies) > 1
    assert sum(c.nbytes for c in copies) > 2 * cache
    start = torch.Tensor.data_ptr if isinstance(x, torch.Tensor) else (lambda c: c.ctypes.data)
    assert len({start(c) for c in copies}) == len(copies)
    if isinstance(x, torch.Tensor):
        assert {c.stride() for c in copies} == {x.stride()}


class NoGpu:
    """As much of ``torch.cuda`` as the timer takes: a replay of a graph takes 10 us, and 1 us a call that it holds."""

    def __init__(self, monkeypatch):
        self.calls, self.graphs = 0, []
        for name in ("CUDAGraph", "graph", "Event", "Stream", "stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    class Stream:
        def wait_stream(self, other):
            assert other == "current"

        def synchronize(self):
            pass

    def current_stream(self):
        return "current"

    stream = contextlib.nullcontext

    def CUDAGraph(self):
        return SimpleNamespace(calls=0, replay=lambda: None)

    @contextlib.contextmanager
    def graph(self, graph):
        before = self.calls
        yield
        graph.calls = self.calls - before
        self.graphs.append(graph)

    def Event(self, enable_timing):
        us = 10 + self.graphs[-1].calls if self.graphs else 0
        return SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda end: us / 1000)


def test_samples_on_a_gpu_are_graphs_of_many_calls(monkeypatch):
    """10 ms of calls of 1 us each, whose results do not share memory with the next three."""
    gpu, alive, at_most = NoGpu(monkeypatch), weakref.WeakSet(), []

    def run(x):
        gpu.calls += 1
        result = torch.ones(1)
        alive.add(result)
        at_most.append(len(alive))
        return result

    sample = timing._sampler(Rival("ours", run, [ONE, ONE]), 0.01, torch.device("cuda"), None)
    assert [graph.calls for graph in gpu.graphs] == [2, 1667], "first the two inputs: 6 us a call with the replay"
    assert sample() == pytest.approx((10 + 1667) * 1e-6 / 1667)
    assert max(at_most) in (4, 5)
    assert len(alive) == 0


def test_ceilings_are_plausible():
    assert timing.cache_bytes() > 0
    ceilings = timing.ceilings_of(torch.device("cpu"), 1)
    assert 1e8 < ceilings["copy_bytes_per_second"] < 1e13
    assert 1e9 < ceilings["operations_per_second"] < 1e13
