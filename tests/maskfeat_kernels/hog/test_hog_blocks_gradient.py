"""The gradient of fused_hog in every dialect: against finite differences and the float64 autograd of the reference."""

import pytest
import torch
from conftest import BACKENDS, device_of
from test_hog_blocks import PRESETS, SPECS, size_for
from torch import Tensor

from maskfeat_kernels import fused_hog
from maskfeat_kernels.hog import api as hog_module
from maskfeat_kernels.hog import reference
from maskfeat_kernels.hog.plan import Region, whole
from maskfeat_kernels.hog.spec import CHOICES, DALAL_TRIGGS, MASKFEAT, OPENCV, SKIMAGE, HogSpec
from maskfeat_kernels.testing import FLOATS, byte_images


@pytest.fixture(params=[name for name in BACKENDS if name != "reference"])
def backend(request) -> str:
    """Backends with kernels for the gradient; the reference has autograd, and is what they are compared with."""
    return request.param


def bumpy(*shape: int, seed: int = 0) -> Tensor:  # float64
    """Images without ties: no gradient is on a kink of its bins, and no two channels are equally strong."""
    x = byte_images(*shape, seed=seed).double()
    return x + 20 * torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


def gradient_of(x: Tensor, grad: Tensor, spec: HogSpec, backend: str, region: Region | None = None) -> Tensor:
    region = region or whole(spec, *x.shape[-2:])
    x = x.to(device_of(backend)).detach().requires_grad_()
    hog_module.hog(x, spec, region, backend).backward(grad.to(x.device))
    return x.grad.cpu()


def reference_gradient(x: Tensor, grad: Tensor, spec: HogSpec, region: Region | None = None) -> Tensor:
    x = x.double().requires_grad_()
    reference.hog(x, spec, region or whole(spec, *x.shape[-2:])).backward(grad.double())
    return x.grad


def weights_for(x: Tensor, spec: HogSpec, region: Region | None = None) -> Tensor:
    """A gradient of the result, of both signs."""
    like = reference.hog(x, spec, region or whole(spec, *x.shape[-2:]))
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(like)


@pytest.mark.sampled(lambda name: name == "opencv")
@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if max(spec.block_size) < 50])
def test_float64_gradients_are_those_of_autograd(backend, name):
    spec, seed = SPECS[name], sum(map(ord, name))
    x = bumpy(2, 3, *size_for(spec, seed), seed=seed)
    grad = weights_for(x, spec)
    want = reference_gradient(x, grad, spec)
    # Roundings are amplified by 1 / (2 sqrt(v)) of small entries, and OpenCV's polynomial has float32 coefficients.
    rounding = 1e-6 if spec.arithmetic == "opencv" else 1e-9 if backend != "triton" else 1e-6
    torch.testing.assert_close(
        gradient_of(x, grad, spec, backend), want, rtol=0, atol=rounding * float(want.abs().max() + 1e-30)
    )


@pytest.mark.sampled(lambda name: name == "dalal-triggs")
@pytest.mark.parametrize("name", PRESETS)
def test_float32_gradients_are_near_those_of_float64(backend, name):
    # Square roots and gradients of floats round by 2^-24 of a pixel, some 1e-5 of a small gradient.
    spec = PRESETS[name]
    x = bumpy(1, 3, 32, 40, seed=3).float()
    grad = weights_for(x, spec)
    want = reference_gradient(x, grad, spec)
    got = gradient_of(x, grad, spec, backend)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=0, atol=3e-5 * float(want.abs().max()))


@pytest.mark.sampled(lambda region: region.top == 3)
@pytest.mark.parametrize(
    "region", [Region(-5, -3, 40, 37, 37), Region(-60, -70, 90, 120, 4), Region(3, 2, 9, 9, 0)], ids=str
)
def test_gradients_of_regions_gather_from_all_images_of_a_pixel(backend, region):
    spec = DALAL_TRIGGS.replace(cell=4)
    x = bumpy(2, 3, 14, 11, seed=4)
    grad = weights_for(x, spec, region)
    want = reference_gradient(x, grad, spec, region)
    got = gradient_of(x, grad, spec, backend, region)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * float(want.abs().max()))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])
@pytest.mark.parametrize("norm, votes, arithmetic", [
    *((norm, votes, "exact") for norm in CHOICES["norm"] for votes in CHOICES["votes"]), ("l2-hys", "linear", "opencv"),
])  # fmt: skip
def test_gradients_are_those_of_finite_differences(backend, norm, votes, arithmetic):
    spec = HogSpec(
        bins=5, cell=3, block=2, norm=norm, votes=votes, arithmetic=arithmetic, eps=1e-3, clip=0.3,
        gradient="central", channels="strongest", cells="bilinear", block_sigma=3.0, signed=True,
    )  # fmt: skip
    x = bumpy(2, 8, 9, seed=5).to(device_of(backend)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: fused_hog(x, spec, backend=backend), (x,), atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradients_come_in_the_dtype_of_the_images(backend, dtype):
    x = bumpy(2, 3, 16, 16, seed=6).to(device_of(backend), dtype).requires_grad_()
    fused_hog(x, backend=backend).sum().backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all() and x.grad.ne(0).any()


def test_the_hog_of_maskfeat_has_the_same_values_with_and_without_a_gradient(backend):
    x = byte_images(2, 3, 32, 40, seed=7).float().to(device_of(backend))
    plain = fused_hog(x, backend=backend)
    assert not plain.requires_grad
    tracked = fused_hog(x.clone().requires_grad_(), backend=backend)
    torch.testing.assert_close(tracked.detach(), plain, rtol=0, atol=2e-6)
    with torch.no_grad():
        assert not fused_hog(x.clone().requires_grad_(), backend=backend).requires_grad


@pytest.mark.sampled(lambda name: name == "opencv")
@pytest.mark.parametrize("name", [*PRESETS, "roots"])
def test_flat_and_black_images_have_gradient_zero(backend, name):
    spec = PRESETS.get(name, MASKFEAT.replace(norm="l1-sqrt", sqrt=True))
    x = torch.zeros(2, 3, 24, 24)
    x[1] = 7.0
    grad = torch.ones_like(reference.hog(x, spec, whole(spec, 24, 24)))
    assert gradient_of(x, grad, spec, backend).eq(0).all()


@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")  # by NumPy, of Triton's
@pytest.mark.sampled(lambda norm, votes, value: (norm, votes) in [("none", "hard"), ("l1-sqrt", "linear")])
@pytest.mark.parametrize("votes", CHOICES["votes"])
@pytest.mark.parametrize("norm", CHOICES["norm"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_pixels_that_vote_in_a_block_of_nan_have_gradient_nan(backend, norm, votes, value):
    spec = HogSpec(gradient="central", cell=4, block=2, norm=norm, votes=votes, eps=1e-3)
    x = bumpy(1, 8, 24, seed=9).float()
    x[0, 4, 4] = value
    grad = weights_for(x, spec)
    want, got = reference_gradient(x, grad, spec), gradient_of(x, grad, spec, backend)
    assert want[..., :11].isnan().all() and want[..., 14:].isfinite().all()
    assert torch.equal(got.isnan(), want.isnan())
    torch.testing.assert_close(
        got.double(), want, rtol=0, atol=3e-5 * float(want[..., 14:].abs().max()), equal_nan=True
    )


def test_a_gradient_is_the_same_at_any_number_of_threads(two_threads, compiled_backend):
    x = bumpy(4, 3, 40, 44, seed=8).float()
    for spec in PRESETS.values():
        grad = weights_for(x, spec)
        two = gradient_of(x, grad, spec, compiled_backend)
        torch.set_num_threads(1)
        assert torch.equal(gradient_of(x, grad, spec, compiled_backend), two)
        torch.set_num_threads(2)


def test_gradients_reach_images_through_views(backend):
    x = bumpy(2, 30, 33, 3, seed=9).float().to(device_of(backend)).requires_grad_()
    view = x.movedim(-1, 1)[..., 1::2]
    fused_hog(view, SKIMAGE, cell=4, backend=backend).square().sum().backward()
    copy = view.detach().contiguous().requires_grad_()
    fused_hog(copy, SKIMAGE, cell=4, backend=backend).square().sum().backward()
    assert torch.equal(x.grad.movedim(-1, 1)[..., 1::2], copy.grad)
    assert x.grad.movedim(-1, 1)[..., ::2].eq(0).all()


def test_a_second_derivative_is_refused(compiled_backend):
    x = bumpy(16, 16, seed=10).to(device_of(compiled_backend)).requires_grad_()
    (grad,) = torch.autograd.grad(fused_hog(x, backend=compiled_backend).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^kernels of HOG are differentiable once"):
        grad.sum().backward()


@pytest.mark.sampled(lambda name: name == "maskfeat")
@pytest.mark.parametrize("name", ["maskfeat", "skimage", "each"])
def test_vmap_of_gradients_is_a_loop(backend, name):
    spec = PRESETS.get(name, OPENCV.replace(channels="each"))
    x = bumpy(3, 2, 24, 24, seed=11).float().to(device_of(backend))

    def loss(x):
        return (fused_hog(x, spec, backend=backend) ** 3).sum()

    want = torch.stack([torch.func.grad(loss)(v) for v in x])
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(x), want)
