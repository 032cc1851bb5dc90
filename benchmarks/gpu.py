"""Everything a machine with a GPU is needed for, in one command of less than nine minutes: ``make gpu``.

Builds against the Python and torch that run this script, installs nothing and uses no network. A step that fails does
not keep the next from running. Output goes to ``build/gpu/<step>.log``; the end is a summary, and the exit status says
whether all was well. Stages that are named run alone, in that order, and the last has all of the time that is left.
``--dry-run`` takes the same steps with the backends of a machine without a GPU, and takes its time, because such a
machine may have few cores. Where the sources come without their git repository, MASKFEAT_COMMIT says what they are::

    python -m benchmarks.gpu [--dry-run] [--out FOLDER] [--seconds N] [machine|build|checks|benchmarks ...]
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOGS = ROOT / "build" / "gpu"
NAMES = ("machine", "build", "checks", "benchmarks")
SECONDS = 530  # for everything
PATIENCE = 4  # times as long for a rehearsal

PROGRAMS = sorted(f"tests/{path.name}" for path in (ROOT / "tests").glob("test_*cuda_on_host.py"))
"""Tests that run each kernel as a program of its own, on a GPU under compute-sanitizer."""

TESTS = sorted(
    f"tests/{path.name}" for path in (ROOT / "tests").glob("test_*.py") if f"tests/{path.name}" not in PROGRAMS
)
"""All others but those of the training layer, of which TRAINING is what does not compute on a CPU."""

TRAINING = "tests/maskfeat/test_device.py"

WORKERS = max(2, min(12, (os.cpu_count() or 1) - 4))
"""Processes that the tests are dealt to one by one: compiling Triton's kernels takes longer than running them."""

SANITIZERS = {
    "memcheck": ["--report-api-errors", "no", "--kernel-name-exclude", "kns=2at6native"],
    "racecheck": ["--kernel-name-exclude", "kns=2at6native"],
    "initcheck": [],
}
"""Tools and their options. Calls of torch and Triton that fail are meant to, and the kernels of torch are left alone,
but for initcheck, which has to see what they write."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A command with its own time limit in seconds; ``environment`` is added to that of this process."""

    name: str
    command: list[str]
    limit: float
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a step ended: its exit status, or None if it ran out of time."""

    step: Step
    status: int | None
    seconds: float
    last_line: str

    def __str__(self) -> str:
        word = {0: "passed", None: "TIMED OUT"}.get(self.status, f"FAILED ({self.status})")
        return f"{self.step.name:<24} {word:<12} {self.seconds:6.1f} s  {self.last_line[:100]}"


def stages(dry_run: bool, out: Path) -> dict[str, list[Step]]:
    """Steps of a stage run at the same time; the benchmarks have the machine for themselves."""
    python = [sys.executable, "-m"]
    # What other versions of the packages warn of is no fault here.
    pytest = [*python, "pytest", "-p", "no:cacheprovider", *([] if dry_run else ["-W", "default"])]
    slower = PATIENCE if dry_run else 1
    device = "cpu" if dry_run else "cuda"
    backends = "cpu,reference" if dry_run else "cuda,triton,cpu,reference"
    require = {"MASKFEAT_REQUIRE_BACKENDS": backends}
    build = ["make", "setup", "ENV=none", f"PYTHON={sys.executable}", f"MASKFEAT_BUILD={'auto' if dry_run else 'cuda'}"]
    archs = {} if dry_run else {"MASKFEAT_CUDA_ARCHS": os.environ.get("MASKFEAT_CUDA_ARCHS") or this_gpu()}
    in_torch = [*python, "benchmarks.small_calls", "--device", device]
    dealt = ["-n", str(WORKERS), "--dist", "worksteal", "--durations", "20"]
    checks = [
        Step("calls", in_torch, 240 * slower),
        Step("tests", [*pytest, *dealt, *TESTS], 240 * slower, require),
        Step("training", [*pytest, "-v", TRAINING], 240 * slower),
        Step("programs", [*pytest, "-v", *PROGRAMS], 240 * slower, require),
    ]
    for tool, options in {} if dry_run else SANITIZERS.items():
        watch = ["compute-sanitizer", "--tool", tool, *options, "--error-exitcode", "99"]
        watch += ["--target-processes", "application-only"]  # not the compilers of Triton
        checks.append(Step(f"calls-{tool}", [*watch, *in_torch], 240, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}))
    options = ["--device", device, "--out", str(out), *(["--quick"] if dry_run else [])]
    return {
        "machine": [Step("machine", ["nvidia-smi"], 20)] if not dry_run else [],
        "build": [Step("build", build, 150 * slower, archs)],
        "checks": checks,
        "benchmarks": [Step("benchmarks", [*python, "benchmarks", "all", *options], 240 * slower)],
    }


def this_gpu() -> str:
    """The architecture to build for, as setup.py takes it: "90"."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "--id=0"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().replace(".", "")


def chosen_stages(names: list[str], dry_run: bool, out: Path) -> list[list[Step]]:
    """The stages of these names, or all of them; the last one may take all of the time that is left."""
    every = stages(dry_run, out)
    *first, last = (every[name] for name in names or every)
    return [*first, [dataclasses.replace(step, limit=math.inf) for step in last]]


def run_stage(steps: list[Step], deadline: float, clock=time.monotonic) -> list[Outcome]:
    """Run steps side by side, each until its limit or the common deadline; those that are late are ended together."""
    begin = clock()
    running, outcomes = [], []

    def over(step: Step, status: int | None) -> None:
        outcomes.append(Outcome(step, status, clock() - begin, last_line(log_of(step))))
        print(outcomes[-1], flush=True)

    for step in steps:
        print(f"{step.name}: {' '.join(step.command)}", flush=True)
        try:
            running.append((step, start(step)))
        except OSError as error:
            log_of(step).write_text(f"{error}\n")
            over(step, error.errno)
    while running:
        time.sleep(0.1)
        is_late = {step.name: clock() - begin > step.limit or clock() > deadline for step, _ in running}
        late = [process for step, process in running if is_late[step.name] and process.poll() is None]
        end(late)
        for step, process in list(running):
            if process.poll() is not None:
                running.remove((step, process))
                over(step, None if process in late else process.returncode)
    return outcomes


def start(step: Step) -> subprocess.Popen:
    """Raises OSError if there is no such program."""
    with log_of(step).open("w") as log:
        return subprocess.Popen(
            step.command,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **step.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=hear_interrupts,
        )


def hear_interrupts() -> None:
    """In a new process, which else ignores them where the shell started all of this in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(processes: list[subprocess.Popen]) -> None:
    """End processes and their children: asked to, pytest tells first what has failed so far, in ten seconds at most."""
    for request in (signal.SIGINT, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, request)
        patience = time.monotonic() + 10
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0, patience - time.monotonic()))


def log_of(step: Step) -> Path:
    return LOGS / f"{step.name}.log"


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def missing_tools() -> list[str]:
    """What a machine needs for the real run and does not have."""
    tools = [tool for tool in ("nvcc", "compute-sanitizer", "make") if not shutil.which(tool)]
    return tools + [module for module in ("pytest", "xdist") if importlib.util.find_spec(module) is None]


def write_log(outcomes: list[Outcome], path: Path) -> str:
    """Everything so far in one file: a summary, which is returned, and the output of each step."""
    summary = "\n".join(map(str, outcomes))
    parts = [f"==== {o}\n{log_of(o.step).read_text(errors='replace')}" for o in outcomes]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([summary, *parts]))
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(NAMES)} (default all)")
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU; results stay in build/gpu")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of results and logs (default benchmarks/results)")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, metavar="N", help=f"for everything (default {SECONDS})"
    )
    options = parser.parse_args()
    os.environ["PATH"] += f"{os.pathsep}/usr/local/cuda/bin"  # where the tools are, also if no one has said so
    if not options.dry_run and not shutil.which("nvidia-smi"):
        parser.error("not found: nvidia-smi; --dry-run rehearses without a GPU")
    if importlib.util.find_spec("torch") is None:
        parser.error(f"{sys.executable} has no torch; name one that has it: make gpu PYTHON=...")
    for name in options.stages:
        if name not in NAMES:
            parser.error(f"STAGE must be one of {', '.join(NAMES)}, got {name!r}")
    if not options.dry_run:
        print("".join(f"not found: {tool}; what needs it will fail\n" for tool in missing_tools()), end="")
        if not (ROOT / ".git").exists() and "MASKFEAT_COMMIT" not in os.environ:
            print("no git here: the results will be of an unknown commit, unless MASKFEAT_COMMIT says it", flush=True)
    deadline = time.monotonic() + options.seconds * (PATIENCE if options.dry_run else 1)
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    results = options.out or (LOGS if options.dry_run else ROOT / "benchmarks" / "results")
    outcomes = []
    for steps in chosen_stages(options.stages, options.dry_run, results.resolve()):
        outcomes += run_stage(steps, deadline)
        summary = write_log(outcomes, (options.out or LOGS) / "gpu.log")
    print(f"\n{summary}\nlogs: {LOGS}")
    sys.exit(any(outcome.status != 0 for outcome in outcomes))


if __name__ == "__main__":
    main()
