"""The token moves under PyTorch's transforms: op contract, compile, export, fake tensors, vmap and torch.func."""

import pytest
import torch
from conftest import OPAQUE, device_of
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

from maskfeat_kernels import fused_mask_tokens, fused_masked_gather
from maskfeat_kernels.library import op
from maskfeat_kernels.testing import FLOATS

OPS = ("masked_gather", "masked_scatter_add", "mask_tokens", "masked_sum")
SIZES = [(2, 6, 3, 5), (3, 9, 7, 4), (4, 5, 2, 9)]  # B, N, K, D; no axis of 1, which is compiled anew

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.fixture(params=OPAQUE)
def backend(request) -> str:
    """Backends that are one opaque op to the transforms."""
    return request.param


def inputs(backend, batch, length, count, width, dtype=torch.float64, lead=()):
    """tokens, token_ids, mask_token, mask."""
    random = torch.Generator().manual_seed(batch + length)
    tokens = torch.randn(*lead, batch, length, width, generator=random, dtype=torch.float64).to(dtype)
    token_ids = torch.randint(length, (*lead, batch, count), generator=random)
    mask_token = torch.randn(width, generator=random, dtype=torch.float64).to(dtype)
    mask = torch.rand(*lead, batch, length, generator=random) < 0.4
    return [x.to(device_of(backend)) for x in (tokens, token_ids, mask_token, mask)]


def masked_model(backend):
    """Both moves one after the other; with None for the backend the truth, by torch's own ops and autograd."""

    def run(tokens, token_ids, mask_token, mask):
        if backend is None:
            x = torch.where(mask.unsqueeze(-1), mask_token.sin(), tokens.sin())
            return x.gather(-2, token_ids.unsqueeze(-1).expand(*token_ids.shape, x.shape[-1])).cos()
        x = fused_mask_tokens(tokens.sin(), mask_token.sin(), mask, backend=backend)
        return fused_masked_gather(x, token_ids, backend=backend).cos()

    return run


def calls(backend, tokens, token_ids, mask_token, mask):
    """Arguments of the four ops, in the order of OPS."""
    values = tokens[:, :1].expand(-1, token_ids.shape[1], -1)
    return (tokens, token_ids), (values, token_ids, tokens.shape[1]), (tokens, mask_token, mask), (tokens, mask)


def op_of(name, backend):
    return getattr(torch.ops.maskfeat_kernels, f"{name}_triton" if backend == "triton" else name).default


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (0, 5, 3, 4), (2, 5, 0, 4)], ids=str)
def test_opcheck(backend, shape, dtype):
    fused_masked_gather(*inputs(backend, *shape)[:2], backend=backend)  # imports the module that defines the op
    checks = ("test_schema", "test_faketensor") if dtype != torch.float32 else torch.library._OPCHECK_DEFAULT_UTILS
    for name, arguments in zip(OPS, calls(backend, *inputs(backend, *shape, dtype=dtype)), strict=True):
        torch.library.opcheck(op_of(name, backend), arguments, test_utils=checks)


def test_the_ops_are_opaque_calls_that_keep_strides():
    assert [str(op(name)._schema).removeprefix("maskfeat_kernels::") for name in OPS] == [
        "masked_gather(Tensor tokens, Tensor token_ids) -> Tensor",
        "masked_scatter_add(Tensor values, Tensor token_ids, SymInt length) -> Tensor",
        "mask_tokens(Tensor tokens, Tensor mask_token, Tensor mask) -> Tensor",
        "masked_sum(Tensor x, Tensor mask) -> Tensor",
    ]
    assert all(torch.Tag.needs_exact_strides in op(name).tags for name in OPS)


X, IDS, TOKEN, MASK = (x.cpu() for x in inputs("cpu", 2, 5, 4, 3))


@pytest.mark.parametrize("name, arguments, message", [
    ("masked_gather", (X[0], IDS), "three axes"),
    ("masked_gather", (X.int(), IDS), "dtype must be"),
    ("masked_sum", (X.byte(), MASK), "tokens must be float16"),
    ("masked_gather", (X, IDS.int()), "token_ids must be int64"),
    ("masked_gather", (X, IDS[:1]), "token_ids must be"),
    ("masked_scatter_add", (X, IDS, 5), "token_ids must be"),
    ("masked_scatter_add", (X[:, :4], IDS, -1), "length must not be negative"),
    ("mask_tokens", (X, TOKEN[:2], MASK), "mask_token must be"),
    ("mask_tokens", (X, TOKEN.float(), MASK), "dtype of tokens"),
    ("mask_tokens", (X, TOKEN, MASK[:, :4]), "mask must be"),
    ("masked_sum", (X, MASK.byte()), "mask must be bool"),
])  # fmt: skip
def test_an_op_called_by_itself_refuses_what_it_cannot_read(compiled_backend, name, arguments, message):
    arguments = [x.to(device_of(compiled_backend)) if isinstance(x, torch.Tensor) else x for x in arguments]
    with pytest.raises(RuntimeError, match=message):
        op(name)(*arguments)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo itself
@pytest.mark.parametrize("with_gradient", [False, True])
def test_compiled_without_graph_break_for_all_sizes_at_once(backend, with_gradient):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(masked_model(backend), fullgraph=True, dynamic=True, backend=counter)
    for size in SIZES:
        results = []
        for model in (compiled, masked_model(None)):
            tokens, token_ids, mask_token, mask = inputs(backend, *size)
            wanted = [x.requires_grad_(with_gradient) for x in (tokens, mask_token)]
            out = model(tokens, token_ids, mask_token, mask)
            results.append([out, *(torch.autograd.grad(out.sum(), wanted) if with_gradient else ())])
        torch.testing.assert_close(*results)
    assert counter.frame_count == 1


def test_compiled_with_auto_backend():
    arguments = inputs("cpu", *SIZES[0])
    compiled = torch.compile(masked_model("auto"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), masked_model(None)(*arguments))


@pytest.mark.slow  # the C++ compiler of inductor takes half a minute
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_by_inductor(backend):
    """On a view without its first token, as a class token is dropped."""

    def dropping_first(model):
        return lambda tokens, ids, mask_token, mask: model(tokens[:, 1:], ids % 5, mask_token, mask[:, 1:])

    results = []
    for model in (
        torch.compile(dropping_first(masked_model(backend)), fullgraph=True),
        dropping_first(masked_model(None)),
    ):
        tokens, token_ids, mask_token, mask = inputs(backend, *SIZES[0])
        wanted = tokens.requires_grad_(), mask_token.requires_grad_()
        results.append(torch.autograd.grad(model(tokens, token_ids, mask_token, mask).sum(), wanted))
    torch.testing.assert_close(*results)


class Model(torch.nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.run = masked_model(backend)

    def forward(self, tokens, token_ids, mask_token, mask):
        return self.run(tokens, token_ids, mask_token, mask)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_with_dynamic_batch_and_lengths(backend, strict):
    dim = torch.export.Dim
    batch, length, count = dim("batch", max=64), dim("length", max=64), dim("count", max=64)
    dynamic = {
        "tokens": {0: batch, 1: length}, "token_ids": {0: batch, 1: count}, "mask_token": {},
        "mask": {0: batch, 1: length},
    }  # fmt: skip
    arguments = tuple(inputs(backend, 2, 6, 3, 5))
    program = torch.export.export(Model(backend), arguments, dynamic_shapes=dynamic, strict=strict)
    for size in [(2, 6, 3, 5), (4, 9, 7, 5)]:
        arguments = inputs(backend, *size)
        torch.testing.assert_close(program.module()(*arguments), masked_model(None)(*arguments))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_fake_and_meta_results_look_like_real_ones(backend, dtype):
    arguments = inputs(backend, 2, 5, 3, 4, dtype=dtype)
    real = masked_model(backend)(*arguments)
    results = [masked_model("auto")(*(x.to("meta") for x in arguments))]
    with FakeTensorMode() as mode:
        results.append(masked_model(backend)(*map(mode.from_tensor, arguments)))
    for result in results:
        assert (result.shape, result.dtype, result.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize(
    "in_dims", [(0, 0, None, 0), (2, 1, None, 1), (0, None, None, None), (None, 0, None, 0)], ids=str
)
def test_vmap_over_any_axes(backend, in_dims):
    arguments = [
        x[0] if dim is None and x.ndim > 1 else x if dim is None else x.movedim(0, dim)
        for x, dim in zip(inputs(backend, 2, 5, 3, 4, lead=(3,)), in_dims, strict=True)
    ]
    got = torch.vmap(masked_model(backend), in_dims)(*arguments)
    torch.testing.assert_close(got, torch.vmap(masked_model(None), in_dims)(*arguments))


def test_vmap_over_the_mask_token_and_twice(backend):
    tokens, token_ids, mask_token, mask = inputs(backend, 2, 5, 3, 4, lead=(3, 2))
    arguments = tokens, token_ids, torch.stack([mask_token, 2 * mask_token, -mask_token]), mask
    got, want = (
        torch.vmap(torch.vmap(masked_model(b), (0, 0, None, 0)), (0, 0, 0, 0))(*arguments) for b in (backend, None)
    )
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("transform", [
    lambda f: torch.func.grad(lambda x, t: f(x, t).sum(), (0, 1)),
    lambda f: torch.func.jacrev(f, (0, 1)),
    lambda f: lambda x, t: torch.func.vjp(f, x, t)[1](f(x, t)),
    lambda f: torch.func.jacrev(torch.func.grad(lambda x, t: f(x, t).sum(), (0, 1)), (0, 1)),
    lambda f: torch.vmap(torch.func.grad(lambda x, t: f(x.unsqueeze(0), t).sum(), (0, 1)), (None, 0)),
    lambda f: torch.func.grad(lambda x, t: torch.vmap(lambda u: f(x, u))(t).sum(), (0, 1)),
], ids=["grad", "jacrev", "vjp", "hessian", "vmap of grad", "grad of vmap"])  # fmt: skip
def test_function_transforms(backend, transform, request):
    tokens, token_ids, mask_token, mask = inputs(backend, 1, 3, 2, 1)
    if "vmap" in request.node.callspec.id:
        mask_token = torch.stack([mask_token, -mask_token])
    if "vmap of grad" in request.node.callspec.id:
        tokens = tokens[0]

    def function(backend):
        model = masked_model(backend)
        return lambda x, t: model(x, token_ids, t, mask)

    torch.testing.assert_close(
        transform(function(backend))(tokens, mask_token), transform(function(None))(tokens, mask_token)
    )


def test_autograd_through_vmap(backend):
    """Inside vmap a tensor does not say that what it wraps needs a gradient."""
    results = []
    for b in (backend, None):
        tokens, token_ids, mask_token, mask = inputs(backend, 2, 5, 3, 4, lead=(3,))
        wanted = tokens.requires_grad_(), mask_token.requires_grad_()
        out = torch.vmap(masked_model(b), (0, 0, None, 0))(tokens, token_ids, mask_token, mask)
        results.append(torch.autograd.grad(out.sum(), wanted))
    torch.testing.assert_close(*results)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # from within torch
def test_forward_mode_is_refused_and_not_zero(backend):
    tokens, token_ids, _, _ = inputs(backend, 2, 5, 3, 4)
    with pytest.raises((RuntimeError, NotImplementedError), match="jvp"):
        torch.func.jvp(lambda x: fused_masked_gather(x, token_ids, backend=backend), (tokens,), (tokens,))
