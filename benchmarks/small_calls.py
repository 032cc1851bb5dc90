"""Every op once on every backend with kernels, on small shapes: the first thing to run on a GPU, and small enough for
compute-sanitizer to watch.

Each call is judged by itself, and one that is wrong does not keep the next from running; the exit status says whether
all were right. A process that a bad access has broken fails from there on: ``benchmarks.gpu`` gives each call its own::

    python -m benchmarks.small_calls [--device cuda] [BACKEND:CALL ...]
    python -m benchmarks.small_calls --large [...]    a batch of real size once, for the hardware counters
"""

import argparse
import sys
import threading
import time
import traceback

import torch
from torch import Tensor

from maskfeat_kernels import (
    DALAL_TRIGGS,
    MASKFEAT,
    OPENCV,
    SKIMAGE,
    available_backends,
    fused_hog,
    fused_hog_tokens,
    fused_mask_tokens,
    fused_masked_gather,
)
from maskfeat_kernels.testing import DTYPES, FLOATS, check_hog, images


def must_equal(result: Tensor, expected: Tensor) -> None:
    """Bit for bit, and with an AssertionError that says by how much if not."""
    torch.testing.assert_close(result.cpu(), expected.cpu(), rtol=0, atol=0)


def hog(backend: str, device: str) -> None:
    """Within the bounds of rounding, and on CUDA the bits of the CPU."""
    for dtype in DTYPES:
        planar = images(2, 3, 19, 40, dtype=dtype)
        for x in (planar, images(2, 16, 24, 3, dtype=dtype).permute(0, 3, 1, 2)):
            result = fused_hog(x.to(device), backend=backend).cpu()
            check_hog(result, x)
            if backend == "cuda":
                must_equal(result, fused_hog(x, backend="cpu"))


def tokens(backend: str, device: str) -> None:
    """The bits of the whole image's histograms; ids may repeat."""
    x, ids = images(2, 2, 3, 32, 48, dtype=torch.uint8), torch.tensor([[0, 5, 11], [7, 7, 1]])
    for images_ in (x, x.float()):
        result = fused_hog_tokens(images_.to(device), ids.to(device), backend=backend)
        if backend == "cuda":
            must_equal(result, fused_hog_tokens(images_, ids, backend="cpu"))
        expected = fused_hog_tokens(x.double(), ids, backend="reference")
        torch.testing.assert_close(result.cpu().double(), expected, rtol=0, atol=2e-6)


def blocks(backend: str, device: str) -> None:
    x = images(2, 3, 40, 56, dtype=torch.uint8)
    for spec in (SKIMAGE, OPENCV, DALAL_TRIGGS):
        result = fused_hog(x.to(device), spec, backend=backend).cpu()
        expected = fused_hog(x.double(), spec, backend="reference")
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=5e-6)


def gradients(backend: str, device: str) -> None:
    x = 1 + torch.rand(2, 3, 40, 56, dtype=torch.float64)  # without ties, where the gradient has a kink
    for spec in (MASKFEAT, SKIMAGE, OPENCV):
        found = []
        for name, place in ((backend, device), ("reference", "cpu")):
            leaf = x.to(place, copy=True).requires_grad_()
            fused_hog(leaf, spec, backend=name).pow(3).sum().backward()
            found.append(leaf.grad.cpu())
        torch.testing.assert_close(*found, rtol=0, atol=1e-6 * float(found[1].abs().max()))


def moves(backend: str, device: str) -> None:
    """Tokens are copied, and the sums of their gradients have one order: all bits are known."""
    ids = torch.tensor([[0, 5, 5], [8, 1, 0]], device=device)
    mask = torch.tensor([[True, False, True] * 3, [False, False, True] * 3], device=device)
    for dtype in FLOATS:
        x = torch.randn(2, 9, 40).to(device, dtype).requires_grad_()
        mask_token = torch.randn(40).to(device, dtype).requires_grad_()
        gathered = fused_masked_gather(x, ids, backend=backend)
        must_equal(gathered, x[torch.arange(2, device=device).unsqueeze(1), ids])
        masked = fused_mask_tokens(x, mask_token, mask, backend=backend)
        must_equal(masked, torch.where(mask.unsqueeze(-1), mask_token, x))
        (gathered.float().sum() + masked.float().sum()).backward()
        must_equal(mask_token.grad, torch.full((40,), float(mask.sum()), dtype=dtype))
        counts = torch.zeros(2, 9, device=device).scatter_add_(1, ids, torch.ones_like(ids, dtype=torch.float32))
        must_equal(x.grad[..., 0].float(), counts + ~mask)


def places(backend: str, device: str) -> None:
    """Recorded by a CUDA graph as the first call of the process, then on another stream and in another thread."""
    x = images(2, 3, 32, 48, dtype=torch.uint8).to(device)
    results = []
    if device == "cuda":
        if backend == "triton":  # which compiles at a first call, and no graph can hold that
            fused_hog(x, backend=backend)
        graph, held = torch.cuda.CUDAGraph(), x.clone()
        with torch.cuda.graph(graph):
            recorded = fused_hog(held, backend=backend)
        held.copy_(x.flip(0))
        graph.replay()
        results.append(recorded.flip(0))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results.append(fused_hog(x, backend=backend))
        stream.synchronize()
    thread = threading.Thread(target=lambda: results.append(fused_hog(x, backend=backend)))
    thread.start()
    thread.join()
    expected = fused_hog(x, backend=backend)
    check_hog(expected.cpu(), x.cpu())
    for result in results:
        must_equal(result, expected)
    assert len(results) == (3 if device == "cuda" else 1), "the other thread failed"


CALLS = {call.__name__: call for call in (hog, tokens, blocks, gradients, moves, places)}


def large(backend: str, device: str) -> None:
    """Four kernels on a real batch, between the marks that a profiler can be told to heed."""
    batch = 256 if device == "cuda" else 2
    x = torch.randint(256, (batch, 3, 224, 224), dtype=torch.uint8, device=device)
    floats, ids = x.float(), torch.rand(batch, 196, device=device).argsort(1)[:, :78].contiguous()
    calls = {
        "hog float32": lambda: fused_hog(floats, backend=backend),
        "hog uint8": lambda: fused_hog(x, backend=backend),
        "tokens uint8": lambda: fused_hog_tokens(x, ids, backend=backend),
        "skimage uint8": lambda: fused_hog(x, SKIMAGE, backend=backend),
    }
    for name, call in calls.items():
        call()  # compiles, and loads the module
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStart()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStop()
        print(f"{backend}: {name}, batch {batch}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--large", action="store_true", help="once on a real batch, by the first backend")
    parser.add_argument("--list", action="store_true", help="only print the names of the calls")
    parser.add_argument("calls", nargs="*", metavar="BACKEND:CALL", help="of every backend every one by default")
    options = parser.parse_args()
    known = names(options.device)
    if not known:
        parser.error(f"--device {options.device}: no backend with kernels runs on it here")
    for name in options.calls:
        if name not in known:
            parser.error(f"there is no {name!r} here; there are {', '.join(known)}")
    if options.list:
        print(*known, sep="\n")
        return 0
    if options.large:
        large(known[0].split(":")[0], options.device)
        return 0
    wrong = [name for name in options.calls or known if not is_right(name, options.device)]
    return int(bool(wrong))


def names(device: str) -> list[str]:
    """BACKEND:CALL of every backend with kernels on a device; not the reference, which is the last."""
    return [f"{backend}:{call}" for backend in available_backends(device)[:-1] for call in CALLS]


def is_right(name: str, device: str) -> bool:
    """Make a call, and tell how it went."""
    backend, call = name.split(":")
    begin = time.perf_counter()
    try:
        CALLS[call](backend, device)
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:  # a wrong number, a launch that fails, a refusal: the others are called all the same
        told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(f"{traceback.format_exc()}{name} WRONG: {told}", flush=True)
        return False
    print(f"{name} right, {time.perf_counter() - begin:.1f} s", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
