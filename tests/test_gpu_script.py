"""``make gpu``: steps that fail or are late neither stop the next nor pass, and all of them fit the time."""

import math
import sys
import time

import pytest

from benchmarks import gpu
from benchmarks.__main__ import parse
from benchmarks.gpu import PATIENCE, PROGRAMS, ROOT, SECONDS, TESTS, Step, chosen_stages, run_stage, stages
from benchmarks.suites import SUITES


@pytest.fixture(autouse=True)
def _logs(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LOGS", tmp_path)


def python(name: str, code: str, limit: float = 60, **environment: str) -> Step:
    return Step(name, [sys.executable, "-c", code], limit, environment)


def test_steps_of_a_stage_end_each_in_its_way():
    steps = [
        python("good", "import os; print('first'); print(os.environ['ANSWER']); print()", ANSWER="42"),
        python("bad", "raise SystemExit('no')"),
        python(
            "late", "import time\ntry: time.sleep(60)\nfinally: print('so far', flush=True); time.sleep(60)", limit=4
        ),
    ]
    begin = time.monotonic()
    outcomes = {outcome.step.name: outcome for outcome in run_stage(steps, begin + 60)}
    assert time.monotonic() - begin < 30
    assert {name: (o.status, o.last_line) for name, o in outcomes.items()} == {
        "good": (0, "42"),
        "bad": (1, "no"),
        "late": (None, "so far"),
    }
    assert [str(outcomes[name]).split()[1] for name in ("good", "bad", "late")] == ["passed", "FAILED", "TIMED"]


def test_steps_that_are_late_are_ended_together():
    code = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    begin = time.monotonic()
    outcomes = run_stage([python(f"late {i}", code, limit=2) for i in range(3)], begin + 60)
    assert time.monotonic() - begin < 25, "ten seconds of patience for all of them, not for each"
    assert [(outcome.status, outcome.last_line) for outcome in outcomes] == 3 * [(None, "deaf")]


def test_a_program_that_is_not_there_fails_alone():
    steps = [Step("missing", ["no-such-program"], 60), python("good", "print('fine')")]
    missing, good = run_stage(steps, time.monotonic() + 60)
    assert (missing.status, good.status) == (2, 0)
    assert "no-such-program" in missing.last_line


def test_the_common_deadline_ends_a_step():
    (outcome,) = run_stage([python("late", "import time; time.sleep(60)")], time.monotonic())
    assert outcome.status is None


@pytest.mark.parametrize("fails", [False, True])
def test_the_exit_status_says_whether_all_was_well(fails, monkeypatch, tmp_path):
    good, bad = python("good", "print('fine')"), python("bad", "raise SystemExit('broken')")
    steps = {"checks": [good]} | ({"benchmarks": [bad]} if fails else {})
    monkeypatch.setattr(gpu, "stages", lambda dry_run, out: steps)
    written, write_log = [], gpu.write_log

    def counted(outcomes, path):
        written.append(len(outcomes))
        return write_log(outcomes, path)

    monkeypatch.setattr(gpu, "write_log", counted)
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry-run", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    assert bool(end.value.code) is fails
    assert written == ([1, 2] if fails else [1]), "after each stage, so that a run which is cut short has left a log"
    log = (tmp_path / "out" / "gpu.log").read_text()
    assert ("broken" in log) is fails
    assert "fine" in log


def test_without_a_gpu_only_a_rehearsal_runs(monkeypatch, capsys):
    monkeypatch.setattr(gpu.shutil, "which", lambda tool: None)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "not found: nvidia-smi; --dry-run rehearses without a GPU" in capsys.readouterr().err


def test_without_torch_nothing_runs(monkeypatch, capsys):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry-run"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "has no torch; name one that has it: make gpu PYTHON=..." in capsys.readouterr().err


@pytest.mark.parametrize("dry_run", [True, False])
def test_the_benchmarks_run_alone_and_have_time(dry_run, tmp_path):
    *checks, (benchmarks,) = stages(dry_run, tmp_path).values()
    assert SECONDS < 9 * 60
    available = SECONDS * (PATIENCE if dry_run else 1)
    assert sum(max((step.limit for step in stage), default=0) for stage in checks) <= available - 100
    assert ("--quick" in benchmarks.command) is dry_run
    names = [step.name for stage in stages(dry_run, tmp_path).values() for step in stage]
    assert len(set(names)) == len(names)
    assert ("calls-racecheck" in names) is not dry_run


@pytest.mark.parametrize("dry_run", [True, False])
def test_the_benchmarks_know_their_words(dry_run, tmp_path):
    *_, (benchmarks,) = stages(dry_run, tmp_path).values()
    words = benchmarks.command[benchmarks.command.index("benchmarks") + 1 :]
    options = parse(words)
    assert options.suites == list(SUITES)
    assert (options.quick, options.device, options.out) == (dry_run, "cpu" if dry_run else "cuda", tmp_path)


@pytest.fixture(autouse=True)
def _gpu(monkeypatch):
    monkeypatch.setattr(gpu, "this_gpu", lambda: "90")


def test_the_kernels_are_built_for_the_gpu_that_is_there(monkeypatch, tmp_path):
    monkeypatch.delenv("MASKFEAT_CUDA_ARCHS", raising=False)
    (build,) = stages(False, tmp_path)["build"]
    assert build.environment == {"MASKFEAT_CUDA_ARCHS": "90"}
    monkeypatch.setenv("MASKFEAT_CUDA_ARCHS", "80 90")
    (build,) = stages(False, tmp_path)["build"]
    assert build.environment == {"MASKFEAT_CUDA_ARCHS": "80 90"}
    (build,) = stages(True, tmp_path)["build"]
    assert build.environment == {}


@pytest.mark.parametrize("names", [[], ["build", "checks"], ["build", "benchmarks", "checks"], ["benchmarks"]])
def test_the_last_stage_that_is_asked_for_has_all_of_the_time(names, tmp_path):
    *first, last = chosen_stages(names, False, tmp_path)
    every = stages(False, tmp_path)
    asked = [every[name] for name in names or gpu.NAMES]
    assert [[step.name for step in stage] for stage in (*first, last)] == [[step.name for step in s] for s in asked]
    assert {step.limit for step in last} == {math.inf}
    assert all(step.limit < SECONDS for stage in first for step in stage)


def test_every_file_of_tests_of_the_kernels_is_run_once():
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_*.py")}
    assert "tests/test_cuda_on_host.py" in PROGRAMS
    assert sorted([*TESTS, *PROGRAMS]) == sorted(files)
    assert (ROOT / gpu.TRAINING).exists()
