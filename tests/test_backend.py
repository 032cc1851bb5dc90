"""Which backend runs: "auto" chooses, an explicit name is obeyed or refused with the reason."""

import re

import pytest
import torch
from conftest import REQUIRED, device_of

from maskfeat_kernels import available_backends, fused_hog, hog_reference, ops
from maskfeat_kernels import backend as backend_module
from maskfeat_kernels.backend import BACKENDS, choose_backend, why_unavailable
from maskfeat_kernels.testing import byte_images, check_hog

CPU = torch.device("cpu")
X = byte_images(3, 16, 16)


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


@pytest.mark.parametrize("name", REQUIRED)
def test_a_required_backend_is_available(name):
    assert why_unavailable(name, device_of(name)) is None


def test_the_reference_runs_everywhere_and_comes_last():
    for device in ("cpu", "meta", *(["cuda", torch.device("cuda:0")] if torch.cuda.is_available() else [])):
        assert available_backends(device)[-1] == "reference"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nothing_runs_on_a_device_that_is_not_there():
    assert available_backends("cuda") == available_backends("cuda:1") == []


def test_auto_takes_the_first_available_backend():
    assert choose_backend(CPU, "auto") == choose_backend(CPU) == available_backends("cpu")[0]


def test_an_explicit_backend_is_the_one_that_runs(backend, monkeypatch):
    ran = []
    reference = hog_reference.hog
    monkeypatch.setattr(hog_reference, "hog", lambda *a: ran.append("reference") or reference(*a))
    check_hog(fused_hog(X.to(device_of(backend)), backend=backend).cpu(), X)
    assert choose_backend(torch.device(device_of(backend)), backend) == backend
    assert len(ran) == (1 if backend == "reference" else 0)


@pytest.mark.parametrize("name", ["gpu", "Reference", "", None, 3])
def test_an_unknown_backend_is_named_with_those_that_exist(name):
    with pytest.raises(ValueError, match=exactly(f"backend must be 'auto' or one of {BACKENDS}, got {name!r}")):
        fused_hog(X, backend=name)


def test_a_backend_of_another_device_is_refused():
    reason = "backend 'cuda' is not available on device 'cpu': it runs on cuda tensors"
    with pytest.raises(ValueError, match=exactly(reason)):
        fused_hog(X, backend="cuda")


def test_triton_runs_on_cuda_tensors_or_in_its_interpreter(monkeypatch):
    monkeypatch.setattr(backend_module, "_TRITON_IS_INSTALLED", True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert why_unavailable("triton", "cuda") is None
    assert "set TRITON_INTERPRET=1 before triton is imported" in why_unavailable("triton", "cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert why_unavailable("triton", "cpu") is None
    monkeypatch.setattr(backend_module, "_TRITON_IS_INSTALLED", False)
    reason = "backend 'triton' is not available on device 'cpu': the package triton is not installed"
    with pytest.raises(ValueError, match=exactly(reason)):
        fused_hog(X, backend="triton")


def test_a_backend_that_is_not_built_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(ops, "compiled_devices", [])
    assert "cpu" not in available_backends("cpu")
    reason = "the compiled extension is not built; run `pip install .` in the source tree"
    with pytest.raises(ValueError, match=exactly(f"backend 'cpu' is not available on device 'cpu': {reason}")):
        fused_hog(X, backend="cpu")
    check_hog(fused_hog(X), X)


def test_an_extension_without_cuda_says_how_to_build_it(monkeypatch):
    monkeypatch.setattr(ops, "compiled_devices", ["cpu"])
    assert why_unavailable("cpu", "cpu") is None
    assert why_unavailable("cuda", "cuda") == "the extension was built without it; rebuild with MASKFEAT_BUILD=cuda"
