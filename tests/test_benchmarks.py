"""The timer (gate, turns, ratios, threads) under a clock that the rivals move, and what the rivals compute."""

import contextlib
import itertools
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import bench_accuracy, bench_hog, bench_masked_gather, bench_memory, bench_training, rivals, timing
from benchmarks.bench_accuracy import Contender, judge
from benchmarks.machine import ROOT
from benchmarks.rivals import (
    exact_opencv_hog,
    gray_batch,
    hog_layer,
    opencv_hog,
    photograph_batch,
    skimage_hog,
    soft_conv_hog,
)
from benchmarks.timing import Rival, Settings, WrongResult, check, measure
from maskfeat_kernels import fused_hog
from maskfeat_kernels.testing import byte_images

ONE = torch.ones(1)
QUICK = Settings(quick=True)


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


def test_rates_and_places_along_an_axis(clock):
    (row,) = measure([clock.rival("ours", 0.5, operations=100, items=3, at=64, series="ours")], rounds=3, clock=clock)
    assert row["share_of_arithmetic"] == 0.5
    assert row["items_per_second"] == 6
    assert (row["at"], row["series"]) == (64, "ours")


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


def test_summary_interpolates():
    assert timing.summary([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == {"median": 3.5, "p20": 2.0, "p80": 5.0}


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


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (2, 3, 33, 47), (1, 1, 8, 9)])
@pytest.mark.parametrize(("bins", "cell"), [(9, 8), (18, 8), (9, 4)])
def test_the_layer_computes_our_definition(shape, bins, cell):
    x = byte_images(*shape)
    truth = fused_hog(x.double(), bins=bins, cell=cell, backend="reference")
    assert torch.allclose(hog_layer(x.float(), bins, cell).double(), truth, rtol=0, atol=1e-6)


needs_opencv = pytest.mark.skipif(not rivals.is_there("cv2"), reason=str(rivals.optional("cv2")))


@pytest.mark.parametrize(
    ("hog", "vertical_bins"), [pytest.param(opencv_hog, {0, 8}, marks=needs_opencv), (skimage_hog, {0})]
)
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


def test_large_crops_are_mirrored():
    (image,) = photograph_batch(1, side=1040)
    assert np.array_equal(image[:, 512:1024], image[:, 511::-1])


def test_a_rival_that_is_not_installed_is_absent(monkeypatch):
    rivals.optional.cache_clear()
    monkeypatch.setitem(sys.modules, "fasthog", None)
    assert not rivals.is_there("fasthog")
    assert "fasthog" in rivals.absent()
    rivals.optional.cache_clear()


def test_every_rival_is_measured_on_a_gpu_or_told_to_be_absent():
    on_gpu = {"reference layer", "soft conv HOG", "torch.lerp"}
    assert on_gpu | set(rivals.absent("cuda")) >= set(rivals.CANNOT)
    assert not on_gpu & set(rivals.absent("cuda"))
    assert rivals.absent("cuda")["scikit-image"] == "runs on CPUs only"


def test_the_soft_layer_shares_a_vote_between_the_nearest_bins():
    """A ramp that climbs at 30 degrees: with 9 bins a step is 20 degrees, so that bins 1 and 2 get half each."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    ramp = x * np.cos(np.pi / 6) + y * np.sin(np.pi / 6)
    inner = soft_conv_hog(ramp.expand(1, 1, 32, 32).double())[0, 0, :, 1:-1, 1:-1]
    expected = torch.zeros(9, dtype=torch.float64)
    expected[1:3] = 0.5**0.5
    assert torch.allclose(inner, expected.view(9, 1, 1).expand_as(inner), atol=1e-6)


@needs_opencv
@pytest.mark.parametrize("batch", [photograph_batch, gray_batch])
@pytest.mark.parametrize("changes", [{}, {"bins": 4}, {"bins": 36}, {"cell": 4}, {"cell": 16}, {"block": 2}])
def test_the_formulas_of_opencv(batch, changes):
    """Its polynomial is off by 1.7e-4 radians, 5e-4 of a bin of nine; clipping and the norms can double its effect."""
    images = batch(2, side=64)
    tolerance = bench_hog.OPENCV_TOLERANCE * changes.get("bins", 9) / 9
    assert np.abs(opencv_hog(images, **changes) - exact_opencv_hog(images, **changes)).max() < tolerance


@needs_opencv
def test_the_gate_stops_rivals_that_permute_bins():
    rivals = {rival.name: rival for rival in bench_hog.against_others(QUICK, 1)}
    for name in ("reference layer fp16 autocast", "soft conv HOG float32", "OpenCV uint8", "scikit-image float32"):
        rival, axis = rivals[name], -1 if rivals[name].expected.shape[-1] == 9 else 2
        rival.expected = rival.expected.roll(1, axis)
        with pytest.raises(WrongResult, match="off by"):
            check(rival)


def test_every_parameter_and_batch_has_its_rivals():
    """Each is compared with ours of the same dtype, at the same place."""
    rivals = [*bench_hog.parameters(QUICK, 1), *bench_hog.batches(QUICK)]
    others = [rival for rival in rivals if not rival.name.startswith("fused_hog")]
    for rival in others:
        name, _, place = rival.name.partition(", ")
        assert rival.versus == f"fused_hog {name.split()[-1]}, {place}"
    places = {rival.name.partition(", ")[2] for rival in rivals}
    assert len(places) == 11 + 2, "parameters and batches"
    assert {rival.name.partition(", ")[2] for rival in others} == places
    if bench_hog.r.is_there("cv2"):
        without = {rival.name.partition(", ")[2] for rival in others if rival.name.startswith("OpenCV")} ^ places
        assert without == {"cell (6, 5)"}, "which is no part of 224"


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_the_gate_stops_targets_that_permute_bins():
    rivals = {rival.name: rival for rival in bench_training.places(QUICK, 1)}
    assert {name for name, rival in rivals.items() if rival.expected is None} == {"no targets"}
    rival = rivals["scikit-image in the workers"]
    assert check(rival)["max_error"] < 1e-6
    rival.expected = rival.expected.roll(1, -1)
    with pytest.raises(WrongResult, match="off by"):
        check(rival)


def test_bytes_are_those_that_a_result_needs():
    """The patch at row 1, column 1 needs 18x18 pixels of three channels, the first one 17x17, two of them 18x34."""
    for ids, pixels in (([15], 18 * 18), ([0], 17 * 17), ([15, 16], 18 * 34)):
        assert bench_hog.pixels_read(torch.tensor([ids])) == 3 * pixels
    half = Rival("half", lambda x: x[:2], [torch.ones(4)], reads=8)
    assert check(half)["bytes"] == 16


def test_accuracy_counts_pixels_and_cells():
    """Four pixels and four cells of two bins: one pixel is in the other bin, one has no gradient; one cell is off."""
    exact = torch.tensor([[1.0, 0], [0, 1], [0, 0], [1, 0]])
    pixels = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0]])
    cells = exact + torch.tensor([[0.0, 0], [0, 0.0009], [0.25, 0], [0, 0]])
    contender = Contender("one", "bytes", lambda x: cells, lambda x: pixels, None, exact, exact, -1)
    (row,) = judge([contender], Settings())
    assert (row["pixels"], row["pixels_wrong"]) == (3, 1 / 3)
    assert (row["cells"], row["cells_off"], row["largest_error"]) == (4, 0.25, 0.25)


def test_no_library_is_its_own_judge():
    rows = {(row["name"], row["given"]): row for row in judge(bench_accuracy.libraries(photograph_batch(1, 64)), QUICK)}
    on_bytes = rows["scikit-image uint8", "bytes"]
    assert on_bytes["pixels_wrong"] == on_bytes["cells_off"] == 0
    assert 0 < on_bytes["largest_error"] < 1e-6, "its sums are rounded, and ours in another order"
    assert all(row["largest_error"] > 0 for row in rows.values())


def test_normalised_floats_lose_pixels_in_every_precision():
    """A sum of gradients that cancel on whole numbers leaves a rounding error on floats, of which float64 has some."""
    contenders = bench_accuracy.contenders(QUICK, 1)
    ours = [c for c in contenders if c.name.startswith("fused_hog float") and c.given != "bytes"]
    rows = {row["name"]: row["pixels_wrong"] for row in judge(ours, QUICK)}
    assert rows.keys() == {"fused_hog float64", "fused_hog float32", "fused_hog float16"}
    assert all(0 < share < 0.05 for share in rows.values())


def test_the_truth_in_strips_is_the_truth():
    x = byte_images(1, 1, 520, 16)
    assert torch.equal(bench_hog.exact(x), fused_hog(x.double(), backend="reference"))


def test_operations_are_those_of_the_design():
    assert bench_hog.operations(1, bins=9) == 50


def test_peak_memory_sees_a_temporary():
    """In a process of its own, as it is measured, which does not import torch unless the rival does."""
    code = """if True:
        import sys
        import numpy as np
        from benchmarks.bench_memory import peak_bytes
        result, peak = peak_bytes(lambda: np.ones(1 << 17).repeat(64).sum(), "cpu")
        print(result == 1 << 23, 60e6 < peak < 90e6, "torch" in sys.modules)
    """
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["True", "True", "False"]


@pytest.mark.skipif(not rivals.is_there(rivals.NUMPY_OPS), reason="the module for arrays is not built")
@pytest.mark.parametrize("factor", [1, 1 + 1e-3])
def test_processes_have_to_agree(factor, monkeypatch):
    load = np.load
    monkeypatch.setattr(np, "load", lambda path: load(path) * (factor if path.stem == "compat.skimage" else 1))
    pair = [("compat.skimage", 1), ("scikit-image uint8", 1)]
    if factor == 1:
        assert [row["name"] for row in bench_memory.measure_processes(pair, QUICK)] == [name for name, _ in pair]
    else:
        with pytest.raises(WrongResult, match=r"scikit-image uint8 and compat\.skimage differ by"):
            bench_memory.measure_processes(pair, QUICK)


@pytest.mark.parametrize(
    "prepare",
    [
        lambda: bench_hog.against_others(QUICK, 1),
        lambda: bench_hog.gray(1),
        lambda: bench_hog.dtypes_and_layouts(QUICK, 1),
        lambda: bench_hog.parameters(QUICK, 1),
        lambda: bench_hog.batches(QUICK),
        lambda: bench_hog.overhead(QUICK),
        lambda: bench_hog.targets(QUICK, 1),
        lambda: bench_hog.mask_ratios(QUICK, 1),
        lambda: bench_masked_gather.gathers_and_back(QUICK, torch.float32),
        lambda: bench_masked_gather.mixes_and_back(QUICK, torch.float32),
        lambda: bench_masked_gather.losses(QUICK),
    ],
)
def test_every_rival_passes_the_gate(prepare, monkeypatch):
    monkeypatch.setattr(timing, "cache_bytes", lambda device: 0)  # one copy of each input
    rivals = prepare()
    errors = {rival.name: check(rival)["max_error"] for rival in rivals}
    assert len(errors) == len(rivals)
    assert {rival.versus for rival in rivals} - {None} <= set(errors)
    assert {rival.name for rival in rivals if rival.versus is None}, "the row that ratios are taken to"
    checked = {name for name, error in errors.items() if error is not None}
    assert {name for name in errors if name.startswith(("fasthog", "torch.mul"))} == set(errors) - checked
