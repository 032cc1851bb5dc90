"""Fixtures that run a test once per backend.

A backend that cannot run here is left out, unless MASKFEAT_REQUIRE_BACKENDS (names separated by commas) asks for it:
then its tests run and fail with the reason.
"""

import os

import pytest
import torch

from maskfeat_kernels import available_backends, fused_hog

REQUIRED = [name for name in os.environ.get("MASKFEAT_REQUIRE_BACKENDS", "").split(",") if name]
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
BACKENDS = list(dict.fromkeys([name for device in DEVICES for name in available_backends(device)] + REQUIRED))
COMPILED = [name for name in BACKENDS if name not in ("reference", "triton")]


def device_of(backend: str) -> str:
    """The device that the tests run a backend on."""
    return "cuda" if backend == "cuda" else "cpu"


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    """Every backend."""
    return request.param


@pytest.fixture(params=COMPILED)
def compiled_backend(request) -> str:
    """Backends in C++ or CUDA: fast enough for millions of pixels, one fixed order of summation."""
    return request.param


@pytest.fixture
def hog(backend):
    """fused_hog on the backend under test, on its device; the result comes back to the CPU."""

    def run(x, *spec, **changes):
        return fused_hog(x.to(device_of(backend)), *spec, backend=backend, **changes).cpu()

    return run


@pytest.fixture
def poisoned_memory():
    """Fresh memory holds NaN, so that output which a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
