"""The results in the documents: every number from a row, all losses told, and stale where a report has changed."""

import json
import re
import shutil
from pathlib import Path

import pytest
from benchmark_report import ratio, row, small_report

from benchmarks import readme, readme_cpu, readme_parts
from benchmarks.machine import ROOT
from benchmarks.rows import MISSING, Rows, times_slower
from benchmarks.suites import SUITES, cases
from benchmarks.timing import Settings


@pytest.fixture
def result():
    return small_report()


def test_the_readme_is_up_to_date():
    """If it fails: make results."""
    assert readme.main(["--check"]) == 0


@pytest.fixture
def path(monkeypatch, tmp_path):
    """Of a report in a copy of the results and the documents."""
    pytest.importorskip("matplotlib")
    for path in (*readme.RESULTS.iterdir(), readme.README, readme.PAGE):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    monkeypatch.setattr(readme, "PAGE", tmp_path / "benchmarks.md")
    return next(tmp_path.glob("cpu_*.json"))


def test_the_readme_follows_the_results(path):
    changed = json.loads(path.read_text())
    for case in changed["cases"]:
        for line in case["rows"]:
            if line["name"] == "OpenCV uint8" and "ratio" in line:
                line["ratio"]["median"] = 0.51
    path.write_text(json.dumps(changed))
    assert readme.main(["--check"]) == 1
    assert readme.main([]) == 0
    assert readme.main(["--check"]) == 0
    path.with_suffix(".md").write_text("other tables")
    assert readme.main(["--check"]) == 1
    assert readme.main([]) == 0
    for document, committed in ((readme.README, ROOT / "README.md"), (readme.PAGE, ROOT / "docs" / "benchmarks.md")):
        text = document.read_text()
        assert re.search(r"\| OpenCV uint8 +\| [\d,]+ +\| 0.51 +\|", text)
        before, _, rest = committed.read_text().partition(readme.BEGIN)
        assert text.startswith(before)
        assert text.endswith(rest.partition(readme.END)[2])
    assert "* OpenCV uint8 took 0.51 (" in text.partition("**Where we lose**")[2]


def test_plots_follow_the_results_and_the_code_that_draws_them(path, monkeypatch, capsys):
    def told(words):
        capsys.readouterr()
        return readme.main(words), re.findall(r"[\w-]+_([\w-]+)\.png", capsys.readouterr().out)

    shown = ["accuracy", "roofline", "time-and-pixels"]
    assert told(["--check"]) == (0, [])
    path.with_name(f"{path.stem}_roofline.png").unlink()
    path.with_name(f"{path.stem}_accuracy.png").write_bytes(b"another picture")
    assert told(["--check"]) == (1, ["accuracy", "roofline"])
    assert (told([])[0], told(["--check"])) == (0, (0, []))
    report = json.loads(path.read_text())
    report["cases"][0]["rows"][0]["samples"][0] *= 2
    path.write_text(json.dumps(report))
    assert told(["--check"]) == (1, shown), "which any number may be in"
    assert (told([])[0], told(["--check"])) == (0, (0, []))
    monkeypatch.setattr(
        Path, "read_bytes", lambda path, read=Path.read_bytes: read(path) + b"#" * (path.suffix == ".py")
    )
    assert told(["--check"]) == (1, shown), "drawn by other code"


def test_quick_runs_are_no_results(result):
    with pytest.raises(ValueError, match="quick ones are cpu_x"):
        readme.block({"cpu_x": result})


def test_the_results_of_a_cpu_lack_nothing():
    """If it fails, a row that the README tells of has another name."""
    for stem, found in readme.reports().items():
        if found["device"] == "cpu" and found.get("finished", True):
            assert MISSING not in "\n".join(readme.cpu(stem, Rows(found)))


@pytest.mark.parametrize("block", [readme.cpu, readme.gpu])
@pytest.mark.parametrize("failed", [None, "RuntimeError: no | memory for this, and " + 9 * "so on "])
def test_what_is_missing_or_failed_is_told(block, failed, result):
    """In every table, none of which is empty; an error is cut to what a table has room for."""
    titles = {"hog": "RGB 224x224, batch 256, from memory", "tokens": "Targets of 78", "accuracy": "Accuracy"}
    titles |= {"gather": "Gather: 78", "mask": "Mask: 78", "step": "Step of ViT", "loader": "Targets, 2 workers"}
    result["cases"] = [] if failed is None else [empty(suite, title, failed) for suite, title in titles.items()]
    result["device"] = "cuda" if block is readme.gpu else "cpu"
    text = "\n\n".join(block("stem", Rows(result)))
    tables = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        header, _, *lines = table.splitlines()
        assert lines
        assert all(line.count(" | ") == header.count(" | ") for line in lines)
        assert all(MISSING in line or line.startswith("|  ") for line in lines) or failed
        assert (r"RuntimeError: no \| memory for this, and so on" in table) is (failed is not None)
        assert table.count(9 * "so on ") == 0
    assert ".png" not in text


def empty(suite, title, failed):
    return {"suite": suite, "title": title, "axis": None, "rows": [], "failed": failed}


def test_ours_first_and_gray_beside_colour(result):
    gray = [row("fasthog float64", 2.0, ratio=ratio("fused_hog float64", 4.6), items_per_second=500.0)]
    gray += [row("fused_hog float64", 0.5, items_per_second=2000.0), {"name": "OpenCV uint8", "failed": "Error: no"}]
    result["cases"].append({"suite": "hog", "title": "Gray 224x224", "axis": None, "rows": gray})
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in readme_cpu.race(Rows(result)).splitlines()]
    assert cells[2:] == [
        ["fused_hog uint8", "1,000", "", "", ""],
        ["fused_hog float64", "", "", "500", ""],
        ["OpenCV uint8", "4,000", "4", "Error: no", ""],
        ["a wonder", "500", "0.50", "", ""],
        ["fasthog float64", "", "", "2,000", "4.6"],
    ]


def test_every_loss_is_told(result):
    lines = readme_parts.losses(Rows(result)).splitlines()
    assert lines[2] == "* a wonder took 0.50 (0.50 to 0.50) of our time: RGB 224x224, batch 2, from memory"
    assert not [line for line in lines if "OpenCV" in line]


def test_patches_that_the_whole_image_is_better_for(result):
    rows = [
        row(
            f"fused_hog_tokens of {share} % of the patches, uint8",
            1.0,
            at=share / 100,
            ratio=ratio("whole", share / 60),
        )
        | {"series": "fused_hog_tokens uint8"}
        for share in (50, 70, 100)
    ]
    result["cases"].append({"suite": "tokens", "title": "Time and mask", "axis": "share", "rows": rows})
    assert "1.7 on bytes (slower from 70 % of them on), not measured on float32" in readme_parts.losses(Rows(result))


@pytest.mark.parametrize(("theirs", "told"), [(1.02, "no difference"), (1.04, "a difference")])
def test_a_step_differs_if_it_differs_by_more_than_noise(theirs, told, result):
    again = {"to": "step, our targets", "median": 1.0, "p20": 0.99, "p80": 1.03}
    rows = [row("step, our targets, once more", 1.0, ratio=again)]
    rows.append(row("step, reference targets", 1.0, ratio=ratio("step, our targets", theirs)))
    result["cases"].append({"suite": "step", "title": "Step", "axis": None, "rows": rows})
    assert f"* Step: {told} as a whole." in readme_parts.losses(Rows(result))


def test_a_ratio_is_that_of_the_report_or_taken_round_by_round():
    ours, theirs = row("ours", 1.0) | {"samples": [1.0, 2.0, 4.0]}, row("theirs", 1.0) | {"samples": [3.0, 4.0, 20.0]}
    assert times_slower(theirs, ours) == 3
    assert times_slower(theirs | {"ratio": ratio("another", 7.0)}, ours) == 3
    assert times_slower(theirs | {"ratio": ratio("ours", 7.0)}, ours) == 7


def test_what_a_gpu_is_asked(result):
    """Time, bandwidth and memory of the largest batch, Triton against CUDA, one image, and the moves of tokens."""
    result["environment"] |= {"gpu": "GPU 1", "driver": "1", "cuda": "13.0"}
    memory = {"peak_bytes": 23e6, "result_bytes": 22e6, "share_of_copy": 0.8}
    result["cases"][0]["rows"] = [
        row("fused_hog uint8", 0.05, **memory),
        row("fused_hog float32", 0.075, ratio=ratio("fused_hog uint8", 1.5), **memory),
        row("fused_hog triton uint8", 0.1, ratio=ratio("fused_hog uint8", 2.0), **memory),
        {"name": "fused_hog triton float32", "failed": "CompilationError: registers"},
        row("reference layer float32", 3.0, ratio=ratio("fused_hog float32", 40.0), peak_bytes=9e9),
    ]
    one = [row("fused_hog uint8", 0.02), row("reference layer float32", 0.3, ratio=ratio("fused_hog uint8", 15.0))]
    moves = [row("fused_masked_gather", 0.064, items_per_second=4e6, share_of_copy=0.9)]
    result["cases"] += [
        {"suite": "hog", "title": "One image, from call to result", "axis": None, "rows": one},
        {"suite": "gather", "title": "Gather: 78 of 196 tokens", "axis": None, "rows": moves},
    ]
    head, *parts = readme.gpu("cuda_gpu-1", Rows(result | {"device": "cuda"}))
    text = re.sub(r" +\|", " |", "\n".join(parts))
    assert head.startswith("**GPU 1**, by replay of CUDA graphs")
    assert "(benchmarks/results/cuda_gpu-1.md)" in head
    for line in (
        "| fused_hog uint8 | 50 | 80 % | | 23 MB | 22 MB |",
        "| fused_hog triton uint8 | 100 | 80 % | 2 | 23 MB | 22 MB |",
        "| fused_hog triton float32 | CompilationError: registers | | | | |",
        "| reference layer float32 | 3,000 | not measured | 40 | 9,000 MB | not measured |",
        "| reference layer compiled | not measured | | | | |",
        "Times that float32 is slower than bytes: 1.5.",
        "| one image, from call to result | 20 us | reference layer float32: 300 us | 15 |",
        "| | | reference layer compiled: not measured | not measured |",
        "| taking 78 of 196 tokens, width 768 | 0.25 us, 90 % of a copy | index_select: not measured | not measured |",
        "| fused_hog uint8 | bytes | 0 | 0 |",
    ):
        assert line in text


@pytest.mark.parametrize(
    "text", ["nothing", f"{readme.END} {readme.BEGIN}", f"{readme.BEGIN} {readme.BEGIN} {readme.END}"]
)
def test_without_its_marks_a_document_is_left_alone(text, tmp_path):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match=r"README.md must have one"):
        readme.with_block(tmp_path / "README.md", "new")


def test_the_readme_has_a_few_rows(result):
    """Ours and whoever took part, in colour and, where that was measured, in gray."""

    def table():
        lines = readme.few_rows("stem", Rows(result))[1].splitlines()
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]

    ours, none = ["fused_hog uint8", "1,000", ""], ["fused_hog float32", "", ""]
    assert table() == [["us an image", "RGB", "times slower"], table()[1], ours, none, ["OpenCV uint8", "4,000", "4"]]
    rows = [{"name": "OpenCV uint8", "failed": "Error: no"}]
    result["cases"].append({"suite": "hog", "title": "Gray 224x224", "axis": None, "rows": rows})
    assert table()[2:] == [[*ours, "", ""], [*none, "", ""], ["OpenCV uint8", "4,000", "4", "Error: no", ""]]
    assert "| OpenCV uint8      | 4,000 |" in readme.summary({"cpu_x": result})


def test_changed_cases_make_results_stale(result):
    now = [(suite, case.title) for suite in SUITES for case in cases(suite, Settings("cpu", 1))]
    result["cases"] = [{"suite": suite, "title": title, "rows": []} for suite, title in now]
    assert readme.outdated(result) == []
    result["cases"][0]["title"] = "another"
    assert readme.outdated(result) == sorted(["hog: another", f"hog: {now[0][1]}"])
    result["cases"] = result["cases"][:2]
    assert f"hog: {now[1][1]}" not in readme.outdated(result)
    assert readme.outdated(result | {"finished": False}) == ["hog: another"], "others were to come"
