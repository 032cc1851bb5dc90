"""The wheel, built as `make wheel` does and imported in an environment of its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from test_binary import check_kernels, check_torch_ops

ROOT = Path(__file__).parents[2]
USE = """
import sys, numpy
from maskfeat_kernels.compat.skimage import hog
assert hog(numpy.zeros((24, 24), numpy.uint8)).shape == (81,)
assert "torch" not in sys.modules
import torch, maskfeat_kernels
from maskfeat_kernels import library
assert maskfeat_kernels.__file__.startswith({environment!r}), maskfeat_kernels.__file__
assert maskfeat_kernels.fused_hog(torch.zeros(1, 8, 8)).shape == (1, 9, 1, 1)
print(*library.compiled_devices)
"""


@pytest.mark.slow
def test_a_wheel_with_cuda_kernels_is_built_and_imported_without_a_gpu(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("needs a CUDA toolkit")
    sources = tmp_path / "sources"
    shutil.copytree(ROOT, sources, ignore=shutil.ignore_patterns(".venv", ".git", "build", "*.so", "results"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--wheel-dir",
        tmp_path,
        sources,
    ]
    environment = {**os.environ, "MASKFEAT_BUILD": "cuda", "MASKFEAT_CUDA_ARCHS": "90"}
    subprocess.run(build, check=True, cwd=tmp_path, env=environment, capture_output=True)

    clean = tmp_path / "clean"
    venv.create(clean, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(clean), "platbase": str(clean)}))
    # Torch and what it needs are those of this environment, found behind the wheel's own files.
    (packages / "torch.pth").write_text(sysconfig.get_path("purelib"))
    (wheel,) = tmp_path.glob("*.whl")
    # The module for NumPy ties the wheel to this Python.
    assert f"-cp{sys.version_info.major}{sys.version_info.minor}-" in wheel.name
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, packages], check=True)
    assert {"__init__.pyi", "py.typed"} <= {path.name for path in (packages / "maskfeat_kernels").iterdir()}
    check_torch_ops(packages / "maskfeat_kernels" / "_torch_ops.so")
    check_kernels(packages / "maskfeat_kernels" / "_torch_ops.so", ["90"])
    run = [clean / "bin" / "python", "-c", USE.format(environment=str(clean))]
    used = subprocess.run(run, check=True, cwd=tmp_path, capture_output=True, text=True)
    assert used.stdout.split() == ["cpu", "cuda"]
