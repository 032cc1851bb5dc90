"""fused_hog in every dialect: against the float64 reference, an independent oracle, and exact arithmetic on bytes."""

import dataclasses
import functools
import math
import random

import numpy as np
import oracle_blocks
import pytest
import torch
from conftest import BACKENDS, device_of
from torch import Tensor

from maskfeat_kernels import fused_hog
from maskfeat_kernels.hog import api as hog_module
from maskfeat_kernels.hog import reference
from maskfeat_kernels.hog.plan import Region, block_shape, whole
from maskfeat_kernels.hog.spec import CHOICES, DALAL_TRIGGS, MASKFEAT, OPENCV, SKIMAGE, HogSpec
from maskfeat_kernels.testing import DTYPES, byte_images

PRESETS = {"maskfeat": MASKFEAT, "skimage": SKIMAGE, "opencv": OPENCV, "dalal-triggs": DALAL_TRIGGS}


def any_spec(seed: int) -> HogSpec:
    """A random combination of all parameters."""
    chance = random.Random(seed)
    choice = chance.choice
    while True:
        words = {name: choice(values) for name, values in CHOICES.items()}
        if words["arithmetic"] == "skimage":  # not on every backend
            continue
        try:
            return HogSpec(
                bins=choice([1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 20, 37]),
                cell=choice([1, 2, 3, 8, (6, 5), (4, 16), 20]),
                gaussian_window=choice([0, 0, 6, 16]),
                sqrt=choice([False, True]),
                signed=choice([False, True]),
                block=choice([1, 1, 2, 3, (1, 2), (2, 3)]),
                block_stride=choice([None, None, 3, (4, 8), 16, (5, 2), 64]),
                block_sigma=choice([0, 0, 2.5, 8]),
                eps=choice([1e-12, 1e-5, 0.1]),
                clip=choice([0.2, 0.5]),
                **words,
            )
        except ValueError:  # some combinations make no sense
            continue


SPECS = PRESETS | {str(seed): any_spec(seed) for seed in range(40)}
HARD = [n for n, spec in SPECS.items() if spec.votes == "hard" and not spec.signed and not spec.is_maskfeat]


def whole_numbers(*shape: int, seed: int, sqrt: bool = False) -> Tensor:  # uint8
    """Images whose gradients are exact; squares where the HOG is of the square roots."""
    x = byte_images(*shape, seed=seed)
    return (x // 16) ** 2 if sqrt else x


def size_for(spec: HogSpec, seed: int) -> tuple[int, int]:
    """Of an image that holds a few blocks and is tiled by the window."""
    chance = random.Random(seed)
    window = spec.gaussian_window or 1
    return tuple(-(-(side + chance.randrange(25)) // window) * window for side in spec.block_size)


def tolerance(spec: HogSpec, dtype: torch.dtype) -> float:
    """Of entries of blocks of whole numbers, which are some 34 roundings as in testing.py; with linear votes, a place
    among the bins is off by the octant_angle()'s 3e-8 and three roundings of numbers up to twice the bins."""
    if dtype == torch.float64:  # the polynomial's coefficients are float32
        return 1e-6 if spec.arithmetic == "opencv" else 1e-13
    return 2e-6 + (2 * spec.bins * 3 * 2.0**-24 if spec.votes == "linear" else 0)


def check_blocks(result: Tensor, x: Tensor, spec: HogSpec, region: Region | None = None) -> None:
    """Raise AssertionError unless ``result`` is within tolerance of the float64 reference, squares for square roots."""
    want = reference.hog(x.double(), spec, region or whole(spec, *x.shape[-2:]))
    assert result.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    assert result.shape == want.shape
    scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
    power = 2 if spec.norm == "l1-sqrt" else 1  # the root of a rounding error is large
    torch.testing.assert_close(result.double() ** power, want**power, rtol=0, atol=scale * tolerance(spec, x.dtype))


@pytest.mark.sampled(lambda name: name in ("skimage", "opencv", "3", "8"))
@pytest.mark.parametrize("name", SPECS)
def test_every_combination_is_that_of_the_reference(hog, name):
    spec, seed = SPECS[name], sum(map(ord, name))
    dtype = random.Random(seed).choice(DTYPES[:1] + DTYPES[3:])
    x = whole_numbers(2, 3, *size_for(spec, seed), seed=seed, sqrt=spec.sqrt).to(dtype)
    check_blocks(hog(x, spec), x, spec)


@pytest.mark.parametrize("name", HARD)
def test_skimage_arithmetic_is_exact_on_whole_numbers(hog, backend, name):
    """None of their gradients is rounded; test_compat_skimage.py has those that are."""
    exact, seed = SPECS[name], sum(map(ord, name))
    rounded = exact.replace(arithmetic="skimage")
    x = whole_numbers(2, 3, *size_for(exact, seed), seed=seed, sqrt=exact.sqrt)
    if backend not in ("cpu", "reference"):
        with pytest.raises(ValueError, match="arithmetic 'skimage' needs backend 'cpu' or 'reference', got"):
            hog(x, rounded)
        return
    for dtype in DTYPES:
        assert torch.equal(hog(x.to(dtype), rounded), hog(x.to(dtype), exact))
    gradients = []
    for spec in (exact, rounded):
        leaf = x.double().requires_grad_()
        result = hog(leaf, spec)
        result.backward(torch.linspace(-1, 1, result.numel(), dtype=result.dtype).reshape(result.shape))
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the extension is not built")
@pytest.mark.parametrize("name", HARD)
def test_skimage_arithmetic_rounds_as_the_reference(name, monkeypatch):
    """On scaled numbers, whose gradients lie beside edges and channels beside each other, with the C library's arc
    tangent and length in both; one pixel in another bin moves a result by far more than the tolerance."""
    for function, library in ((torch.atan2, np.vectorize(math.atan2, otypes=[float])), (torch.hypot, np.hypot)):
        by_library = functools.partial(lambda f, *xy: torch.from_numpy(f(*(x.detach().numpy() for x in xy))), library)
        monkeypatch.setattr(torch, function.__name__, by_library)
    spec, seed = SPECS[name].replace(arithmetic="skimage"), sum(map(ord, name))
    x = whole_numbers(2, 3, *size_for(spec, seed), seed=seed, sqrt=spec.sqrt).double() / 255
    results, gradients = [], []
    for backend in ("cpu", "reference"):
        leaf = x.clone().requires_grad_()
        results.append(hog_module.fused_hog(leaf, spec, backend=backend))
        results[-1].backward(torch.linspace(-1, 1, results[-1].numel(), dtype=x.dtype).reshape(results[-1].shape))
        gradients.append(leaf.grad)
    for ours, theirs in (results, gradients):
        assert (ours - theirs).abs().max() <= 1e-9 * (1 + theirs.abs().max())


@pytest.mark.sampled(lambda name: name == "skimage")
@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.bins * spec.block[0] < 60][:24])
def test_small_images_are_those_of_the_oracle(hog, name):
    spec = SPECS[name].replace(cell=(3, 4), block_stride=SPECS[name].block_stride and (2, 4))
    if spec.gaussian_window:
        spec = spec.replace(gaussian_window=4, block_stride=None)
    height, width = spec.block_size[0] // 4 * 4 + 4, spec.block_size[1] // 4 * 4 + 8
    x = whole_numbers(2, height, width, seed=1, sqrt=spec.sqrt)
    want = oracle_blocks.hog(x.numpy(), **dataclasses.asdict(spec))
    power = 2 if spec.norm == "l1-sqrt" else 1
    scale = max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(hog(x, spec).double() ** power, want**power, rtol=0, atol=scale * 2e-5)


@pytest.mark.parametrize("from_horizontal", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bins", [4, 6, 8, 9, 12, 16, 18])
def test_every_gradient_of_bytes_votes_for_its_exact_bin(compiled_backend, bins, signed, from_horizontal):
    # Walks of 511 steps through all differences, along even rows and even columns: each pair meets at some pixel.
    walk = torch.stack((torch.arange(256), torch.zeros(256))).T.flatten()
    x = torch.zeros(1025, 1025, dtype=torch.uint8)
    x[::2, 1::2], x[1::2, ::2] = walk, walk[:, None]
    spec = HogSpec(
        bins=bins, cell=1, gradient="central", signed=signed, norm="none",
        angle_from="horizontal" if from_horizontal else "vertical",
    )  # fmt: skip
    got = hog_of(x, spec, compiled_backend)[:, 2:-2:2, 2:-2:2]
    steps = walk.diff().double()
    gx, gy = steps.expand(len(steps), -1), steps[:, None].expand(-1, len(steps))
    degrees = torch.rad2deg(torch.atan2(gy, gx) if from_horizontal else torch.atan2(gx, gy))
    tie = (gx == 0) | (gy == 0) | (gx.abs() == gy.abs())
    degrees = torch.where(tie, (degrees / 45).round() * 45, degrees) % (360 if signed else 180)
    want = degrees * bins // (360 if signed else 180)
    voted = (gx != 0) | (gy != 0)
    assert set(steps.tolist()) == set(range(-255, 256))
    assert torch.equal((got > 0).sum(0), voted.long())  # one bin
    assert torch.equal(got.argmax(0)[voted], want.long()[voted])
    torch.testing.assert_close(got.sum(0).double(), torch.hypot(gx, gy), rtol=2e-7, atol=0)


def hog_of(x: Tensor, spec: HogSpec, backend: str, region: Region | None = None) -> Tensor:
    region = region or whole(spec, *x.shape[-2:])
    return hog_module.hog(x.to(device_of(backend)), spec, region, backend).cpu()


REGIONS = [
    Region(-5, -3, 40, 37, 37),
    Region(7, 4, 20, 25, 13),
    Region(-60, -70, 90, 104, 4),
    Region(20, 15, 60, 33, 0),
]


@pytest.mark.sampled(lambda name, region: (name, region.top) == ("opencv", -5))
@pytest.mark.parametrize("region", REGIONS, ids=str)
@pytest.mark.parametrize("name", ["skimage", "opencv", "dalal-triggs"])
def test_regions_mirror_the_image_as_often_as_it_takes(backend, name, region):
    spec = PRESETS[name].replace(cell=4, block=2)
    x = (byte_images(2, 3, 24, 21, seed=2) // 64) ** 2  # of few values: many channels are equally strong
    check_blocks(hog_of(x, spec, backend, region), x, spec, region)


@pytest.mark.sampled(lambda size: size == (1, 1))
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (2, 2)])
def test_tiny_images_have_regions_too(backend, size):
    spec = SKIMAGE.replace(cell=2, block=1, gradient="sobel")
    x = byte_images(3, *size, seed=3)
    region = Region(-3, -2, 8, 9, 9)
    check_blocks(hog_of(x, spec, backend, region), x, spec, region)


@pytest.mark.sampled(lambda layout: layout == "columns")
@pytest.mark.parametrize("layout", CHOICES["layout"])
def test_layouts_are_permutations_of_each_other(hog, layout):
    x = byte_images(2, 3, 33, 40, seed=4)
    spec = SKIMAGE.replace(block=(2, 3), channels="each", layout="rows")
    rows = hog(x, spec)  # [2, 3, R, C, block_h, block_w, bins]
    order = {"rows": range(7), "columns": (0, 1, 3, 2, 5, 4, 6), "planes": (0, 1, 4, 5, 6, 2, 3)}[layout]
    result = hog(x, spec.replace(layout=layout))
    torch.testing.assert_close(result, rows.permute(*order), rtol=0, atol=2e-6)  # the norm is a sum in another order
    assert result.is_contiguous()
    assert result.shape[2:] == block_shape(spec.replace(layout=layout), whole(spec, 33, 40))


def test_blocks_of_one_cell_in_planes_have_no_block_axes(hog):
    x = byte_images(2, 3, 24, 32, seed=5)
    one = hog(x, norm="l2", eps=1e-3)
    assert one.shape == (2, 3, 9, 3, 4)
    torch.testing.assert_close(one, hog(x, norm="l2", eps=1e-3, layout="rows")[..., 0, 0, :].movedim(-1, -3))


@pytest.mark.sampled(lambda name: name == "skimage")
@pytest.mark.parametrize("name", PRESETS)
def test_views_of_any_strides_are_read_in_place(hog, name):
    x = byte_images(2, 40, 52, 3, seed=6)
    for view in (x.movedim(-1, 1), x.movedim(-1, 1)[..., 1::2], x.movedim(-1, 0).mT, x.movedim(-1, 1)[:, :, 3:36]):
        assert torch.equal(hog(view, PRESETS[name]), hog(view.contiguous(), PRESETS[name]))


def test_a_view_that_repeats_images(hog):
    x = byte_images(1, 3, 24, 24, seed=7)
    assert torch.equal(hog(x.expand(4, 3, 24, 24), SKIMAGE), hog(x, SKIMAGE).expand(4, -1, -1, -1, -1, -1))


@pytest.mark.sampled(lambda lead: lead in ((), (2, 0)))
@pytest.mark.parametrize("lead", [(), (2,), (2, 1, 3), (0,), (2, 0)])
def test_leading_axes_are_a_batch(hog, lead):
    x = byte_images(*lead, 3, 24, 32, seed=8)
    got = hog(x, SKIMAGE)
    assert got.shape == (*lead, 1, 2, 3, 3, 9)
    for image, result in zip(x.flatten(0, -4) if lead else [x], got.flatten(0, -6) if lead else [got], strict=True):
        assert torch.equal(result, hog(image, SKIMAGE))


@pytest.mark.parametrize("spec", [SKIMAGE, SKIMAGE.replace(channels="each")], ids=["strongest", "each"])
def test_a_plane_is_one_channel(hog, spec):
    x = byte_images(24, 32, seed=9)
    assert torch.equal(hog(x, spec), hog(x[None], spec.replace(channels="strongest")))


def test_of_equal_channels_the_first_is_taken_and_in_opencvs_last_columns_the_last(hog):
    x = torch.zeros(2, 8, 10, dtype=torch.uint8)
    x[0, 3], x[1, :, ::2] = 9, 9
    x[1, :, 1::4] = 9  # gradients of the same length, downwards in the first channel and across in the second
    for spec in (SKIMAGE.replace(cell=2, block=1, norm="none"), OPENCV.replace(cell=2, block=1, sqrt=False)):
        check_blocks(hog(x, spec), x, spec)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")  # by NumPy, of Triton's
@pytest.mark.sampled(lambda name, gradient, value: (name, gradient, value) == ("skimage", "sobel", torch.inf))
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("gradient", CHOICES["gradient"])
@pytest.mark.parametrize("name", ["skimage", "opencv", "dalal-triggs", "3", "8", "21", "33"])
def test_nan_and_infinity_mark_all_of_the_blocks_that_see_them(hog, name, gradient, value):
    spec = SPECS[name].replace(cell=4, block_stride=None, gaussian_window=0, gradient=gradient, layout="rows")
    x = whole_numbers(2, 3, 40, 44, seed=10, sqrt=spec.sqrt).float()
    clean = hog(x, spec)
    x[1, 1, 17, 22] = value
    got = hog(x, spec)
    wrong = got.isnan().flatten(-3).any(-1)  # [2, (3,) rows, columns]
    assert torch.equal(wrong, got.isnan().flatten(-3).all(-1))
    top, left = torch.arange(wrong.shape[-2]) * 4, torch.arange(wrong.shape[-1]) * 4
    height, width = spec.block_size
    reaches = torch.zeros_like(wrong)
    rows, columns = (top <= 18) & (top + height > 16), (left <= 23) & (left + width > 21)
    reaches[(1,) if spec.channels == "strongest" else (1, 1)] = rows[:, None] & columns
    if gradient == "sobel":  # the pixels around it, but not itself, are NaN: corners of blocks too
        assert torch.equal(wrong, reaches)
    assert wrong.any() and not (wrong & ~reaches).any()
    assert torch.equal(got[~wrong], clean[~wrong])


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.sampled(lambda norm, votes: (norm, votes) in [("none", "hard"), ("l1", "linear"), ("unit", "hard")])
@pytest.mark.parametrize("votes", CHOICES["votes"])
@pytest.mark.parametrize("norm", CHOICES["norm"])
def test_a_square_that_is_not_finite_marks_all_of_a_block_in_every_norm(hog, norm, votes):
    spec = HogSpec(gradient="central", block=2, norm=norm, votes=votes, eps=1e-5)
    x = whole_numbers(1, 16, 40, seed=11, sqrt=False).float()
    want = hog(x, spec)
    x[0, 12, 4] = 1e20
    got = hog(x, spec)
    assert got[..., 0].isnan().all()
    assert torch.equal(got[..., 1:], want[..., 1:])


@pytest.mark.sampled(lambda name: name == "skimage")
@pytest.mark.parametrize("name", [*PRESETS, "1", "2", "4", "5"])
def test_flat_images_are_exactly_zero(hog, name):
    spec = SPECS[name]
    x = torch.full((3, *size_for(spec, 1)), 100, dtype=torch.uint8)
    assert hog(x, spec).eq(0).all()


@pytest.mark.sampled(lambda name, dtype: (name, dtype) == ("opencv", torch.bfloat16))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", PRESETS)
def test_numbers_that_fit_give_the_bits_of_bytes(hog, name, dtype):
    x = byte_images(2, 3, 32, 40, seed=11) // 2
    want = hog(x, PRESETS[name])
    got = hog(x.to(dtype), PRESETS[name])
    torch.testing.assert_close(got.float(), want, rtol=0, atol=2e-6 if dtype == torch.float64 else 0)


@pytest.mark.sampled(lambda name: name == "dalal-triggs")
@pytest.mark.parametrize("name", ["opencv", "dalal-triggs"])
def test_linear_votes_of_any_floats(hog, name):
    # Square roots of floats round before the difference, whose relative error is then the larger the smaller it is.
    x = torch.rand(2, 1, 40, 48, generator=torch.Generator().manual_seed(12)) * 255
    spec = PRESETS[name]
    want = reference.hog(x.double(), spec, whole(spec, 40, 48))
    torch.testing.assert_close(hog(x, spec).double(), want, rtol=0, atol=2e-5)


def test_threads_change_no_bit(two_threads, compiled_backend):
    x = byte_images(3, 3, 300, 410, seed=13)
    for spec in PRESETS.values():
        two = hog_of(x, spec, compiled_backend)
        torch.set_num_threads(1)
        assert torch.equal(hog_of(x, spec, compiled_backend), two)
        torch.set_num_threads(2)
        assert torch.equal(
            hog_of(x[1:2, :, :299], spec, compiled_backend), hog_of(x[1:2, :, :299].clone(), spec, compiled_backend)
        )


@pytest.mark.sampled(lambda name: name == "maskfeat")
@pytest.mark.parametrize("name", PRESETS)
def test_wide_images_take_several_tiles(hog, name):
    spec = PRESETS[name]
    x = whole_numbers(3, 33, 600, seed=14, sqrt=spec.sqrt)
    check_blocks(hog(x, spec), x, spec)


def test_every_element_of_fresh_memory_is_written(poisoned_memory, compiled_backend):
    x = byte_images(2, 3, 40, 50, seed=15)
    for spec in SPECS.values():
        if spec.block_size[0] <= 40 and spec.block_size[1] <= 50 and not spec.gaussian_window:
            assert hog_of(x, spec, compiled_backend).isfinite().all()


@pytest.mark.parametrize("x, changes, message", [
    (torch.zeros(3, 23, 24), {}, "an image of 23 x 24 pixels is smaller than a block of 24 x 24"),
    (torch.zeros(3, 30, 24), dict(block=(2, 4)), "an image of 30 x 24 pixels is smaller than a block of 16 x 32"),
    (torch.zeros(0, 24, 24), {}, r"channels 'strongest' needs a channel, got shape \(0, 24, 24\)"),
    (torch.zeros(3, 24, 24), dict(gaussian_window=5), "gaussian_window 5 does not tile an image of 24 x 24 pixels"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(hog, x, changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        hog(x, SKIMAGE, **changes)


def test_tokens_are_of_the_maskfeat_family(hog_tokens):
    x, ids = byte_images(2, 3, 32, 32, seed=16), torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="takes the dialect of MASKFEAT, got gradient 'central'; use fused_hog"):
        hog_tokens(x, ids, 16, SKIMAGE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opencv_warns_of_pixels_from_0_to_1(dtype):
    x = (byte_images(2, 3, 32, 40, seed=12) / 255).to(dtype)
    with pytest.warns(UserWarning, match=r"the pixels are in \[0, 1\].* give x \* 255") as warned:
        small = fused_hog(x, OPENCV)
    assert warned[0].filename == __file__
    assert (small - fused_hog(x * 255, OPENCV)).abs().max() > 0.1


def test_and_of_no_others():
    x = byte_images(2, 3, 32, 40, seed=12)
    dark = torch.zeros(3, 32, 40)
    dark[1, 17, 13] = 1.5
    for image in (x, x.float(), dark, torch.zeros(3, 32, 40), x.float()[:0]):
        fused_hog(image, OPENCV)  # warnings are errors
    fused_hog(x / 255, SKIMAGE)
    torch.func.vmap(lambda x: fused_hog(x, OPENCV))(x / 255)
    torch.compile(lambda x: fused_hog(x, OPENCV), backend="eager", fullgraph=True)(x / 255)
