"""Everything a machine with a GPU is needed for, in one command of less than nine minutes: ``make gpu``.

Builds against the Python and torch that run this script, installs nothing and uses no network. A step that fails does
not keep the next from running. Output goes to ``build/gpu/<step>.log``; the end is a summary, and the exit status says
whether all was well. Stages that are named run alone, and have all of the time. ``--dry-run`` takes the same steps with
the backends of a machine without a GPU, and takes its time, because such a machine may have few cores::

    python -m benchmarks.gpu [--dry-run] [--out FOLDER] [machine|build|checks|benchmarks ...]
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
SECONDS = 530  # for everything
PATIENCE = 4  # times as long for a rehearsal

PROGRAMS = sorted(f"tests/{path.name}" for path in (ROOT / "tests").glob("test_*cuda_on_host.py"))
"""Tests that run each kernel as a program of its own, on a GPU under compute-sanitizer."""

TESTS = sorted(
    f"tests/{path.name}" for path in (ROOT / "tests").glob("test_*.py") if f"tests/{path.name}" not in PROGRAMS
)
"""All others but those of the training layer, which compute on a CPU."""

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
    python, pytest = [sys.executable, "-m"], [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    slower = PATIENCE if dry_run else 1
    device = "cpu" if dry_run else "cuda"
    backends = "cpu,reference" if dry_run else "cuda,triton,cpu,reference"
    require = {"MASKFEAT_REQUIRE_BACKENDS": backends}
    build = ["make", "setup", "ENV=none", f"PYTHON={sys.executable}", f"MASKFEAT_BUILD={'auto' if dry_run else 'cuda'}"]
    in_torch = [*python, "benchmarks.small_calls", "--device", device]
    dealt = ["-n", str(WORKERS), "--dist", "worksteal", "--durations", "20"]
    checks = [
        Step("calls", in_torch, 240 * slower),
        Step("tests", [*pytest, *dealt, *TESTS], 240 * slower, require),
        Step("programs", [*pytest, "-v", *PROGRAMS], 240 * slower, require),
    ]
    for tool, options in {} if dry_run else SANITIZERS.items():
        watch = ["compute-sanitizer", "--tool", tool, *options, "--error-exitcode", "99"]
        watch += ["--target-processes", "application-only"]  # not the compilers of Triton
        checks.append(Step(f"calls-{tool}", [*watch, *in_torch], 240, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}))
    options = ["--device", device, "--out", str(out), *(["--quick"] if dry_run else [])]
    return {
        "machine": [Step("machine", ["nvidia-smi"], 20)] if not dry_run else [],
        "build": [Step("build", build, 150 * slower)],
        "checks": checks,
        "benchmarks": [Step("benchmarks", [*python, "benchmarks", "all", *options], 240 * slower)],
    }


def chosen_stages(names: list[str], dry_run: bool, out: Path) -> list[list[Step]]:
    """The stages of these names, or all of them; the last one may take all of the time that is left."""
    *first, last = (steps for name, steps in stages(dry_run, out).items() if not names or name in names)
    return [*first, [dataclasses.replace(step, limit=math.inf) for step in last]]


def run_stage(steps: list[Step], deadline: float, clock=time.monotonic) -> list[Outcome]:
    """Run steps side by side, each until its limit or the common deadline; a step that is late is ended."""
    begin = clock()
    running = []
    for step in steps:
        print(f"{step.name}: {' '.join(step.command)}", flush=True)
        with log_of(step).open("w") as log:
            process = subprocess.Popen(
                step.command,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **step.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=hear_interrupts,
            )
        running.append((step, process))
    outcomes = []
    while running:
        for step, process in list(running):
            status, seconds = process.poll(), clock() - begin
            late = status is None and (seconds > step.limit or clock() > deadline)
            if late:
                end(process)
            if late or status is not None:
                running.remove((step, process))
                outcomes.append(Outcome(step, status, seconds, last_line(log_of(step))))
                print(outcomes[-1], flush=True)
        time.sleep(0.1)
    return outcomes


def hear_interrupts() -> None:
    """In a new process, which else ignores them where the shell started all of this in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(process: subprocess.Popen) -> None:
    """End a process and its children: asked to, pytest tells first what has failed so far."""
    for request in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, request)
            process.wait(timeout=10)


def log_of(step: Step) -> Path:
    return LOGS / f"{step.name}.log"


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def missing_tools() -> list[str]:
    """What a machine needs for the real run and does not have."""
    tools = [tool for tool in ("nvidia-smi", "nvcc", "compute-sanitizer", "make") if not shutil.which(tool)]
    return tools + [module for module in ("pytest", "xdist") if importlib.util.find_spec(module) is None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="machine, build, checks, benchmarks (default all)")
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU; results stay in build/gpu")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of results and logs (default benchmarks/results)")
    options = parser.parse_args()
    for name in options.stages:
        if name not in stages(options.dry_run, LOGS):
            parser.error(f"STAGE must be machine, build, checks or benchmarks, got {name!r}")
    if not options.dry_run and missing_tools():
        parser.error(f"not found: {', '.join(missing_tools())}; --dry-run rehearses without a GPU")
    deadline = time.monotonic() + SECONDS * (PATIENCE if options.dry_run else 1)
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    results = options.out or (LOGS if options.dry_run else ROOT / "benchmarks" / "results")
    outcomes = []
    for steps in chosen_stages(options.stages, options.dry_run, results.resolve()):
        outcomes += run_stage(steps, deadline)
    summary = "\n".join(map(str, outcomes))
    print(f"\n{summary}\nlogs: {LOGS}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        parts = [f"==== {o}\n{log_of(o.step).read_text(errors='replace')}" for o in outcomes]
        (options.out / "gpu.log").write_text("\n".join([summary, *parts]))
    sys.exit(any(outcome.status != 0 for outcome in outcomes))


if __name__ == "__main__":
    main()
