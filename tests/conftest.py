"""Fixtures that run a test once per backend.

A backend that cannot run here is left out, unless MASKFEAT_REQUIRE_BACKENDS (names separated by commas) asks for it:
then its tests run and fail with the reason. Triton runs on the GPU, and without one in its interpreter.
"""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from maskfeat_kernels import available_backends, fused_hog, fused_hog_tokens

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read by triton when it is imported
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores


def ops_of_torchvision() -> "torch.library.Library | None":
    """What torchvision lacks where its ops do not load, as those of PyPI, which need CUDA, beside a torch for CPUs.

    Without two of them it does not import. Declared, they let its Python half work: all that timm and transformers use.
    """
    found = importlib.util.find_spec("torchvision")
    try:
        for file in Path(found.origin).parent.glob("_C*.so") if found and found.origin else ():
            torch.ops.load_library(file)
        return None
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library


TORCHVISION = ops_of_torchvision()  # they are gone with this
REQUIRED = [name for name in os.environ.get("MASKFEAT_REQUIRE_BACKENDS", "").split(",") if name]
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
BACKENDS = list(dict.fromkeys([name for device in DEVICES for name in available_backends(device)] + REQUIRED))
COMPILED = [name for name in BACKENDS if name not in ("reference", "triton")]
INTERPRETED = () if torch.cuda.is_available() else ("triton",)
OPAQUE = [
    pytest.param(name, marks=pytest.mark.slow) if name in INTERPRETED else name
    for name in BACKENDS
    if name != "reference"
]
"""Backends that are opaque ops to PyTorch's transforms; the reference is plain torch, which needs no test there."""

if "triton" in BACKENDS and not torch.cuda.is_available():
    from triton_interpreter import hasten

    hasten()

LONG = {
    *("test_cuda_on_host", "test_hog_blocks_cuda_on_host", "test_benchmarks", "test_kernel_report", "test_manifest"),
    *("test_hog_blocks_gradient", "test_hog_blocks_compile", "test_hog_compile", "test_hog_exact_bins", "test_build"),
    *("test_hog_tokens", "test_hog", "test_workers", "test_checkpoint", "test_convert", "test_triton_on_stub"),
    *("test_train", "test_going_on", "test_device", "test_gpu_script", "test_cli", "test_model", "test_mask"),
}
"""Files whose tests take ten seconds or more together."""


def device_of(backend: str) -> str:
    """The device that the tests run a backend on."""
    return "cuda" if backend == "cuda" or (backend == "triton" and torch.cuda.is_available()) else "cpu"


def moved(x: torch.Tensor, backend: str) -> torch.Tensor:
    """``x`` on the device of a backend, with the strides that it has, also those of a view, which no copy keeps."""
    if device_of(backend) == "cpu":
        return x
    base = torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0).to(device_of(backend))
    return base.as_strided(x.shape, x.stride(), x.storage_offset())


def pytest_collection_modifyitems(config, items):
    """Leave to the other backends what the mark ``sampled`` does not ask of Triton.

    Its interpreter takes tenths of a second for the smallest image, and its compiler more for each new set of
    parameters, so that it runs a part of the larger tables: ``@pytest.mark.sampled(lambda parameters: condition)``
    (pytest would take a function with a name for the test).

    Workers, which take a file at a time, begin with those that take long. So they end together.
    """
    left_out = [item for item in items if not _is_asked_for(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if _is_asked_for(item)]
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.stem not in LONG)


def _is_asked_for(item) -> bool:
    mark, call = item.get_closest_marker("sampled"), getattr(item, "callspec", None)
    if mark is None or call is None or call.params.get("backend") != "triton":
        return True
    (condition,) = mark.args
    return condition(**{name: value for name, value in call.params.items() if name != "backend"})


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    """Every backend."""
    return request.param


@pytest.fixture(params=COMPILED)
def compiled_backend(request) -> str:
    """Backends in C++ or CUDA: fast enough for millions of pixels, one fixed order of summation."""
    return request.param


@pytest.fixture
def fresh_compiler():
    """torch.compile has compiled nothing before, and keeps nothing for the next test."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def hog(backend):
    """fused_hog on the backend under test, on its device; the result comes back to the CPU."""

    def run(x, *spec, **changes):
        return fused_hog(moved(x, backend), *spec, backend=backend, **changes).cpu()

    return run


@pytest.fixture
def hog_tokens(backend):
    """fused_hog_tokens on the backend under test, on its device; the result comes back to the CPU."""

    def run(x, token_ids, *patch_size_and_spec, **options):
        x, token_ids = moved(x, backend), moved(token_ids, backend)
        return fused_hog_tokens(x, token_ids, *patch_size_and_spec, backend=backend, **options).cpu()

    return run


@pytest.fixture
def world():
    """A job of one process on the CPU."""
    from maskfeat.run.distributed import join

    with join("cpu") as world:
        yield world


@pytest.fixture
def two_threads():
    """PyTorch works with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def poisoned_memory():
    """Fresh memory holds NaN, so that output which a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
