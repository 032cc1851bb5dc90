"""The CUDA source of the HOG of blocks, run on the host under sanitizers, against the float64 reference and autograd.

Pixels are whole numbers where votes are hard: their bins are exact in float32, and so is the choice between channels.
``test_cuda_on_host.py`` says what the sanitizers and the host can show.
"""

import random
import re

import pytest
import torch
from conftest import BACKENDS
from cuda_program import ON_HOST, Out, checked, run
from test_cuda_on_host import CHECKERS, usable

from maskfeat_kernels.hog import ops, reference
from maskfeat_kernels.hog.plan import Region, block_shape, pack, whole
from maskfeat_kernels.hog.spec import DALAL_TRIGGS, MASKFEAT, OPENCV, SKIMAGE, HogSpec
from maskfeat_kernels.testing import FLOATS

BLOCKS, GRADIENT, REFUSAL = range(3)
LARGE_TILES = (
    ("kManyThreadBlocks = 512", "kManyThreadBlocks = 1"),
    # For float64 alone, which is compiled in a third of the time.
    ("case Dtype::uint8: return call(launch<uint8_t, float>);", ""),
    ("case Dtype::float16: return call(launch<Float16, float>);", ""),
    ("case Dtype::bfloat16: return call(launch<BFloat16, float>);", ""),
    ("case Dtype::float32: return call(launch<float, float>);", ""),
)

RTOL = {torch.float32: 1e-5, torch.float64: 1e-13}
"""Of the largest value. Among 36 bins, the place of an orientation takes 5 bits of a float from the share in a bin."""
RTOL_OF_OPENCV = 1e-6
"""In float64 too: OpenCV's polynomial has float32 coefficients."""

SPECS = {
    "maskfeat": MASKFEAT,
    "skimage": SKIMAGE,
    "opencv": OPENCV,
    "dalal_triggs": DALAL_TRIGGS,
    "signed hard": HogSpec(bins=12, cell=(3, 5), signed=True, block=2, norm="l1", eps=1e-5),
    "planes of blocks": SKIMAGE.replace(layout="planes", norm="l2", bins=4, cell=4, channels="each"),
    "window": HogSpec(bins=18, cell=4, gaussian_window=6, norm="l1-sqrt", eps=1e-3, gradient="central"),
    "gaps": HogSpec(cell=4, block_stride=(12, 8), norm="none", layout="rows"),
    "dense": OPENCV.replace(block_stride=(1, 3), cell=(4, 2), arithmetic="exact", signed=True, bins=36),
    "sparse": OPENCV.replace(block_stride=20, cell=4, layout="planes"),
    "one bin": HogSpec(bins=1, votes="linear", cell=6, norm="none"),
}
REGIONS = {"whole": None, "mirrored": Region(-9, -4, 40, 60, 20), "beyond": Region(70, -90, 37, 30, 0)}


@pytest.fixture(params=CHECKERS)
def checker(request) -> str:
    return usable(request.param)


def pixels(spec: HogSpec, *shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Whole numbers with ties and flat areas; for linear votes others, as autograd differs where |gx| = |gy|."""
    chance = torch.Generator().manual_seed(seed)
    if spec.votes == "linear" and dtype in RTOL:
        return torch.rand(shape, generator=chance, dtype=dtype) * 200 + 1
    x = torch.randint(1, 40, shape, generator=chance)
    x[..., : shape[-2] // 3, : shape[-1] // 3] = 7
    return x.to(dtype)


def words(x: torch.Tensor, spec: HogSpec, region: Region | None) -> tuple:
    region = region or whole(spec, *x.shape[-2:])
    numbers, reals = pack(spec)
    return x, torch.tensor(numbers), torch.tensor(reals, dtype=torch.float64), torch.tensor(region)


def blocks_of(checker: str, x: torch.Tensor, spec: HogSpec, region: Region | None = None, **options) -> torch.Tensor:
    """By the CUDA source."""
    lead = x.shape[: -3 if spec.channels == "strongest" else -2]
    shape = (*lead, *block_shape(spec, region or whole(spec, *x.shape[-2:])))
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return checked("hog_blocks", checker, BLOCKS, *words(x, spec, region), Out(shape, dtype), **options)[0]


def gradient_of(
    checker: str, grad: torch.Tensor, x: torch.Tensor, spec: HogSpec, region=None, **options
) -> torch.Tensor:
    """By the CUDA source."""
    outs = Out(grad.shape, grad.dtype), Out(x.shape, grad.dtype)
    return checked("hog_blocks", checker, GRADIENT, *words(x, spec, region), grad, *outs, **options)[1]


def check(checker: str, x: torch.Tensor, spec: HogSpec, region: Region | None = None, seeds=(0,), changes=()) -> None:
    """Blocks and gradient against the float64 reference, the same bits in every order of blocks and threads."""
    exact = x.double().requires_grad_()
    want = reference.hog(exact, spec, region or whole(spec, *x.shape[-2:]))
    results = [blocks_of(checker, x, spec, region, seed=seed, changes=changes) for seed in seeds]
    assert all(torch.equal(other, results[0]) for other in results), "the order of blocks and threads shows"
    assert float(want.detach().abs().max()) > 0
    check_close(results[0], want.detach(), spec, 0)
    grad = torch.randn(want.shape, generator=torch.Generator().manual_seed(1)).to(results[0].dtype)
    want.backward(grad.double())
    results = [gradient_of(checker, grad, x, spec, region, seed=seed, changes=changes) for seed in seeds]
    assert all(torch.equal(other, results[0]) for other in results), "the order of blocks and threads shows"
    # A block of length n, here about 100, passes gradients of 1 / n on, whose errors stay where they all cancel (as in
    # l2-hys where all values are cut).
    check_close(results[0], exact.grad, spec, 0.01)


def check_close(result: torch.Tensor, want: torch.Tensor, spec: HogSpec, least_scale: float) -> None:
    assert result.shape == want.shape
    rtol = max(RTOL[result.dtype], RTOL_OF_OPENCV if spec.arithmetic == "opencv" else 0)
    atol = rtol * max(least_scale, float(want.abs().max()))
    torch.testing.assert_close(result.double(), want, rtol=0, atol=atol)


FEW = ("skimage", "opencv", "planes of blocks")


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.slow) for name in SPECS]
)
def test_every_dialect(name):
    """In float64, where the tolerance leaves nothing to chance, on an image that ends within tiles and cells."""
    spec = SPECS[name]
    check(usable("address"), pixels(spec, 1, 2, 37, 43, dtype=torch.float64), spec)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["signed hard", pytest.param("dalal_triggs", marks=pytest.mark.slow)])
def test_every_dtype(name, dtype):
    spec = SPECS[name]
    check(usable("address"), pixels(spec, 3, 20, 35, dtype=dtype), spec)


@pytest.mark.parametrize("region", ["mirrored", "beyond"])
@pytest.mark.parametrize("name", ["opencv", *(pytest.param(n, marks=pytest.mark.slow) for n in SPECS if n != "opencv")])
def test_a_region_of_the_mirrored_plane(name, region):
    """Also of an image that is one pixel high, where normalised blocks do not change with the pixels."""
    spec = SPECS[name].replace(sqrt=False)
    check(usable("address"), pixels(spec, 2, 11, 14, dtype=torch.float64), spec, REGIONS[region])
    spec = spec.replace(norm="none", arithmetic="exact")
    check(usable("address"), pixels(spec, 2, 1, 23, dtype=torch.float64), spec, REGIONS[region])


def test_any_strides():
    checker, spec = usable("address"), SPECS["skimage"]
    x = pixels(spec, 2, 30, 3, 36, dtype=torch.float32)
    check(checker, x.permute(0, 2, 3, 1)[..., 3:, 1:], spec)
    check(checker, x.permute(0, 2, 1, 3).flip(0), spec.replace(channels="each"))
    check(checker, x[:, :, 0].expand(2, 30, 36)[0], spec)


@pytest.mark.parametrize("name", ["planes of blocks", *(pytest.param(n, marks=pytest.mark.slow) for n in SPECS)])
def test_all_checkers_and_orders(checker, name):
    """Every race shows in float32 as in any other type."""
    spec = SPECS[name]
    check(checker, pixels(spec, 2, 27, 37, dtype=torch.float32), spec, seeds=(0, 1))


@pytest.mark.parametrize(
    "spec",
    [
        SKIMAGE.replace(cell=40, bins=5),
        pytest.param(HogSpec(cell=(1, 2), bins=99, norm="l2", eps=0.1), marks=pytest.mark.slow),
    ],
)
def test_a_block_beyond_one_band_and_cells_beyond_a_tile(spec):
    """Shared memory then holds some rows of pixels, some bins at a time, and no gradients of cells."""
    side = max(40, *spec.block_size)
    check(usable("address"), pixels(spec, 1, side, side, dtype=torch.float64), spec)


USUAL = {
    "skimage": SKIMAGE,
    "opencv": OPENCV,
    "dalal_triggs": DALAL_TRIGGS,
    "two cells": SKIMAGE.replace(block=2, reduction="sum"),
    "roots in columns": SKIMAGE.replace(layout="columns", sqrt=True),
}
"""Shapes that have a kernel of their own, blocks_8x8.h."""


HALVES_AND_FLOATS = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in FLOATS[:3]]


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the extension is not built")
@pytest.mark.parametrize("dtype", [torch.uint8, *HALVES_AND_FLOATS], ids=str)
@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in USUAL])
def test_usual_shapes_have_the_bits_of_the_cpu(name, dtype):
    """In several strips and tiles, with ties of channels and flat areas, of an image and beyond it."""
    spec = USUAL[name]
    for channels, region in ((1, whole(spec, 41, 260)), (3, Region(-9, -4, 40, 245, 8))):
        x = torch.randint(256, (1, channels, 41, 260), generator=torch.Generator().manual_seed(0))
        x[..., :20, :70] = 7
        x[:, -1, 20:, :90] = x[:, 0, 20:, :90]
        x = x.to(dtype)
        if spec.arithmetic == "skimage":  # it has no such column
            region = region._replace(tie_column=region.width)
        assert torch.equal(blocks_of(usable("address"), x, spec, region), ops.hog(x, spec, region))


GRADIENTS = USUAL | {"maskfeat": MASKFEAT, "means": MASKFEAT.replace(reduction="mean")}
"""Shapes whose gradient to the pixels has a kernel of its own, backward_8x8.h."""
INSIDE = Region(3, 11, 33, 240, 40)


ONE_STRIP = (("return resident == 3 ? 768 : resident * 128;", "return 1;"),)
OFTEN = (*FEW, "maskfeat")


@pytest.mark.parametrize("changes", [(), pytest.param(ONE_STRIP, marks=pytest.mark.slow)], ids=["strips", "one strip"])
@pytest.mark.parametrize("name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in GRADIENTS])
def test_usual_shapes_have_a_gradient_of_their_own(name, changes):
    """Of an image and of a part of it, of one channel and of three, in one strip down or many."""
    spec = GRADIENTS[name]
    for channels, region, dtype in ((1, None, torch.float32), (3, INSIDE, torch.float32), (3, None, torch.float16)):
        x = pixels(spec, 1, channels, 41, 260, dtype=torch.float32).to(dtype)
        check(usable("address"), x, spec, region, changes=changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(GRADIENTS.keys() - {"roots in columns"}))  # roots are not exact
def test_usual_gradients_have_no_race(name):
    x = pixels(GRADIENTS[name], 1, 3, 27, 230, dtype=torch.float32)
    check(usable("thread"), x, GRADIENTS[name], seeds=(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_large_tiles(name):
    """As they are where there are enough of them."""
    spec = SPECS[name]
    check(usable("address"), pixels(spec, 1, 1, 70, 83, dtype=torch.float64), spec, changes=LARGE_TILES)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e20])
@pytest.mark.parametrize("name", ["skimage", "dalal_triggs", "signed hard", "window", "gaps", "one bin"])
def test_what_is_not_finite_marks_all_of_the_blocks_that_see_it(name, value):
    """And the gradient of all pixels that vote in them."""
    checker = usable("address")
    spec = SPECS[name].replace(gradient="central", sqrt=False, gaussian_window=0)
    x = pixels(spec, 1, 1, 37, 51, dtype=torch.float32)
    x[0, 0, 13, 17] = value  # in a block of every spec, and not in all of them
    exact = x.clone().requires_grad_()
    want = reference.hog(exact, spec, whole(spec, 37, 51))
    result = blocks_of(checker, x, spec)
    assert want.isnan().any() and not want.isnan().all()
    assert torch.equal(result.isnan(), want.isnan())
    assert torch.equal(result.nan_to_num(0) == 0, want.nan_to_num(0) == 0)
    grad = torch.ones_like(result)
    want.backward(grad)
    assert torch.equal(gradient_of(checker, grad, x, spec).isnan(), exact.grad.isnan())


def test_flat_and_black_pixels_have_no_gradient():
    checker, spec = usable("address"), SPECS["dalal_triggs"]
    x = torch.zeros(1, 24, 24)
    x[:, :, 12:] = 9
    grad = torch.ones(block_shape(spec, whole(spec, 24, 24)))
    result = gradient_of(checker, grad, x, spec)
    assert result.isfinite().all()
    assert result[..., :12].eq(0).all()
    assert gradient_of(checker, grad, torch.zeros(1, 24, 24), spec).eq(0).all()


def test_an_image_smaller_than_a_block():
    checker = usable("address")
    x = pixels(SKIMAGE, 2, 12, 40, dtype=torch.float32)
    region = Region(0, 0, 12, 40, 40)
    grad = torch.zeros(2, 0, *block_shape(SKIMAGE, region)[1:])
    assert block_shape(SKIMAGE, region)[0] <= 0
    assert gradient_of(checker, grad[:, :, :0], x[:, None], SKIMAGE, region).eq(0).all()


@pytest.mark.parametrize(
    "spec, reason",
    [
        (HogSpec(cell=(200, 150)), "more than the 300 numbers of a launch"),
        (HogSpec(bins=290, cell=16, norm="l2"), "more than the 300 numbers of a launch"),
        (OPENCV.replace(bins=4000, cell=1, arithmetic="exact"), "more than the 48 KB of shared memory"),
    ],
)
def test_what_does_not_fit_is_refused(spec, reason):
    result = run("hog_blocks", usable("address"), REFUSAL, *words(torch.zeros(400, 400), spec, None))
    assert result.status == 1
    assert reason in result.text


def test_an_axis_beyond_32_bits_is_refused():
    result = run(
        "hog_blocks", usable("address"), REFUSAL, *words(torch.zeros(8, 8), SKIMAGE, Region(0, 0, 24, 2**30, 0))
    )
    assert result.status == 1
    assert "an axis of more than" in result.text


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_dialects_of_chance(seed):
    chance = random.Random(seed)
    spec, region = spec_of_chance(chance), None
    height, width = (max(pixels, chance.randint(9, 40)) for pixels in spec.block_size)
    if chance.random() < 0.5:
        region = Region(chance.randint(-20, 40), chance.randint(-20, 40), height, width, chance.choice((width, 8, 0)))
        height, width = chance.randint(5, 30), chance.randint(5, 30)
    x = pixels(spec, 2, chance.randint(1, 3), height, width, dtype=torch.float64, seed=seed)
    check(usable("address"), x, spec, region, seeds=(seed,), changes=LARGE_TILES if seed % 2 else ())


def spec_of_chance(chance: random.Random) -> HogSpec:
    """Any parameters but the norm "l1-sqrt", whose gradient is as large as a value is small."""
    opencv = chance.random() < 0.2
    sides, strides = (2, 3, 4, 5, 8), (None, None, (4, 3), (1, 8), (16, 2))
    return HogSpec(
        bins=chance.choice((2, 3, 4, 8, 9, 13, 18, 36)),
        cell=(chance.choice(sides), chance.choice(sides)),
        sqrt=chance.random() < 0.25,
        gradient=chance.choice(("sobel", "central")),
        channels=chance.choice(("each", "strongest")),
        signed=chance.random() < 0.5,
        angle_from=chance.choice(("vertical", "horizontal")),
        votes="linear" if opencv else chance.choice(("hard", "linear")),
        cells=chance.choice(("box", "bilinear")),
        reduction=chance.choice(("sum", "mean")),
        block=(chance.choice((1, 2, 3)), chance.choice((1, 2, 3))),
        block_stride=chance.choice(strides),
        block_sigma=chance.choice((0, 0, 2.0, 4.0)),
        norm="l2-hys" if opencv else chance.choice(("unit", "none", "l1", "l2", "l2-hys")),
        eps=chance.choice((1e-12, 1e-5, 1e-2)),
        clip=chance.choice((0.2, 0.1)),
        arithmetic="opencv" if opencv else "exact",
        layout=chance.choice(("planes", "rows", "columns")),
    )


# That the checks see what they are for: a text of the source, what stands there instead, under what, and what it says

VOTES, COLUMNS, SLOPES = "magnitude * vote.above;\n    });\n", "above[pixel];\n      }\n", "= to.channel;\n      });\n"
HEIGHT = "const int height = min(work.height, work.image_height - top);"
PIXELS = "find_rows(work, (step + 1) * kStripRows + 1, memory);\n"
STRIP = "find_rows(work, top + (half + 1) * kStripRows + 1, memory);\n"
BUGS = {
    "missing barrier": (VOTES + "    __syncthreads();\n", VOTES, "thread", "data race"),
    "missing fence of a warp": (COLUMNS + "      __syncwarp();\n", COLUMNS, "thread", "data race"),
    "missing barrier of the gradient": (SLOPES + "      __syncthreads();\n", SLOPES, "thread", "data race"),
    "blocks beyond the last": ("if (column >= x.blocks) continue;", "", "address", "Sanitizer: heap"),
    "rows beyond the last": (HEIGHT, "const int height = work.height;", "address", "Sanitizer: heap"),
    "missing barrier of strips of the gradient": (PIXELS + "    __syncthreads();\n", PIXELS, "thread", "data race"),
    "missing barrier of strips": (STRIP + "    __syncthreads();\n", STRIP, "thread", "data race"),
    "too little shared memory": ("take<uint16_t>(work.band * width)", "take<int>(1)", "address", "Sanitizer: heap"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_stopped(name):
    right, wrong, checker, expected = BUGS[name]
    assert checker in ON_HOST
    spec = SPECS["skimage" if " of strips" in name else "planes of blocks"]
    x = pixels(spec, 2, 1, 25, 37, dtype=torch.float32)
    grad = torch.ones(2, *[1] * (spec.channels == "each"), *block_shape(spec, whole(spec, 25, 37)))
    calls = (BLOCKS, Out(grad.shape)), (GRADIENT, grad, Out(grad.shape), Out(x.shape))
    for function, *rest in calls:
        arguments = (function, *words(x, spec, None), *rest)
        result = run("hog_blocks", usable(checker), *arguments, seed=1, changes=((right, wrong),))
        if result.status:
            break
    assert result.status != 0
    assert re.search(expected, result.text), result.text
