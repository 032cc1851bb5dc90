"""What the rivals compute, that the gate stops those that do not, and what accuracy and memory measure."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import rivals, timing
from benchmarks.cases import accuracy, hog, memory, moves, tokens, training
from benchmarks.cases.accuracy import Contender, judge
from benchmarks.machine import ROOT
from benchmarks.rivals import hog_layer, photograph_batch, soft_conv_hog
from benchmarks.timing import Rival, Settings, WrongResult, check
from maskfeat_kernels import SKIMAGE, fused_hog
from maskfeat_kernels.testing import byte_images

QUICK = Settings(quick=True)


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    timing.set_threads(before)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (2, 3, 33, 47), (1, 1, 8, 9)])
@pytest.mark.parametrize(("bins", "cell"), [(9, 8), (18, 8), (9, 4)])
def test_the_layer_computes_our_definition(shape, bins, cell):
    x = byte_images(*shape)
    truth = fused_hog(x.double(), bins=bins, cell=cell, backend="reference")
    assert torch.allclose(hog_layer(x.float(), bins, cell).double(), truth, rtol=0, atol=1e-6)


def test_photographs_are_the_same_every_time():
    images = photograph_batch(5, side=64)
    assert (images.shape, images.dtype) == ((5, 64, 64, 3), np.uint8)
    assert np.array_equal(images, photograph_batch(5, side=64))
    assert len({image.tobytes() for image in images}) == 5
    (large,) = photograph_batch(1, side=1040)
    assert np.array_equal(large[:, 512:1024], large[:, 511::-1]), "mirrored"


def test_what_is_not_measured_is_told_to_be_absent(monkeypatch):
    on_gpu, absent = {"reference layer", "soft conv HOG", "torch.lerp"}, rivals.absent("cuda")
    assert set(rivals.CANNOT) - set(absent) == on_gpu
    assert absent["scikit-image"] == "runs on CPUs only"
    rivals.optional.cache_clear()
    monkeypatch.setitem(sys.modules, "fasthog", None)
    assert not rivals.is_there("fasthog")
    assert "fasthog" in rivals.absent()
    rivals.optional.cache_clear()


def test_the_soft_layer_shares_a_vote_between_the_nearest_bins():
    """A ramp that climbs at 30 degrees: with 9 bins a step is 20 degrees, so that bins 1 and 2 get half each."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    ramp = x * np.cos(np.pi / 6) + y * np.sin(np.pi / 6)
    inner = soft_conv_hog(ramp.expand(1, 1, 32, 32).double())[0, 0, :, 1:-1, 1:-1]
    expected = torch.zeros(9, dtype=torch.float64)
    expected[1:3] = 0.5**0.5
    assert torch.allclose(inner, expected.view(9, 1, 1).expand_as(inner), atol=1e-6)


@pytest.mark.skipif(not rivals.is_there("cv2"), reason=str(rivals.optional("cv2")))
def test_the_gate_stops_rivals_that_permute_bins():
    rivals = {rival.name: rival for rival in hog.against_others(QUICK, 1)}
    for name in ("reference layer fp16 autocast", "soft conv HOG float32", "OpenCV uint8", "scikit-image float32"):
        rival, axis = rivals[name], -1 if rivals[name].expected.shape[-1] == 9 else 2
        rival.expected = rival.expected.roll(1, axis)
        with pytest.raises(WrongResult, match="off by"):
            check(rival)


def test_every_parameter_and_batch_has_its_rivals():
    """Each is compared with ours of the same dtype, at the same place."""
    rivals = [*hog.parameters(QUICK, 1), *hog.batches(QUICK)]
    others = [rival for rival in rivals if not rival.name.startswith("fused_hog")]
    for rival in others:
        name, _, place = rival.name.partition(", ")
        assert rival.versus == f"fused_hog {name.split()[-1]}, {place}"
    places = {rival.name.partition(", ")[2] for rival in rivals}
    assert len(places) == 11 + 2, "parameters and batches"
    assert {rival.name.partition(", ")[2] for rival in others} == places
    if hog.r.is_there("cv2"):
        without = {rival.name.partition(", ")[2] for rival in others if rival.name.startswith("OpenCV")} ^ places
        assert without == {"cell (6, 5)"}, "which is no part of 224"


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_the_gate_stops_targets_that_permute_bins():
    rivals = {rival.name: rival for rival in training.places(QUICK, 1)}
    assert {name for name, rival in rivals.items() if rival.expected is None} == {"no targets"}
    rival = rivals["scikit-image in the workers"]
    assert check(rival)["max_error"] < 1e-6
    rival.expected = rival.expected.roll(1, -1)
    with pytest.raises(WrongResult, match="off by"):
        check(rival)


def test_bytes_are_those_that_a_result_needs():
    """The patch at row 1, column 1 needs 18x18 pixels of three channels, the first one 17x17, two of them 18x34."""
    for ids, pixels in (([15], 18 * 18), ([0], 17 * 17), ([15, 16], 18 * 34)):
        assert tokens.pixels_read(torch.tensor([ids])) == 3 * pixels
    half = Rival("half", lambda x: x[:2], [torch.ones(4)], reads=8)
    assert check(half)["bytes"] == 16


def test_accuracy_counts_pixels_and_cells():
    """Four pixels and four cells of two bins: one pixel is in the other bin, one has no gradient; one cell is off."""
    exact = torch.tensor([[1.0, 0], [0, 1], [0, 0], [1, 0]])
    pixels = torch.tensor([[1.0, 0], [1, 0], [0, 1], [1, 0]])
    cells = exact + torch.tensor([[0.0, 0], [0, 0.0009], [0.25, 0], [0, 0]])

    def run(x, cell=8):
        return cells if cell == 8 else pixels

    contender = Contender("one", "bytes", run, None, exact, exact)
    (row,) = judge([contender], Settings())
    assert (row["pixels"], row["pixels_wrong"]) == (3, 1 / 3)
    assert (row["cells"], row["cells_off"], row["largest_error"]) == (4, 0.25, 0.25)


def test_no_library_is_its_own_judge():
    rows = {(row["name"], row["given"]): row for row in judge(accuracy.libraries(photograph_batch(1, 64)), QUICK)}
    on_bytes = rows["scikit-image uint8", "bytes"]
    assert on_bytes["pixels_wrong"] == on_bytes["cells_off"] == 0
    assert 0 < on_bytes["largest_error"] < 1e-6, "its sums are rounded, and ours in another order"
    assert all(row["largest_error"] > 0 for row in rows.values())


def test_normalised_floats_lose_pixels_in_every_precision():
    """A sum of gradients that cancel on whole numbers leaves a rounding error on floats, of which float64 has some."""
    contenders = accuracy.contenders(QUICK, 1)
    ours = [c for c in contenders if c.name.startswith("fused_hog float") and c.given != "bytes"]
    rows = {row["name"]: row["pixels_wrong"] for row in judge(ours, QUICK)}
    assert rows.keys() == {"fused_hog float64", "fused_hog float32", "fused_hog float16"}
    assert all(0 < share < 0.05 for share in rows.values())


def test_the_truth_in_strips_is_the_truth():
    x = byte_images(1, 1, 520, 16)
    assert torch.equal(rivals.exact(x), fused_hog(x.double(), backend="reference"))
    rows = rivals.exact(x, SKIMAGE, block=1, norm="l2")
    truth = fused_hog(x.double(), SKIMAGE, block=1, norm="l2", backend="reference")
    assert torch.allclose(rows, truth, rtol=0, atol=1e-14), "the sums of a cell have another order"
    assert hog.operations(1, bins=9) == 50, "as DESIGN.md counts them"


@pytest.mark.slow
def test_the_cases_are_tests_of_pytest_benchmark():
    """Collecting them makes the inputs of all cases."""
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "-q", "-k", "One and call and token"]
    beside_nothing = {name: value for name, value in os.environ.items() if "XDIST" not in name}  # or it times nothing
    run = subprocess.run(command, cwd=ROOT, env=beside_nothing, capture_output=True, text=True)
    assert run.returncode == 0 and "3 passed" in run.stdout, run.stdout


def test_peak_memory_sees_a_temporary():
    """In a process of its own, as it is measured, which does not import torch unless the rival does."""
    code = """if True:
        import sys
        import numpy as np
        from benchmarks.cases.memory import peak_bytes
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
        assert [row["name"] for row in memory.measure_processes(pair, QUICK)] == [name for name, _ in pair]
    else:
        with pytest.raises(WrongResult, match=r"scikit-image uint8 and compat\.skimage differ by"):
            memory.measure_processes(pair, QUICK)


@pytest.mark.parametrize(
    "prepare",
    [
        lambda: hog.against_others(QUICK, 1),
        lambda: hog.gray(QUICK, 1),
        lambda: hog.dtypes_and_layouts(QUICK, 1),
        pytest.param(lambda: hog.parameters(QUICK, 1), marks=pytest.mark.slow),  # the libraries on ten choices
        lambda: hog.batches(QUICK),
        lambda: hog.overhead(QUICK),
        lambda: tokens.targets(QUICK, 1),
        lambda: tokens.mask_ratios(QUICK, 1),
        lambda: moves.moves(QUICK, "Gather and its gradient", torch.float32),
        lambda: moves.moves(QUICK, "Mask and its gradients", torch.float32),
        lambda: moves.losses(QUICK),
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
