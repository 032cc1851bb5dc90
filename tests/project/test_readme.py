"""The README's commands work in an environment that is made as it says."""

import ast
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PACKAGES = {"yaml": "pyyaml", "PIL": "pillow", "skimage": "scikit-image"}
ON_DEMAND = {"triton", "fsspec", "matplotlib", "timm", "wandb", "cv2", "pillow_heif", "ray", "sklearn"}
"""Imported where a user asks for what needs them; the error says what to install."""


def test_the_extra_for_training_has_all_that_is_imported():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 does not read TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    installed = {re.split(r"[<>=]", name)[0] for name in listed}
    imported = set()
    for file in [*ROOT.glob("maskfeat/**/*.py"), *ROOT.glob("maskfeat_kernels/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                imported.add(node.module.split(".")[0])
    ours = {"maskfeat", "maskfeat_kernels"} | set(sys.stdlib_module_names)
    assert {PACKAGES.get(name, name) for name in imported - ours - ON_DEMAND} <= installed


def commands(start):
    lines = [line.split("  #")[0].strip() for line in README.splitlines()]
    return [line for line in lines if line.startswith(start)]


@pytest.mark.slow  # installs torch twice, as pip builds in an environment of its own
def test_the_commands_for_training(tmp_path):
    (install,) = commands('pip install ".[train]"')
    train = [line for line in commands("maskfeat ") if "runs/tiny" in line or line == "maskfeat recipes"]
    assert [line.split()[1] for line in train] == ["recipes", "pretrain", "show"]
    venv.create(tmp_path / "venv", with_pip=True)
    environment = {**os.environ, "PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}", "MASKFEAT_BUILD": "cpu"}
    environment["PIP_CONSTRAINT"] = str(ROOT / "requirements.lock")  # of the versions that all other tests have
    sources = tmp_path / "sources"
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, sources], check=True)
    for line in [install, *(line.replace("steps=200", "steps=2") for line in train)]:
        done = subprocess.run(line, shell=True, cwd=sources, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert (sources / "panel.png").exists() and (sources / "runs" / "tiny" / "weights.safetensors").exists()
