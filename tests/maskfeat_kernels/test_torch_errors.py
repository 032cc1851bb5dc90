"""What PyTorch's users meet when something cannot be: no memory, tensors that are not dense, torch.jit.trace."""

import pytest
import torch
from conftest import BACKENDS, device_of

from maskfeat_kernels import (
    MASKFEAT,
    OPENCV,
    SKIMAGE,
    HogSpec,
    fused_hog,
    fused_hog_scales,
    fused_hog_tokens,
    fused_mask_tokens,
    fused_masked_gather,
    hog_image,
    library,
)
from maskfeat_kernels.compat.skimage import hog as skimage_hog
from maskfeat_kernels.hog import ops as hog_ops
from maskfeat_kernels.hog.plan import Region
from maskfeat_kernels.tokens import ops as token_ops

needs_cpu = pytest.mark.skipif("cpu" not in BACKENDS, reason="the extension is not built")


def huge(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Zeros that take no memory."""
    return torch.zeros((), dtype=dtype).expand(shape)


P = 2**25
BEYOND = {  # calls, and the petabytes that they ask for
    "hog": (lambda: fused_hog(huge(2**45, 8, 8, dtype=torch.uint8)), 2**45 * 9 * 4),
    "hog_blocks": (lambda: fused_hog(huge(2**45, 1, 24, 24), SKIMAGE), 2**45 * 81 * 4),
    "hog_scales": (lambda: fused_hog_scales(huge(2**45, 16, 16, dtype=torch.uint8), (8, 16)), 2**45 * 36 * 4),
    "hog with a gradient": (lambda: fused_hog(huge(2**45, 8, 8).requires_grad_()), 2**45 * 9 * 4),
    "hog_blocks_backward": (
        lambda: hog_ops.hog_backward(torch.ones(9, 1, 1), huge(P, P), MASKFEAT, Region(0, 0, 8, 8, 8)),
        P * P * 4,
    ),
    "hog_tokens": (
        lambda: fused_hog_tokens(huge(2, 1, 16, 16), huge(2, 2**45, dtype=torch.int64)),
        2 * 2**45 * 36 * 4,
    ),
    "masked_gather": (lambda: fused_masked_gather(huge(2, 9, P), huge(2, P, dtype=torch.int64)), 2 * P * P * 4),
    "masked_scatter_add": (
        lambda: token_ops.masked_scatter_add(huge(2, 1, P), huge(2, 1, dtype=torch.int64), P),
        2 * P * P * 4,
    ),
    "mask_tokens": (lambda: fused_mask_tokens(huge(2, P, P), huge(P), huge(2, P, dtype=torch.bool)), 2 * P * P * 4),
    "masked_sum": (lambda: token_ops.masked_sum(huge(1, 1, P * P), huge(1, 1, dtype=torch.bool)), P * P * 4),
}


@needs_cpu
@pytest.mark.parametrize("name", BEYOND)
def test_out_of_memory_is_what_torch_empty_raises(name):
    call, size = BEYOND[name]
    with pytest.raises(RuntimeError) as expected:
        torch.empty(size, dtype=torch.uint8)
    with pytest.raises(RuntimeError) as got:
        call()
    assert got.type is expected.type
    assert str(got.value) == str(expected.value)
    assert f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {size} bytes" in str(got.value)


@needs_cpu
def test_out_of_memory_for_scratch_is_no_other_error():
    """Nine sums a column fit anywhere; 10^7 of them for 10^7 columns do not."""
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator: can't allocate memory"):
        fused_hog(huge(1, 10**7, dtype=torch.uint8), HogSpec(bins=10**7, cell=(1, 10**7)))


@needs_cpu
def test_an_op_called_by_itself_says_that_memory_ran_out():
    with pytest.raises(RuntimeError, match="maskfeat_kernels: out of memory"):
        torch.ops.maskfeat_kernels.masked_sum(huge(1, 1, P * P), huge(1, 1, dtype=torch.bool))


class OnGpu:
    """What out of memory asks of a tensor on a GPU, on which ``fits`` bytes can be had."""

    is_cuda = True

    def __init__(self, fits: bool):
        self.fits = fits

    def new_empty(self, shape, dtype):
        if not self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")


@pytest.mark.parametrize("fits, message", [(False, r"^CUDA out of memory\. Tried"), (True, r"^CUDA out of memory\.")])
def test_out_of_memory_on_a_gpu_is_the_error_that_people_halve_batches_on(monkeypatch, fits, message):
    refusals = iter([RuntimeError("maskfeat_kernels: out of memory: 9 GiB of scratch")])

    def op(x):
        for refusal in refusals:
            raise refusal
        return torch.empty(3, device="meta")

    monkeypatch.setattr(library, "op", lambda name: op)
    with pytest.raises(torch.OutOfMemoryError, match=message):
        library.compiled("an op")(OnGpu(fits))


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error 9 at the launch of a kernel"), IndexError("token_ids[0, 0]")]
)
def test_another_error_stays_as_it_is(monkeypatch, error):
    def op(x):
        raise error

    monkeypatch.setattr(library, "op", lambda name: op)
    with pytest.raises(type(error)) as got:
        library.compiled("an op")(torch.zeros(1))
    assert got.value is error


IMAGE = torch.rand(2, 3, 16, 16)
TOKENS, IDS, MASK = torch.rand(2, 4, 8), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.bool)
KINDS = {
    "sparse": (lambda x: x.to_sparse(), r"must be a dense tensor, got a sparse_coo one; take its to_dense\(\)"),
    "mkldnn": (lambda x: x.to_mkldnn(), r"must be a dense tensor, got a _mkldnn one; take its to_dense\(\)"),
    "nested": (lambda x: torch.nested.as_nested_tensor([*x]), "must be a dense tensor, got a nested one; take one of"),
    "jagged": (
        lambda x: torch.nested.as_nested_tensor([*x], layout=torch.jagged),
        "must be a dense tensor, got a nested one; take one of",
    ),
    "masked": (
        lambda x: torch.masked.as_masked_tensor(x, torch.ones_like(x, dtype=torch.bool)),
        r"must be a dense tensor, got a masked one; take its get_data\(\)",
    ),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.quint8), "must (be|not be) .*quint8"),
}
TAKERS = {
    "fused_hog": lambda x: fused_hog(x(IMAGE)),
    "fused_hog of blocks": lambda x: fused_hog(x(IMAGE), SKIMAGE, block=1),
    "fused_hog by the reference": lambda x: fused_hog(x(IMAGE), backend="reference"),
    "fused_hog_tokens": lambda x: fused_hog_tokens(x(IMAGE), IDS),
    "fused_masked_gather": lambda x: fused_masked_gather(x(TOKENS), IDS),
    "fused_mask_tokens": lambda x: fused_mask_tokens(x(TOKENS), TOKENS[0, 0], MASK),
    "hog_image": lambda x: hog_image(x(IMAGE)),
    "skimage": lambda x: skimage_hog(x(IMAGE[0]), cells_per_block=(1, 1), channel_axis=0),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of:UserWarning", "ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_is_not_dense_is_refused_in_words(kind, taker):
    make, message = KINDS[kind]
    with pytest.raises(TypeError, match=message):
        TAKERS[taker](make)


COMPANIONS = {
    "token_ids": lambda: fused_masked_gather(TOKENS, IDS.to_sparse()),
    "mask_token": lambda: fused_mask_tokens(TOKENS, TOKENS[0, 0].to_sparse(), MASK),
    "mask": lambda: fused_mask_tokens(TOKENS, TOKENS[0, 0], MASK.to_sparse()),
}


@pytest.mark.parametrize("name", COMPANIONS)
def test_its_companions_too(name):
    with pytest.raises(TypeError, match=f"{name} must be a dense tensor, got a sparse_coo one"):
        COMPANIONS[name]()


class Named(torch.Tensor):
    """A subclass as users make them."""


def test_a_subclass_stays_one():
    for result in (fused_hog(IMAGE.as_subclass(Named)), fused_masked_gather(TOKENS.as_subclass(Named), IDS)):
        assert type(result) is Named
    want = fused_hog(IMAGE)
    assert torch.equal(fused_hog(torch.nn.Parameter(IMAGE, requires_grad=False)), want)
    assert torch.equal(fused_hog(torch.complex(IMAGE, -IMAGE).conj().imag), want)  # negated when it is read


def trace(function, *examples):
    """torch.jit.trace, of which PyTorch says that it is deprecated."""
    return torch.jit.trace(function, examples)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
class TestTrace:
    def test_of_maskfeat_and_token_moves_takes_other_batches(self, backend):
        def step(x, ids, mask):
            planes = fused_hog(x, backend=backend)
            targets = fused_hog_tokens(x, ids, 8, backend=backend)
            tokens = fused_mask_tokens(targets, targets[0, 0], mask, backend=backend)
            return planes, targets, fused_masked_gather(tokens, ids[:, :1], backend=backend)

        def arguments(batch):
            ids = torch.arange(4).flip(0).repeat(batch, 1)
            values = torch.rand(batch, 3, 16, 16), ids, ids % 2 == 0
            return [value.to(device_of(backend)) for value in values]

        traced, other = trace(step, *arguments(2)), arguments(5)
        for got, want in zip(traced(*other), step(*other), strict=True):
            assert torch.equal(got, want)

    @pytest.mark.parametrize("spec", [SKIMAGE, OPENCV], ids=["skimage", "opencv"])
    def test_of_another_dialect_is_refused_but_for_the_reference(self, backend, spec):
        x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, device=device_of(backend))
        spec = spec.replace(arithmetic="exact") if spec is SKIMAGE else spec
        if backend == "reference":
            traced = trace(lambda x: fused_hog(x, spec, backend=backend), x)
            assert torch.equal(traced(x.flip(0)), fused_hog(x.flip(0), spec, backend=backend))
            return
        with pytest.raises(RuntimeError, match=r"torch.jit.trace cannot record HOG .* use torch.export"):
            trace(lambda x: fused_hog(x, spec, backend=backend), x)

    def test_of_gradients_is_refused(self, backend):
        tokens = TOKENS.to(device_of(backend)).requires_grad_()
        with pytest.raises(RuntimeError, match=r"trace under torch.no_grad\(\)"):
            trace(lambda x: fused_masked_gather(x, IDS.to(x.device), backend=backend), tokens)
