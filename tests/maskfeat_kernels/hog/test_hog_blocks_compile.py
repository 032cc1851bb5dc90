"""fused_hog of any dialect under PyTorch's transforms: op contract, compile, export, fake tensors and vmap."""

import pytest
import torch
from conftest import OPAQUE, device_of
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

from maskfeat_kernels import fused_hog
from maskfeat_kernels.hog import ops
from maskfeat_kernels.hog.plan import block_shape, whole
from maskfeat_kernels.hog.spec import DALAL_TRIGGS, OPENCV, SKIMAGE
from maskfeat_kernels.testing import byte_images

SIZES = [(2, 3, 32, 40), (3, 3, 40, 33), (5, 2, 33, 64)]
SPECS = {"skimage": SKIMAGE, "opencv": OPENCV, "each": DALAL_TRIGGS.replace(channels="each", cell=(4, 5))}

pytestmark = pytest.mark.usefixtures("fresh_compiler")
slow = pytest.mark.slow


@pytest.fixture(params=OPAQUE)
def backend(request) -> str:
    """Backends that are one opaque op to the transforms."""
    return request.param


OPCHECKS = [
    pytest.param(
        name, shape, dtype, marks=() if torch.float32 == dtype or (name, len(shape)) == ("skimage", 2) else slow
    )
    for name in SPECS
    for shape in ((2, 3, 25, 40), (24, 26), (0, 3, 24, 24))
    for dtype in (torch.uint8, torch.float32, torch.float64)
]


@pytest.mark.parametrize("name, shape, dtype", OPCHECKS, ids=str)
def test_opcheck(compiled_backend, name, shape, dtype):
    spec = SPECS[name]
    x = byte_images(*shape, seed=1).to(device_of(compiled_backend), dtype)
    region = whole(spec, *shape[-2:])
    numbers, reals = ops.pack(spec)
    forward = (x, numbers, reals, list(region), list(block_shape(spec, region)))
    torch.library.opcheck(torch.ops.maskfeat_kernels.hog_blocks.default, forward)
    grad = torch.ones_like(ops.hog(x, spec, region))
    torch.library.opcheck(torch.ops.maskfeat_kernels.hog_blocks_backward.default, (grad, x, *forward[1:4]))


@pytest.mark.parametrize("change, error, message", [
    (lambda x, n, r, region, shape: (x, n[:-1], r, region, shape), ValueError, "not the parameters"),
    (lambda x, n, r, region, shape: (x, n, [*r, 0.0], region, shape), ValueError, "not the parameters"),
    (lambda x, n, r, region, shape: (x, n, r, region[:4], shape), RuntimeError, "region must be"),
    (lambda x, n, r, region, shape: (x, n, r, [0, 0, 8, 8, 8], shape), RuntimeError, "smaller than a block"),
    (lambda x, n, r, region, shape: (x, n, r, region, [*shape, 2]), RuntimeError, "shape does not fit"),
    (lambda x, n, r, region, shape: (x[0, 0, 0], n, r, region, shape), RuntimeError, "axes"),
    (lambda x, n, r, region, shape: (x[:, :0], n, r, region, shape), ValueError, "channels can be taken, got 0"),
    (lambda x, n, r, region, shape: (x[..., :0], n, r, region, shape), RuntimeError, "x must have pixels"),
    (lambda x, n, r, region, shape: (x.int(), n, r, region, shape), RuntimeError, "the dtype must be uint8"),
])  # fmt: skip
def test_the_op_called_by_itself_refuses_what_it_cannot_read(compiled_backend, change, error, message):
    x = torch.zeros(1, 3, 24, 32, device=device_of(compiled_backend))
    region = whole(SKIMAGE, 24, 32)
    arguments = change(x, *ops.pack(SKIMAGE), list(region), list(block_shape(SKIMAGE, region)))
    with pytest.raises(error, match=message):
        torch.ops.maskfeat_kernels.hog_blocks(*arguments)


@pytest.mark.sampled(lambda name: name == "skimage")
@pytest.mark.parametrize("name", ["skimage", *(pytest.param(name, marks=slow) for name in SPECS if name != "skimage")])
def test_compiled_without_graph_break_for_all_sizes_at_once(hog, backend, name):
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def around(x):
        return 1 + 2 * fused_hog(x * 2, SPECS[name], eps=2e-3, backend=backend)

    frames = set()
    for shape in SIZES:
        x = byte_images(*shape, seed=2).float().to(device_of(backend))
        assert torch.equal(around(x).cpu(), 1 + 2 * hog(x * 2, SPECS[name], eps=2e-3))
        frames.add(counter.frame_count)
    assert len(frames) == 1  # the first call begins anew once it knows that the numbers of a spec are constants


@pytest.mark.sampled(lambda name: name == "maskfeat")
@pytest.mark.parametrize("name", ["maskfeat", pytest.param("skimage", marks=slow)])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo itself
def test_gradients_through_compiled_code(backend, name):
    spec = SPECS.get(name, SKIMAGE.replace(block=1, cell=4))

    def loss(x):
        hog = fused_hog(x * 2, backend=backend) if name == "maskfeat" else fused_hog(x * 2, spec, backend=backend)
        return (hog * torch.linspace(0, 1, hog.shape[-1], device=hog.device)).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in SIZES[:2]:
        x = (byte_images(*shape, seed=3).float() + torch.rand(shape)).to(device_of(backend)).requires_grad_()
        (got,) = torch.autograd.grad(compiled(x), x)
        (want,) = torch.autograd.grad(loss(x), x)
        torch.testing.assert_close(got, want)


class Features(torch.nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.backend = backend

    def forward(self, x):
        return fused_hog(x, SKIMAGE, backend=self.backend).flatten(1)


@pytest.mark.sampled(lambda strict: strict)
@pytest.mark.parametrize("strict", [False, True])
def test_exported_with_dynamic_batch_height_and_width(hog, backend, strict):
    dim = torch.export.Dim
    dynamic = {"x": {0: dim("batch"), 2: dim("height", min=32, max=512), 3: dim("width", min=32, max=512)}}
    x = byte_images(2, 3, 32, 40, seed=4).to(device_of(backend))
    program = torch.export.export(Features(backend), (x,), dynamic_shapes=dynamic, strict=strict)
    for shape in [(2, 3, 32, 40), (5, 3, 50, 47)]:
        x = byte_images(*shape, seed=5).to(device_of(backend))
        assert torch.equal(program.module()(x).cpu(), hog(x, SKIMAGE).flatten(1))


@pytest.mark.sampled(lambda name, shape: name == "skimage" and shape == (26, 33))
@pytest.mark.parametrize("shape", [(2, 3, 26, 40), (26, 33), (0, 3, 24, 24)], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_fake_and_meta_results_look_like_real_ones(hog, backend, name, shape):
    real = hog(torch.zeros(shape), SPECS[name])
    results = [fused_hog(torch.zeros(shape, device="meta"), SPECS[name])]
    with FakeTensorMode():
        results.append(fused_hog(torch.zeros(shape, device=device_of(backend)), SPECS[name], backend=backend))
    for result in results:
        assert (result.shape, result.dtype, result.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.sampled(lambda axis, planes: axis == 1 and planes == (3,))
@pytest.mark.parametrize("planes", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_vmap_over_any_axis_is_a_loop(hog, backend, axis, planes):
    shape = [*planes, 24, 28]
    shape.insert(axis if axis >= 0 else len(shape), 4)
    x = byte_images(*shape, seed=6).to(device_of(backend))
    got = torch.vmap(lambda x: fused_hog(x, SKIMAGE, backend=backend), in_dims=axis)(x)
    assert torch.equal(got.cpu(), torch.stack([hog(v, SKIMAGE) for v in x.unbind(axis)]))
