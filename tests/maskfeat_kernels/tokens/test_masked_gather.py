"""fused_masked_gather and fused_mask_tokens: values, gradients, order of summation, layouts and refusals.

Values are small whole numbers where nothing else is said: all sums are then exact in every dtype, and results are
compared bit by bit.
"""

import re

import pytest
import torch
from conftest import device_of, moved

from maskfeat_kernels import fused_mask_tokens, fused_masked_gather
from maskfeat_kernels.testing import FLOATS

SHAPES = [
    (2, 5, 4, 3),
    (3, 40, 70, 16),
    (2, 9, 5, 1),
    (0, 3, 2, 4),
    (2, 0, 0, 3),
    (2, 3, 0, 4),
    (2, 3, 2, 0),
]  # B, N, K, D


def integers(*shape, dtype=torch.float32, seed=0):
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def floats(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(batch, length, count, seed=1):
    """Ids with some of them more than once."""
    return torch.randint(max(length, 1), (batch, count), generator=torch.Generator().manual_seed(seed))


def masks(batch, length, seed=2):
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < 0.4


@pytest.fixture
def gather(backend):
    """fused_masked_gather on the backend under test; with a gradient of the result, also that to the tokens."""

    def run(tokens, token_ids, grad=None, **options):
        tokens = moved(tokens.detach(), backend).requires_grad_(grad is not None)
        out = fused_masked_gather(tokens, moved(token_ids, backend), backend=backend, **options)
        if grad is None:
            return out.cpu()
        return out.detach().cpu(), torch.autograd.grad(out, tokens, moved(grad, backend))[0].cpu()

    return run


@pytest.fixture
def mix(backend):
    """fused_mask_tokens on the backend under test; with a gradient of the result, also those to its two inputs."""

    def run(tokens, mask_token, mask, grad=None):
        tokens, mask_token = (moved(x.detach(), backend).requires_grad_(grad is not None) for x in (tokens, mask_token))
        out = fused_mask_tokens(tokens, mask_token, moved(mask, backend), backend=backend)
        if grad is None:
            return out.cpu()
        grads = torch.autograd.grad(out, (tokens, mask_token), moved(grad, backend))
        return out.detach().cpu(), *(g.cpu() for g in grads)

    return run


def scattered(grad, token_ids, length):
    """The gradient of a gather, term by term."""
    out = torch.zeros(grad.shape[0], length, grad.shape[2], dtype=grad.dtype)
    for b in range(grad.shape[0]):
        for k in range(token_ids.shape[1]):
            out[b, token_ids[b, k]] += grad[b, k]
    return out


def test_gather_by_hand(gather):
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    out, grad = gather(tokens, torch.tensor([[2, 0, 2]]), torch.tensor([[[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]]]))
    assert out.tolist() == [[[5, 6], [1, 2], [5, 6]]]
    assert grad.tolist() == [[[30, 40], [0, 0], [60, 80]]]


def test_mask_by_hand(mix):
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    mask = torch.tensor([[True, False], [True, True]])
    out, to_tokens, to_mask_token = mix(tokens, torch.tensor([-1.0, -2.0]), mask, 10 * tokens)
    assert out.tolist() == [[[-1, -2], [3, 4]], [[-1, -2], [-1, -2]]]
    assert to_tokens.tolist() == [[[0, 0], [30, 40]], [[0, 0], [0, 0]]]
    assert to_mask_token.tolist() == [10 + 50 + 70, 20 + 60 + 80]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gather_and_its_gradient(gather, shape, dtype):
    batch, length, count, width = shape
    tokens, grad = integers(batch, length, width, dtype=dtype), integers(batch, count, width, dtype=dtype, seed=3)
    token_ids = ids(batch, length, count)
    out, to_tokens = gather(tokens, token_ids, grad)
    assert torch.equal(out, tokens[torch.arange(batch).unsqueeze(1), token_ids])
    assert torch.equal(to_tokens, scattered(grad, token_ids, length))
    assert (out.dtype, to_tokens.dtype) == (dtype, dtype)
    assert out.is_contiguous()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mask_and_its_gradients(mix, shape, dtype):
    batch, length, _, width = shape
    tokens, grad = (integers(batch, length, width, dtype=dtype, seed=seed) for seed in (4, 5))
    mask_token, mask = integers(width, dtype=dtype, seed=6), masks(batch, length)
    out, to_tokens, to_mask_token = mix(tokens, mask_token, mask, grad)
    m = mask.unsqueeze(-1).to(dtype)
    assert torch.equal(out, tokens * (1 - m) + mask_token * m)
    assert torch.equal(to_tokens, grad * (1 - m))
    assert torch.equal(to_mask_token, (grad * m).sum((0, 1)))
    assert {x.dtype for x in (out, to_tokens, to_mask_token)} == {dtype}
    assert out.is_contiguous()


@pytest.mark.parametrize("length", [1, 128, 129, 515])
def test_a_mask_token_for_more_rows_than_one_chunk(mix, length):
    grad, mask = integers(2, length, 5, seed=7), masks(2, length, seed=8)
    *_, to_mask_token = mix(torch.zeros(2, length, 5), torch.zeros(5), mask, grad)
    assert torch.equal(to_mask_token, grad[mask].sum(0))


@pytest.mark.usefixtures("poisoned_memory")
def test_every_element_is_written(gather, mix):
    tokens, token_ids = integers(2, 7, 37), ids(2, 7, 3)
    assert all(x.isfinite().all() for x in gather(tokens, token_ids, integers(2, 3, 37)))
    assert all(x.isfinite().all() for x in mix(tokens, integers(37), masks(2, 7), tokens))


@pytest.mark.parametrize("dtype, step", [(torch.float16, 2048), (torch.bfloat16, 256)], ids=str)
def test_half_precision_sums_are_rounded_once(gather, mix, dtype, step):
    """step + 1 is not a half, step + 2 is: adding 1 twice is lost if each sum is rounded."""
    grad = torch.tensor([step, 1, 1, 0]).to(dtype).view(1, 4, 1)
    _, to_tokens = gather(torch.zeros(1, 2, 1, dtype=dtype), torch.zeros(1, 4, dtype=torch.int64), grad)
    assert to_tokens.flatten().tolist() == [step + 2, 0]
    *_, to_mask_token = mix(torch.zeros_like(grad), grad[0, 0], torch.ones(1, 4, dtype=torch.bool), grad)
    assert to_mask_token.tolist() == [step + 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_to_half_is_that_of_torch(compiled_backend, dtype):
    """Sums of two halves over the whole range: ties, subnormals, overflow to infinity, NaN."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    a, b = bits.view(dtype), bits[torch.randperm(2**16, generator=torch.Generator().manual_seed(9))].view(dtype)
    grad = torch.stack([a, b]).unsqueeze(0).to(device_of(compiled_backend))  # [1, 2, 65536]
    tokens = torch.zeros_like(grad[:, :1]).requires_grad_()
    token_ids = torch.zeros(1, 2, dtype=torch.int64, device=grad.device)
    out = fused_masked_gather(tokens, token_ids, backend=compiled_backend)
    (to_tokens,) = torch.autograd.grad(out, tokens, grad)
    want = (a.float() + b.float()).to(dtype)
    torch.testing.assert_close(to_tokens.flatten().cpu(), want, rtol=0, atol=0, equal_nan=True)


def test_layouts_are_read_in_place(gather, mix):
    tokens = integers(2, 9, 2, 12)
    views = [tokens[:, 1:, 0], tokens[:, :, 1, ::2], tokens[:, :, 0].mT, tokens[:1, :, 1].expand(3, -1, -1)]
    for x in views:
        batch, length, width = x.shape
        token_ids, mask = ids(2 * batch, length, 8)[::2, ::2], masks(length, batch).mT
        grad = integers(width, batch, 4, seed=10).permute(1, 2, 0)
        out, to_tokens = gather(x, token_ids, grad)
        assert torch.equal(out, x[torch.arange(batch).unsqueeze(1), token_ids])
        assert torch.equal(to_tokens, scattered(grad, token_ids, length))
        mask_token = integers(2 * width, seed=11)[::2]
        out, to_tokens, to_mask_token = mix(x, mask_token, mask, x)
        assert torch.equal(out, torch.where(mask.unsqueeze(-1), mask_token, x))
        assert torch.equal(to_tokens, x * ~mask.unsqueeze(-1))
        assert torch.equal(to_mask_token, x[mask].sum(0))


def test_results_larger_than_the_cache(compiled_backend):
    """The CPU stores these past the cache."""
    device = device_of(compiled_backend)
    tokens = integers(3, 1000, 1024).to(device).requires_grad_()
    token_ids, mask = ids(3, 1000, 900).to(device), masks(3, 1000).to(device)
    rows = torch.arange(3, device=device).unsqueeze(1)
    out = fused_masked_gather(tokens, token_ids, backend=compiled_backend)
    assert torch.equal(out, tokens[rows, token_ids])
    (to_tokens,) = torch.autograd.grad(out, tokens, out)
    counts = torch.zeros(3, 1000, device=device).scatter_add(
        1, token_ids, torch.ones_like(token_ids, dtype=torch.float32)
    )
    assert torch.equal(to_tokens, tokens * counts.unsqueeze(-1))
    out = fused_mask_tokens(tokens, tokens[0, 0].detach(), mask, backend=compiled_backend)
    assert torch.equal(out, torch.where(mask.unsqueeze(-1), tokens[0, 0], tokens))


def test_more_tokens_than_32_bits_can_count(compiled_backend):
    tokens = torch.arange(4.0, device=device_of(compiled_backend)).expand(1, 2**33, 4)
    token_ids = torch.tensor([[2**33 - 1, 2**32, 0]], device=tokens.device)
    assert torch.equal(fused_masked_gather(tokens, token_ids, backend=compiled_backend), tokens[:, :3])


def test_gather_undoes_scatter_and_is_its_adjoint(gather):
    order = torch.stack([torch.randperm(11, generator=torch.Generator().manual_seed(s)) for s in (0, 1)])
    tokens = integers(2, 11, 6)
    out, back = gather(tokens, order, tokens.gather(1, order.unsqueeze(-1).expand(-1, -1, 6)))
    assert torch.equal(back, tokens)
    assert torch.equal(gather(out, order.argsort(1)), tokens)
    token_ids, grad = ids(2, 11, 7), integers(2, 7, 6, seed=12)
    out, to_tokens = gather(tokens, token_ids, grad)
    assert (out * grad).sum() == (tokens * to_tokens).sum()


def test_masking_is_a_choice_between_bits(mix):
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    mask = torch.tensor([[True, False]])
    out, to_tokens, to_mask_token = mix(special.expand(1, 2, 4), torch.ones(4), mask, special.expand(1, 2, 4))
    assert torch.equal(out[0, 0], torch.ones(4))
    assert torch.equal(out[0, 1].view(torch.int32), special.view(torch.int32))
    assert torch.equal(to_tokens[0, 0], torch.zeros(4))
    # 0 + -0 is 0
    assert torch.equal(to_mask_token.nan_to_num(7.0, 8.0, 9.0), torch.tensor([7.0, 8.0, 9.0, 0.0]))


def test_sums_have_the_same_bits_in_every_run_and_for_any_number_of_threads(gather, mix, backend):
    batch, length, count, width = (2, 30, 40, 8) if backend in ("reference", "triton") else (4, 300, 400, 64)
    tokens, grad = floats(batch, length, width), floats(batch, count, width, seed=1)
    token_ids, mask = ids(batch, length // 4, count), masks(batch, length)

    def sums():
        return gather(tokens, token_ids, grad)[1], mix(tokens, tokens[0, 0], mask, tokens)[2]

    first, before = sums(), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, first, sums()))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(first[0], scattered(grad.double(), token_ids, length).float())
    torch.testing.assert_close(first[1], tokens[mask].double().sum(0).float())


def test_compiled_backends_add_in_one_order(compiled_backend):
    """Duplicates in the order of k; masked rows by slices of 32 rows and chunks of 8 slices, the chunks likewise."""

    def in_order(rows):
        total = torch.zeros_like(rows[0])
        for row in rows:
            total = total + row
        return total

    def by_chunks(rows):
        while len(rows) > 1:
            slices = torch.stack([in_order(s) for s in rows.split(32)])
            rows = torch.stack([in_order(s) for s in slices.split(8)])
        return rows[0]

    device = device_of(compiled_backend)
    grad, mask = floats(2, 700, 5, seed=2), masks(2, 700)
    tokens, mask_token = torch.zeros(2, 700, 5, device=device), torch.zeros(5, device=device, requires_grad=True)
    out = fused_mask_tokens(tokens, mask_token, mask.to(device), backend=compiled_backend)
    (to_mask_token,) = torch.autograd.grad(out, mask_token, grad.to(device))
    assert torch.equal(to_mask_token.cpu(), by_chunks((grad * mask.unsqueeze(-1)).flatten(0, 1)))

    tokens.requires_grad_()
    token_ids = ids(2, 3, 700)
    out = fused_masked_gather(tokens, token_ids.to(device), backend=compiled_backend)
    (to_tokens,) = torch.autograd.grad(out, tokens, grad.to(device))
    assert torch.equal(to_tokens.cpu(), scattered(grad, token_ids, 700))


@pytest.mark.parametrize("wrong", [-1, 5, 2**40, -(2**63)])
def test_an_id_out_of_range_is_not_read(gather, backend, wrong):
    tokens = integers(4, 5, 3)[1:3]  # has neighbours in memory on both sides
    token_ids = torch.tensor([[0, 4, 1], [2, wrong, 3]])
    message = re.escape(f"token_ids[1, 1] is {wrong}, outside 0 .. N - 1 with N = 5")
    if backend == "cpu":
        with pytest.raises(IndexError, match=message):
            gather(tokens, token_ids)
    else:
        out, to_tokens = gather(tokens, token_ids, torch.ones(2, 3, 3))
        assert out[1, 1].isnan().all()
        assert torch.equal(out[1, ::2], tokens[1, 2:4])
        assert torch.equal(out[0], tokens[0, token_ids[0]])
        assert to_tokens.sum() == 5 * 3
    with pytest.raises(IndexError, match=message):
        gather(tokens, token_ids, check_ids=True)


def test_no_id_is_in_range_of_no_tokens(gather, backend):
    tokens, token_ids = torch.zeros(1, 0, 3), torch.zeros(1, 2, dtype=torch.int64)
    if backend == "cpu":
        with pytest.raises(IndexError, match="N = 0"):
            gather(tokens, token_ids)
    else:
        assert gather(tokens, token_ids).isnan().all()


@pytest.mark.usefixtures("two_threads")
def test_the_first_wrong_id_is_named_for_any_number_of_threads():
    tokens, token_ids = torch.zeros(8, 64, 512), torch.zeros(8, 64, dtype=torch.int64)
    token_ids[2, 7] = token_ids[5, 1] = token_ids[7, 63] = 64
    for _ in range(5):
        with pytest.raises(IndexError, match=r"token_ids\[2, 7\] is 64"):
            fused_masked_gather(tokens, token_ids, backend="cpu")


def test_checked_ids_in_range_pass(gather):
    tokens, token_ids = integers(2, 5, 3), ids(2, 5, 4)
    assert torch.equal(gather(tokens, token_ids, check_ids=True), gather(tokens, token_ids))


def test_gradients_of_first_and_second_order(backend):
    device = device_of(backend)
    tokens = floats(2, 3, 1).double().to(device).requires_grad_()
    token_ids = torch.tensor([[0, 2, 0], [1, 1, 1]], device=device)
    mask_token, mask = floats(1).double().to(device).requires_grad_(), masks(2, 3).to(device)

    def gather(tokens):
        return fused_masked_gather(tokens.sin(), token_ids, backend=backend).cos()

    def mix(tokens, mask_token):
        return fused_mask_tokens(tokens.sin(), mask_token.sin(), mask, backend=backend).cos()

    for function, inputs in ((gather, (tokens,)), (mix, (tokens, mask_token))):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=backend == "triton")
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=backend == "triton")


def test_a_gradient_that_is_not_asked_for_is_not_computed(backend):
    device = device_of(backend)
    tokens, mask_token, mask = (
        torch.zeros(2, 3, 4, device=device),
        torch.zeros(4, device=device),
        masks(2, 3).to(device),
    )
    for needed in (tokens, mask_token):
        needed.requires_grad_()
        out = fused_mask_tokens(tokens, mask_token, mask, backend=backend)
        out.sum().backward()
        assert (tokens.grad is None, mask_token.grad is None) == (needed is mask_token, needed is tokens)
        needed.requires_grad_(False).grad = None
    assert not fused_mask_tokens(tokens, mask_token, mask, backend=backend).requires_grad


def test_autocast_leaves_the_dtype_alone(backend):
    device = device_of(backend)
    tokens, mask = torch.ones(1, 3, 4, device=device), masks(1, 3).to(device)
    token_ids, mask_token = torch.zeros(1, 2, dtype=torch.int64, device=device), torch.zeros(4, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert fused_masked_gather(tokens, token_ids, backend=backend).dtype == torch.float32
        assert fused_mask_tokens(tokens, mask_token, mask, backend=backend).dtype == torch.float32


TOKENS, IDS, TOKEN, MASK = torch.zeros(2, 5, 3), ids(2, 5, 4), torch.zeros(3), masks(2, 5)


@pytest.mark.parametrize("arguments, error, message", [
    (([1, 2], IDS), TypeError, "tokens must be a torch.Tensor [B, N, D], got list"),
    ((TOKENS.int(), IDS), TypeError, "tokens must be float16, bfloat16, float32 or float64, got torch.int32"),
    ((TOKENS[0], IDS), ValueError, "tokens must have the axes [B, N, D], got shape (5, 3)"),
    ((TOKENS, 3), TypeError, "token_ids must be a torch.Tensor, got int"),
    ((TOKENS, IDS.int()), TypeError, "token_ids must be int64, got torch.int32"),
    ((TOKENS, IDS.to("meta")), ValueError, "token_ids must be on the device of tokens, cpu, got meta"),
    ((TOKENS, IDS[:1]), ValueError, "token_ids must be [2, K] like tokens, got shape (1, 4)"),
    ((TOKENS, IDS[0]), ValueError, "token_ids must be [2, K] like tokens, got shape (4,)"),
])  # fmt: skip
def test_what_gather_refuses(arguments, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        fused_masked_gather(*arguments)


@pytest.mark.parametrize("arguments, error, message", [
    ((None, TOKEN, MASK), TypeError, "tokens must be a torch.Tensor [B, N, D], got NoneType"),
    ((TOKENS, TOKEN.half(), MASK), TypeError, "mask_token must be float32, got torch.float16"),
    ((TOKENS, TOKEN.view(1, 1, 3), MASK), ValueError, "mask_token must be [3] like tokens, got shape (1, 1, 3)"),
    ((TOKENS, TOKEN[:2], MASK), ValueError, "mask_token must be [3] like tokens, got shape (2,)"),
    ((TOKENS, TOKEN.to("meta"), MASK), ValueError, "mask_token must be on the device of tokens, cpu, got meta"),
    ((TOKENS, TOKEN, MASK.byte()), TypeError, "mask must be bool, got torch.uint8"),
    ((TOKENS, TOKEN, MASK[:, :4]), ValueError, "mask must be [2, 5] like tokens, got shape (2, 4)"),
    ((TOKENS, TOKEN, MASK.unsqueeze(-1)), ValueError, "mask must be [2, 5] like tokens, got shape (2, 5, 1)"),
])  # fmt: skip
def test_what_mask_tokens_refuses(arguments, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        fused_mask_tokens(*arguments)
