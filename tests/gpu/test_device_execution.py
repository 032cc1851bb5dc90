"""On a GPU: streams, threads, CUDA graphs and arrays beyond 2^31 elements, for "cuda" and "triton".

Everywhere: the checks see a launch on the wrong stream, a result that is kept from the capture, and offsets that wrap.
"""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import BACKENDS, REQUIRED
from device_checks import (
    SPECS,
    Call,
    Gpu,
    Host,
    check_capture,
    check_far,
    check_stream,
    check_threads,
    gradient_call,
    hog_calls,
    move_calls,
    token_calls,
)

from maskfeat_kernels import MASKFEAT, SKIMAGE, available_backends, fused_hog, fused_mask_tokens, fused_masked_gather
from maskfeat_kernels.testing import images


@pytest.fixture(params=["cuda", "triton"])
def on_gpu(request) -> str:
    """A backend of a GPU; without one a failure where MASKFEAT_REQUIRE_BACKENDS asks for "cuda"."""
    if "cuda" not in REQUIRED and request.param not in available_backends("cuda"):
        pytest.skip("no GPU, or no kernels for it")
    return request.param


MOVES = move_calls()
CALLS = {
    "hog of bytes": hog_calls(MASKFEAT, torch.uint8)["aligned"],
    "hog of floats": hog_calls(SPECS["ten bins"], torch.float32)["crop"],
    "tokens": token_calls()["images torch.uint8"],
    "blocks": hog_calls(SKIMAGE, torch.float32)["aligned"],
    "gradient": gradient_call(SKIMAGE, torch.float32),
    "gather": MOVES["gather torch.float32 40"],
    "mask": MOVES["mask torch.bfloat16 768"],
}


@pytest.mark.parametrize("name", CALLS)
def test_another_stream(on_gpu, name):
    check_stream(Gpu(), CALLS[name], on_gpu)


def test_other_threads(on_gpu):
    check_threads(Gpu(), list(CALLS.values()), on_gpu)


@pytest.mark.parametrize("name", CALLS)
def test_a_graph_after_a_call(on_gpu, name):
    check_capture(Gpu(), CALLS[name], on_gpu)


COLD = """
import sys, torch
sys.path[:0] = {folders}
from device_checks import Gpu, check_capture
from test_device_execution import CALLS
try:
    check_capture(Gpu(), CALLS[{name!r}], {backend!r}, warm=False)
    print("captured")
except RuntimeError as refused:
    print("refused:", str(refused).splitlines()[0])
"""


@pytest.mark.parametrize("name", ["hog of bytes", "tokens", "blocks", "gather"])
def test_a_graph_of_a_first_call_is_right_or_refused(on_gpu, name):
    """A process whose first launch is captured: where the driver refuses, a call before is needed, as the docs say."""
    folders = [str(folder) for folder in Path(__file__).parents[:2]]
    program = COLD.format(folders=folders, name=name, backend=on_gpu)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("captured", "refused:")), done.stdout
    print(on_gpu, name, done.stdout)


# Beyond 2^31 elements


def far_calls() -> dict[str, tuple[Call, int]]:
    """Calls on [N, ...], and an N with which the input or the result has more than 2^31 elements."""
    beyond = 2**31 + 2**20
    pixels, tokens = images(2, 1, 16, 16, dtype=torch.uint8), torch.randn(2, 4, 768).bfloat16()

    def dense(spec):
        return lambda x, backend: fused_hog(x, spec, backend=backend)

    def gather(x, backend):
        ids = torch.tensor([[3, 0, 0, 2]], device=x.device).expand(len(x), -1)
        return fused_masked_gather(x, ids, backend=backend)

    def mask(x, backend):
        places = torch.tensor([[True, False, False, True]], device=x.device).expand(len(x), -1)
        return fused_mask_tokens(x, tokens[0, 1].to(x.device), places, backend=backend)

    return {
        "pixels": (Call(pixels, dense(MASKFEAT)), beyond // 256),
        "pixels of blocks": (Call(pixels, dense(SKIMAGE.replace(cell=4))), beyond // 256),
        "histograms": (Call(pixels, dense(MASKFEAT.replace(cell=1))), beyond // (9 * 256)),
        "blocks": (Call(pixels, dense(SKIMAGE.replace(cell=1))), beyond // (81 * 14 * 14)),
        "gradient": (gradient_far(), beyond // 256),
        "gather": (Call(tokens, gather), beyond // (4 * 768)),
        "mask": (Call(tokens, mask), beyond // (4 * 768)),
    }


def gradient_far() -> Call:
    return dataclasses.replace(gradient_call(MASKFEAT, torch.float32), x=images(2, 1, 16, 16, dtype=torch.float32))


FAR = far_calls()
BYTES = 60 << 30
"""What the gradient takes at most: pixels, a copy of them, their gradient, and histograms of cells and blocks."""


@pytest.mark.parametrize("name", FAR)
def test_beyond_32_bits(on_gpu, name):
    if torch.cuda.mem_get_info()[0] < BYTES:
        pytest.skip("less than 60 GiB of free memory on the GPU")
    call, copies = FAR[name]
    try:
        check_far(Gpu(), call, on_gpu, copies)
    finally:
        torch.cuda.empty_cache()


# That the checks see what they are for

needs_cpu = pytest.mark.skipif("cpu" not in BACKENDS, reason="the extension is not built")


class OnDefaultStream(Host):
    """A call does not wait for the work of the stream on which it is made."""

    def launch(self, stream, work):
        work()


@needs_cpu
@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_stream_is_seen(name):
    check_stream(Host(), CALLS[name], "cpu")
    with pytest.raises(AssertionError, match="differ"):
        check_stream(OnDefaultStream(), CALLS[name], "cpu")


@needs_cpu
def test_a_wrong_stream_of_a_thread_is_seen():
    check_threads(Host(), list(CALLS.values()), "cpu", rounds=1)
    with pytest.raises(AssertionError, match="differ"):
        check_threads(OnDefaultStream(), list(CALLS.values()), "cpu", rounds=1)


@needs_cpu
@pytest.mark.parametrize("name", CALLS)
def test_a_result_that_is_kept_from_the_capture_is_seen(name):
    call, kept = CALLS[name], {}
    check_capture(Host(), call, "cpu")

    def keeps(x, backend):
        return kept.setdefault(id(x), call.run(x, backend))

    with pytest.raises(AssertionError, match="differ"):
        check_capture(Host(), dataclasses.replace(call, run=keeps), "cpu")


@needs_cpu
@pytest.mark.parametrize("name", FAR)
def test_offsets_that_wrap_are_seen(name):
    """Here with 5 images of which an offset reaches 4."""
    call, _ = FAR[name]
    check_far(Host(), call, "cpu", copies=5)

    def wraps(x, backend):
        return call.run(x[torch.arange(len(x)) % 4], backend)

    with pytest.raises(AssertionError, match="differ"):
        check_far(Host(), dataclasses.replace(call, run=wraps), "cpu", copies=5)
