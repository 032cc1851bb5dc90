"""The timer (gate, turns, ratios, threads, report) under a clock that the rivals move, and what the rivals compute."""

import itertools
import json
import platform

import numpy as np
import pytest
import torch

from benchmarks import bench_hog, timing
from benchmarks.rivals import hog_layer, opencv_hog, photograph_batch, skimage_hog
from benchmarks.timing import Rival, WrongResult, check, measure
from maskfeat_kernels import fused_hog
from maskfeat_kernels.testing import byte_images

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
    monkeypatch.setattr(timing, "copy_bandwidth", lambda device, threads: 1000.0)
    return Clock()


def test_times_and_ratios(clock):
    rivals = [clock.rival("ours", 0.25), clock.rival("theirs", 0.75, versus="ours")]
    ours, theirs = measure(rivals, rounds=4, clock=clock)
    assert ours["seconds"] == {"median": 0.25, "p20": 0.25, "p80": 0.25}
    assert theirs["ratio"] == {"to": "ours", "median": 3.0, "p20": 3.0, "p80": 3.0}
    assert "ratio" not in ours
    assert len(ours["samples"]) == len(theirs["samples"]) == 4
    assert ours["bytes"] == 8, "four bytes read and four written"
    assert ours["bytes_per_second"] == 32
    assert ours["share_of_copy"] == 0.032


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
        (torch.tensor([1.0, 2.0 + 1e-4]), "wrong one: off by 0.0001"),
        (torch.tensor([1.0]), r"wrong one: shape \(1,\), expected \(2,\)"),
        (torch.tensor([1.0, float("nan")]), "wrong one: the result is not finite"),
    ],
)
def test_nothing_is_timed_when_a_result_is_wrong(result, message):
    truth = torch.tensor([1.0, 2.0], dtype=torch.float64)
    rivals = [Rival("right one", lambda x: truth, [ONE], truth), Rival("wrong one", lambda x: result, [ONE], truth)]

    def stopped():
        pytest.fail("the clock was asked")

    with pytest.raises(WrongResult, match=message):
        measure(rivals, clock=stopped)


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


def test_summary_interpolates():
    assert timing.summary([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == {"median": 3.5, "p20": 2.0, "p80": 5.0}


@pytest.mark.parametrize("x", [torch.zeros(2, 5, 5, 3, dtype=torch.uint8).permute(0, 3, 1, 2), np.zeros((150,))])
def test_rotating_inputs_exceed_the_cache(x, monkeypatch):
    monkeypatch.setattr(timing, "cache_bytes", lambda device: 10_000)
    copies = timing.rotating(x)
    assert copies[0] is x
    assert sum(c.nbytes for c in copies) > 2 * 10_000
    start = torch.Tensor.data_ptr if isinstance(x, torch.Tensor) else (lambda c: c.ctypes.data)
    assert len({start(c) for c in copies}) == len(copies)
    if isinstance(x, torch.Tensor):
        assert {c.stride() for c in copies} == {x.stride()}


def test_copy_bandwidth_is_plausible():
    assert timing.cache_bytes() > 0
    assert 1e8 < timing.copy_bandwidth(torch.device("cpu"), 1) < 1e13


def test_environment_and_report(clock, tmp_path):
    rows = measure([clock.rival("ours", 0.5), clock.rival("theirs", 1.0, versus="ours")], rounds=2, clock=clock)
    environment = timing.environment()
    report = {"title": "A title", "environment": environment, "rounds": 2, "cases": [{"title": "A case", "rows": rows}]}
    path = tmp_path / "results" / f"hog_cpu_{timing.slug(environment['cpu'])}.json"
    timing.write_report(report, path)

    assert json.loads(path.read_text()) == report
    text = path.with_suffix(".md").read_text()
    assert environment["cpu"] in text
    assert f"torch {torch.__version__}" in text
    assert "## A case" in text
    header, rule, ours, theirs = (line for line in text.splitlines() if line.startswith("|"))
    assert len(header) == len(rule) == len(ours) == len(theirs)
    assert [cell.strip() for cell in theirs.split("|")][1:6] == ["theirs", "1", "1000", "1000 to 1000", "2 (2 to 2)"]
    assert platform.node() not in path.read_text() or platform.node() in environment["cpu"]


def test_slug():
    assert timing.slug("Intel(R) Xeon(R) CPU @ 2.80GHz") == "intel-xeon-cpu-2-80ghz"


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (2, 3, 33, 47), (1, 1, 8, 9)])
@pytest.mark.parametrize(("bins", "cell"), [(9, 8), (18, 8), (9, 4)])
def test_the_layer_computes_our_definition(shape, bins, cell):
    x = byte_images(*shape)
    truth = fused_hog(x.double(), bins=bins, cell=cell, backend="reference")
    assert torch.allclose(hog_layer(x.float(), bins, cell).double(), truth, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("hog", "vertical_bins"), [(opencv_hog, {0, 8}), (skimage_hog, {0})])
def test_rows_columns_and_bins_of_the_libraries(hog, vertical_bins):
    """A vertical edge in the cell at row 1, column 3 of 2 x 5: both libraries measure from the horizontal gradient."""
    images = np.zeros((2, 16, 40, 3), dtype=np.uint8)
    images[1, 9:15, 28:30] = 255  # two pixels wide, so that both of its edges stay in the cell
    result = hog(images)
    assert result.shape == (2, 2, 5, 9)
    assert result[0].max() == 0
    assert {tuple(at) for at in np.argwhere(result[1].max(-1) > 0)} == {(1, 3)}
    strongest = np.argsort(result[1, 1, 3])[-len(vertical_bins) :]
    assert set(strongest.tolist()) == vertical_bins


def test_photographs_are_the_same_every_time():
    images = photograph_batch(5, side=64)
    assert images.shape == (5, 64, 64, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, photograph_batch(5, side=64))
    assert len({image.tobytes() for image in images}) == 5


def test_every_rival_of_the_benchmark_passes_the_gate():
    lists = bench_hog.against_others(1), bench_hog.dtypes_and_layouts(1), bench_hog.threads(1, 2), bench_hog.overhead()
    for rivals in lists:
        errors = {rival.name: check(rival)["max_error"] for rival in rivals}
        names = {rival.name for rival in rivals}
        assert {rival.versus for rival in rivals} - {None} <= names
        unchecked = {name for name, error in errors.items() if error is None}
        assert unchecked <= {"OpenCV uint8", "scikit-image uint8", "torch.mul"}
