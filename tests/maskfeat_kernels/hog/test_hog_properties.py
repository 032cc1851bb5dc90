"""Laws of fused_hog: norms, invariances, symmetries, and one result however the work is divided."""

import threading

import pytest
import torch
from conftest import BACKENDS

from maskfeat_kernels import MASKFEAT, HogSpec, fused_hog
from maskfeat_kernels.hog.plan import whole
from maskfeat_kernels.hog.reference import gradient
from maskfeat_kernels.testing import ATOL, BINS, DTYPES, IMAGENET_MEAN, IMAGENET_STD, byte_images, check_hog, images

CLOSE = dict(rtol=0, atol=ATOL[torch.float32])


def images_without_ties(*shape: int) -> torch.Tensor:  # [*shape], float64, multiples of 1 / 256
    """No inner gradient lies on a bin edge, so that mirroring a pixel mirrors its bin."""
    random = torch.Generator().manual_seed(10)
    x = byte_images(*shape, seed=10) + torch.randint(0, 2**16, shape, generator=random) / 2**8
    gx, gy = (g[..., 1:-1, 1:-1] for g in gradient(x.double(), "sobel", whole(MASKFEAT, *shape[-2:])))
    assert (gx != 0).all() and (gy != 0).all() and (gx.abs() != gy.abs()).all()
    return x.double()


@pytest.mark.sampled(lambda dtype, bins: (dtype, bins) == (torch.bfloat16, 9))
@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cells_have_unit_norm_or_are_zero_and_no_negative_entries(hog, dtype, bins):
    x = images(3, 48, 48, dtype=dtype, seed=11)
    x[0, :16, :16] = x[0, 0, 0]
    result = hog(x, bins=bins)
    norm = torch.linalg.vector_norm(result.double(), dim=-3)
    assert (result >= 0).all()
    assert ((norm == 0) | ((norm - 1).abs() < ATOL[torch.float32])).all()
    assert norm[0, 0, 0] == 0


@pytest.mark.sampled(lambda dtype, scale: (dtype, scale) == (torch.float32, -0.5))
@pytest.mark.parametrize("scale", [2.0**-20, 0.25, 4.0, 2.0**20, -1.0, -0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_powers_of_two_and_signs_cancel_exactly(hog, dtype, scale):
    x = images(3, 24, 40, dtype=dtype, seed=12)
    assert torch.equal(hog(x * scale), hog(x))


def test_a_constant_cancels_exactly_where_it_is_added_exactly(hog):
    x = byte_images(3, 24, 40, seed=13) // 2
    want = hog(x)
    assert torch.equal(hog(x + 128), want)
    assert torch.equal(hog(x.float() - 1000), hog(x.float()))


@pytest.mark.sampled(lambda bins: bins == 9)
@pytest.mark.parametrize("bins", [9, 8, 18])
def test_bytes_and_floats_of_the_same_values_agree(hog, bins):
    x = byte_images(3, 40, 40, seed=14)
    want = hog(x, bins=bins)
    for same in (x.half(), x.float(), x.double(), x.float() / 256, x.float() / 64 - 2, x.half() / 256):
        torch.testing.assert_close(hog(same, bins=bins).float(), want, **CLOSE)


@pytest.mark.sampled(lambda bins: bins == 9)
@pytest.mark.parametrize("bins", [9, 18])
def test_normalised_floats_differ_from_their_bytes_by_edge_pixels_only(hog, bins):
    x = byte_images(3, 64, 64, seed=15)
    normalised = (x.float() / 255 - IMAGENET_MEAN) / IMAGENET_STD
    # x / 255 <= 1 and x / 255 - mean are rounded, then divided by std and rounded again.
    rounding = 2.0**-24
    pixel_error = rounding * (1 / IMAGENET_STD + 2 * float(normalised.abs().max()))
    check_hog(hog(x, bins=bins), normalised, HogSpec(bins=bins), pixel_error=pixel_error)
    check_hog(hog(normalised, bins=bins), normalised, HogSpec(bins=bins))


def inner(hog):
    """Without the cells at the border, where one component of the gradient is zero and mirroring meets ties."""
    return hog[..., 1:-1, 1:-1]


@pytest.mark.sampled(lambda axis, bins: bins == 4)
@pytest.mark.parametrize("bins", [1, 2, 3, 4, 8, 9, 18])
@pytest.mark.parametrize("axis", [-1, -2], ids=["left-right", "up-down"])
def test_a_mirrored_image_has_its_bins_in_reverse(hog, axis, bins):
    x = images_without_ties(2, 40, 48).float()
    torch.testing.assert_close(inner(hog(x.flip(axis), bins=bins)), inner(hog(x, bins=bins).flip(axis, -3)), **CLOSE)


@pytest.mark.sampled(lambda bins: bins == 8)
@pytest.mark.parametrize("bins", [2, 4, 8, 18])
def test_a_transposed_image_has_its_bins_reversed_about_45_degrees(hog, bins):
    x = images_without_ties(2, 40, 48).float()
    want = hog(x, bins=bins).mT.flip(-3).roll(bins // 2, -3)
    torch.testing.assert_close(inner(hog(x.mT, bins=bins)), inner(want), **CLOSE)


@pytest.mark.sampled(lambda bins, **_: bins == 8)
@pytest.mark.parametrize("axis", [-1, -2], ids=["left-right", "up-down"])
@pytest.mark.parametrize("across, down, bins, here, mirrored", [
    (1, 0, 8, 4, 4),  # 90 degrees mirrors into itself
    (0, 1, 8, 0, 0),  # so does 0
    (1, 1, 8, 2, 6),  # 45 degrees into 135, each the lower edge of its bin
    (1, 1, 4, 1, 3),
    (1, 0, 2, 1, 1),
])  # fmt: skip
def test_a_gradient_on_an_edge_mirrors_into_the_bin_above_that_edge(hog, across, down, bins, here, mirrored, axis):
    y, x = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    ramp = (2 * (across * x + down * y)).to(torch.uint8)
    for image, k in ((ramp, here), (ramp.flip(axis), mirrored)):
        assert inner(hog(image, bins=bins)).squeeze().nonzero().squeeze().tolist() == k


@pytest.mark.sampled(lambda bins: bins == 9)
@pytest.mark.parametrize("bins", BINS)
def test_half_a_turn_keeps_every_bin(hog, bins):
    x = byte_images(2, 40, 48, seed=16)
    torch.testing.assert_close(hog(x.flip(-1, -2), bins=bins), hog(x, bins=bins).flip(-1, -2), **CLOSE)


@pytest.mark.sampled(lambda dtype: dtype == torch.float64)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moving_the_image_by_a_cell_moves_the_cells(hog, dtype):
    x = images(2, 40, 60, dtype=dtype, seed=17)
    got, want = hog(x[..., 7:, 6:], cell=(7, 6)), hog(x, cell=(7, 6))[..., 1:, 1:]
    want = want[..., : got.shape[-2], : got.shape[-1]]
    torch.testing.assert_close(inner(got).float(), inner(want).float(), **CLOSE)


def test_channels_and_batch_do_not_mix(hog):
    x = byte_images(3, 4, 16, 24, seed=18)
    want = hog(x)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(hog(x[order]), want[order])
    assert torch.equal(hog(x[:, order]), want[:, order])


@pytest.mark.sampled(lambda dtype: dtype == torch.uint8)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_batching_gives_the_same_bits(hog, dtype):
    x = images(2, 3, 5, 25, 33, dtype=dtype, seed=19)
    want = hog(x)
    assert torch.equal(torch.stack([hog(video) for video in x]), want)
    assert torch.equal(hog(x.flatten(0, 2)).unflatten(0, (2, 3, 5)), want)
    assert torch.equal(hog(x[1, 2, 4]), want[1, 2, 4])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's Triton has another square root")
@pytest.mark.skipif(not {"cpu", "triton"} <= set(BACKENDS), reason="one of the two is not there")
@pytest.mark.parametrize("cell", [8, (5, 7), (16, 12)])
def test_triton_adds_in_the_order_of_the_cpu(cell):
    x = images(2, 40, 60, dtype=torch.float32, seed=25)
    assert torch.equal(fused_hog(x, cell=cell, backend="triton"), fused_hog(x, cell=cell, backend="cpu"))


@pytest.mark.sampled(lambda dtype: dtype == torch.float32)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(hog, two_threads, dtype):
    x = images(16, 3, 64, 64, dtype=dtype, seed=20)
    with_two = hog(x)
    torch.set_num_threads(1)
    assert torch.equal(hog(x), with_two)


@pytest.mark.sampled(lambda: torch.cuda.is_available())  # Triton's interpreter is not made for threads
def test_python_threads_may_call_at_once(hog, two_threads):
    batches = [byte_images(4, 3, 48, 40, seed=seed) for seed in range(4)]
    want = [hog(x) for x in batches]
    got = [[None] * 10 for _ in batches]

    def work(i):
        for repeat in range(10):
            got[i][repeat] = hog(batches[i], bins=9)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, want[i]) for i in range(len(batches)) for result in got[i])


def test_the_image_is_not_written_to(hog):
    x = byte_images(2, 3, 24, 24, seed=21)
    before = x.clone()
    hog(x)
    assert torch.equal(x, before)


def test_autocast_has_no_influence(hog):
    x = images(2, 3, 32, 32, dtype=torch.float32, seed=22)
    want = hog(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = hog(x)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


def test_the_result_has_a_gradient_where_one_is_asked_for(hog):
    x = images(3, 16, 16, dtype=torch.float32, seed=23)
    want = hog(x)
    assert not want.requires_grad
    for leaf in (x.requires_grad_(), torch.nn.Parameter(x), 1.0 * x):
        got = hog(leaf)
        assert got.requires_grad
        torch.testing.assert_close(got, want, rtol=0, atol=2e-6)  # plain torch then adds in another order
        with torch.no_grad():
            assert not hog(leaf).requires_grad


def test_inference_mode_changes_nothing(hog):
    x = byte_images(3, 16, 16, seed=24)
    want = hog(x)
    with torch.inference_mode():
        assert torch.equal(hog(x), want)
        made_inside = x.clone()
        assert torch.equal(hog(made_inside), want)
    assert torch.equal(hog(made_inside), want)
