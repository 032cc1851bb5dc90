"""The Triton kernels of HOG of blocks: in the interpreter against the reference in float64, and compiled for a GPU."""

import math
import os
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import device_of

from benchmarks.kernel_report import ROOT, triton_kernels
from maskfeat_kernels import MASKFEAT, HogSpec
from maskfeat_kernels.hog import reference
from maskfeat_kernels.hog.plan import Region, whole
from maskfeat_kernels.hog.spec import CHOICES, DALAL_TRIGGS, OPENCV, SKIMAGE
from maskfeat_kernels.testing import byte_images

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
launch = pytest.importorskip("maskfeat_kernels.hog.triton.launch")

PRESETS = {
    "maskfeat": MASKFEAT,
    "window": MASKFEAT.replace(gaussian_window=12),
    "skimage": SKIMAGE,
    "opencv": OPENCV,
    "dalal_triggs": DALAL_TRIGGS,
}
ATOL = 1e-12
"""Some thousand roundings of float64 of numbers up to 1."""
GRADIENT_TOLERANCE = 1e-10
"""The same, divided by the smallest entry of a block, some hundredths: the root of "l1-sqrt" is steep there."""

slow = pytest.mark.slow


@triton.jit
def _add(numbers, out):
    tl.store(out, tl.load(numbers) + tl.load(numbers + 1))


def smooth_images(*shape: int, seed: int = 0) -> torch.Tensor:  # [*shape], float64
    """Numbers between 0.1 and 1, so that no gradient lies on the edge of a bin and no channels tie."""
    return 0.1 + 0.9 * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def forward(x: torch.Tensor, spec: HogSpec, region: Region | None = None) -> torch.Tensor:
    x = x.to(device_of("triton"))
    return launch.hog(x, spec, region or whole(spec, *x.shape[-2:])).cpu()


def check_forward(x: torch.Tensor, spec: HogSpec, region: Region | None = None, atol: float = ATOL) -> None:
    want = reference.hog(x.double(), spec, region or whole(spec, *x.shape[-2:]))
    got = forward(x, spec, region)
    assert got.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=atol)


def check_gradient(x: torch.Tensor, spec: HogSpec, region: Region | None = None) -> None:
    region = region or whole(spec, *x.shape[-2:])
    leaf = x.clone().requires_grad_()
    result = reference.hog(leaf, spec, region)
    grad = torch.randn(result.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(9))
    (want,) = torch.autograd.grad(result, leaf, grad)
    device = device_of("triton")
    got = launch.hog_backward(grad.to(device), x.to(device), spec, region).cpu()
    torch.testing.assert_close(got, want, rtol=0, atol=GRADIENT_TOLERANCE * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_on_bytes(preset):
    # float32: some hundred roundings of numbers up to 1, and an angle that is off by 3e-8
    check_forward(byte_images(3, 36, 48, seed=1), PRESETS[preset], atol=4e-6)


@pytest.mark.parametrize(
    "preset", ["skimage", *(pytest.param(name, marks=slow) for name in PRESETS if name != "skimage")]
)
def test_gradients_of_presets(preset):
    spec = PRESETS[preset]
    check_gradient(smooth_images(2, 3, 36, 36), spec)


@pytest.mark.parametrize(
    "size, region, gradient",
    [
        ((6, 5), Region(0, -3, 6, 8, 5), "central"),
        pytest.param((5, 4), Region(-6, -1, 12, 7, 4), "sobel", marks=slow),
        pytest.param((1, 4), Region(-1, 2, 6, 7, 4), "sobel", marks=slow),
        pytest.param((2, 3), Region(-1, -7, 6, 17, 4), "central", marks=slow),
    ],
)
def test_gradients_of_a_region_beyond_the_image(size, region, gradient):
    spec = HogSpec(cell=3, signed=True, gradient=gradient, channels="strongest", votes="linear", norm="l2", sqrt=True)
    check_gradient(smooth_images(2, *size), spec, region)


@pytest.mark.parametrize(
    "x",
    [
        smooth_images(14, 9),
        smooth_images(2, 9, 14).mT,
        smooth_images(2, 28, 18)[:, ::2, ::2],
        smooth_images(1, 14, 1).expand(3, 14, 9),
        smooth_images(2, 2, 3, 2, 14, 9).permute(3, 1, 0, 2, 4, 5),
        smooth_images(1, 2, 14, 1),
    ],
    ids=["gray", "transposed", "every second", "repeated", "six axes", "a column"],
)
@pytest.mark.parametrize("channels", CHOICES["channels"])
def test_any_axes_and_strides_are_read_in_place(x, channels):
    check_forward(x, HogSpec(cell=(4, 1), channels=channels, block=(2, 1), votes="linear", norm="l1"))


def test_of_equally_strong_channels_the_last_columns_take_the_last():
    x = byte_images(3, 12, 19, seed=3) % 4
    check_forward(x.double(), OPENCV.replace(cell=3, block_stride=3))
    check_gradient(1 + x.double(), SKIMAGE.replace(cell=3), Region(0, 0, 12, 19, 7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_in_float32(dtype):
    x = byte_images(2, 16, 16, seed=2).clamp(0, 200).to(dtype)
    assert torch.equal(forward(x, SKIMAGE.replace(cell=4)), forward(x.float(), SKIMAGE.replace(cell=4)))


@pytest.mark.parametrize("angle_from", CHOICES["angle_from"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bins, step", [(9, 15), (8, 15), pytest.param(12, 1, marks=slow)])
def test_bins_on_bytes_are_exact(bins, step, signed, angle_from):
    values = torch.arange(-255, 256, step)
    gx, gy = torch.meshgrid(values, values, indexing="ij")
    n = len(values)
    x = torch.zeros(n, 3, n, 3, dtype=torch.int64)  # a pixel with four neighbours of its own for each pair
    x[:, 1, :, 2], x[:, 1, :, 0] = gx.clamp_min(0), (-gx).clamp_min(0)
    x[:, 2, :, 1], x[:, 0, :, 1] = gy.clamp_min(0), (-gy).clamp_min(0)
    spec = HogSpec(
        bins, 1, gradient="central", signed=signed, angle_from=angle_from, block_stride=3, norm="none", layout="rows"
    )
    got = forward(x.reshape(3 * n, 3 * n).to(torch.uint8), spec, Region(1, 1, 3 * n - 2, 3 * n - 2, 0))[:, :, 0, 0]
    sine, cosine = (gx, gy) if angle_from == "vertical" else (gy, gx)
    # In float64, an angle off the edges by less than 1e-9 of a bin lies on one.
    turns = torch.atan2(sine.double(), cosine.double()) / ((2 if signed else 1) * math.pi)
    bin_of = ((turns * bins + 1e-9).floor() % bins).long()
    want = torch.zeros(n, n, bins, dtype=torch.float64)
    want.scatter_(-1, bin_of.unsqueeze(-1), torch.hypot(gx.double(), gy.double()).unsqueeze(-1))
    assert torch.equal(got > 0, want > 0)
    torch.testing.assert_close(got, want.float(), rtol=2e-7, atol=0)


@pytest.mark.skipif(device_of("triton") != "cpu", reason="the interpreter is for machines without a GPU")
def test_the_interpreter_sees_a_sum_that_overflows():
    out = torch.zeros(1, dtype=torch.int64)
    _add[(1,)](torch.tensor([-1, 2**31 - 1], dtype=torch.int32), out)
    assert int(out) == 2**31 - 2
    for numbers in ([1, 2**31 - 1], [-1, -(2**31)]):
        with pytest.raises(Exception, match="int32 overflow detected for operation add"):
            _add[(1,)](torch.tensor(numbers, dtype=torch.int32), out)


@pytest.mark.parametrize("norm", CHOICES["norm"])
def test_flat_images_have_no_gradient(norm):
    votes = "linear" if norm == "l2-hys" else "hard"
    spec = HogSpec(cell=4, gradient="central", sqrt=True, channels="strongest", votes=votes, norm=norm)
    x = torch.zeros(2, 8, 8, device=device_of("triton"))
    got = launch.hog_backward(torch.ones(9, 2, 2, device=x.device), x, spec, whole(spec, 8, 8))
    assert torch.equal(got, torch.zeros_like(x))


def test_a_nan_marks_its_blocks_and_no_other():
    x = smooth_images(1, 24, 8)
    clean = forward(x, DALAL_TRIGGS.replace(cell=4))
    x[0, 2, 3] = torch.nan
    stained = forward(x, DALAL_TRIGGS.replace(cell=4))
    assert stained[0].isnan().all()
    assert torch.equal(stained[1:], clean[1:])


def random_spec(choose: random.Random) -> HogSpec:
    """Any parameters that go together."""
    while True:
        fields = {name: choose.choice(words) for name, words in CHOICES.items() if name != "arithmetic"}
        linear_l2_hys = (fields["votes"], fields["norm"]) == ("linear", "l2-hys")
        cell = (choose.randint(2, 6), choose.randint(3, 7))
        stride = choose.choice([None, (2 * cell[0], cell[1]), (choose.randint(4, 7), choose.randint(4, 7))])
        try:
            return HogSpec(
                **fields,
                bins=choose.choice([1, 2, 5, 8, 9, 18, 33]),
                cell=cell,
                gaussian_window=choose.choice([0, 0, 4, 6]),
                sqrt=choose.random() < 0.5,
                signed=choose.random() < 0.5,
                block=(choose.randint(1, 2), choose.randint(1, 2)),
                block_stride=stride,
                block_sigma=choose.choice([0, 0, 3.5]),
                eps=choose.choice([1e-12, 1e-2, 0.5]),
                clip=choose.choice([0.1, 0.2, 0.4]),
                arithmetic=choose.choice(CHOICES["arithmetic"] if linear_l2_hys else ["exact"]),
            )
        except ValueError:
            continue


def random_case(seed: int) -> tuple[torch.Tensor, HogSpec, Region]:
    choose = random.Random(seed)
    spec = random_spec(choose)
    height, width = (24, 24) if spec.gaussian_window else (choose.randint(15, 19), choose.randint(16, 20))
    region = whole(spec, height, width)
    if seed % 3 == 1 and not spec.gaussian_window:
        region = Region(-2, 1, height + 2, width - 1, choose.randint(0, width))
    return smooth_images(2, height, width, seed=seed), spec, region


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=slow) for seed in range(6, 30))])
def test_random_parameters(seed):
    check_forward(*random_case(seed))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=slow) for seed in range(1, 16))])
def test_gradients_of_random_parameters(seed):
    check_gradient(*random_case(seed))


PTX_IN_FLOAT64 = """
import torch, triton
from maskfeat_kernels.hog.triton.launch import SKIMAGE, ahead_of_time_cases
for name, kernel, signature, constants, _ in ahead_of_time_cases([("skimage", SKIMAGE, torch.float64, False)]):
    if "normalise" in name or "spread" in name:
        source = triton.compiler.ASTSource(kernel, signature, constants)
        print(triton.compile(source, target=triton.backends.compiler.GPUTarget("cuda", 90, 32)).asm["ptx"])
"""


def test_constants_of_float64_are_not_rounded_to_float32():
    """The compiler does so to a number that a block is compared with, and the interpreter does not."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", PTX_IN_FLOAT64]
    ptx = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout.lower()
    exact, rounded = (f"0d{struct.pack('>d', clip).hex()}" for clip in (SKIMAGE.clip, float(np.float32(SKIMAGE.clip))))
    assert exact in ptx and rounded not in ptx


@slow
@pytest.mark.parametrize("target", ["90", "gfx942"])
def test_every_branch_compiles(target):
    kernels = triton_kernels(["tests.maskfeat_kernels.hog.ahead_of_time_dialects"], (target,))
    assert len(kernels) == 4 * 6
