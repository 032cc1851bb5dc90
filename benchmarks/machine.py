"""What a number means nothing without: hardware, driver, versions, compiler and its flags, commit and date."""

import ast
import contextlib
import ctypes
import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

import maskfeat_kernels
from benchmarks.timing import cache_bytes, cpu_name

ROOT = Path(__file__).parent.parent
OPENCV = [f"opencv-{contrib}python{headless}" for contrib in ("", "contrib-") for headless in ("", "-headless")]
PACKAGES = ("numpy", *OPENCV, "scikit-image", "fasthog", "hogpp", "triton")


def environment(device: "torch.device | str" = "cpu") -> dict:
    """Facts about this machine and this build, as they go into a report. No host name."""
    device = torch.device(device)
    facts = {
        "cpu": cpu_name(),
        "cpus": usable_cpus(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "maskfeat_cpu": os.environ.get("MASKFEAT_CPU"),  # of ours alone, where it is not the best
        "cache_bytes": cache_bytes(device),
        "load_before": load(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
        "compiler": compiler(),
        "flags": flags(),
        "backends": maskfeat_kernels.available_backends(device),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "multiprocessors": properties.multi_processor_count}
        facts |= {"gpu_memory": properties.total_memory, "cuda": torch.version.cuda}
        queries = {"driver": "driver_version", "most_mhz": "clocks.max.sm", "power_limit": "power.limit"}
        asked = [f"--query-gpu={','.join(queries.values())}", "--format=csv,noheader", f"--id={device.index or 0}"]
        facts |= dict.fromkeys(queries, "unknown")
        with contextlib.suppress(OSError, subprocess.CalledProcessError):  # there is no nvidia-smi, or it does not say
            run = subprocess.run(["nvidia-smi", *asked], capture_output=True, text=True, check=True)
            facts |= zip(queries, (word.strip() for word in run.stdout.split(",")), strict=True)
    return facts


def versions() -> dict[str, str]:
    """Ours, and those of the installed packages that take part."""
    found = {"maskfeat_kernels": maskfeat_kernels.__version__, "torch": str(torch.__version__)}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float | None:
    """Processes that ran or waited to run in the last minute, on average; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def name_of(facts: dict) -> str:
    """The hardware that the numbers of an environment are of. Processors of one name may differ in their vectors."""
    return facts.get("gpu") or f"{facts['cpu']} {facts['instruction_set']}"


def compiler() -> str | None:
    """The compiler that left its name in the extension; None if there is none, or it is not built."""
    for extension in sorted(Path(maskfeat_kernels.__file__).parent.glob("_torch_ops*.so")):
        name = re.search(rb"GCC: [^\0]+|clang version [^\0]+", extension.read_bytes())
        if name:
            return name[0].decode()
    return None


def flags() -> dict[str, str]:
    """What the compilers are told, as setup.py says it, and CXXFLAGS of the environment."""
    setup = ROOT / "setup.py"
    text = setup.read_text() if setup.exists() else ""
    told: dict[str, list[str]] = {}
    for name, words in re.findall(r"^(CXX_FLAGS|NVCC_FLAGS) \+?= (\[.*\])$", text, re.MULTILINE):
        told.setdefault(name, []).extend(ast.literal_eval(words))
    extra = os.environ.get("CXXFLAGS")
    return {name: " ".join(words) for name, words in told.items()} | ({"CXXFLAGS": extra} if extra else {})


def commit(tree: Path = ROOT) -> str | None:
    """The commit of the sources: what MASKFEAT_COMMIT says, else what git says, or None.

    What git says is followed by "+" if tracked files differ from it. The results, and the README that has some, do not
    count.
    """
    if "MASKFEAT_COMMIT" in os.environ:
        return os.environ["MASKFEAT_COMMIT"]
    git = ["git", "-C", str(tree)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    if head.returncode:
        return None
    status = [*git, "status", "--porcelain", "--untracked-files=no", "--", ":/"]
    status += [f":(top,exclude){name}" for name in ("benchmarks/results", "README.md")]
    changes = subprocess.run(status, capture_output=True, text=True, check=True)
    return head.stdout.strip() + ("+" if changes.stdout else "")


def told_commit(commit: str | None) -> str:
    """A commit in words."""
    if commit is None:
        return "unknown"
    return f"{commit} (with changes that are not committed)" if commit.endswith("+") else commit


def slug(name: str) -> str:
    """A file name of lower-case words: "AMD EPYC (TM) 7B13" becomes "amd-epyc-7b13"."""
    return "-".join(re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)", "", name.lower())))


def hold_memory() -> bool:
    """Keep freed memory in this process, for every rival, as torch does on a GPU. Returns whether that was possible.

    glibc gives large blocks back, or does not, as the heap happens to lie, and the next call pays for the page faults:
    that alone made the eager reference layer 1.8 times slower in one case than in another of the same work.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc
    trim_threshold, mmap_max = -1, -4  # its names for them
    return mallopt is not None and mallopt(trim_threshold, -1) == mallopt(mmap_max, 0) == 1
