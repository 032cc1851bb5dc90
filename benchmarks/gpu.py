"""Everything a machine with a GPU is needed for: ``make gpu``, in two parts of under 4 and under 7 minutes.

``first`` calls every op once and measures what decides: variants of the kernel that were brought along, the main
benchmarks, training, hardware counters. ``second`` has compute-sanitizer, the tests that need a GPU and the other
benchmarks. An op whose bits are wrong in the calls is left out of the benchmarks. Nothing is installed, and no network
is used: objects of ``make gpu-carry`` are taken if they load, and are built otherwise.

A step has a time limit and a log, which grows while it runs: what is killed leaves what it has. FOLDER (build/gpu)
gets a folder for each part, of eight files at most: gpu.log with the summary, a log of each long step, and the report
of the benchmarks, which is rewritten after each case. ``--dry-run`` takes the same steps in the same time without a
GPU, each cut down. Where the sources come without their git repository, or in another, MASKFEAT_COMMIT says what they
are::

    python -m benchmarks.gpu [--dry-run] [--out FOLDER] [first|second ...]
"""

import argparse
import dataclasses
import importlib.util
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).parent.parent
CARRIED = ROOT / "build" / "gpu-carry"
PARTS = {"first": 230, "second": 390}
"""Seconds for all of a part."""

PATIENCE = 8  # seconds

DECISIVE = r"^(hog: .*from memory$|tokens: Targets|gather: Gather:|mask: Mask:|blocks: |gradients: |step: |loader: )"
"""The cases of the first part; the second has the others."""

PROGRAMS = ["tests/gpu/test_cuda_on_host.py", "tests/gpu/test_hog_blocks_cuda_on_host.py"]
"""Tests that run each kernel as a program of its own, on a GPU under compute-sanitizer."""

WORKERS = max(2, min(12, (os.cpu_count() or 1) - 4))
"""Processes that tests are dealt to one by one: compiling Triton's kernels takes longer than running them."""

COUNTERS = ["SpeedOfLight", "SchedulerStats", "WarpStateStats", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats"]

CANNOT = re.compile(r"Device not supported|ERR_NVGPUCTRPERM|initialize the profiler|there is no program")
"""What a profiler or sanitizer says, or what is said of it, where driver or image do not allow it."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A command with a time limit in seconds and a log; ``environment`` is added to that of this process.

    of_a_tool: it needs one that not every machine allows, and is no failure there.
    """

    name: str
    command: list[str]
    limit: float
    log: str = "gpu.log"
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    of_a_tool: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a step ended: 0 if it passed, None if it ran out of time, "cannot" if the tool does not work here."""

    step: Step
    status: "int | str | None"
    seconds: float
    last_line: str

    def __str__(self) -> str:
        word = {0: "passed", None: "TIMED OUT", "cannot": "cannot here"}.get(self.status, f"FAILED ({self.status})")
        return f"{self.step.name:<20} {word:<12} {self.seconds:6.1f} s  {self.last_line[:100]}"


@dataclasses.dataclass
class Run:
    """A part under way: its folder, what it tells, and what is left of its time."""

    folder: Path
    deadline: float
    dry: bool
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    def tell(self, line: str) -> None:
        print(line, flush=True)
        with (self.folder / "gpu.log").open("a") as log:
            log.write(f"{line}\n")

    def steps(self, *steps: Step) -> list[Outcome]:
        """Run steps side by side, on each CPU one at the most, each until its limit or the end of the part."""
        ended, processes = [], []
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            futures = [pool.submit(self._run, step, processes) for step in steps]
            try:
                for future in as_completed(futures):
                    ended.append(future.result())
                    self.tell(str(ended[-1]))
            finally:
                for future in futures:
                    future.cancel()
                while any(future.running() for future in futures):  # after an interrupt
                    for process in processes:
                        send(process, signal.SIGKILL)
                    time.sleep(0.05)
        self.outcomes += ended
        return ended

    def _run(self, step: Step, processes: list[subprocess.Popen]) -> Outcome:
        """One step, in a group of processes of its own, so that it ends with all that it started.

        Asked to end once it is late, pytest tells what has failed so far. What does not hear is killed after some
        patience.
        """
        self.tell(f"$ {shlex.join(step.command)}")
        found, begin, path = shutil.which(step.command[0]), time.monotonic(), self.folder / step.log
        with path.open("ab") as file:
            process = subprocess.Popen(
                step.command if found else ["sh", "-c", "echo there is no program $0; exit 127", step.command[0]],
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **step.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        processes.append(process)
        late = False
        for limit, number in ((min(step.limit, self.deadline - begin), signal.SIGINT), (PATIENCE, signal.SIGKILL)):
            try:
                process.wait(max(1.0, limit))
                break
            except subprocess.TimeoutExpired:
                late = True
                send(process, number)
        process.wait()
        log, status = path.read_text(errors="replace"), None if late else process.returncode
        if status and step.of_a_tool and CANNOT.search(log):
            status = "cannot"
        return Outcome(step, status, time.monotonic() - begin, last_line(log, step.name))


def send(process: subprocess.Popen, number: int) -> None:
    """A signal to a process and all that it started, if it has not ended."""
    if process.poll() is None:
        os.killpg(process.pid, number)


def last_line(log: str, name: str) -> str:
    """The last of those that begin with the name, if there are any: a log may be shared."""
    lines = [line.strip() for line in re.split(r"[\r\n]", log) if line.strip()]
    return next(reversed([line for line in lines if line.startswith(f"{name} ")] or lines), "")


def prepare(run: Run) -> list[str]:
    """Bring or build the objects, and make every call; the names of those that did not say that they are right.

    Each has a process of its own, as a bad access spoils all that follows in it; a rehearsal takes one for all.
    """
    device, here, carried = run.device, ROOT / "maskfeat_kernels" / "_torch_ops.so", CARRIED / "_torch_ops.so"
    if not run.dry:
        run.steps(Step("machine", ["nvidia-smi"], 20))
    if carried.exists() and not here.exists():
        shutil.copy2(carried, here)
    calls = calls_of(device) if run.dry or carried.exists() else []
    if not has_kernels(calls, device):
        build = ["make", "setup", "ENV=none", f"PYTHON={sys.executable}"]
        kind = {"MASKFEAT_BUILD": "cpu"} if run.dry else {"MASKFEAT_BUILD": "cuda", "MASKFEAT_CUDA_ARCHS": "native"}
        run.steps(Step("build", build, 150, environment=kind))
        calls = calls_of(device)
    if not has_kernels(calls, device):  # Triton may be there all the same
        run.outcomes.append(Outcome(Step("objects", [], 0), 1, 0.0, f"there are no compiled kernels for {device}"))
    asked = [("calls", *calls)] if run.dry else [(name, name) for name in calls]
    run.steps(*(Step(name, python("benchmarks.small_calls", "--device", device, *of), 40) for name, *of in asked))
    said = (run.folder / "gpu.log").read_text(errors="replace")
    return [name for name in calls if f"{name} right" not in said]


def first(run: Run, wrong: list[str]) -> None:
    for program in sorted((CARRIED / "variants").glob("*")) if not run.dry else []:
        run.steps(Step(program.name, [str(program)], 10, "variants.log"))
    run.steps(benchmarks(run, DECISIVE, wrong, 140))
    # What a loader of one machine delivers, and the share of the step that waits for it and that the targets take.
    recipe = ["vit_b_in1k", "steps=40", "log_every=10", "batch_size=256", "samples=10240"]
    recipe.append(f"workers={max(2, (os.cpu_count() or 2) - 2)}")
    if run.dry:
        recipe = ["vit_tiny", "steps=2", "log_every=1", "batch_size=4", "samples=8", "workers=1"]
    with tempfile.TemporaryDirectory() as folder:
        changes = [*recipe, f"device={run.device}", "eval_every=0", f"out={folder}"]
        run.steps(Step("training", python("maskfeat", "pretrain", *changes), 40, "training.log"))
    sections = [word for section in COUNTERS for word in ("--section", section)]
    watch = ["ncu", "--clock-control", "none", "--profile-from-start", "off", "--print-details", "all", *sections]
    large = python("benchmarks.small_calls", "--large", "--device", run.device)
    run.steps(Step("counters", [*([] if run.dry else watch), *large], math.inf, "counters.log", of_a_tool=True))


def second(run: Run, wrong: list[str]) -> None:
    # What other versions of the packages warn of is no fault here.
    pytest = [*python("pytest", "-p", "no:cacheprovider", "-v", "--tb=short"), *([] if run.dry else ["-W", "default"])]
    spread = [f"--ignore={path}" for path in PROGRAMS] + ["-n", str(WORKERS), "--dist", "worksteal"]
    chosen = ["-k", "cuda or triton or test_device", "tests"]
    if run.dry:
        chosen = ["tests/maskfeat_kernels/tokens/test_hog_tokens.py", "tests/maskfeat/run/test_device.py"]
        chosen = ["-k", "cpu or test_video", *chosen]
    checkers = "address and test_a_patch_outside" if run.dry else "memcheck or racecheck"
    require = {} if run.dry else {"MASKFEAT_REQUIRE_BACKENDS": "cuda,triton,cpu,reference"}
    require |= {"MASKFEAT_PROGRAMS": str(CARRIED)} if CARRIED.exists() else {}
    right = [name for name in calls_of(run.device) if name not in wrong]
    calls = []
    for tool in ("memcheck", "racecheck"):
        # Neither the compilers of Triton nor the kernels of torch. Calls that fail may be meant to.
        watch = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "99"]
        watch += ["--target-processes", "application-only"]
        watch += ["--kernel-name-exclude", "kns=2at6native", *(["--report-api-errors", "no"] * (tool == "memcheck"))]
        command = [*([] if run.dry else watch), *python("benchmarks.small_calls", "--device", run.device, *right)]
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        calls.append(Step(f"calls-{tool}", command, 200, f"calls-{tool}.log", environment, True))
    run.steps(
        *calls[: 1 if run.dry else 2],
        Step("tests", [*pytest, *spread, *chosen], 200, "tests.log", require),
        Step("programs", [*pytest, "-n", "4", "-k", checkers, *PROGRAMS], 200, "programs.log", require, True),
    )
    run.steps(benchmarks(run, f"^(?!{DECISIVE[1:]})", wrong, math.inf))


def benchmarks(run: Run, only: str, wrong: list[str], limit: float) -> Step:
    """All suites; their report comes into the folder of the part."""
    out = ["--device", run.device, "--out", str(run.folder), *(["--quick"] if run.dry else [])]
    out += ["--without", *wrong] if wrong else []
    return Step("benchmarks", python("benchmarks", "all", "--only", only, *out), limit, "benchmarks.log")


def python(module: str, *words: str) -> list[str]:
    return [sys.executable, "-X", "faulthandler", "-m", module, *words]


def calls_of(device: str) -> list[str]:
    """Those that benchmarks.small_calls has; none if an object does not load."""
    listed = subprocess.run(
        python("benchmarks.small_calls", "--device", device, "--list"), cwd=ROOT, capture_output=True, text=True
    )
    return listed.stdout.split()


def has_kernels(calls: list[str], device: str) -> bool:
    return any(name.startswith(f"{device}:") for name in calls)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default both)")
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", metavar="FOLDER")
    options = parser.parse_args()
    os.environ["PATH"] += f"{os.pathsep}/usr/local/cuda/bin"  # where the tools are, also if no one has said so
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else steps ignore it if a shell's background began this
    for name in options.parts:
        if name not in PARTS:
            parser.error(f"PART must be one of {', '.join(PARTS)}, got {name!r}")
    if importlib.util.find_spec("torch") is None:
        parser.error(f"{sys.executable} has no torch; name one that has it: make gpu PYTHON=...")
    for tool in ["make"] if options.dry_run else ["make", "nvidia-smi"]:
        if not shutil.which(tool):
            parser.error(f"not found: {tool}; --dry-run rehearses without a GPU")
    if not (ROOT / ".git").exists() and "MASKFEAT_COMMIT" not in os.environ:
        print("no git here: the results will be of an unknown commit, unless MASKFEAT_COMMIT says it", flush=True)
    failed = False
    for name in options.parts or PARTS:
        failed |= not do(name, options.out.resolve() / name, options.dry_run)
    return int(failed)


def do(part: str, folder: Path, dry: bool) -> bool:
    """Take the steps of a part, and say at the end how each went; whether all was well."""
    begin = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run = Run(folder, begin + PARTS[part], dry)
    wrong = prepare(run)
    if wrong:
        run.tell(f"wrong, and left out of the benchmarks: {', '.join(wrong)}")
    {"first": first, "second": second}[part](run, wrong)
    told = "\n".join(map(str, run.outcomes))
    run.tell(f"\n{part}: {time.monotonic() - begin:.0f} s\n{told}\nlogs: {folder}")
    return all(outcome.status in (0, "cannot") for outcome in run.outcomes)


if __name__ == "__main__":
    sys.exit(main())
