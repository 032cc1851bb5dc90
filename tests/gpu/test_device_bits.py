"""On a GPU: the bits of the backend "cuda", in every dtype and dialect, for every op and its gradient.

They are those of "cpu", or for blocks of the CUDA source on the host. Everywhere: the calls see a single wrong bit, and
an error in each branch that only a device compiles, of which device_checks.py has the list.
"""

import dataclasses

import pytest
import torch
from conftest import BACKENDS, REQUIRED
from cuda_program import Out, checked
from device_checks import SPECS, Call, check_bits, gradient_call, hog_calls, move_calls, same_bits, token_calls
from test_cuda_on_host import WHOLE, hog_words, usable

from maskfeat_kernels import available_backends
from maskfeat_kernels.hog import ops as hog_ops
from maskfeat_kernels.testing import DTYPES, FLOATS
from maskfeat_kernels.tokens import ops as token_ops

TOKENS, MOVES = token_calls(), move_calls()


@pytest.fixture
def gpu() -> tuple[str, str]:
    """The backend under test and its device; without one a failure where MASKFEAT_REQUIRE_BACKENDS asks for it."""
    if "cuda" not in REQUIRED and "cuda" not in available_backends("cuda"):
        pytest.skip("no GPU, or no kernels for it")
    return "cuda", "cuda"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_hog(gpu, name, dtype):
    for call in hog_calls(SPECS[name], dtype).values():
        check_bits(call, *gpu)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_gradients(gpu, name, dtype):
    check_bits(gradient_call(SPECS[name], dtype), *gpu)


@pytest.mark.parametrize("name", TOKENS)
def test_tokens(gpu, name):
    check_bits(TOKENS[name], *gpu)


@pytest.mark.parametrize("name", MOVES)
def test_moves(gpu, name):
    check_bits(MOVES[name], *gpu)


def test_a_second_device_is_used_and_the_first_stays_current(gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    torch.cuda.set_device(0)
    calls = [*hog_calls(SPECS["maskfeat"], torch.uint8).values(), *hog_calls(SPECS["skimage"], torch.float32).values()]
    for call in [*calls, gradient_call(SPECS["opencv"], torch.float32), *TOKENS.values(), *MOVES.values()]:
        check_bits(call, "cuda", "cuda:1")
    assert torch.cuda.current_device() == 0


# That the checks see what they are for


class OneBit:
    """An op whose first call returns one wrong bit: of its last result, the last of the last number that is not NaN."""

    def __init__(self, op):
        self.op, self.calls = op, 0

    def __call__(self, *arguments):
        result, self.calls = self.op(*arguments), self.calls + 1
        if self.calls == 1:
            wrong = result if isinstance(result, torch.Tensor) else result[-1]
            words = wrong.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[wrong.itemsize])
            last = (~wrong.isnan()).flatten().nonzero()[-1]
            words.view(-1)[last] ^= 1
        return result


def sees(monkeypatch, op: str, call: Call) -> None:
    """On the host ``check_bits`` passes, and with one bit of the op wrong does not."""
    call = dataclasses.replace(call, source=None)
    check_bits(call, "cpu", "cpu")
    ops = hog_ops if op.startswith("_hog") else token_ops
    monkeypatch.setattr(ops, op, OneBit(getattr(ops, op)))
    with pytest.raises(AssertionError, match="differ"):
        check_bits(call, "cpu", "cpu")
    monkeypatch.undo()


needs_cpu = pytest.mark.skipif("cpu" not in BACKENDS, reason="the extension is not built")
SOME = ("maskfeat", "skimage")


@needs_cpu
@pytest.mark.parametrize("name", [*SOME, *(pytest.param(n, marks=pytest.mark.slow) for n in SPECS if n not in SOME)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_wrong_bit_of_a_hog_is_seen(monkeypatch, name, dtype):
    spec = SPECS[name]
    for call in hog_calls(spec, dtype).values():
        sees(monkeypatch, "_hog" if spec.is_maskfeat else "_hog_blocks", call)
    if dtype in FLOATS[2:]:  # half precision rounds the last bit away
        sees(monkeypatch, "_hog_blocks_backward", gradient_call(spec, dtype))


@needs_cpu
def test_one_wrong_bit_of_tokens_is_seen(monkeypatch):
    for name, call in TOKENS.items():
        sees(monkeypatch, "_hog_scales" if name.startswith("cells") else "_hog_tokens", call)
    for name, call in MOVES.items():
        if not name.endswith(" 7"):  # the fastest
            continue
        moves = ("masked_gather", "masked_scatter_add") if name.startswith("gather") else ("mask_tokens", "masked_sum")
        for op in moves:
            sees(monkeypatch, op, call)


ERRORS = {
    "approximate_reciprocal": ("return 1 / x;", "return 1 / x * 0x1.00001p0f;", torch.uint8),
    "root": ("return std::sqrt(x);", "return std::sqrt(x) * 0x1.000002p0f;", torch.float32),
    "from_half of bytes": (
        "return widen(Float16{bits});",
        "return bits & 0x7c00 ? widen(Float16{bits}) : 0.0f;",
        torch.uint8,
    ),
    "from_half": (
        "return widen(Float16{bits});",
        "return widen(Float16{static_cast<uint16_t>(bits & ~1)});",
        torch.float16,
    ),
    "multiply_add": ("high(a) * high(b) + high(c)", "high(a) * high(b)", torch.uint8),
}
"""Of each branch: a text of the host's version, what stands there instead, and the pixels that see it."""


@needs_cpu
@pytest.mark.slow
@pytest.mark.parametrize("branch", ERRORS)
def test_an_error_in_a_branch_of_the_device_is_seen(branch):
    """On the host, by an error of the size that is feared in what stands there for the branch."""
    right, wrong, dtype = ERRORS[branch]
    spec = SPECS["eight bins"]
    call, results = hog_calls(spec, dtype)["aligned"], []
    for changes in ((), ((right, wrong),)):
        out = Out((3, 3, 8, 6, 8))
        results += checked("hog", usable("address"), WHOLE, *hog_words(call.x, spec), out, changes=changes)
    same_bits(results[0], call.expected())
    with pytest.raises(AssertionError, match="differ"):
        same_bits(results[1], call.expected())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if not spec.is_maskfeat])
def test_what_is_expected_of_blocks_is_what_the_cpu_computes(name, dtype):
    """But for the order of sums: some roundings."""
    usable("address")
    calls = [
        hog_calls(SPECS[name], dtype)["aligned"],
        *([gradient_call(SPECS[name], dtype)] if dtype in FLOATS else []),
    ]
    for call in calls:
        want = call.run(call.x, backend="cpu")
        scale = float(want.abs().max())
        rtol = {torch.float64: 1e-11, torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(want.dtype, 1e-4)
        assert scale > 0
        torch.testing.assert_close(call.expected(), want, rtol=0, atol=rtol * scale)
