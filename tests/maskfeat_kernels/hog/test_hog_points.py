"""fused_hog_at: each window against the blocks of its region, on every backend, and under PyTorch's transforms."""

import numpy as np
import pytest
import torch
from conftest import device_of
from torch import Tensor

from maskfeat_kernels import fused_hog, fused_hog_at
from maskfeat_kernels.hog import api, ops
from maskfeat_kernels.hog.plan import NEVER, Region, block_shape, whole
from maskfeat_kernels.hog.spec import DALAL_TRIGGS, MASKFEAT, OPENCV, SKIMAGE
from maskfeat_kernels.testing import byte_images

SPECS = {
    "maskfeat": MASKFEAT,
    "skimage": SKIMAGE.replace(cell=4, block=2),
    "opencv": OPENCV.replace(cell=4, block_sigma=2.0),
    "each": DALAL_TRIGGS.replace(channels="each", cell=(4, 5), signed=True, bins=12),
}
POINTS = {
    "apart": [[0, 0], [-5, 38]],  # each window computes its own votes
    "overlapping": [[y, x] for y in (-3, 0, 8) for x in (-1, 3, 26)],  # they share them
}
SIZE = (16, 20)


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def by_regions(x: Tensor, points: list[list[int]], spec, backend: str) -> Tensor:
    """The same by a call for each window."""
    tie_column = whole(spec, *x.shape[-2:]).tie_column
    tie_column = tie_column if tie_column < x.shape[-1] else NEVER
    windows = [api.hog(x, spec, Region(top, left, *SIZE, tie_column - left), backend) for top, left in points]
    return torch.stack(windows, dim=max(0, x.ndim - 3))


@pytest.mark.sampled(lambda spec, points, shape: (spec, points, len(shape)) == ("skimage", "apart", 3))
@pytest.mark.parametrize("shape", [slow((2, 3, 30, 48)), (3, 30, 47), slow((31, 45)), slow((1, 30, 48))], ids=str)
@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("spec", SPECS)
def test_each_window_is_the_region_at_its_point(backend, spec, points, shape):
    # Few grey values: many channels are equally strong, of which OpenCV takes the last in some columns.
    x = (byte_images(*shape, seed=1) % 3 * 100).to(device_of(backend))
    at = torch.tensor(POINTS[points], device=x.device)
    got, want = (
        fused_hog_at(x, at, SIZE, SPECS[spec], backend=backend),
        by_regions(x, POINTS[points], SPECS[spec], backend),
    )
    by_reference = spec == "opencv" and shape[-1] % 4 and len(shape) > 2 and backend not in ("cpu", "reference")
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 if by_reference else 1e-6 if backend == "cuda" else 0)


@pytest.mark.sampled(lambda spec, dtype: (spec, dtype) == ("maskfeat", torch.float16))
@pytest.mark.parametrize("spec", [slow("maskfeat"), slow("skimage"), "opencv", slow("each")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int16], ids=str)
def test_other_dtypes(backend, spec, dtype):
    x = byte_images(2, 3, 30, 48, seed=2).to(device_of(backend))
    at = torch.tensor(POINTS["overlapping"], device=x.device, dtype=torch.int32)
    want = fused_hog_at(x.double(), at, SIZE, SPECS[spec], backend="reference")
    got = fused_hog_at(x.to(dtype), at, SIZE, SPECS[spec], backend=backend)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=5e-6)


def test_points_on_the_grid_of_blocks_give_the_blocks_of_the_image(compiled_backend):
    x = byte_images(3, 64, 80, seed=3).to(device_of(compiled_backend))
    blocks = fused_hog(x, SKIMAGE, backend=compiled_backend)
    grid = 8 * torch.cartesian_prod(torch.arange(len(blocks)), torch.arange(blocks.shape[1])).to(x.device)
    windows = fused_hog_at(x, grid, SKIMAGE.block_size, SKIMAGE, backend=compiled_backend)
    atol = 0 if compiled_backend == "cpu" else 1e-6
    torch.testing.assert_close(windows.flatten(1), blocks.flatten(2).flatten(0, 1), rtol=0, atol=atol)


@pytest.mark.sampled(lambda lead: lead == (2, 3))
@pytest.mark.parametrize("lead", [(2,), slow((2, 3))], ids=str)
def test_each_image_may_have_points_of_its_own(backend, lead):
    x = byte_images(*lead, 3, 30, 40, seed=4).to(device_of(backend))
    at = torch.randint(-4, 20, (*lead, 3, 2), generator=torch.Generator().manual_seed(0)).to(x.device)
    for spec in (SPECS["skimage"], SPECS["each"]):
        got = fused_hog_at(x, at, SIZE, spec, backend=backend)
        for index in np.ndindex(lead):
            assert torch.equal(got[index], fused_hog_at(x[index], at[index], SIZE, spec, backend=backend))


def test_no_points_and_no_images(backend):
    x = torch.zeros(2, 3, 30, 40, device=device_of(backend))
    at = torch.zeros(0, 2, dtype=torch.int64, device=x.device)
    shape = block_shape(SPECS["each"], Region(0, 0, *SIZE, NEVER))
    assert fused_hog_at(x, at, SIZE, SPECS["each"], backend=backend).shape == (2, 0, 3, *shape)
    assert fused_hog_at(x[:0], at.new_zeros(4, 2), SIZE, SPECS["each"], backend=backend).shape == (0, 4, 3, *shape)


@pytest.mark.parametrize("strides", ["channels last", "flipped", "every second column"])
def test_images_are_read_in_place(compiled_backend, strides):
    x = byte_images(2, 3, 30, 80, seed=5).to(device_of(compiled_backend))
    view = {
        "channels last": x[..., :40].contiguous(memory_format=torch.channels_last),
        "flipped": x[..., :40].mT.contiguous().mT,
        "every second column": x[..., ::2],
    }[strides]
    at = torch.tensor(POINTS["overlapping"], device=x.device)
    got = fused_hog_at(view, at, SIZE, SPECS["skimage"], backend=compiled_backend)
    want = fused_hog_at(view.contiguous(), at, SIZE, SPECS["skimage"], backend=compiled_backend)
    assert torch.equal(got, want)


@pytest.mark.sampled(lambda spec: False)
@pytest.mark.parametrize("spec", ["skimage", slow("opencv")])
def test_gradient_is_the_sum_of_those_of_the_regions(backend, spec):
    x = byte_images(1, 3, 30, 47, seed=6).double().to(device_of(backend)).requires_grad_()
    at = torch.tensor(POINTS["apart"], device=x.device)
    got, want = (
        fused_hog_at(x, at, SIZE, SPECS[spec], backend=backend),
        by_regions(x, POINTS["apart"], SPECS[spec], "reference"),
    )
    weights = torch.linspace(0, 1, want.numel(), dtype=torch.float64, device=x.device).reshape(want.shape)
    (grad,) = torch.autograd.grad((got * weights).sum(), x)
    (expected,) = torch.autograd.grad((want * weights).sum(), x)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-8)


def test_arrays_give_arrays():
    x = byte_images(3, 30, 40, seed=7)
    at = np.array(POINTS["overlapping"])
    result = fused_hog_at(x.numpy(), at, SIZE, SKIMAGE, cell=4, block=2, backend="reference")
    want = fused_hog_at(x, torch.from_numpy(at), SIZE, SKIMAGE, cell=4, block=2, backend="reference")
    assert isinstance(result, np.ndarray) and np.array_equal(result, want)


@pytest.mark.parametrize("change, error, message", [
    ({"points": [[0, 0]]}, TypeError, "points must be a torch.Tensor"),
    ({"points": torch.zeros(1, 2)}, TypeError, "points must be int64, got torch.float32"),
    ({"points": torch.zeros(2, dtype=torch.int64)}, ValueError, r"points must be \[N, 2\]"),
    ({"points": torch.zeros(4, 3, dtype=torch.int64)}, ValueError, r"points must be \[N, 2\]"),
    ({"points": torch.zeros(3, 4, 2, dtype=torch.int64)}, ValueError, r"leading axes of x, \(2,\)"),
    ({"points": torch.zeros(1, 2, dtype=torch.int64, device="meta")}, ValueError, "points must be on the device of x"),
    ({"size": (8, 7)}, ValueError, "size must be at least a block of 8 x 8 pixels"),
    ({"size": (8, 2**31)}, ValueError, "size must be below 2\\^31 pixels"),
    ({"size": 2**70}, ValueError, "size must be below 2\\^31 pixels"),
    ({"size": 8.5}, TypeError, "size must be an int"),
    ({"size": (8, 8, 8)}, ValueError, "size must be an int or"),
    ({"gaussian_window": 16}, ValueError, "gaussian_window is tiled over an image"),
    ({"spec": "skimage"}, TypeError, "spec must be a HogSpec"),
    ({"bin": 9}, TypeError, "did you mean 'bins'"),
    ({"x": torch.zeros(2, 3, 7, 48)}, ValueError, "smaller than a cell"),
    ({"backend": "gpu"}, ValueError, "gpu"),
])  # fmt: skip
def test_bad_arguments(change, error, message):
    call = {"x": torch.zeros(2, 3, 32, 48), "points": torch.zeros(1, 2, dtype=torch.int64), "size": 16} | change
    with pytest.raises(error, match=message):
        fused_hog_at(**call)


def test_a_point_of_another_world_is_refused(compiled_backend):
    if compiled_backend != "cpu":
        pytest.skip("a GPU would have to be waited for")
    far = torch.tensor([[0, 0], [0, 1 << 31]])
    with pytest.raises(IndexError, match="within 2\\^31 pixels of the image, got 2147483648"):
        fused_hog_at(torch.zeros(1, 32, 32), far, 16, backend="cpu")
    near = torch.tensor([[0, 0], [0, (1 << 31) - 1], [1 - (1 << 31), 5]])  # their rectangle would not fit any memory
    assert fused_hog_at(torch.rand(1, 32, 32), near, 16, backend="cpu").isfinite().all()


@pytest.mark.parametrize("change, error, message", [
    (lambda x, at: (x.int(), at), RuntimeError, "the dtype must be uint8"),
    (lambda x, at: (x, at.int()), RuntimeError, "points must be"),
    (lambda x, at: (x, at[:, :1]), RuntimeError, "points must be"),
    (lambda x, at: (x, at.expand(3, 4, 2).contiguous()), RuntimeError, "leading axes of x"),
    (lambda x, at: (x[..., :0], at), RuntimeError, "x must have pixels"),
])  # fmt: skip
def test_the_op_called_by_itself_refuses_what_it_cannot_read(change, error, message):
    if not torch._C._dispatch_has_kernel_for_dispatch_key("maskfeat_kernels::hog_blocks_at", "CPU"):
        pytest.skip("the kernels of the CPU are not built")
    x, at = change(torch.zeros(1, 3, 24, 32), torch.zeros(4, 2, dtype=torch.int64))
    region = Region(0, 0, 24, 24, NEVER)
    with pytest.raises(error, match=message):
        torch.ops.maskfeat_kernels.hog_blocks_at(x, at, *ops.pack(SKIMAGE), region, block_shape(SKIMAGE, region))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("spec", [slow("opencv"), slow("each")])
def test_compiled_without_graph_break(compiled_backend, spec):
    def at_points(x, at):
        return 2 * fused_hog_at(x, at, SIZE, SPECS[spec], backend=compiled_backend)

    x = byte_images(2, 3, 30, 48, seed=8).to(device_of(compiled_backend))
    at = torch.tensor(POINTS["overlapping"], device=x.device)
    want = at_points(x, at)
    compiled = torch.compile(at_points, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(x, at), want)
    assert torch.equal(compiled(x, at[:7]), want[:, :7])


@pytest.mark.parametrize("spec", ["opencv", "each"])
def test_vmap(compiled_backend, spec):
    def at_points(x, at):
        return fused_hog_at(x, at, SIZE, SPECS[spec], backend=compiled_backend)

    x = byte_images(2, 4, 3, 30, 48, seed=8).to(device_of(compiled_backend))
    at = torch.tensor(POINTS["apart"], device=x.device)
    own = at + torch.arange(8, device=x.device).view(2, 4, 1, 1)
    vmap = torch.func.vmap
    assert torch.equal(vmap(at_points, (0, None))(x, at), at_points(x, at))
    assert torch.equal(vmap(at_points)(x, own), at_points(x, own))
    assert torch.equal(vmap(at_points)(x, own[:, 0]), at_points(x, own[:, :1].expand(2, 4, 2, 2)))
    assert torch.equal(vmap(at_points, (None, 0))(x[0, 0], own[0]), at_points(x[0, :1].expand(4, 3, 30, 48), own[0]))
    planes = x[0, 0]
    want = torch.stack([at_points(plane, at) for plane in planes])
    assert torch.equal(vmap(at_points, (0, None))(planes, at), want)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", [(2, 3, 30, 48), (30, 47)], ids=str)
def test_opcheck(spec, shape):
    if not torch._C._dispatch_has_kernel_for_dispatch_key("maskfeat_kernels::hog_blocks_at", "CPU"):
        pytest.skip("the kernels of the CPU are not built")
    region = Region(0, 0, *SIZE, NEVER)
    arguments = byte_images(*shape, seed=9), torch.tensor(POINTS["apart"]), *ops.pack(SPECS[spec]), list(region)
    shape_of_result = list(block_shape(SPECS[spec], region))
    torch.library.opcheck(torch.ops.maskfeat_kernels.hog_blocks_at.default, (*arguments, shape_of_result))
