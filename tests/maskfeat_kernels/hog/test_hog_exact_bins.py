"""Every pixel of a byte image is in the bin of exact arithmetic: all gradients of at most 1020, not a sample.

The exact bins come from integer arithmetic. Direction z = gy + i gx has the angle that is binned, and near edge k the
sign of Im((-1)^k z^bins) tells on which side of it z lies. This proves, in integers, a fixed-point bracket of each
cotangent; the table then follows from integer products, none of which falls into a bracket.
"""

import functools
import math

import mpmath
import numpy as np
import oracle
import pytest
import torch
from conftest import BACKENDS, device_of

from maskfeat_kernels import OPENCV, SKIMAGE, HogSpec, fused_hog, fused_hog_tokens
from maskfeat_kernels.hog.plan import edge_cotangents
from maskfeat_kernels.hog.reference import orientation_bin
from maskfeat_kernels.testing import ATOL, edge_pixels

BINS = (4, 6, 8, 9, 12, 16, 18)
LARGEST = 4 * 255
SIDE = 2 * LARGEST + 1
FRACTION = 40


def bracketed_cotangent(k: int, bins: int) -> int:
    """The integer c with c < 2**FRACTION cot(k pi / bins) < c + 1, proved."""
    c = math.floor(math.ldexp(1 / math.tan(k * math.pi / bins), FRACTION))
    assert beyond_edge(c, k, bins) > 0 > beyond_edge(c + 1, k, bins)
    return c


def beyond_edge(real: int, k: int, bins: int) -> int:
    """Positive if the angle of real + i 2**FRACTION is greater than k pi / bins and negative if it is less."""
    a, b = real, 1 << FRACTION
    power = (1, 0)
    for _ in range(bins):
        power = (power[0] * a - power[1] * b, power[0] * b + power[1] * a)
    return (-1) ** k * power[1]


@functools.cache
def exact_bins(bins: int) -> np.ndarray:  # [gx + LARGEST, gy + LARGEST], int8
    """floor(bins * angle / pi) of the angle atan2(gx, gy) mod pi, for all integer gradients."""
    gx = np.arange(-LARGEST, LARGEST + 1, dtype=np.int64)[:, None]
    gy = np.arange(-LARGEST, LARGEST + 1, dtype=np.int64)[None, :]
    half = slice(LARGEST + 1, None)
    result = np.zeros((SIDE, SIDE), dtype=np.int8)
    for k in range(1, bins):
        # gx * cot(k pi / bins) >= gy in the half plane gx > 0.
        if 4 * k in (bins, 2 * bins, 3 * bins):
            reached = gx[half] * (2 - 4 * k // bins) >= gy
        else:
            c = bracketed_cotangent(k, bins)
            reached, missed = gx[half] * c >= gy << FRACTION, gx[half] * (c + 1) <= gy << FRACTION
            assert np.all(reached ^ missed), "a gradient lies within the bracket"
        result[half] += reached
    result[:LARGEST] = result[:LARGEST:-1, ::-1]
    return result


@pytest.mark.parametrize("bins", BINS)
def test_exact_bins_are_those_of_the_oracle(bins):
    random = np.random.default_rng(0)
    for gx, gy in [*random.integers(-LARGEST, LARGEST, (2000, 2), endpoint=True), *random.integers(-3, 4, (300, 2))]:
        if (gx, gy) != (0, 0):
            assert exact_bins(bins)[gx + LARGEST, gy + LARGEST] == oracle.orientation_bin(int(gx), int(gy), bins)


@pytest.mark.parametrize("bins", BINS)
def test_reference_bins_every_gradient_exactly(bins):
    g = torch.arange(-LARGEST, LARGEST + 1, dtype=torch.float32)
    got = orientation_bin(*torch.meshgrid(g, g, indexing="ij"), bins)
    wrong = np.argwhere(got.numpy() != exact_bins(bins)) - LARGEST
    assert len(wrong) == 0, f"{len(wrong)} gradients (gx, gy) are in the wrong bin, first {wrong[0]}"


def float_image_of_all_gradients() -> torch.Tensor:  # [2048, 2048], float32
    """A sum of a function of x and one of y: pixel (y, x) has gx = 4 (f(x - 1) - f(x + 1)) and gy alike.

    A step prime to the number of gradients mixes large and small, positive and negative ones.
    """
    gradients = np.arange(2046) * 769 % SIDE - LARGEST
    f = np.zeros(2048)
    for i, g in enumerate(gradients):
        f[i + 2] = f[i] - g / 4
    return torch.from_numpy(f[:, None] + f[None, :]).float()


def byte_image_of_all_gradients() -> torch.Tensor:  # [4056, 4056], uint8
    """3 x 3 patches, side by side, whose centres have all the gradients that bytes can produce.

    With A = top left - bottom right, B = top right - bottom left, h = left - right and v = top - bottom, all free in
    -255 .. 255, gx = A - B + 2 h and gy = A + B + 2 v: of equal parity, and A and B make up for what h and v cannot.
    """
    g = np.arange(-LARGEST, LARGEST + 1, dtype=np.int16)
    gx, gy = np.meshgrid(g, g, indexing="ij")
    beyond = np.maximum(abs(g) - 510, 0)
    reachable = ((gx - gy) % 2 == 0) & (beyond[:, None] + beyond[None, :] <= 510)
    # A step prime to the number of gradients scatters them; the square has room to repeat the first ones.
    side = 1352
    order = np.arange(side * side).reshape(side, side) * 1_000_003 % reachable.sum()
    gx, gy = gx[reachable][order], gy[reachable][order]
    h, v = np.clip(gx // 2, -255, 255), np.clip(gy // 2, -255, 255)
    a, b = (gx - 2 * h + gy - 2 * v) // 2, (gy - 2 * v - gx + 2 * h) // 2
    image = np.zeros((side, 3, side, 3), dtype=np.uint8)
    for y, x, difference in ((0, 0, a), (0, 2, b), (1, 0, h), (0, 1, v)):
        image[:, y, :, x] = np.maximum(difference, 0)
        image[:, 2 - y, :, 2 - x] = np.maximum(-difference, 0)
    return torch.from_numpy(image.reshape(3 * side, 3 * side))


STEP = {"float": 1, "byte": 3}
"""Every so many rows and columns of the image, from the second on, have all the gradients."""


@functools.cache
def image_of_all_gradients(pixels: str) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:  # [H, W] each
    """The image and its gx and gy, int16, computed in integers."""
    image = float_image_of_all_gradients() if pixels == "float" else byte_image_of_all_gradients()
    scale = 4 if pixels == "float" else 1
    p = np.pad((image.double() * scale).int().numpy(), 1, mode="reflect")
    assert np.array_equal(p[1:-1, 1:-1] / scale, image)
    across, along = p[:, :-2] - p[:, 2:], p[:-2] - p[2:]
    gx = across[:-2] + 2 * across[1:-1] + across[2:]
    gy = along[:, :-2] + 2 * along[:, 1:-1] + along[:, 2:]
    assert np.all(gx % scale == 0) and np.all(gy % scale == 0)
    return image, (gx // scale).astype(np.int16), (gy // scale).astype(np.int16)


@pytest.mark.parametrize("pixels, count", [("float", SIDE**2), ("byte", (SIDE**2 + 1) // 2 - 510**2)])
def test_the_images_have_all_gradients(pixels, count):
    _, *gradients = image_of_all_gradients(pixels)
    gx, gy = (g[1 : -1 : STEP[pixels], 1 : -1 : STEP[pixels]] for g in gradients)
    seen = np.zeros((SIDE, SIDE), dtype=bool)
    seen[gx + LARGEST, gy + LARGEST] = True
    assert seen.sum() == count


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("pixels", ["float", "byte"])
def test_kernel_bins_every_gradient_exactly(compiled_backend, pixels, bins):
    image, gx, gy = image_of_all_gradients(pixels)
    rows, step = 30, STEP[pixels]  # results of so few stay in the cache
    for top in range(1, len(image) - 1, rows):
        hog = run(image[top - 1 : top + rows + 1], bins, 1, compiled_backend)[:, 1:-1]
        part = slice(top, top + hog.shape[1], step), slice(1, -1, step)
        check_bins(hog[:, ::step, 1:-1:step].contiguous(), gx[part], gy[part], bins)


@pytest.mark.parametrize("pixels, bins", [("float", 9), ("byte", 18)])
def test_triton_bins_many_gradients_exactly(pixels, bins):
    if "triton" not in BACKENDS:
        pytest.skip("triton is not installed")
    image, gx, gy = (part[:34] for part in image_of_all_gradients(pixels))
    check_bins(run(image, bins, 1, "triton")[:, 1:-1], gx[1:-1], gy[1:-1], bins)


@pytest.mark.parametrize("pixels, bins", [
    *[("float", bins) for bins in BINS],
    *[pytest.param("byte", bins, marks=() if bins == 9 else pytest.mark.slow) for bins in BINS],
])  # fmt: skip
def test_kernel_sums_every_gradient_in_its_exact_bin(compiled_backend, pixels, bins):
    # A pixel in the wrong bin would move its cell by at least 1 / (64 * 1443), five times the tolerance.
    image, gx, gy = image_of_all_gradients(pixels)
    rows, columns = image.shape[0] // 8, image.shape[1] // 8
    bin_of = exact_bins(bins)[gx + LARGEST, gy + LARGEST].astype(np.int32)
    cell_of = np.add.outer(np.arange(8 * rows, dtype=np.int32) // 8 * columns, np.arange(8 * columns) // 8)
    votes = np.bincount(
        (cell_of * bins + bin_of).ravel(),
        weights=np.hypot(gx, gy, dtype=np.float64).ravel(),
        minlength=rows * columns * bins,
    )
    want = votes.reshape(rows, columns, bins).transpose(2, 0, 1)
    want = want / np.maximum(np.linalg.norm(want, axis=0), 1e-12)
    np.testing.assert_allclose(run(image, bins, 8, compiled_backend), want, rtol=0, atol=ATOL[torch.float32])


def check_bins(
    hog: torch.Tensor,  # [bins, H, W], of cells of one pixel
    gx: np.ndarray,  # [H, W]
    gy: np.ndarray,  # [H, W]
    bins: int,
) -> None:
    """The histogram of a pixel is the one-hot vector of its bin, or zero where the gradient is."""
    want = torch.from_numpy(exact_bins(bins)[gx + LARGEST, gy + LARGEST])
    voted = hog.gather(0, want.long().unsqueeze(0)).squeeze(0)
    one = torch.from_numpy((gx != 0) | (gy != 0)).float()
    assert float((voted - one).abs().max()) <= ATOL[torch.float32]
    assert float((hog.sum(0) - voted).abs().max()) <= ATOL[torch.float32]


def run(image: torch.Tensor, bins: int, cell: int, backend: str) -> torch.Tensor:  # [bins, rows, columns]
    return fused_hog(image.to(device_of(backend)), bins=bins, cell=cell, backend=backend).cpu()


@pytest.mark.parametrize("bins", BINS)
def test_bytes_have_no_edge_pixels_so_that_check_hog_allows_them_nothing(bins):
    image, _, _ = image_of_all_gradients("byte")
    assert not edge_pixels(image[:512, :512], HogSpec(bins=bins)).any()


LARGEST_OF_16_BITS = 8 * 65535
"""The most that a Sobel gradient of 16 bits can be."""


def nearest_gradients(cotangent: mpmath.mpf) -> list[tuple[int, int]]:
    """The gradients (gx, gy) of 16 bits that are nearest to an edge: all convergents gy / gx of its cotangent.

    Any other has |gx cot - gy| >= 1 / (2 gx), by Legendre's theorem: 2^-20, where rounding is at most 2^-33.
    """
    gy, gx, gy_before, gx_before, rest, found = 1, 0, 0, 1, cotangent, []
    while True:
        digit = int(mpmath.floor(rest))
        gy, gx, gy_before, gx_before = digit * gy + gy_before, digit * gx + gx_before, gy, gx
        if max(gx, gy) > LARGEST_OF_16_BITS:
            return found
        found.append((gx, gy))
        rest = 1 / (rest - digit)


def wrong_decisions(bins: int, real: type) -> int:
    """How many of the nearest gradients a product of floats puts on the wrong side of an edge."""
    rounded, wrong = edge_cotangents(bins), 0
    for k in range(1, (bins + 1) // 2):  # the other edges are mirror images
        if 4 * k == bins:  # the cotangent is 1
            continue
        with mpmath.workprec(200):
            cotangent = mpmath.cot(mpmath.pi * k / bins)
            nearest = nearest_gradients(cotangent)
            assert len(nearest) > 3
            for gx, gy in nearest:
                wrong += bool(real(gx) * real(rounded[k - 1]) >= real(gy)) != bool(gx * cotangent >= gy)
    return wrong


@pytest.mark.parametrize("bins", [*range(3, 19), 24, 36, 64, 180, 256])
def test_float64_decides_every_gradient_of_16_bits_exactly(bins):
    assert wrong_decisions(bins, np.float64) == 0


def test_float32_does_not():
    assert wrong_decisions(9, np.float32) > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int16, torch.uint16])
def test_whole_numbers_are_pixels(dtype, backend):
    """16 bits have the bins of float64, and a constant that is added to bytes changes nothing."""
    low, high = (0, 2) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max + 1)
    x = torch.randint(low, high, (2, 3, 16, 32), generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x.to(device_of(backend))
    ids = torch.tensor([[0, 1], [1, 1]], device=x.device)
    exact = x.double()
    for result, expected in (
        (fused_hog(x, backend=backend), fused_hog(exact, backend="reference")),
        (fused_hog(x, SKIMAGE, cell=4, backend=backend), fused_hog(exact, SKIMAGE, cell=4, backend="reference")),
        (fused_hog_tokens(x, ids, backend=backend), fused_hog_tokens(exact, ids, backend="reference")),
    ):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=ATOL[torch.float32])


def test_roots_of_negative_pixels_are_not_those_of_bytes():
    x = torch.randint(-128, 128, (24, 24), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    assert fused_hog(x, SKIMAGE, sqrt=True).isnan().any()
    x = x // 2 + 64
    expected = fused_hog(x.double(), SKIMAGE, sqrt=True).float()
    assert torch.equal(fused_hog(x, SKIMAGE, sqrt=True), expected)


@pytest.mark.filterwarnings("ignore")  # of torch.jit about itself
def test_whole_numbers_under_trace_and_where_opencv_warns():
    x = torch.randint(-128, 128, (3, 24, 32), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    traced = torch.jit.trace(lambda x: fused_hog(x, backend="reference"), x)
    assert torch.equal(traced(x.flip(0)), fused_hog(x.flip(0), backend="reference"))
    with pytest.warns(UserWarning, match=r"the pixels are in \[0, 1\]"):
        fused_hog(x > 0, OPENCV)
