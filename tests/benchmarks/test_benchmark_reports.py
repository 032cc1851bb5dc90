"""What is made of a report: tables, curves, plots; and the command that writes it."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from benchmark_report import ratio, row, small_report

from benchmarks import __main__ as command
from benchmarks import machine, plots, report
from benchmarks.cases import cases
from benchmarks.cases import hog as hog_cases
from benchmarks.machine import ROOT
from benchmarks.timing import Case, Rival, Settings


@pytest.fixture
def result():
    return small_report()


def test_json_and_tables(result, tmp_path):
    path = tmp_path / "results" / "cpu.json"
    report.write(result, path)
    race, curve, _ = json.loads(path.read_text())["cases"]
    assert race == result["cases"][0]
    assert curve["rows"][0]["seconds"]["median"] == 134.218, "six digits of 134.217728"
    assert '"samples": [0.001]' in path.read_text(), "on one line"
    text = path.with_suffix(".md").read_text()
    for told in (result["environment"]["cpu"], "-ffp-contract=off", "* OpenCV: no batch", "* hogpp: not installed"):
        assert told in text
    assert re.search(
        r"\| OpenCV uint8 +\| 1 +\| 4 +\| 4 to 8 +\| 4 \(4 to 4\) +\| fused_hog uint8 \| 250 +\| - +\|", text
    )
    assert re.search(r"\| soft +\| bytes \| no single bin +\| 25 % +\| 0.5 +\|", text)
    assert len({len(line) for line in text.split("## hog: RGB")[1].split("##")[0].split("\n")[2:-2]}) == 1, "aligned"
    assert platform.node() not in text or platform.node() in result["environment"]["cpu"]
    assert "The extension is not built" not in text
    result["environment"]["backends"] = ["reference"]
    assert "The extension is not built" in report.about(result)
    assert machine.slug("Intel(R) Xeon(R) CPU @ 2.80GHz") == "intel-xeon-cpu-2-80ghz"


def test_a_line_for_each_row_that_others_are_compared_with(result):
    gray = [row("fasthog float64", 2.0, ratio=ratio("fused_hog float64", 14.6), items_per_second=500.0)]
    gray += [row("fused_hog float64", 0.5, share_of_copy=0.5), {"name": "OpenCV uint8", "failed": "Error: no | yes"}]
    result["cases"] += [
        {"suite": "hog", "title": "Gray 224x224", "axis": None, "rows": gray},
        {"suite": "step", "title": "Step", "axis": None, "rows": [], "failed": "Error: left out"},
        {"suite": "hog", "title": "Gray 2", "axis": None, "rows": [], "failed": "Error: no memory"},
    ]
    lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in report.summary(result)]
    assert lines[2:] == [
        ["hog: RGB 224x224, batch 2, from memory", "fused_hog uint8", "1,000 us", "OpenCV uint8 4; **a wonder 0.5**"],
        ["hog: Gray 224x224", "fused_hog float64", "500 us, 50 % of a copy", "fasthog float64 15"],
        ["", "OpenCV uint8", "", r"failed: Error: no \| yes"],
        ["hog: Gray 2", "failed: Error: no memory", "", ""],
    ]


def test_the_readme_is_up_to_date():
    """If it fails: make results."""
    assert command.results(["--check"]) == 0


def test_the_readme_follows_the_results(result, tmp_path, capsys):
    path = tmp_path / report.RESULTS / "cpu_x.json"
    with pytest.raises(ValueError, match="quick ones are cpu_x"):
        report.block({"cpu_x": result})
    result |= {"quick": False, "finished": False}
    result["environment"]["commit"] = None
    report.write(result, path)
    path.with_suffix(".md").unlink()
    (tmp_path / "README.md").write_text(f"above {report.BEGIN} old {report.END} below")
    assert command.results(["--check"], tmp_path) == 1
    assert "stale, run make results: cpu_x.md, README.md" in capsys.readouterr().out
    assert command.results([], tmp_path) == command.results(["--check"], tmp_path) == 0
    drawn = {path.name for path in path.parent.glob("*.png")}
    assert drawn == ({"cpu_x_roofline.png", "cpu_x_time-and-pixels.png"} if find_spec("matplotlib") else set())
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("above <!--") and text.endswith("--> below")
    for told in (
        "Commit unknown",
        "The run was cut short.",
        f"({report.RESULTS}/cpu_x.md)",
        "GPUs: **not yet measured",
    ):
        assert told in text
    assert "not yet measured" not in report.block({"x": result | {"device": "cuda"}})
    environment = result["environment"] | {"date": "2099-12-31 00:00 UTC"}
    newest = report.block({"cpu_x": result, "cpu_new": result | {"quick": False, "environment": environment}})
    assert "cpu_new.md" in newest and "cpu_x.md" not in newest
    with pytest.raises(SystemExit, match=r"\[--check\], got --chek"):
        command.results(["--chek"], tmp_path)


BOTH = report.BEGIN + report.END


@pytest.mark.parametrize("text", ["nothing", f"{report.END} {report.BEGIN}", BOTH + BOTH, BOTH + report.END])
def test_without_its_marks_a_document_is_left_alone(text, tmp_path):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match=r"README.md must have one"):
        report.with_block(tmp_path / "README.md", "new")


def test_a_run_goes_on_and_keeps_what_it_has(monkeypatch, tmp_path, capsys):
    """The second case fails and is told; the fourth is cut short, and the first three are on the disk."""

    def raises(error):
        raise error

    def works():
        return [Rival("a", lambda x: x, [torch.ones(1)])]

    suite = [
        Case("first", works),
        Case("second", lambda: raises(RuntimeError("out of memory\nand so on"))),
        Case("third", works),
        Case("fourth", lambda: raises(KeyboardInterrupt)),
    ]
    monkeypatch.setattr(command, "cases", lambda name, settings, only: suite)
    ceilings = {"copy_bytes_per_second": 1.0, "operations_per_second": 1.0}
    monkeypatch.setattr(command.timing, "ceilings_of", lambda device, threads: ceilings)
    words = ["hog", "--quick", "--threads", "1", "--out", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        command.main(words)
    (path,) = tmp_path.glob("cpu_*.json")
    found = json.loads(path.read_text())["cases"]
    assert [(case["title"], len(case["rows"])) for case in found] == [("first", 1), ("second", 0), ("third", 1)]
    assert found[1]["failed"] == "RuntimeError: out of memory"
    assert "Failed: RuntimeError: out of memory" in path.with_suffix(".md").read_text()
    del suite[3]
    assert command.main(words) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "failed: hog: second"


def test_what_is_wrong_is_left_out_and_nothing_else(monkeypatch, tmp_path, capsys):
    """A backend of an op: its rows; that of "auto": the suites that call the op."""
    names = {"cuda": ["cuda", "triton", "reference"], "cpu": ["cpu", "reference"]}
    monkeypatch.setattr(hog_cases, "available_backends", names.get)
    monkeypatch.setattr("maskfeat_kernels.available_backends", names.get, raising=False)
    settings = Settings("cuda", quick=True, without=frozenset({"triton:hog", "cuda:moves"}))
    assert hog_cases.our_backends(settings) == {"fused_hog": "cuda"}
    assert hog_cases.our_backends(settings, "tokens") == {"fused_hog": "cuda", "fused_hog triton": "triton"}
    assert [bool(cases(suite, settings)) for suite in ("hog", "tokens", "gather", "step")] == [True, True, False, False]
    assert [case.title for case in cases("hog", settings, "^hog: .*from memory$")] == [
        "RGB 224x224, batch 2, from memory"
    ]
    whole, compiled = cases("step", Settings("cuda", quick=True))
    assert (whole.title[:4], compiled.title) == ("Step", f"Compiled: {whole.title}"), "what takes long comes last"
    assert command.main(["hog", "--only", "no such case", "--out", str(tmp_path)]) == 2
    assert "no case is left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other habits")
def test_freed_memory_is_held():
    """64 MB, which are 16384 pages, for the second time."""
    code = """if True:
        import resource
        import numpy as np
        from benchmarks.machine import hold_memory
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            np.ones(64 << 20, dtype=np.uint8).sum()
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        print(hold_memory(), faults() > 100, faults() < 100)
    """
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["True", "True", "True"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hogs"], "invalid choice: 'hogs' (choose from "),
        (["--threads", "0"], "CPUs, got 0"),
        (["--threads", "9999"], "got 9999"),
        (["accuracy", "--base", "HEAD"], "accuracy has none"),
        (["--only", "(hog"], "--only must be a regular expression, got '(hog'"),
        (["--without", "triton:hogs"], "invalid choice: 'triton:hogs' (choose from "),
        (["--only", "hog", "--base", "HEAD"], "neither --only nor --without"),
    ],
)
def test_wrong_words(words, message, capsys):
    with pytest.raises(SystemExit):
        command.parse(words)
    assert message in capsys.readouterr().err


def test_a_busy_machine_makes_no_results(monkeypatch, capsys):
    monkeypatch.setattr(machine, "load", lambda: 1000.0)
    monkeypatch.setattr(command, "run", lambda *rest: pytest.fail("it ran"))
    assert command.main(["all"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the load is 1e+03" in line
    assert command.refusal(command.parse(["all", "--out", "elsewhere"]), for_results=False) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hog", "--base", "nosuchcommit"], "--base nosuchcommit: git knows no such commit"),
        (["hog", "--device", "cuda"], "torch finds no GPU"),
    ],
)
def test_what_is_not_there_is_told_in_a_line(words, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_without_photographs_or_the_extension(monkeypatch, capsys):
    everything = command.parse(["hog", "all"])
    assert everything.suites == list(command.SUITES), "all means all"
    monkeypatch.setattr(command.maskfeat_kernels, "available_backends", lambda device: ["reference"])
    assert "extension is not built" in command.refusal(everything, for_results=True)
    assert command.refusal(everything, for_results=False) is None
    monkeypatch.setattr(command.rivals, "is_there", lambda name: name != "skimage")
    assert command.main(["hog"]) == 2
    assert "scikit-image, whose photographs" in capsys.readouterr().err


@pytest.fixture
def cut_short(result):
    """Rows that failed in every case, one of all rows in a case, a case without rows; and more cases were to come."""
    race, curve, judged = (case["rows"] for case in result["cases"])
    failed = {"name": "broken", "threads": 1, "failed": "RuntimeError: no memory | none"}
    race[:0] = [failed]
    curve.append({**failed, "at": 64, "series": "fused_hog"})
    judged.append(failed)
    result["cases"].append({"suite": "hog", "title": "RGB, all", "axis": None, "rows": [failed]})
    result["cases"].append({"suite": "hog", "title": "Time and batch", "axis": "batch", "rows": [failed]})
    result["cases"].append({"suite": "hog", "title": "RGB, none", "axis": None, "rows": []})
    return result | {"finished": False}


def test_rows_that_failed_are_told_and_the_rest_is_made(cut_short, tmp_path):
    text = report.markdown(cut_short)
    assert "The run was cut short" in text
    assert "The run was cut short" not in report.markdown(cut_short | {"finished": True})
    assert re.search(r"\| broken +\| 1 +\| failed +\| +\|", text)
    assert text.count("* broken failed: RuntimeError: no memory | none\n") == 5
    assert "## hog: RGB, none\n\nNothing was measured.\n" in text
    assert [row["at"] for row in report.curves(cut_short["cases"][1])["fused_hog"]] == [64**2, 256**2, 512**2, 1024**2]
    assert report.exponents(cut_short["cases"][1]) == "fused_hog 1.50"
    assert report.exponents(cut_short["cases"][0]) == ""
    (tmp_path / "cpu.json").write_text(json.dumps(cut_short))
    assert command.main(["report", str(tmp_path / "cpu.json")]) == 0
    pytest.importorskip("matplotlib")
    names = {path.name for path in tmp_path.glob("*.png") if path.read_bytes().startswith(b"\x89PNG")}
    assert names == {f"cpu_{kind}.png" for kind in ("time-and-pixels", "roofline")}


def test_a_report_is_replaced_at_once(result, tmp_path, monkeypatch):
    """Whatever fails while it is written, the old one can be read."""
    path = tmp_path / "cpu.json"
    report.write(result, path)
    old = path.read_text()
    monkeypatch.setattr(report.os, "replace", lambda source, target: pytest.fail(f"killed with {source} whole"))
    with pytest.raises(pytest.fail.Exception, match="whole"):
        report.write(result | {"quick": False}, path)
    assert path.read_text() == old
    assert report.read(path)["quick"]


def test_what_is_no_report_is_told(result, tmp_path, capsys):
    (tmp_path / "text").write_text("root:x:0")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "case.json").write_text(json.dumps(result | {"cases": [{"suite": "hog"}]}))
    del result["absent"]
    (tmp_path / "part.json").write_text(json.dumps(result))
    for name in ("missing.json", "text", "list.json", "case.json", "part.json"):
        with pytest.raises(SystemExit) as end:
            command.main(["report", str(tmp_path / name)])
        assert end.value.code == 2
        assert name in capsys.readouterr().err


def test_runs_of_different_cases_are_joined(result, tmp_path, capsys):
    """As the two parts of ``make gpu`` leave them: curves last, and finished only if both are."""
    parts = [tmp_path / "first.json", tmp_path / "second.json"]
    halves = [{**result, "cases": result["cases"][1:], "only": "curves"}, {**result, "cases": result["cases"][:1]}]
    for path, half, finished in zip(parts, halves, (True, False), strict=True):
        report.write(half | {"finished": finished}, path)
    words = ["report", *map(str, parts), "--to", str(tmp_path / "both.json")]
    assert command.main(words) == 0
    both = report.read(tmp_path / "both.json")
    assert {case["title"] for case in both["cases"]} == {case["title"] for case in result["cases"]}
    axes = [case["axis"] is not None for case in both["cases"]]
    assert axes == sorted(axes)
    assert (both["finished"], both["only"]) == (False, "")
    other = json.loads(parts[1].read_text())
    other["environment"]["commit"] = "another"
    parts[1].write_text(json.dumps(other))
    for wrong, message in ((words, "one machine, commit, device and size, got "), (words[:3], "--to JSON must say")):
        with pytest.raises(SystemExit):
            command.main(wrong)
        assert message in capsys.readouterr().err


def test_what_cannot_be_trusted_is_marked(result):
    assert "(!)" not in report.markdown(result).partition("## hog")[2]
    rows = result["cases"][0]["rows"]
    rows[0]["seconds"]["p80"] = 1.0
    assert report.markdown(result).partition("## hog")[2].count("(!)") == 1


def test_what_does_not_depend_on_the_share_is_a_line_across(result):
    pytest.importorskip("matplotlib")
    case = result["cases"][1] | {"title": "Mask", "axis": "share of the patches"}
    case["rows"] = [row("whole", 3.0, at=1.0, series="whole"), row("half", 1.0, at=0.5, series="fused_hog_tokens")]
    case["rows"].append(row("all", 2.0, at=1.0, series="fused_hog_tokens"))
    (axes,) = plots.curve(case).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {"whole": [3.0, 3.0], "fused_hog_tokens": [1.0, 2.0]}


@pytest.mark.slow
def test_a_quick_run_of_all(tmp_path):
    """Every suite measures something, and rivals are either in the report or told to be absent."""
    words = ["all", "--quick", "--threads", str(min(2, machine.usable_cpus())), "--out", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "benchmarks", *words], cwd=ROOT, check=True, timeout=300)
    (path,) = tmp_path.glob("cpu_*.json")
    result = json.loads(path.read_text())
    suites = {case["suite"] for case in result["cases"] if case["rows"]}
    expected = set(command.SUITES) - ({"compat"} if "compat.skimage and compat.opencv" in result["absent"] else set())
    assert suites == expected
    names = " ".join(r["name"] for case in result["cases"] for r in case["rows"])
    for rival in result["cannot"]:
        assert rival in names or rival in result["absent"], rival


@pytest.mark.slow
def test_against_another_commit(tmp_path):
    """In a clone of one commit: the base is this commit itself, and its worktree is gone afterwards."""
    clone = tmp_path / "clone"
    ignore = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info")
    shutil.copytree(ROOT, clone, ignore=ignore)
    git = ["git", "-C", str(clone), "-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "all"]):
        subprocess.run([*git, *words], check=True)
    words = [sys.executable, "-m", "benchmarks", "mask", "--quick", "--threads", "1", "--base", "HEAD"]
    environment = {**os.environ, "MASKFEAT_BUILD": "cpu"}
    run = subprocess.run(words, cwd=clone, env=environment, check=True, timeout=550, capture_output=True, text=True)
    assert re.search(
        r"\| Mask: .*: fused_mask_tokens +\| [\d.]+ +\| [\d.]+ +\| [\d.]+ +\| [\d.]+ to [\d.]+ +\|", run.stdout
    )
    trees = subprocess.run([*git, "worktree", "list"], check=True, capture_output=True, text=True).stdout
    assert len(trees.splitlines()) == 1
