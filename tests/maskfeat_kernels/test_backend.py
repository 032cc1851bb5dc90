"""Which backend runs: "auto" chooses, an explicit name is obeyed or refused with the reason."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REQUIRED, device_of
from torch.utils._python_dispatch import TorchDispatchMode

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
    library,
)
from maskfeat_kernels import backend as backend_module
from maskfeat_kernels.backend import BACKENDS, choose_backend, why_unavailable
from maskfeat_kernels.hog import reference
from maskfeat_kernels.hog.reference import float64_device
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
    hog = reference.hog
    monkeypatch.setattr(reference, "hog", lambda *a: ran.append("reference") or hog(*a))
    check_hog(fused_hog(X.to(device_of(backend)), backend=backend).cpu(), X)
    assert choose_backend(torch.device(device_of(backend)), backend) == backend
    assert len(ran) == (1 if backend == "reference" else 0)


@pytest.mark.parametrize("name", ["gpu", "Reference", "", None, 3])
def test_an_unknown_backend_is_named_with_those_that_exist(name):
    with pytest.raises(ValueError, match=exactly(f"backend must be 'auto' or one of {BACKENDS}, got {name!r}")):
        fused_hog(X, backend=name)


def test_a_backend_of_another_device_is_refused():
    reason = "backend 'cuda' is not available on device 'cpu': it runs on cuda tensors"
    if not_compiled := library.why_not_compiled("cuda"):
        reason += f", and {not_compiled}"
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
    monkeypatch.setattr(library, "compiled_devices", [])
    assert "cpu" not in available_backends("cpu")
    reason = "the compiled extension is not built; run `pip install .` in the source tree"
    with pytest.raises(ValueError, match=exactly(f"backend 'cpu' is not available on device 'cpu': {reason}")):
        fused_hog(X, backend="cpu")
    check_hog(fused_hog(X), X)


@pytest.mark.slow
def test_the_package_works_where_nothing_is_built(tmp_path):
    package = Path(library.__file__).parent
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    code = "import torch, maskfeat_kernels as m; print(m.__file__, m.fused_hog(torch.ones(1, 8, 8)).shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / package.name / '__init__.py'} torch.Size([1, 9, 1, 1])\n"


def test_an_extension_without_cuda_says_why_and_how_to_build_it(monkeypatch):
    monkeypatch.setattr(library, "compiled_devices", ["cpu"])
    monkeypatch.setattr(library, "_why_no_cuda", "no CUDA toolkit was found")
    reason = "the extension was built without it (no CUDA toolkit was found); rebuild with MASKFEAT_BUILD=cuda"
    assert why_unavailable("cpu", "cpu") is None
    assert why_unavailable("cuda", "cuda") == reason
    refusal = f"backend 'cuda' is not available on device 'cpu': it runs on cuda tensors, and {reason}"
    with pytest.raises(ValueError, match=exactly(refusal)):
        fused_hog(X, backend="cuda")


def test_on_rocm_triton_serves_tensors_and_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(backend_module, "_TRITON_IS_INSTALLED", True)
    monkeypatch.setattr(library, "compiled_devices", library.find_compiled_devices())
    assert "cuda" not in library.compiled_devices
    assert why_unavailable("cuda", "cuda") == "this torch is built for ROCm"
    assert choose_backend(torch.device("cuda")) == "triton"


def test_on_windows_the_reference_serves_and_says_why(monkeypatch):
    monkeypatch.setattr(library, "compiled_devices", [])
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert choose_backend(CPU) == "reference"
    with pytest.raises(ValueError, match=r"on device 'cpu': there are no compiled kernels for Windows$"):
        choose_backend(CPU, "cpu")


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_other_devices_have_the_reference(device, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert choose_backend(torch.device(device)) == "reference"
    with pytest.raises(ValueError, match=rf"on device '{device}': it runs on cuda tensors"):
        choose_backend(torch.device(device), "cuda")


class NoFloat64(TorchDispatchMode):
    """As on the GPUs of Apple: no op may return float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        assert not (isinstance(out, torch.Tensor) and out.dtype == torch.float64), f"{function} returns float64"
        return out


@pytest.mark.parametrize("spec", [MASKFEAT, MASKFEAT.replace(gaussian_window=8), SKIMAGE, OPENCV, DALAL_TRIGGS])
def test_the_reference_computes_in_float32_where_a_device_has_no_float64(spec):
    x = byte_images(3, 32, 32)
    want = fused_hog(x, spec, backend="reference")
    ids = torch.tensor([[0, 1], [3, 2], [0, 0]])
    with NoFloat64():
        assert fused_hog(x, spec, backend="reference").equal(want)
        if spec.is_maskfeat:
            fused_hog_tokens(x.unsqueeze(1), ids, 8, spec, backend="reference")
        tokens = torch.ones(3, 4, 5, requires_grad=True)
        mask = torch.zeros(3, 4, dtype=torch.bool)
        moved = fused_mask_tokens(fused_masked_gather(tokens, ids, backend="reference").repeat(1, 2, 1),
                                  torch.ones(5, requires_grad=True), mask, backend="reference")  # fmt: skip
        moved.sum().backward()
    assert float64_device(torch.device("mps:0")) == CPU and float64_device(CPU) == CPU
