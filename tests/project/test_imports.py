"""Who may import whom: maskfeat -> maskfeat_kernels -> compiled modules, never back; and nothing heavy before its use.

Inside of maskfeat_kernels, hog and tokens never know each other, nor does a backend another.

The rules are plain functions from a source text to a list of offences, so each is also tried on a made-up offender.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import maskfeat_kernels

ROOT = Path(__file__).parents[2]
PYTHON_FILES = sorted(path for package in ("maskfeat_kernels", "maskfeat") for path in (ROOT / package).rglob("*.py"))
CXX_FILES = sorted(path for suffix in ("*.h", "*.cuh", "*.cpp", "*.cu") for path in (ROOT / "csrc").rglob(suffix))

BACKENDS = ("reference", "triton", "cpu", "cuda")
# What each room of maskfeat_kernels, and each module at its top, imports of the others.
KERNELS = {
    "__init__": set(),
    "scalars": set(),
    "checks": set(),
    "interchange": set(),
    "nn": {"hog.spec", "hog.api"},
    "library": set(),
    "backend": {"library"},
    "ops": {"hog.ops", "tokens.ops"},
    "layouts": {"scalars"},
    "visualize": {"checks", "interchange", "layouts", "scalars", "hog.spec"},
    "testing": {"hog.spec", "hog.plan", "hog.reference"},
    "compat": {
        *("backend", "checks", "interchange", "layouts", "scalars"),
        *("hog.spec", "hog.plan", "hog.api", "hog.points"),
    },
    "hog.__init__": set(),
    "hog.spec": {"scalars"},
    "hog.plan": {"hog.spec"},
    "hog.reference": {"hog.spec", "hog.plan"},
    "hog.ops": {"library", "hog.spec", "hog.plan", "hog.reference"},
    "hog.triton": {"library", "hog.spec", "hog.plan", "hog.ops"},
    "hog.api": {
        *("backend", "checks", "interchange", "library", "scalars"),
        *("hog.spec", "hog.plan", "hog.reference", "hog.ops", "hog.triton"),
    },
    "hog.points": {
        *("backend", "checks", "interchange", "library", "scalars"),
        *("hog.spec", "hog.plan", "hog.reference", "hog.ops", "hog.api"),
    },
    "hog.scales": {
        *("backend", "interchange", "library", "scalars"),
        *("hog.spec", "hog.ops", "hog.api"),
    },
    "tokens.__init__": set(),
    "tokens.reference": set(),
    "tokens.ops": {"library", "tokens.reference"},
    "tokens.triton": {"library", "tokens.ops"},
    "tokens.api": {"backend", "checks", "library", "tokens.reference", "tokens.ops", "tokens.triton"},
}
PUBLIC = {*maskfeat_kernels.__all__, "compat", "layouts", "nn", "ops", "testing", "visualize"}
# What each room of maskfeat, and each module at its top, imports of the others. The command imports them all.
TRAINING = {
    "keys": set(),
    "mask": set(),
    "sigterm": set(),
    "encoders": set(),
    "config": {"keys", "mask"},
    "target": {"mask"},
    "model": {"encoders", "mask", "target"},
    "build": {"config", "encoders", "model", "target"},
    "data": {"config", "keys", "mask", "sigterm"},
    "weights": {"build", "config", "encoders", "keys", "model"},
    "run": {"build", "config", "data", "encoders", "keys", "mask", "model", "sigterm", "target", "weights"},
    "extraction": {"config", "data", "keys", "model", "run", "weights"},
    "cli": {"build", "config", "data", "extraction", "model", "run", "weights"},
    "__main__": {"cli"},
    "__init__": {"encoders", "extraction", "mask", "model", "target"},
}
NOT_INSTALLED = {"benchmarks", "examples", "tests"}
ROOMS = [ROOT / "csrc", ROOT / "tests"]
FOLDERS = sorted(path for room in ROOMS for path in [room, *room.rglob("[!_]*")] if path.is_dir())
FRAMEWORK = re.compile(r"(torch|ATen|c10|pybind11|numpy)/|Python\.h")
OUTSIDE_CSRC = {"cuda_on_host.h"}  # of the tests


def imported_names(module: str, source: str) -> Iterator[str]:
    """Full dotted names of all imports, in functions too: ``from ..a import b`` in ``p.q.r`` gives ``p.a.b``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = module.split(".")[: -node.level] if node.level else []
            home += node.module.split(".") if node.module else []
            yield from (".".join([*home, alias.name]) for alias in node.names)


def backend_of(name: str) -> str | None:
    """The backend that a file is written for: "cpu" for ``hog_cpu`` and ``hog_cpu_kernel``; None if it serves all."""
    words = name.rpartition(".")[2].split("_")
    return next((backend for backend in BACKENDS if backend in words[1:]), None)


def import_offences(
    module: str,  # dotted; that of a package is "package.__init__"
    source: str,
) -> list[str]:
    """The imports of a Python module that its place does not allow."""
    reasons = {name: why_not_imported(module, name) for name in imported_names(module, source)}
    return [f"{module} imports {name}: {why}" for name, why in reasons.items() if why]


def why_not_imported(module: str, name: str) -> str | None:
    """None if ``module`` may import ``name``, else the rule against it."""
    package = module.partition(".")[0]
    top, first = f"{name}..".split(".")[:2]
    if top in NOT_INSTALLED:
        return "a package does not lean on what is not installed with it"
    if top == "triton" and not place_of(module).endswith(".triton"):
        return "only the backend of that name imports triton"
    if package == "maskfeat_kernels" and top == "maskfeat":
        return "the kernels do not know the training layer"
    if package == "maskfeat" and top == "maskfeat_kernels" and first not in {"", *PUBLIC}:
        return "not a public name"
    place = place_of(module)
    known = {"maskfeat_kernels": KERNELS, "maskfeat": TRAINING}[package][place]
    if package == top and place_of(name) not in {place, *known}:
        return f"{place} knows {', '.join(sorted(known)) or 'no other'} only"
    return None


def place_of(name: str) -> str:
    """Where in its package a full dotted name belongs to: a key of KERNELS or TRAINING."""
    package, *words = name.split(".")
    inner = package == "maskfeat_kernels" and words[:1] in (["hog"], ["tokens"])
    return ".".join(words[: 2 if inner else 1])


def circle(modules: dict[str, str]) -> list[str]:  # sources by dotted name
    """Modules that import each other, in functions too, in the order of their imports; none if there is no circle."""
    graph = {}
    for module, source in modules.items():
        names = {(*name.split("."),) for name in imported_names(module, source)}
        parts = {".".join(name[:end]) for name in names for end in range(2, len(name) + 1)}
        graph[module] = parts & modules.keys() - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def include_offences(
    file: str,  # from csrc on
    source: str,
) -> list[str]:
    """The headers that a file of csrc must not include."""
    headers = re.findall(r'^\s*#\s*include\s*([<"][^>"]+)', source, re.MULTILINE)
    reasons = {header[1:]: why_not_included(file, header[1:], header[0] == '"') for header in headers}
    return [f"{file} includes {header}: {why}" for header, why in reasons.items() if why]


def why_not_included(file: str, header: str, is_ours: bool) -> str | None:
    """None if a file of csrc may include ``header``, else the rule against it."""
    path, room = Path(file), Path(file).parts[0]
    framework = path.stem.partition("_")[0]  # torch.cpp and torch_device.h bind to torch, numpy.cpp to NumPy
    if not is_ours:
        if not FRAMEWORK.match(header) or (framework == "torch" and header.startswith("torch/")):
            return None
        if framework == "numpy" and header.startswith(("numpy/", "pybind11/")):
            return None
        return "a kernel knows neither torch nor Python"
    if header in OUTSIDE_CSRC:
        return None
    if "/" not in header:
        return "headers are named from csrc on"
    if Path(header).parts[0] not in {room, "common"}:
        return "a room knows itself and common"
    if Path(header).stem.startswith("torch_") and framework != "torch":
        return "a kernel knows neither torch nor Python"
    known = device_of(file)
    if known and device_of(header) not in {None, known}:
        return "a device does not know another"
    return None


def device_of(file: str) -> str | None:
    """The device that a file of csrc is written for: "cpu" for ``hog/cpu/votes.h`` and ``tokens/cpu_kernel.h``."""
    words = {part.partition("_")[0] for part in Path(file).with_suffix("").parts[1:]}
    return next((device for device in ("cpu", "cuda") if device in words), None)


def has_docstring(name: str, source: str) -> bool:
    """Whether the top level of a module defines ``name`` and documents it (a constant: by the string that follows)."""
    body = ast.parse(source).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name and ast.get_docstring(node):
            return True
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and bool(after.value.value)
    return False


def modules_loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running ``code`` in the root folder."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("code", ["import maskfeat_kernels", "from maskfeat_kernels import MASKFEAT, HogSpec"])
def test_import_is_light(code):
    assert modules_loaded_by(code).isdisjoint({"torch", "triton", "numpy"})


def test_import_of_the_drop_ins_for_arrays_is_light():
    """Processor time, which other processes do not add to; the least of three runs."""
    code = """
import sys, time
begin = time.process_time()
import maskfeat_kernels.compat.opencv, maskfeat_kernels.compat.skimage
print(time.process_time() - begin, *{"torch", "triton", "cv2", "skimage"} & set(sys.modules))
"""
    run = [sys.executable, "-c", code]
    loaded = [subprocess.run(run, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout for _ in range(3)]
    assert min(float(seconds) for seconds in loaded) < 0.3  # no number, if a module is listed behind it


@pytest.mark.parametrize("code", [
    pytest.param("import torch, maskfeat_kernels", marks=pytest.mark.slow),
    "import maskfeat_kernels, torch; import maskfeat_kernels.ops",
])  # fmt: skip
def test_import_registers_the_ops_where_torch_is(code):
    code += "; print(torch.ops.maskfeat_kernels.hog_blocks)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "maskfeat_kernels.hog_blocks\n"


def test_import_of_an_op_loads_torch_but_not_triton():
    loaded = modules_loaded_by("from maskfeat_kernels import fused_hog")
    assert "torch" in loaded
    assert "triton" not in loaded


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_python_imports_follow_the_arrows(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert import_offences(module, path.read_text()) == []


def test_nothing_imports_in_a_circle():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text() for path in PYTHON_FILES}
    assert circle(modules) == []


def test_a_circle_is_found():
    modules = {"maskfeat.run.a": "from ..weights import b", "maskfeat.weights.b": "def f():\n    from ..run.a import c"}
    assert set(circle(modules)) == modules.keys()
    assert circle(modules | {"maskfeat.weights.b": "from . import other"}) == []


@pytest.mark.parametrize("path", CXX_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_includes_follow_the_arrows(path):
    assert include_offences(path.relative_to(ROOT / "csrc").as_posix(), path.read_text()) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_is_seen_at_a_glance(folder):
    assert len([path for path in folder.iterdir() if path.name != "__pycache__"]) <= 16


def test_the_files_under_test_were_found():
    assert {"maskfeat_kernels/hog/api.py", "csrc/hog/cpu/cells.cpp"} <= {
        path.relative_to(ROOT).as_posix() for path in PYTHON_FILES + CXX_FILES
    }


@pytest.mark.parametrize(
    "module, source",
    [
        ("maskfeat_kernels.hog.api", "import maskfeat"),
        ("maskfeat_kernels.hog.api", "def f():\n    from maskfeat.model import MaskFeat"),
        ("maskfeat_kernels.testing", "from benchmarks.rivals import hog_layer"),
        ("maskfeat_kernels.testing", "import tests.oracle"),
        ("maskfeat_kernels.hog.api", "import triton.language as tl"),
        ("maskfeat_kernels.__init__", "from triton import jit"),
        ("maskfeat_kernels.__init__", "from .library import compiled_devices"),
        ("maskfeat_kernels.hog.api", "from ..tokens.api import fused_masked_gather"),
        ("maskfeat_kernels.hog.api", "from .. import tokens"),
        ("maskfeat_kernels.tokens.triton", "from ..hog.triton.votes import tile"),
        ("maskfeat_kernels.hog.triton.launch", "from .. import reference"),
        ("maskfeat_kernels.hog.triton.launch", "from ..api import fused_hog"),
        ("maskfeat_kernels.hog.reference", "def f():\n    from .triton import cells"),
        ("maskfeat_kernels.hog.reference", "from maskfeat_kernels.backend import choose_backend"),
        ("maskfeat_kernels.hog.plan", "from .ops import pack"),
        ("maskfeat_kernels.hog.spec", "from .plan import cell_axes"),
        ("maskfeat_kernels.checks", "from .hog.spec import HogSpec"),
        ("maskfeat_kernels.compat.skimage", "from ..hog.triton.cells import hog"),
        ("maskfeat.target", "from maskfeat_kernels import library"),
        ("maskfeat.target", "from maskfeat_kernels.hog.api import fused_hog"),
        ("maskfeat.target", "import maskfeat_kernels.hog.reference"),
        ("maskfeat.target", "import triton"),
        ("maskfeat.encoders.vit", "from ..run.device import autocast"),
        ("maskfeat.encoders.vit", "from ..config import Recipe"),
        ("maskfeat.data.loader", "def f():\n    from ..run import lock"),
        ("maskfeat.data.loader", "from maskfeat.weights.storage import read_tensors"),
        ("maskfeat.weights.convert", "from ..run.checkpoint import find_checkpoint"),
        ("maskfeat.config", "from .data.augment import rand_augment"),
        ("maskfeat.run.train", "from ..cli import main"),
        ("maskfeat.run.train", "from maskfeat import MaskFeat"),
    ],
)
def test_an_offending_import_is_found(module, source):
    assert len(import_offences(module, source)) == 1


@pytest.mark.parametrize(
    "module, source",
    [
        ("maskfeat_kernels.hog.api", "import torch\nfrom . import ops, reference\nfrom .spec import HogSpec"),
        ("maskfeat_kernels.hog.triton.cells", "import triton\nfrom ..spec import HogSpec\nfrom .. import ops"),
        ("maskfeat_kernels.hog.triton.launch", "from .cells import hog\nfrom ..plan import Region"),
        ("maskfeat_kernels.tokens.triton", "import triton\nfrom ..library import TAGS"),
        ("maskfeat_kernels.compat.skimage", "from ..hog.api import fused_hog\nfrom ..hog import spec"),
        ("maskfeat.target", "import maskfeat_kernels\nfrom maskfeat_kernels import MASKFEAT, fused_hog"),
        ("maskfeat.target", "from maskfeat_kernels.compat.slowfast import HOGLayerC\nfrom . import mask"),
        ("maskfeat.run.train", "from .. import config\nfrom ..data.loader import Loader\nfrom .step import part_loss"),
        ("maskfeat.cli", "def f():\n    from .run.train import train"),
    ],
)
def test_an_allowed_import_passes(module, source):
    assert import_offences(module, source) == []


@pytest.mark.parametrize(
    "name, source, offences",
    [
        ("hog/cpu/cells.cpp", "#include <torch/csrc/stable/tensor.h>", 1),
        ("hog/cuda/cells.cu", "#include <vector>\n#  include <ATen/ATen.h>\n#include <c10/core/Device.h>", 2),
        ("hog/math.h", "#include <Python.h>", 1),
        ("hog/cpu/cells.h", "#include <pybind11/numpy.h>", 1),
        ("hog/cpu/cells.cpp", '#include "hog/cuda/cells.h"', 1),
        ("hog/cuda/cells.cu", '#include "hog/cpu/cells_kernel.h"', 1),
        ("hog/cuda/cells.cu", '#include "hog/cuda/cells.h"\n#include "hog/math.h"\n#include <cuda_runtime.h>', 0),
        ("hog/cuda/cells.cu", '#include "cells.h"', 1),
        ("hog/plan.h", '#include "tokens/view.h"', 1),
        ("tokens/view.h", '#include "hog/math.h"', 1),
        ("tokens/torch.cpp", '#include "hog/cpu/cells.h"', 1),
        ("tokens/cpu.cpp", '#include "tokens/cuda.h"', 1),
        ("tokens/cpu_kernel.h", '#include "tokens/view.h"\n#include "common/portable.h"', 0),
        ("common/image_view.h", '#include "hog/math.h"', 1),
        ("common/cuda_launch.h", '#include <cuda_runtime.h>\n#include "cuda_on_host.h"', 0),
        ("opencv/detector.h", '#include "hog/plan.h"', 1),
        ("hog/torch.cpp", '#include <torch/csrc/stable/library.h>\n#include "hog/cpu/cells.h"', 0),
        ("hog/torch.cpp", '#include "hog/cuda/cells.h"\n#include "common/torch_device.h"', 0),
        ("common/torch_device.h", "#include <torch/csrc/stable/tensor.h>", 0),
        ("common/torch_image.h", '#include "common/torch_device.h"', 0),
        ("hog/cuda/cells.cu", '#include "common/torch_device.h"', 1),
        ("hog/math.h", '#include "common/torch_device.h"', 1),
        ("hog/numpy.cpp", '#include "common/torch_device.h"', 1),
        ("hog/numpy.cpp", "#include <pybind11/numpy.h>\n#include <torch/csrc/stable/tensor.h>", 1),
        ("opencv/numpy.cpp", '#include <pybind11/numpy.h>\n#include "opencv/detector.h"', 0),
    ],
)
def test_an_offending_include_is_found(name, source, offences):
    assert len(include_offences(name, source)) == offences


def test_type_checkers_see_the_public_names_where_they_are_loaded_from():
    stub = ast.parse(Path(maskfeat_kernels.__file__).with_suffix(".pyi").read_text())
    home = {name.asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert home == maskfeat_kernels._HOME


@pytest.mark.parametrize("name", maskfeat_kernels.__all__)
def test_public_names_resolve_and_are_documented(name):
    assert getattr(maskfeat_kernels, name) is not None
    assert name in dir(maskfeat_kernels)
    if name != "__version__":
        assert any(has_docstring(name, path.read_text()) for path in PYTHON_FILES)


@pytest.mark.parametrize(
    "source, documented",
    [
        ('def f():\n    """What it does."""', True),
        ("def f():\n    return 1", False),
        ('class f:\n    """What it is."""', True),
        ("@dataclass\nclass f:\n    a: int = 0", False),
        ('f = 1\n"""What it means."""', True),
        ("f = 1\ng = 2", False),
        ('g = 1\n"""What it means."""', False),
    ],
)
def test_a_missing_docstring_is_found(source, documented):
    assert has_docstring("f", source) is documented


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'fused_hogs'"):
        maskfeat_kernels.fused_hogs  # noqa: B018
