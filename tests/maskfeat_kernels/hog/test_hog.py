"""fused_hog is right: by hand, by the pixel-by-pixel oracle, and on every backend against the float64 reference."""

import math

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F

from maskfeat_kernels import MASKFEAT, HogSpec, fused_hog
from maskfeat_kernels.hog import reference
from maskfeat_kernels.hog.plan import cell_axes, whole
from maskfeat_kernels.testing import (
    ATOL,
    BINS,
    CELLS,
    DTYPES,
    FLOATS,
    SHAPES,
    byte_images,
    check_hog,
    edge_pixels,
    images,
)

Y, X = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
ROOT2 = math.sqrt(2)


def lit(*pixels):
    """An 8 x 8 image, dark but for some pixels of value 1."""
    image = torch.zeros(8, 8, dtype=torch.int64)
    for y, x in pixels:
        image[y, x] = 1
    return image


def takes_turn(dtype, case, table):
    """Whether ``case`` is for ``dtype`` if the dtypes take turns down the table."""
    return list(table).index(case) % len(DTYPES) == DTYPES.index(dtype)


# Image, bins, and the histogram of its one 8 x 8 cell up to a factor. A pixel in the first and last column has gx = 0
# and in the first and last row gy = 0, because the border reflects. A ramp has 6 x 6 inner pixels.
BY_HAND = {
    "flat": (0 * X + 7, 9, {}),
    "black": (0 * X, 9, {}),
    "dark to bright, left to right: 90 degrees": (X, 9, {4: 1}),
    "bright to dark, left to right: 90 degrees": (7 - X, 9, {4: 1}),
    "dark to bright, downwards: 0 degrees": (Y, 9, {0: 1}),
    "bright to dark, downwards: 0 degrees": (7 - Y, 9, {0: 1}),
    "upright edge": (9 * (X > 3), 9, {4: 1}),
    "level edge": (9 * (Y > 3), 9, {0: 1}),
    "diagonal ramp: 45 degrees": (X + Y, 9, {0: 12, 2: 36 * ROOT2, 4: 12}),
    "other diagonal ramp: 135 degrees": (X - Y + 7, 9, {0: 12, 4: 12, 6: 36 * ROOT2}),
    "one bright pixel": (lit((3, 3)), 9, {0: 4, 2: 2 * ROOT2, 4: 4, 6: 2 * ROOT2}),
    "one dark pixel": (1 - lit((3, 3)), 9, {0: 4, 2: 2 * ROOT2, 4: 4, 6: 2 * ROOT2}),
    "a bright corner": (lit((0, 0)), 9, {0: 2, 2: ROOT2, 4: 2}),
    "the lower edge belongs to a bin: 90 of 4 x 45": (X, 4, {2: 1}),
    "the lower edge belongs to a bin: 45 of 4 x 45": (X + Y, 4, {0: 12, 1: 36 * ROOT2, 2: 12}),
    "the lower edge belongs to a bin: 135 of 4 x 45": (X - Y + 7, 4, {0: 12, 2: 12, 3: 36 * ROOT2}),
    "the lower edge belongs to a bin: 45 of 8 x 22.5": (X + Y, 8, {0: 12, 2: 36 * ROOT2, 4: 12}),
    "the lower edge belongs to a bin: 135 of 8 x 22.5": (X - Y + 7, 8, {0: 12, 4: 12, 6: 36 * ROOT2}),
    "the lower edge belongs to a bin: 90 of 2 x 90": (X + Y, 2, {0: 12 + 36 * ROOT2, 1: 12}),
    "one bin takes all": (X + Y, 1, {0: 1}),
}


@pytest.mark.sampled(lambda name, dtype: takes_turn(dtype, name, BY_HAND))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", BY_HAND)
def test_literal_8x8_image(hog, name, dtype):
    image, bins, histogram = BY_HAND[name]
    want = torch.zeros(bins)
    for k, votes in histogram.items():
        want[k] = votes
    want = F.normalize(want, dim=0).view(bins, 1, 1)
    torch.testing.assert_close(hog(image.to(dtype), bins=bins).float(), want, rtol=0, atol=ATOL[torch.float32])


def test_votes_stay_in_the_cell_of_their_pixel(hog):
    # The edge between columns 1 and 2 has gradients in these two columns only.
    result = hog((X > 1).to(torch.uint8), cell=4)
    want = torch.zeros(9, 2, 2)
    want[4, :, 0] = 1
    torch.testing.assert_close(result, want, rtol=0, atol=ATOL[torch.float32])


def test_pixels_that_do_not_fill_a_cell_do_not_vote_but_are_seen_by_their_neighbours(hog):
    image = torch.zeros(8, 9)
    image[:, 8] = 1
    want = torch.zeros(9, 1, 1)
    want[4] = 1
    torch.testing.assert_close(hog(image), want, rtol=0, atol=ATOL[torch.float32])
    assert hog(image, cell=(8, 7)).count_nonzero() == 0


ORACLE_CASES = [
    ((16, 16), {}),
    ((9, 20), dict(cell=(4, 5))),
    ((13, 7), dict(cell=3, bins=8)),
    ((8, 8), dict(cell=1, bins=12)),
    ((8, 16), dict(cell=(8, 4), bins=16)),
    ((12, 12), dict(cell=6, bins=18)),
    ((12, 8), dict(cell=4, gaussian_window=4)),
    ((9, 18), dict(cell=4, bins=6, gaussian_window=9)),
    ((1, 12), dict(cell=(1, 3))),
    ((12, 1), dict(cell=(3, 1), bins=4)),
    ((2, 2), dict(cell=2, bins=36)),
]


@pytest.mark.parametrize("pixels", ["bytes", "reals"])
@pytest.mark.parametrize("shape, changes", ORACLE_CASES, ids=str)
def test_reference_is_the_definition(shape, changes, pixels):
    x = byte_images(*shape, seed=1).double()
    if pixels == "reals":
        x += torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    spec = MASKFEAT.replace(**changes)
    assert not edge_pixels(x, spec).any()
    want = oracle.hog(x, spec.bins, spec.cell, spec.gaussian_window)
    np.testing.assert_allclose(fused_hog(x, spec, backend="reference"), want, rtol=0, atol=ATOL[torch.float64])


CASES = [
    *[(shape, dict(cell=min(8, *shape[-2:]))) for shape in SHAPES],
    *[((2, 40, 37), dict(cell=cell)) for cell in CELLS],
    *[((2, 33, 34), dict(bins=bins)) for bins in BINS],
    *[((40, 37), dict(cell=(40, 37), bins=bins)) for bins in (9, 18)],
    *[((2, 48, 32), dict(gaussian_window=window)) for window in (1, 2, 8, 16)],
    ((2, 45, 30), dict(gaussian_window=15, cell=(7, 4), bins=12)),
    ((3, 64, 64), dict(cell=4, bins=18)),
    ((3, 64, 64), dict(cell=16, bins=6)),
    ((2, 17, 275), {}),
    ((2, 9, 140), dict(cell=1, bins=4)),
    ((16, 300), dict(cell=(8, 150))),
    ((2, 24, 144), dict(cell=(5, 7), gaussian_window=24, bins=18)),
]


# The interpreter's time grows with bins and rows of a cell.
@pytest.mark.sampled(
    lambda shape, changes, dtype: (
        takes_turn(dtype, (shape, changes), CASES)
        and changes.get("bins", 9) <= 18
        and MASKFEAT.replace(**changes).cell[0] <= 16
    )
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape, changes", CASES, ids=str)
def test_backend_is_the_float64_reference(hog, poisoned_memory, shape, changes, dtype):
    x = images(*shape, dtype=dtype, seed=2)
    check_hog(hog(x, **changes), x, MASKFEAT.replace(**changes))


@pytest.mark.sampled(lambda scale: scale in (1e-18, 1e15))
@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1.0, 255.0, 1e6, 1e15])
def test_any_range_of_pixels(hog, scale):
    x = scale * images(2, 24, 32, dtype=torch.float32, seed=3)
    check_hog(hog(x), x)


def test_pixels_far_from_zero(hog):
    x = 1e6 + images(2, 24, 32, dtype=torch.float32, seed=3)
    check_hog(hog(x), x)


@pytest.mark.sampled(lambda rows, bins: (rows, bins) == (40, 9))
@pytest.mark.parametrize("rows", [40, 2048])
@pytest.mark.parametrize("bins", [9, 18, 70])
def test_cells_of_many_rows_lose_no_precision(hog, rows, bins):
    # A slope adds the same magnitude again and again, so that a running sum rounds to the same side each time.
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(16), indexing="ij")
    slope = ((y + 3 * x) % 256).to(torch.uint8)
    check_hog(hog(slope, bins=bins, cell=(rows, 8)), slope, HogSpec(bins=bins, cell=(rows, 8)))


def test_offsets_beyond_31_bits(hog):
    far = 2**31 + 5
    x = torch.empty(far + 3 * 256, dtype=torch.uint8).as_strided((2, 3, 16, 16), (far, 256, 16, 1))
    x.copy_(byte_images(2, 3, 16, 16))
    assert torch.equal(hog(x), hog(x.contiguous()))


def inside(x, shape, index):
    """``x`` as the part ``index`` of a larger tensor, whose other values must not be read."""
    storage = x.new_full(shape, 77)
    storage[index] = x
    return storage[index]


N, C, H, W = 2, 3, 17, 26
LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "permuted HWC": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "RGB of RGBA": lambda x: inside(x.permute(0, 2, 3, 1), (N, H, W, 4), np.s_[..., :3]).permute(0, 3, 1, 2),
    "transposed": lambda x: x.mT.contiguous().mT,
    "batch innermost": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "every second column": lambda x: inside(x, (N, C, H, 2 * W), np.s_[..., ::2]),
    "every third row": lambda x: inside(x, (N, C, 3 * H, W), np.s_[..., ::3, :]),
    "every second channel": lambda x: inside(x, (N, 2 * C, H, W), np.s_[:, 1::2]),
    "crop": lambda x: inside(x, (N, C, H + 5, W + 8), np.s_[..., 3:-2, 5:-3]),
    "storage offset": lambda x: inside(x.flatten(), (x.numel() + 1,), np.s_[1:]).view(x.shape),
    "lazily negated": lambda x: torch._neg_view(-x) if x.is_floating_point() else x,
}


@pytest.mark.sampled(lambda layout, dtype: dtype == torch.float32)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_result_does_not_depend_on_the_memory_layout(hog, poisoned_memory, layout, dtype):
    x = images(N, C, H, W, dtype=dtype, seed=4)
    view = LAYOUTS[layout](x)
    assert torch.equal(view, x)
    result = hog(view)
    assert result.is_contiguous()
    assert torch.equal(result, hog(x))


@pytest.mark.sampled(lambda shape: math.prod(shape) <= 36)
@pytest.mark.parametrize("shape", [(2, 3, 2, 3), (2, 1, 1, 1, 2, 1, 3, 1, 1, 2), (2,) * 10], ids=str)
def test_leading_axes_that_cannot_be_merged_into_one(hog, shape):
    x = byte_images(*shape, 8, 8, seed=5).permute(*reversed(range(len(shape))), -2, -1)
    assert torch.equal(hog(x), hog(x.contiguous()))


@pytest.mark.sampled(lambda axis: axis in (1, 3))
@pytest.mark.parametrize("axis", range(5))
def test_repeated_by_stride_zero_is_repeated_in_memory(hog, axis):
    x = byte_images(2, 2, 3, 16, 18, seed=5).narrow(axis, 0, 1)
    size = [2, 2, 3, 16, 18]
    size = [size[i] if i == axis else n for i, n in enumerate(x.shape)]
    cell = min(8, *size[-2:])
    assert torch.equal(hog(x.expand(size), cell=cell), hog(x.expand(size).contiguous(), cell=cell))


@pytest.mark.parametrize(
    "shape",
    [(0, 3, 16, 16), (2, 0, 16, 16), (0, 0, 3, 16, 16), (2, 0, 3, 8, 9)],
    ids=str,
)
def test_empty_batches_and_channel_axes_give_empty_results(hog, shape):
    for dtype in DTYPES:
        result = hog(torch.empty(shape, dtype=dtype))
        assert result.shape == (*shape[:-2], 9, shape[-2] // 8, shape[-1] // 8)
        assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.sampled(lambda dtype: dtype == torch.float32)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_flat_cells_are_exactly_zero(hog, dtype):
    for value in (0, 1, 127, 255) if dtype == torch.uint8 else (0.0, -2.1179, 0.1, 1 / 3, 2.64, 1e4, -0.485 / 0.229):
        assert hog(torch.full((2, 3, 21, 24), value, dtype=dtype)).count_nonzero() == 0


def test_a_flat_cell_beside_an_edge_is_exactly_zero(hog):
    x = torch.full((16, 32), 0.1)
    x[:, 4:] = 0.7
    result = hog(x)
    assert result[..., 1:].count_nonzero() == 0
    assert torch.equal(result[4, :, 0], torch.ones(2))


@pytest.mark.sampled(lambda y, x, dtype: (y, x, dtype) in [(7, 7, torch.float32), (31, 39, torch.float16)])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("y, x", [(0, 0), (7, 7), (8, 8), (12, 12), (16, 3), (31, 39), (23, 16)])
def test_nan_stays_in_the_cells_whose_stencil_touches_it(hog, y, x, dtype):
    clean = images(2, 3, 32, 40, dtype=dtype, seed=6)
    stained = clean.clone()
    stained[1, 2, y, x] = torch.nan
    touched = torch.zeros(2, 3, 32, 40, dtype=torch.bool)
    touched[1, 2, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = True
    touched[1, 2, y, x] = True
    cells = F.max_pool2d(touched.float(), 8).bool().unsqueeze(2).expand(2, 3, 9, 4, 5)
    got, want = hog(stained), hog(clean)
    assert got[cells].isnan().all()
    assert torch.equal(got[~cells], want[~cells])


@pytest.mark.sampled(lambda dtype, value: (dtype, value) in [(torch.float16, torch.inf), (torch.float32, 1e20)])
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")  # by NumPy, of Triton's
@pytest.mark.parametrize("dtype, value", [
    *((dtype, torch.inf) for dtype in FLOATS),
    (torch.float32, -torch.inf),
    (torch.float32, torch.finfo(torch.float32).max),  # a sum of the gradient is infinite
    (torch.float32, 1e20),  # its square is
    (torch.bfloat16, 1e20),
    (torch.float64, 1e155),
])  # fmt: skip
def test_a_gradient_that_is_not_finite_marks_all_bins_of_its_cell(hog, dtype, value):
    x = images(3, 24, 32, dtype=dtype, seed=7)
    stained = x.clone()
    stained[1, 12, 12] = value
    got, want = hog(stained), hog(x)
    assert got[1, :, 1, 1].isnan().all()
    got[1, :, 1, 1] = want[1, :, 1, 1] = 0
    assert torch.equal(got, want)


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
def test_also_in_the_first_bin_alone_and_if_only_the_norm_is_not_finite(hog):
    for value in (torch.inf, 1e20, 2.6e18):  # the last: the squares of two pixels are finite, but not that of their sum
        x = torch.zeros(3, 24, 1)
        x[1, 11] = value
        assert torch.equal(
            hog(x, cell=(8, 1)).isnan().all(-3), torch.tensor([[[0], [0], [0]], [[0], [1], [0]], [[0]] * 3]) == 1
        )
        assert not hog(x, cell=(8, 1))[:, :, ::2].isnan().any()


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("window, cell", [(4, 8), (0, 12), (0, (9, 3))])
def test_in_any_cells_and_windows(hog, window, cell):
    x = images(24, 36, dtype=torch.float32, seed=8)[None]
    if window:
        x = x[..., :32]
    stained = x.clone()
    stained[0, 13, 13] = torch.inf
    options = dict(cell=cell, gaussian_window=window)
    got, want = hog(stained, **options), hog(x, **options)
    touched = torch.zeros(*x.shape[-2:])
    touched[12:15, 12:15] = 1
    cells = F.max_pool2d(touched[None], cell)[0].bool()
    assert got.isnan().any(-3).logical_not().logical_or(cells).all()
    assert got[0, :, cells].isnan().all()
    assert torch.equal(got[0, :, ~cells], want[0, :, ~cells])


def hog_layer(
    x: torch.Tensor,  # [B, C, H, W], float32
    bins: int,
    cell: int,
) -> torch.Tensor:  # [B, C, bins, H // cell, W // cell]
    """The HOG layer of MaskFeat as its own sequence of ops."""
    channels = x.shape[1]
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).repeat(channels, 1, 1, 1)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    gx, gy = F.conv2d(padded, sobel, groups=channels), F.conv2d(padded, sobel.mT, groups=channels)
    phase = (torch.atan2(gx, gy) / math.pi * bins).floor().long() % bins
    votes = torch.zeros(x.shape[0], channels, bins, *x.shape[2:])
    votes.scatter_add_(2, phase.unsqueeze(2), torch.stack([gx, gy], -1).norm(dim=-1).unsqueeze(2))
    return F.normalize(votes.unfold(3, cell, cell).unfold(4, cell, cell).sum((-1, -2)), dim=2)


@pytest.mark.sampled(lambda bins, dtype: (bins, dtype) == (9, torch.uint8))
@pytest.mark.parametrize("bins", [9, 18])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_it_is_the_layer_of_maskfeat_on_pixels_from_0_to_255(hog, bins, dtype):
    x = byte_images(2, 3, 64, 56, seed=8)
    torch.testing.assert_close(hog(x.to(dtype), bins=bins), hog_layer(x.float(), bins, 8), rtol=0, atol=1e-6)


WRONG = {
    "zero": lambda h: torch.zeros_like(h),
    "not normalised": lambda h: 1.01 * h,
    "negative": lambda h: -h,
    "bins in reverse": lambda h: h.flip(-3),
    "bins off by one": lambda h: h.roll(1, -3),
    "cells off by one": lambda h: h.roll(1, -1),
    "rows and columns swapped": lambda h: h.mT,
    "one percent moved to the next bin but one": lambda h: F.normalize(0.99 * h + 0.01 * h.roll(2, -3), dim=-3),
    "nan": lambda h: h * torch.nan,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", WRONG)
def test_the_comparison_rejects_a_wrong_result(name, dtype):
    x = images(2, 32, 32, dtype=dtype, seed=9)
    right = fused_hog(x, backend="reference")
    check_hog(right, x)
    with pytest.raises(AssertionError, match="cells are wrong"):
        check_hog(WRONG[name](right), x)


@pytest.mark.parametrize(
    "to_bin, share, allowed",
    [(8, 1.0, True), (8, 0.5, True), (8, 1.01, False), (8, -0.01, False), (4, 0.01, False), (1, 0.01, False)],
)
def test_the_comparison_allows_an_edge_pixel_its_own_magnitude_and_no_more(to_bin, share, allowed):
    # In the centre gx = 0.1 - 2 * 0.1 + 0.1, up to rounding, and gy = 2: the pixel may be in the first bin or the last.
    # So may the pixels above and below it, but their gradient is zero.
    x = torch.tensor([[0.1, 1.0, 0.0], [0.0, 0.5, 0.1], [0.1, 0.0, 0.0]])
    spec = HogSpec(cell=3)
    assert edge_pixels(x, spec).nonzero().tolist() == [[0, 1], [1, 1], [2, 1]]
    votes = reference.dense_votes(*reference.gradient(x, "sobel", whole(spec, 3, 3)), spec)
    histogram = reference.cell_sums(votes, cell_axes(spec), whole(spec, 3, 3))
    histogram[0] -= share * 2
    histogram[to_bin] += share * 2
    result = F.normalize(histogram, dim=-3)
    if allowed:
        check_hog(result, x, spec)
    else:
        with pytest.raises(AssertionError, match="1 of 1 cells are wrong"):
            check_hog(result, x, spec)


IMAGE = torch.zeros(3, 16, 20)
BAD_INPUT = [
    (None, {}, TypeError, "x must be a torch.Tensor, or an array with __dlpack__, got NoneType"),
    ([[1.0]], {}, TypeError, "x must be a torch.Tensor, or an array with __dlpack__, got list"),
    (IMAGE.to(torch.complex64), {}, TypeError, "got torch.complex64"),
    (IMAGE.to(torch.int32), {}, TypeError, "got torch.int32"),
    (IMAGE.to(torch.uint32), {}, TypeError, "got torch.uint32"),
    (torch.zeros(()), {}, ValueError, "x must have the axes [..., C, H, W], got shape ()"),
    (torch.zeros(16), {}, ValueError, "x must have the axes [..., C, H, W], got shape (16,)"),
    (IMAGE[:, :7], {}, ValueError, "an image of 7 x 20 pixels is smaller than a cell of 8 x 8"),
    (IMAGE[:, :, :7], {}, ValueError, "an image of 16 x 7 pixels is smaller than a cell of 8 x 8"),
    (IMAGE[:, :0], {}, ValueError, "an image of 0 x 20 pixels is smaller than a cell of 8 x 8"),
    (IMAGE, dict(cell=(4, 21)), ValueError, "an image of 16 x 20 pixels is smaller than a cell of 4 x 21"),
    (IMAGE, dict(cell=0), ValueError, "cell must be at least 1, got 0"),
    (IMAGE, dict(cell=(8, -2)), ValueError, "cell must be at least 1, got -2"),
    (IMAGE, dict(cell=8.0), TypeError, "cell must be an int, got 8.0"),
    (IMAGE, dict(bins=0), ValueError, "bins must be at least 1, got 0"),
    (IMAGE, dict(bins=-9), ValueError, "bins must be at least 1, got -9"),
    (IMAGE, dict(bins=9.5), TypeError, "bins must be an int, got 9.5"),
    (IMAGE, dict(gaussian_window=16), ValueError, "gaussian_window 16 does not tile an image of 16 x 20 pixels"),
    (IMAGE, dict(gaussian_window=5), ValueError, "gaussian_window 5 does not tile an image of 16 x 20 pixels"),
    (IMAGE, dict(gaussian_window=-1), ValueError, "gaussian_window must be at least 0, got -1"),
    (IMAGE, dict(nbins=9), TypeError, "unknown HOG option 'nbins'; did you mean 'bins'?"),
    (IMAGE, dict(spec=9), TypeError, "spec must be a HogSpec, got 9"),
    (IMAGE, dict(spec="maskfeat", bins=8), TypeError, "spec must be a HogSpec, got 'maskfeat'"),
]


@pytest.mark.parametrize("x, options, error, message", BAD_INPUT, ids=[message for *_, message in BAD_INPUT])
def test_bad_input_is_refused_by_name(backend, x, options, error, message):
    with pytest.raises(error) as raised:
        fused_hog(x, backend=backend, **options)
    assert message in str(raised.value)
