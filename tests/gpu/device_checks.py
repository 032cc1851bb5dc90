"""What only a device shows, as calls and checks that also run on a host: there seeded faults prove what they see.

A *call* is (x, *rest) -> result on whatever device its tensors are on. A *machine* has streams: a GPU those of PyTorch,
the host one thread each, which takes its work in order while others go on.
"""

import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Callable

import torch
from test_hog_blocks_cuda_on_host import blocks_of, gradient_of
from torch import Tensor

from maskfeat_kernels import (
    DALAL_TRIGGS,
    MASKFEAT,
    OPENCV,
    SKIMAGE,
    HogSpec,
    fused_hog,
    fused_hog_scales,
    fused_hog_tokens,
    fused_mask_tokens,
    fused_masked_gather,
)
from maskfeat_kernels.testing import FLOATS, images

SPECS = {
    "maskfeat": MASKFEAT,  # cells of 8 x 8, the kernel of a thread a cell; bytes in pairs of halves
    "one bin": MASKFEAT.replace(bins=1),
    "eight bins": MASKFEAT.replace(bins=8),  # slopes of bytes lie on the edges at 45 degrees
    "ten bins": MASKFEAT.replace(bins=10),  # the kernel of any cells
    "tall cells": MASKFEAT.replace(cell=(20, 3), bins=6),
    "window": MASKFEAT.replace(gaussian_window=16),
    "skimage": SKIMAGE,
    "skimage, signed linear": SKIMAGE.replace(signed=True, votes="linear", bins=18),
    "opencv": OPENCV,
    "dalal_triggs": DALAL_TRIGGS,
    "l1-sqrt": HogSpec(channels="strongest", cells="bilinear", block=2, norm="l1-sqrt", eps=1e-3),
    "signed l1": HogSpec(bins=12, cell=(3, 5), signed=True, block=2, norm="l1", eps=1e-5),
    "one plane in columns": SKIMAGE.replace(layout="columns", norm="l2", bins=4, cell=4, channels="each"),
    "blocks apart": HogSpec(cell=4, block_stride=(12, 8), norm="none", layout="rows"),
}
"""Dialects and variations, which together take every branch that a GPU has to itself:

``smooth`` (a fused multiply-add, in hog/math.h): every Sobel gradient, in float32 and float64.
``from_half`` (a conversion, in hog/cuda/cells_8x8.h): float16, and bytes, in "maskfeat", "eight bins" and "one bin".
``multiply_add`` (pairs of halves, in hog/cuda/cells_8x8.h): bytes in the same three.
``approximate_reciprocal`` (in hog/cuda/cells_8x8.h): the same; "eight bins" sees an error of 2^-20.
``root`` (an approximate reciprocal root and a Newton step, in hog/cuda/cells_launch.h): all of the MASKFEAT family, and
those of the next line.
``reciprocal`` and ``quotient`` (in hog/cuda/blocks_8x8_stages.h): "skimage", and both in "opencv".
What else a device does otherwise has no branch: division and square root of the compiler in all others, ``__ldg``,
shuffles of a warp and shared memory in the blocks, constant memory for the parameters.
"""


@dataclasses.dataclass(frozen=True)
class Call:
    """``run(x, backend=...)`` on an input, for any device.

    expected: the bits that a GPU has to return. Those of the backend "cpu", but for blocks, whose sums have another
        order there: the CUDA source itself on the host (tests/gpu/cuda_on_host).
    """

    x: Tensor
    run: Callable
    source: Callable | None = None

    def expected(self) -> Tensor:
        return self.run(self.x, backend="cpu") if self.source is None else self.source(self.x)


def hog_calls(spec: HogSpec, dtype: torch.dtype) -> dict[str, Call]:
    """Aligned images, a crop, interleaved channels and a transposed view."""
    whole = images(3, 3, 48, 64, dtype=dtype)
    whole = whole.abs() if spec.sqrt and dtype != torch.uint8 else whole
    inner = whole[..., 1:42, 3:50] if not spec.gaussian_window else whole[..., 16:, 16:]
    views = {
        "aligned": whole,
        "crop": inner,
        "interleaved": whole.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "transposed": whole.transpose(-1, -2),
    }
    source = None if spec.is_maskfeat else lambda x: blocks_of("address", x, spec)
    return {name: Call(x, lambda x, backend: fused_hog(x, spec, backend=backend), source) for name, x in views.items()}


def gradient_call(spec: HogSpec, dtype: torch.dtype) -> Call:
    """The gradient of a weighted sum, with the same whole numbers as weights for each image."""

    def run(x, backend):
        leaf = x.detach().clone().requires_grad_()
        result = fused_hog(leaf, spec, backend=backend)
        result.backward(weights_of(result))
        return leaf.grad

    def source(x):
        return gradient_of("address", weights_of(fused_hog(x, spec, backend="cpu")), x, spec).to(x.dtype)

    return Call(hog_calls(spec, dtype)["aligned"].x.abs() + 0.125, run, source)


def weights_of(result: Tensor) -> Tensor:
    weights = torch.arange(result[0].numel(), device=result.device) % 13 - 6
    return weights.to(result.dtype).view(result[0].shape).expand_as(result).contiguous()


def token_calls() -> dict[str, Call]:
    """The targets of patches in images and a clip, with ids that repeat and at the borders; several cell sizes."""
    ids = torch.tensor([[0, 11, 7, 7, 3], [10, 1, 1, 0, 5]])
    calls = {}
    for dtype in (torch.uint8, *FLOATS):
        for name, x in (("images", images(2, 3, 48, 64, dtype=dtype)), ("clip", images(2, 4, 3, 48, 64, dtype=dtype))):
            places = ids if name == "images" else ids + 12 * torch.arange(2)[:, None]

            def run(x, backend, places=places, step=1 if name == "images" else 2):
                return fused_hog_tokens(x if step == 1 else x[:, ::2], places.to(x.device), backend=backend)

            calls[f"{name} {dtype}"] = Call(x, run)
        for cells in ((8, 16, 32), (4, (8, 12))):

            def scales(x, backend, cells=cells):
                return torch.cat([result.flatten() for result in fused_hog_scales(x, cells, backend=backend)])

            calls[f"cells {cells} {dtype}"] = Call(images(2, 3, 52, 44, dtype=dtype), scales)
    return calls


def move_calls() -> dict[str, Call]:
    """Gather and mask and their gradients, in packs of 16 bytes and element by element, over several levels of sums."""
    calls = {}
    for dtype in FLOATS:
        for width in (40, 7, 768):
            chance = torch.Generator().manual_seed(width)
            tokens = torch.randn(3, 300, width, generator=chance).to(dtype)
            ids = torch.randint(300, (3, 50), generator=chance)
            ids[0, :8] = 299
            mask = torch.rand(3, 300, generator=chance) < 0.4

            def gather(x, backend, ids=ids):
                leaf = x.detach().clone().requires_grad_()
                kept = fused_masked_gather(leaf, ids.to(x.device), backend=backend)
                kept.backward(kept.detach())
                return torch.cat([kept.detach(), leaf.grad], 1)

            def masks(x, backend, mask=mask):
                leaf, token = x.detach().clone().requires_grad_(), x[0, 0].detach().clone().requires_grad_()
                mixed = fused_mask_tokens(leaf, token, mask.to(x.device), backend=backend)
                mixed.backward(x.detach())
                return torch.cat([mixed.detach(), leaf.grad, token.grad.expand(3, 1, -1)], 1)

            calls[f"gather {dtype} {width}"] = Call(tokens, gather)
            calls[f"mask {dtype} {width}"] = Call(tokens, masks)
    return calls


def check_bits(call: Call, backend: str, device: str) -> None:
    """AssertionError unless the backend returns the bits that are expected; a NaN is a NaN."""
    same_bits(call.run(call.x.to(device), backend=backend).cpu(), call.expected())


def same_bits(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert torch.equal(got.isnan(), want.isnan())
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[got.itemsize]
    off = got.contiguous().nan_to_num().view(words) != want.contiguous().nan_to_num().view(words)
    assert not off.any(), f"{int(off.sum())} of {off.numel()} differ, the first at {off.nonzero()[0].tolist()}"


class Gpu:
    """Streams of PyTorch on a device."""

    def __init__(self, device: str = "cuda"):
        self.device = device

    def stream(self):
        return torch.cuda.Stream(self.device)

    def submit(self, stream, work: Callable) -> None:
        with torch.cuda.stream(stream):
            work()

    launch = submit  # of the call that is checked

    def delay(self) -> None:
        """A fifth of a second or so on the current stream."""
        torch.cuda._sleep(400_000_000)

    def wait(self, stream=None) -> None:
        """For a stream, or for all."""
        torch.cuda.synchronize(self.device) if stream is None else stream.synchronize()

    @contextlib.contextmanager
    def recording(self, recorded: list):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            yield lambda work: work()
        recorded.append(graph.replay)


class Host:
    """A stream is a thread that takes its work in order; a recording is a list of calls."""

    device = "cpu"

    def stream(self):
        return concurrent.futures.ThreadPoolExecutor(1)

    def submit(self, stream, work: Callable) -> None:
        stream.submit(work)

    launch = submit

    def delay(self) -> None:
        time.sleep(0.1)

    def wait(self, stream=None) -> None:
        if stream is not None:
            stream.shutdown()

    @contextlib.contextmanager
    def recording(self, recorded: list):
        done = []

        def record(work):
            done.append(work)
            work()

        yield record
        recorded.append(lambda: [work() for work in done])


def check_stream(machine, call: Call, backend: str) -> None:
    """Work before the call, on its stream, fills its input late: a launch on another stream reads what was there."""
    fresh, results = call.x.to(machine.device), []
    x, want = torch.zeros_like(fresh), call.run(fresh, backend=backend)
    machine.wait()
    stream = machine.stream()
    machine.submit(stream, machine.delay)
    machine.submit(stream, lambda: x.copy_(fresh))
    machine.launch(stream, lambda: results.append(call.run(x, backend=backend)))
    machine.wait(stream)
    same_bits(results[0].cpu(), want.cpu())


def check_threads(machine, calls: list[Call], backend: str, rounds: int = 3) -> None:
    """Each call in a thread of its own, on a stream of its own, all at once."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        for _ in range(rounds):
            for done in [pool.submit(check_stream, machine, call, backend) for call in calls]:
                done.result()


def check_capture(machine, call: Call, backend: str, warm: bool = True) -> None:
    """A recorded call, played again on other contents of its input, gives the result of these."""
    fresh, results, recorded = call.x.to(machine.device), [], []
    x = torch.zeros_like(fresh)
    if warm:
        call.run(x, backend=backend)
    machine.wait()
    with machine.recording(recorded) as record:
        record(lambda: results.append(call.run(x, backend=backend)))
    (replay,) = recorded
    for contents in (fresh, fresh.flip(0)):
        x.copy_(contents)
        replay()
        machine.wait()
        same_bits(results[-1].cpu(), call.run(contents, backend=backend).cpu())


def check_far(machine, call: Call, backend: str, copies: int) -> None:
    """The first and last image of ``copies``, between which all is zero, give what they give among three.

    With many copies the last elements lie, in the input or the result, beyond 2^31.
    """
    first, last = call.x[0].to(machine.device), call.x[-1].to(machine.device)
    x = torch.zeros((copies, *first.shape), dtype=first.dtype, device=machine.device)
    x[0], x[-1] = first, last
    result = call.run(x, backend=backend)
    few = call.run(torch.stack([first, torch.zeros_like(first), last]), backend=backend)
    for at, alone in zip((0, copies // 2, copies - 1), few, strict=True):
        same_bits(result[at].cpu(), alone.cpu())
