"""fused_hog under PyTorch's transforms: op contract, compile, export, fake tensors, vmap and grad."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import BACKENDS, OPAQUE, device_of
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

from maskfeat_kernels import SKIMAGE, fused_hog, fused_hog_tokens, fused_masked_gather
from maskfeat_kernels.testing import DTYPES, byte_images, check_hog, images

# No axis of 1, images or cells: a length of 1 is compiled anew, and so it should be.
SIZES = [(2, 3, 16, 24), (3, 3, 40, 17), (5, 2, 33, 64), (2, 4, 19, 31)]

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.fixture(params=OPAQUE)
def backend(request) -> str:
    """Backends that are one opaque op to the transforms."""
    return request.param


@pytest.fixture
def hog_op(backend):
    """The op of the backend under test."""
    if backend != "triton":
        return torch.ops.maskfeat_kernels.hog.default
    from maskfeat_kernels.hog.triton import launch  # defines it

    return launch.hog_op


@pytest.mark.sampled(lambda shape, parameters, dtype: shape[0] != 1 and dtype == torch.float32)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape, parameters", [
    ((2, 3, 16, 24), (9, 8, 8, 0)),
    ((17, 19), (12, 4, 5, 0)),
    ((1, 2, 3, 16, 16), (8, 8, 8, 16)),
    ((0, 3, 16, 16), (9, 8, 8, 0)),
])  # fmt: skip
def test_opcheck(hog_op, backend, shape, parameters, dtype):
    x = images(*shape, dtype=dtype).to(device_of(backend))
    torch.library.opcheck(hog_op, (x, *parameters))


def test_opcheck_of_a_strided_view(hog_op, backend):
    x = byte_images(2, 16, 24, 3).permute(0, 3, 1, 2)[..., ::2].to(device_of(backend))
    torch.library.opcheck(hog_op, (x, 9, 8, 8, 0))


def test_the_op_is_one_opaque_call_that_keeps_strides():
    assert str(torch.ops.maskfeat_kernels.hog.default._schema) == (
        "maskfeat_kernels::hog(Tensor x, int bins, int cell_h, int cell_w, int gaussian_window) -> Tensor"
    )
    assert torch.Tag.needs_exact_strides in torch.ops.maskfeat_kernels.hog.default.tags


@pytest.mark.parametrize("x, parameters, message", [
    (torch.zeros(16, 16), (0, 8, 8, 0), "out of range"),
    (torch.zeros(16, 16), (9, 0, 8, 0), "out of range"),
    (torch.zeros(16, 16), (9, 8, -1, 0), "out of range"),
    (torch.zeros(16, 16), (9, 8, 8, -1), "out of range"),
    (torch.zeros(16, 16), (9, 8, 8, 5), "gaussian_window 5 does not tile"),
    (torch.zeros(16), (9, 8, 8, 0), "axes"),
    (torch.zeros(16, 16, dtype=torch.int32), (9, 8, 8, 0), "the dtype must be uint8"),
])  # fmt: skip
def test_the_op_called_by_itself_refuses_what_it_cannot_read(compiled_backend, x, parameters, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.maskfeat_kernels.hog.default(x.to(device_of(compiled_backend)), *parameters)


def test_compiled_without_graph_break_for_all_sizes_at_once(hog, backend):
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def around(x):
        return 1 + 2 * fused_hog(x * 2, bins=12, backend=backend)

    frames = set()
    for shape in SIZES:
        x = byte_images(*shape, seed=30).float().to(device_of(backend))
        assert torch.equal(around(x).cpu(), 1 + 2 * hog(x * 2, bins=12))
        frames.add(counter.frame_count)
    assert len(frames) == 1  # the first call begins anew once it knows that the numbers of a spec are constants


def test_compiled_with_auto_backend(hog):
    around = torch.compile(fused_hog, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in SIZES[:2]:
        x = byte_images(*shape, seed=31)
        check_hog(around(x), x)


def test_compiled_reads_views_in_place_as_the_caller_laid_them_out(hog, backend):
    around = torch.compile(lambda x: fused_hog(x, backend=backend), fullgraph=True, backend="aot_eager")
    x = byte_images(2, 3, 24, 32, seed=32)
    for view in (x.contiguous(memory_format=torch.channels_last), x.mT, x[..., ::2], x[:1].expand(4, 3, 24, 32)):
        view = view.to(device_of(backend))
        assert torch.equal(around(view).cpu(), hog(view))


@pytest.mark.slow  # the C++ compiler of inductor takes half a minute
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_by_inductor(hog, backend):
    @torch.compile(fullgraph=True)
    def around(x):
        return fused_hog(x + 1, backend=backend).square().sum(-3)

    x = byte_images(2, 3, 24, 32, seed=33).float().to(device_of(backend))
    torch.testing.assert_close(around(x), fused_hog(x + 1, backend=backend).square().sum(-3))


class Target(torch.nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.backend = backend

    def forward(self, x):
        return fused_hog(x, backend=self.backend).flatten(1, 2)


@pytest.mark.sampled(lambda strict: strict)
@pytest.mark.parametrize("strict", [False, True])
def test_exported_with_dynamic_batch_height_and_width(hog, backend, strict):
    dim = torch.export.Dim
    dynamic = {"x": {0: dim("batch"), 2: dim("height", min=16, max=512), 3: dim("width", min=16, max=512)}}
    x = byte_images(2, 3, 32, 24, seed=34).to(device_of(backend))
    program = torch.export.export(Target(backend), (x,), dynamic_shapes=dynamic, strict=strict)
    for shape in [(2, 3, 32, 24), (5, 3, 50, 47), (3, 3, 16, 100)]:
        x = byte_images(*shape, seed=35).to(device_of(backend))
        assert torch.equal(program.module()(x).cpu(), hog(x).flatten(1, 2))


class Everything(torch.nn.Module):
    def forward(self, x, ids):
        tokens = fused_hog_tokens(x, ids, 8)
        return fused_hog(x), fused_hog(x, SKIMAGE, block=1), tokens, fused_masked_gather(tokens, ids[:, :1])


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the extension is not built")
@pytest.mark.slow
def test_a_saved_program_runs_in_another_process(tmp_path):
    x, ids = images(2, 3, 16, 24, dtype=torch.float32), torch.tensor([[0, 1], [1, 0]])
    torch.export.save(torch.export.export(Everything(), (x, ids)), tmp_path / "program.pt2")
    torch.save((x, ids), tmp_path / "inputs.pt")
    code = """
import sys, torch, maskfeat_kernels
inputs = torch.load(f"{sys.argv[1]}/inputs.pt")
outputs = torch.export.load(f"{sys.argv[1]}/program.pt2").module()(*inputs)
torch.save(outputs, f"{sys.argv[1]}/outputs.pt")
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=Path(__file__).parents[3], check=True)
    for got, want in zip(torch.load(tmp_path / "outputs.pt"), Everything()(x, ids), strict=True):
        assert torch.equal(got, want)


@pytest.mark.sampled(lambda shape, changes, dtype: (shape, dtype) == ((9, 20), torch.bfloat16))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape, changes", [
    ((2, 3, 17, 40), {}),
    ((9, 20), dict(cell=(4, 5), bins=18)),
    ((0, 3, 16, 16), {}),
])  # fmt: skip
def test_fake_and_meta_results_look_like_real_ones(hog, backend, shape, changes, dtype):
    real = hog(torch.zeros(shape, dtype=dtype), **changes)
    results = [fused_hog(torch.zeros(shape, dtype=dtype, device="meta"), **changes)]
    with FakeTensorMode():
        x = torch.zeros(shape, dtype=dtype, device=device_of(backend))
        results.append(fused_hog(x, backend=backend, **changes))
    for result in results:
        assert (result.shape, result.dtype, result.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.sampled(lambda inner, outer: inner == 3 and outer in (0, 3, 4))
@pytest.mark.parametrize("inner", range(4))
@pytest.mark.parametrize("outer", range(5))
def test_nested_vmap_over_any_axes_is_a_loop(hog, backend, inner, outer):
    shape = [3, 16, 20]
    shape.insert(inner, 2)
    shape.insert(outer, 4)
    x = byte_images(*shape, seed=36).to(device_of(backend))

    def one(x):
        return fused_hog(x, backend=backend)

    got = torch.vmap(torch.vmap(one, in_dims=inner), in_dims=outer)(x)
    assert torch.equal(got.cpu(), hog(x.movedim(outer, 0).movedim(inner + 1, 1)))


def test_vmap_and_grad_see_a_constant_where_it_is_detached(backend):
    x = images(2, 3, 16, 16, dtype=torch.float32).to(device_of(backend))

    def loss(x):
        return (fused_hog(x.detach(), backend=backend) * x.mean()).sum()

    want = torch.stack([fused_hog(v, backend=backend).sum() / v.numel() for v in x]).view(2, 1, 1, 1).expand_as(x)
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(x), want)


def test_in_a_training_step_it_is_a_target_without_gradient(hog, backend):
    x = images(2, 3, 16, 16, dtype=torch.float32).to(device_of(backend)).requires_grad_()
    with torch.no_grad():
        target = fused_hog(x, backend=backend)
    (target * x.mean()).sum().backward()
    want = hog(x.detach()).sum() / x.numel()
    torch.testing.assert_close(x.grad.cpu(), want.expand(x.shape))
