"""What setup.py does with the CUDA toolkit of a machine: any, none, one that is too old, and one that does not work."""

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType

import pytest
from setuptools import Distribution

ROOT = Path(__file__).parents[2]
KNOWN = {
    "12.1": "50 60 70 75 80 86 89 90",
    "12.8": "50 60 70 75 80 86 89 90 100 101 120",
    "13.0": "75 80 86 90 100 120",
}


def script(path: Path, text: str) -> Path:
    """A program of the shell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def build(monkeypatch, tmp_path) -> ModuleType:
    """setup.py as a module, on a machine without a toolkit."""
    for name in ("CUDA_HOME", "MASKFEAT_CUDA_ARCHS", "MASKFEAT_BUILD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("setup_of_the_project", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    return module


@pytest.fixture
def nvcc(tmp_path):
    """Writes an nvcc of a release, that knows some architectures and ``compiles`` as a line of the shell says."""

    def write(release: str = "13.0", archs: str | None = None, compiles: str = "exit 1") -> Path:
        listed = "".join(f"compute_{arch}\\n" for arch in (KNOWN[release] if archs is None else archs).split())
        cases = f"""case "$1" in
--version) echo "Cuda compilation tools, release {release}, V{release}.88";;
--list-gpu-arch) printf '{listed}';;
*) {compiles};;
esac"""
        return script(tmp_path / "cuda" / "bin" / "nvcc", cases)

    return write


def why(build: ModuleType) -> str:
    """Why no toolkit is found."""
    with pytest.raises(build.Unusable) as raised:
        build.find_toolkit()
    return str(raised.value)


def test_flags_and_architectures_are_those_that_a_toolkit_knows(build, nvcc):
    nvcc("12.1")
    old = build.find_toolkit()
    assert (old.version, old.archs) == ((12, 1), ["75", "80", "90"])
    assert "-gencode=arch=compute_90,code=compute_90" in old.flags()  # the newest, from which later GPUs compile
    assert not any("compress" in flag or "100" in flag for flag in old.flags())
    nvcc("12.8")
    assert build.find_toolkit().archs == ["75", "80", "90", "100", "120"]
    assert {"--compress-mode=size", "-gencode=arch=compute_120,code=compute_120"} <= set(build.find_toolkit().flags())
    nvcc("13.0", archs="90 100")
    assert build.find_toolkit().archs == ["90", "100"]


def test_a_toolkit_that_cannot_do_it_says_why(build, nvcc):
    path = nvcc("13.0", archs="35 50")
    assert why(build) == f"{path} compiles for 35, 50, not for 75"
    nvcc("13.0", archs="")
    assert why(build) == f"{path} compiles for nothing, not for 75"
    nvcc("11.8", archs="80")
    assert why(build) == f"{path} is of CUDA 11.8: 12.1 or newer is needed"
    script(path, "echo something else")
    assert why(build) == f"{path} --version names no release"
    script(path, "echo error: no licence >&2; echo more >&2; exit 3")
    assert why(build) == f"{path} failed: error: no licence"
    script(path, "exit 3")
    assert why(build) == f"{path} failed: exit status 3"
    path.chmod(0o644)
    assert why(build) == f"{path} does not run: Permission denied"
    path.unlink()
    assert why(build) == "no CUDA toolkit was found: put nvcc on the PATH or set CUDA_HOME"


def test_a_toolkit_is_found_beside_the_nvcc_of_the_path(build, nvcc, monkeypatch, tmp_path):
    nvcc("13.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    monkeypatch.setenv("PATH", str(tmp_path / "cuda" / "bin"))
    assert build.find_toolkit().home == tmp_path / "cuda"


ALL_ARCHS = ["75", "80", "90", "100", "120"]


@pytest.mark.parametrize(
    "asked, archs",
    [("90", ["90"]), ("100 80", ["80", "100"]), ("90a", ["90a"]), ("", ALL_ARCHS), ("all", ALL_ARCHS)],
)
def test_architectures_can_be_chosen(build, nvcc, monkeypatch, asked, archs):
    nvcc("13.0")
    monkeypatch.setenv("MASKFEAT_CUDA_ARCHS", asked)
    assert build.find_toolkit().archs == archs


@pytest.mark.parametrize("asked", ["sm_90", "9.0", "130", "90 70"])
def test_an_architecture_that_the_toolkit_does_not_know_is_named(build, nvcc, monkeypatch, asked):
    path = nvcc("13.0")
    monkeypatch.setenv("MASKFEAT_CUDA_ARCHS", asked)
    assert why(build) == f"{path} compiles for 75, 80, 86, 90, 100, 120, not for {asked.split()[-1]}"


@pytest.mark.parametrize("asked, without", [("native", ["80"]), ("", ALL_ARCHS)])
@pytest.mark.parametrize(
    "printed, archs",
    [("9.0\n9.0", ["90"]), ("12.0\n8.6", ["86", "120"]), ("7.0", None), ("[N/A]", None), (None, None)],
)
def test_a_build_is_for_the_gpus_of_the_machine(build, nvcc, monkeypatch, tmp_path, printed, archs, asked, without):
    nvcc("13.0")
    monkeypatch.setenv("MASKFEAT_CUDA_ARCHS", asked)
    if printed is not None:
        script(tmp_path / "path" / "nvidia-smi", f"printf '{printed}\\n'")
    assert build.find_toolkit().archs == (archs or without)


class Compiler:
    """Links as a list says: an error, or nothing."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def link_shared_object(self, objects, path, **options):
        for error in self.errors:
            raise error


def command(build: ModuleType, words: str, *link_errors):
    """The command of a build that MASKFEAT_BUILD asks for, as far as CUDA is concerned."""
    build.BUILD = words
    building = build.BuildOps(Distribution())
    building.compiler = Compiler(*link_errors)
    building.build_temp = "unused"
    return building


UNUSABLE = {
    "too old": ({"release": "12.0", "archs": "80"}, "12.1 or newer is needed"),
    "no architecture": ({"archs": "50"}, "not for 75"),
    "no headers": ({"compiles": "echo 'trial.cu(1): error: no cuda_runtime.h' >&2; exit 1"}, "error: no cuda_run"),
    "killed": ({"compiles": "kill -9 $$"}, "failed: exit status -9"),
    "no library": ({"compiles": "true"}, "no program links with the libraries of"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_toolkit_that_does_not_work_leaves_a_build_for_the_cpu_that_says_why(build, nvcc, case, capsys):
    toolkit, reason = UNUSABLE[case]
    nvcc(**toolkit)
    errors = [build.LinkError("cannot find -lcudart_static")] if case == "no library" else []
    building = command(build, "auto", *errors)
    objects, folders, ((name, text),) = building.finish_cuda(building.start_cuda())
    assert (objects, folders, name) == ([], [], "MASKFEAT_NO_CUDA")
    assert reason in text and text.startswith('"') and text.endswith('"')
    assert f"building no CUDA kernels: {text[1:30]}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="MASKFEAT_BUILD=cuda cannot be done: .*" + reason):
        command(build, "cuda", *errors).start_cuda()


def test_kernels_that_do_not_compile_leave_a_build_for_the_cpu_that_says_why(build, nvcc, tmp_path):
    nvcc("13.0")
    running = Future()
    running.set_exception(build.Unusable('nvcc failed: hog.cu: error: "x" \\ é'))
    cuda = build.find_toolkit(), [running]
    assert command(build, "auto").finish_cuda(cuda)[2] == [
        ("MASKFEAT_NO_CUDA", r'"nvcc failed: hog.cu: error: \"x\" \\ ?"'),
    ]
    with pytest.raises(SystemExit, match=r"cannot be done: nvcc failed: hog\.cu"):
        command(build, "cuda").finish_cuda(cuda)


def test_a_build_for_the_cpu_looks_for_no_toolkit(build, nvcc):
    nvcc("13.0", compiles="exit 1")
    building = command(build, "cpu")
    assert building.finish_cuda(building.start_cuda()) == ([], [], [("MASKFEAT_NO_CUDA", '"MASKFEAT_BUILD was cpu"')])


def test_jobs_are_as_many_as_cores_or_less(build, monkeypatch):
    monkeypatch.delenv("MAX_JOBS", raising=False)
    cores = build.jobs()
    assert cores >= 1
    for asked, jobs in (("1", 1), ("0", 1), ("999", cores), ("many", cores)):
        monkeypatch.setenv("MAX_JOBS", asked)
        assert build.jobs() == jobs


def run_setup(tmp_path: Path, words: str, **environment: str) -> subprocess.CompletedProcess:
    sources = tmp_path / "sources"
    sources.mkdir(exist_ok=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    shutil.copytree(ROOT / "csrc", sources / "csrc", dirs_exist_ok=True)
    shutil.copytree(ROOT / "maskfeat_kernels", sources / "maskfeat_kernels", dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("*.so", "__pycache__"))  # fmt: skip
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = {**os.environ, "MASKFEAT_BUILD": words, **environment}
    return subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, check=False)


def test_a_build_that_is_asked_for_by_name_fails_in_one_line(nvcc, tmp_path):
    path = nvcc("11.8", archs="80")
    done = run_setup(tmp_path, "cuda", CUDA_HOME=str(tmp_path / "cuda"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"MASKFEAT_BUILD=cuda cannot be done: {path} is of CUDA 11.8: 12.1 or newer is needed"
    )


def test_a_build_of_another_name_is_refused(monkeypatch):
    monkeypatch.setenv("MASKFEAT_BUILD", "gpu")
    with pytest.raises(SystemExit, match=r"^MASKFEAT_BUILD must be auto, cuda, cpu or none, got 'gpu'$"):
        runpy.run_path(str(ROOT / "setup.py"), run_name="__main__")


COMPILERS = """
import os, pathlib, subprocess, sys
calls, out = pathlib.Path(__file__).with_name("calls"), sys.argv[sys.argv.index("-o") + 1]
with calls.open("a") as file:
    print(*sys.argv[1:], file=file)
if "-c" in sys.argv:  # every source is an empty one
    sys.exit(subprocess.call(["gcc", "-fPIC", "-c", "-x", "c", os.devnull, "-o", out]))
pathlib.Path(out).touch()
"""


@pytest.mark.slow
@pytest.mark.parametrize("builds", [("cuda", "cpu"), ("cuda", "cpu", "auto")])
def test_a_build_goes_over_what_another_one_has_left(nvcc, tmp_path, builds):
    (tmp_path / "compiler.py").write_text(COMPILERS)
    compiler = script(tmp_path / "compiler", f'exec "{sys.executable}" -SE "{tmp_path / "compiler.py"}" "$@"')
    nvcc("13.0", compiles=f'exec {compiler} "$@"')
    tools = {"CC": str(compiler), "CXX": str(compiler), "CUDA_HOME": str(tmp_path / "cuda")}
    recorded = {}
    for words in builds:
        (tmp_path / "calls").write_text("")
        done = run_setup(tmp_path, words, **tools)
        assert done.returncode == 0, done.stderr
        calls = (tmp_path / "calls").read_text().splitlines()
        (record,) = [call for call in calls if "-c csrc/common/build_record.cpp" in call]
        (link,) = [call for call in calls if "_torch_ops.so" in call]
        # The flag holds for the libraries after it.
        assert sys.platform != "linux" or link.index("-Wl,--no-as-needed") < link.index("-ltorch ")
        recorded[words] = ("-DMASKFEAT_CUDA=1" in record, "-DMASKFEAT_NO_CUDA=" in record, link.count(".cuda.o"))
    assert recorded == {words: (False, True, 0) if words == "cpu" else (True, False, 3) for words in builds}


SAY_WHY = """
import torch
from maskfeat_kernels import fused_hog, library
assert library.compiled_devices == ["cpu"] and library.cuda_archs == []
fused_hog(torch.zeros(1, 8, 8), backend="cpu")
print(library.why_not_compiled("cuda"))
try:
    fused_hog(torch.zeros(1, 8, 8), backend="cuda")
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_an_unusable_toolkit_leaves_kernels_for_the_cpu_that_say_why_there_are_no_others(nvcc, tmp_path):
    path = nvcc("13.0", compiles="echo error: unsupported GNU version >&2; exit 1")
    done = run_setup(tmp_path, "auto", CUDA_HOME=str(tmp_path / "cuda"))
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "sources")}
    command = [sys.executable, "-c", SAY_WHY]  # -c looks for modules in its folder first
    used = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    reason = (
        f"the extension was built without it ({path} failed: error: unsupported GNU version);"
        " rebuild with MASKFEAT_BUILD=cuda"
    )
    refusal = f"backend 'cuda' is not available on device 'cpu': it runs on cuda tensors, and {reason}"
    assert used.stdout.splitlines() == [reason, refusal]
