"""``make gpu``: steps that fail or are late leave what they have, what is wrong is left out, and all fits the time."""

import dataclasses
import re
import signal
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from benchmarks import gpu, small_calls
from benchmarks.__main__ import parse
from benchmarks.cases import OPS, SUITES
from benchmarks.gpu import CARRIED, DECISIVE, PARTS, Run, Step

DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "


@pytest.fixture
def run(tmp_path) -> Iterator[Run]:
    """Where a shell began the tests in its background, they would ignore interrupts, and so would the steps."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as main() does
    yield Run(tmp_path, time.monotonic() + 60, dry=True)
    signal.signal(signal.SIGINT, before)


def python(name: str, code: str, limit: float = 60, log: str = "gpu.log", **environment: str) -> Step:
    return Step(name, [sys.executable, "-c", code], limit, log, environment)


def test_steps_end_each_in_its_way(run):
    outcomes = run.steps(
        python("good", "import os; print('first'); print('good', os.environ['ANSWER'])", ANSWER="42"),
        python("bad", "raise SystemExit('no')", log="bad.log"),
        Step("missing", ["no-such-program"], 60, "missing.log", of_a_tool=True),
        dataclasses.replace(python("old", "raise SystemExit('Device not supported')", log="old.log"), of_a_tool=True),
        python("tests", "raise SystemExit('Device not supported')", log="tests.log"),
    )
    found = {outcome.step.name: (outcome.status, outcome.last_line) for outcome in outcomes}
    assert found["good"] == (0, "good 42")
    assert found["bad"] == (1, "no")
    assert found["missing"][0] == found["old"][0] == "cannot", "tools that a machine does not have are no fault of ours"
    assert found["tests"][0] == 1, "these are"
    words = {str(outcome).split()[1] for outcome in outcomes}
    assert words == {"passed", "FAILED", "cannot"}
    assert "no-such-program" in (run.folder / "missing.log").read_text()


@pytest.mark.parametrize("deaf", ["", pytest.param(DEAF, marks=pytest.mark.slow)])
def test_what_is_killed_leaves_its_log_and_its_results(run, deaf, monkeypatch):
    """Asked to end, it says what it has; where it does not hear, what it wrote before is there."""
    code = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text('so far'); print('measured', flush=True)\n"
    code += "try: time.sleep(60)\nfinally: time.sleep(0.5); print('asked to end', flush=True)"
    # A second interrupt would come within that half second.
    late = python("late", f"{deaf}{code}", limit=5, log="late.log")  # Python itself may take a second to start
    late.command.append(str(run.folder / "results.json"))
    monkeypatch.setattr(gpu, "PATIENCE", 1)
    (outcome,) = run.steps(late)
    assert outcome.status is None
    assert "TIMED OUT" in (run.folder / "gpu.log").read_text()
    assert (run.folder / "results.json").read_text() == "so far"
    log = (run.folder / "late.log").read_text()
    assert log.startswith("measured\n")
    assert ("asked to end" in log) is not deaf.startswith("import")


def test_the_end_of_a_part_ends_its_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PATIENCE", 1)
    over = Run(tmp_path, time.monotonic(), dry=True)
    outcomes = over.steps(*(python(f"late {i}", "import time; time.sleep(60)", log=f"{i}.log") for i in range(2)))
    assert [outcome.status for outcome in outcomes] == [None, None]


def test_an_interrupt_ends_the_steps_too(run, monkeypatch):
    def interrupted(futures):
        while "\nbegun" not in log.read_text():
            time.sleep(0.05)
        raise KeyboardInterrupt

    log = run.folder / "gpu.log"
    log.touch()
    monkeypatch.setattr(gpu, "as_completed", interrupted)
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run.steps(python("long", "import time; print('begun', flush=True); time.sleep(60)"))
    assert time.monotonic() - begin < 50


def steps_of(part: str, dry: bool, monkeypatch, tmp_path, wrong: tuple[str, ...] = ()) -> list[Step]:
    """What a part would run, where each call is right but those of ``wrong``."""
    taken = []

    def steps(self, *steps):
        taken.extend(steps)
        self.tell("".join(f"{name} right\n" for name in names if name not in wrong))

    monkeypatch.setattr(Run, "steps", steps)
    names = [f"{backend}:{op}" for backend in (("cpu",) if dry else ("cuda", "triton")) for op in OPS]
    monkeypatch.setattr(gpu, "calls_of", lambda device: names)
    monkeypatch.setattr(gpu, "CARRIED", tmp_path / "carried")
    for program in ("now", "other"):
        (gpu.CARRIED / "variants").mkdir(parents=True, exist_ok=True)
        (gpu.CARRIED / "variants" / program).touch()
    gpu.do(part, tmp_path / part, dry)
    return taken


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize("part", PARTS)
def test_a_part_leaves_eight_files_at_most(part, dry, monkeypatch, tmp_path):
    steps = steps_of(part, dry, monkeypatch, tmp_path)
    assert len({step.log for step in steps} | {"gpu.log", "report.json", "report.md"}) <= 8
    assert [step for step in steps if step.name == "benchmarks"]
    assert {"first": 240, "second": 400}[part] > PARTS[part] + gpu.PATIENCE
    long = [step for step in steps if step.log not in ("gpu.log", "variants.log")]
    assert len({step.log for step in long}) == len(long), "side by side, they would write over each other"
    variants = [step.name for step in steps if step.log == "variants.log"]
    assert variants == ([] if dry or part == "second" else ["now", "other"])


@pytest.mark.parametrize("dry", [True, False])
def test_the_benchmarks_know_their_words_and_are_all_measured(dry, monkeypatch, tmp_path):
    patterns = []
    for part in PARTS:
        (step,) = (s for s in steps_of(part, dry, monkeypatch, tmp_path) if s.name == "benchmarks")
        options = parse(step.command[step.command.index("benchmarks") + 1 :])
        assert options.suites == list(SUITES)
        assert (options.quick, options.device) == (dry, "cpu" if dry else "cuda")
        assert (options.out, options.without) == (tmp_path / part, [])
        patterns.append(options.only)
    titles = ["hog: RGB 224x224, batch 256, from memory", "hog: Time and batch", "tokens: Targets of 78", "step: x"]
    titles += ["tokens: Time and mask ratio, batch 256, from memory", "mask: Mask: 78", "mask: Mask and its gradients"]
    for title in titles:
        assert [bool(re.search(pattern, title)) for pattern in patterns].count(True) == 1, title
    assert patterns[0] == DECISIVE


@pytest.mark.parametrize("part", PARTS)
def test_a_wrong_bit_leaves_an_op_out_of_the_benchmarks_and_the_rest_goes_on(part, monkeypatch, tmp_path, capsys):
    steps = steps_of(part, False, monkeypatch, tmp_path, wrong=("cuda:hog", "triton:blocks"))
    (step,) = (step for step in steps if step.name == "benchmarks")
    assert parse(step.command[step.command.index("benchmarks") + 1 :]).without == ["cuda:hog", "triton:blocks"]
    assert "wrong, and left out of the benchmarks: cuda:hog, triton:blocks" in capsys.readouterr().out
    for step in steps:
        if step.name.startswith("calls-"):
            assert {"cuda:hog", "triton:blocks"}.isdisjoint(step.command)
            assert {"cuda:tokens", "triton:hog"} <= set(step.command)


CHANGED = {"hog": "fused_hog", "tokens": "fused_hog_tokens", "moves": "fused_masked_gather", "places": "fused_hog"}


@pytest.mark.parametrize("call", CHANGED)
def test_a_wrong_bit_is_found_and_told(call, monkeypatch, capsys):
    """The last bit of one number, on the backend that is called and not on the one that it is compared with."""
    right, calls = getattr(small_calls, CHANGED[call]), []

    def wrong(*words, backend="auto", **options):
        result = right(*words, backend="cpu" if backend == "cuda" else backend, **options)
        calls.append(backend)
        if backend == "cuda" and (call != "places" or len(calls) == 1):
            result.view(-1)[7] = result.view(-1)[7].nextafter(torch.tensor(9.0, dtype=result.dtype))
        return result

    def unharmed(*words, backend="auto", **options):
        return right(*words, backend="cpu" if backend == "cuda" else backend, **options)

    monkeypatch.setattr(small_calls, CHANGED[call], unharmed)
    if call == "moves":
        mixes = small_calls.fused_mask_tokens
        monkeypatch.setattr(small_calls, "fused_mask_tokens", lambda *words, backend: mixes(*words, backend="cpu"))
    assert small_calls.is_right(f"cuda:{call}", "cpu")
    monkeypatch.setattr(small_calls, CHANGED[call], wrong)
    assert not small_calls.is_right(f"cuda:{call}", "cpu")
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"cuda:{call} right")
    assert told[-1].startswith(f"cuda:{call} WRONG: AssertionError: Tensor-likes are not equal!")


@pytest.mark.parametrize("call", ["blocks", "gradients"])
def test_a_wrong_number_is_found(call, monkeypatch):
    right = small_calls.fused_hog

    def wrong(x, *words, backend):
        result = right(x, *words, backend="reference")
        if backend == "cuda" and result.requires_grad:
            result.register_hook(lambda grad: 1.0001 * grad)
        return result + 1e-4 * (backend == "cuda" and not result.requires_grad)

    monkeypatch.setattr(small_calls, "fused_hog", lambda *words, backend: right(*words, backend="reference"))
    assert small_calls.is_right(f"cuda:{call}", "cpu")
    monkeypatch.setattr(small_calls, "fused_hog", wrong)
    assert not small_calls.is_right(f"cuda:{call}", "cpu")


def test_the_other_calls_are_right_here():
    names = [name for name in small_calls.names("cpu") if name.startswith("cpu:")]
    if not names:
        pytest.skip("the CPU kernels are not built")
    assert [name.split(":")[1] for name in names] == list(OPS)
    assert all(small_calls.is_right(f"cpu:{op}", "cpu") for op in OPS if op not in CHANGED)


@pytest.mark.parametrize("loads", [True, False])
@pytest.mark.parametrize("builds", [True, False])
def test_carried_objects_are_built_only_where_they_do_not_load(loads, builds, monkeypatch, tmp_path):
    (tmp_path / "carried").mkdir()
    (tmp_path / "maskfeat_kernels").mkdir()
    (tmp_path / "carried" / "_torch_ops.so").write_bytes(b"ELF")
    monkeypatch.setattr(gpu, "CARRIED", tmp_path / "carried")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    answers = [["cuda:hog"]] if loads else [["triton:hog"], ["cuda:hog"] if builds else ["triton:hog"]]
    monkeypatch.setattr(gpu, "calls_of", lambda device: answers.pop(0))
    taken = []
    monkeypatch.setattr(Run, "steps", lambda self, *steps: taken.extend(steps) or self.tell("nothing is right"))
    run = Run(tmp_path, time.monotonic() + 60, dry=False)
    assert gpu.prepare(run) == (["cuda:hog"] if loads or builds else ["triton:hog"])
    assert (tmp_path / "maskfeat_kernels" / "_torch_ops.so").read_bytes() == b"ELF"
    call = "cuda:hog" if loads or builds else "triton:hog"
    assert [step.name for step in taken] == ["machine", *([] if loads else ["build"]), call]
    assert [str(outcome.status) for outcome in run.outcomes] == ([] if loads or builds else ["1"])
    if not loads:
        assert taken[1].environment == {"MASKFEAT_BUILD": "cuda", "MASKFEAT_CUDA_ARCHS": "native"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "not found: nvidia-smi; --dry-run rehearses without a GPU"),
        (["third"], "PART must be one of first, second, got 'third'"),
    ],
)
def test_what_cannot_be_is_refused(words, message, monkeypatch, capsys):
    monkeypatch.setattr(gpu.shutil, "which", lambda tool: None if tool == "nvidia-smi" else tool)
    monkeypatch.setattr(sys, "argv", ["gpu", *words])
    with pytest.raises(SystemExit):
        gpu.main()
    assert message in capsys.readouterr().err


def test_without_torch_nothing_runs(monkeypatch, capsys):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry-run"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "has no torch; name one that has it: make gpu PYTHON=..." in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 1, "cannot", None])
def test_the_exit_status_says_whether_all_was_well(status, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "prepare", lambda run: [])
    outcome = gpu.Outcome(Step("calls", [], 1), status, 1.0, "told")
    for part in PARTS:
        monkeypatch.setattr(gpu, part, lambda run, wrong: run.outcomes.append(outcome))
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry-run", "--out", str(tmp_path), *PARTS])
    assert gpu.main() == int(status in (1, None))
    assert all("told" in (tmp_path / part / "gpu.log").read_text() for part in PARTS)


def test_the_programs_of_the_sanitizer_are_there():
    assert all((gpu.ROOT / path).exists() for path in gpu.PROGRAMS)
    assert CARRIED.relative_to(gpu.ROOT).parts[0] == "build", "which git ignores"
