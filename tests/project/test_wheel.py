"""The wheel and the sources that `make` packs: one from the other, used in an environment of its own."""

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


def make(folder: Path, *words: str) -> Path:
    """The one file that a target of the Makefile leaves in dist/."""
    environment = {**os.environ, "MASKFEAT_CUDA_ARCHS": "90", "CI": ""}
    command = ["make", *words, "ENV=none", f"PYTHON={sys.executable}"]
    subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True)
    (packed,) = (folder / "dist").iterdir()
    return packed


@pytest.mark.slow
def test_sources_give_a_wheel_with_cuda_kernels_that_is_imported_without_a_gpu(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("needs a CUDA toolkit")
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "build", "dist", "*.so", "results"))
    sources = make(copy, "sdist")
    shutil.unpack_archive(sources, tmp_path, filter="data")
    wheel = make(tmp_path / sources.name.removesuffix(".tar.gz"), "wheel", "MASKFEAT_BUILD=cuda")
    # The module for NumPy ties the wheel to this Python, and auditwheel to a C library. The label tells of the toolkit.
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert "+cu" in wheel.name and f"-{python}-{python}-" in wheel.name
    assert sys.platform != "linux" or "manylinux_2_" in wheel.name

    clean = tmp_path / "clean"
    venv.create(clean, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(clean), "platbase": str(clean)}))
    # Torch and what it needs are those of this environment, found behind the wheel's own files.
    (packages / "torch.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, packages], check=True)
    assert {"__init__.pyi", "py.typed"} <= {path.name for path in (packages / "maskfeat_kernels").iterdir()}
    check_torch_ops(packages / "maskfeat_kernels" / "_torch_ops.so")
    check_kernels(packages / "maskfeat_kernels" / "_torch_ops.so", ["90"])
    run = [clean / "bin" / "python", Path(__file__).with_name("smoke.py")]
    used = subprocess.run(run, check=True, cwd=tmp_path, capture_output=True, text=True)
    assert used.stdout.split() == [str(packages / "maskfeat_kernels"), "cpu", "cuda"]
