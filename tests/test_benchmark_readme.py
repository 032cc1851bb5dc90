"""The results in the README: every number from a row, all losses told, and stale where a report has changed."""

import json
import re
import shutil

import pytest
from benchmark_report import small_report

from benchmarks import readme
from benchmarks.machine import ROOT
from benchmarks.suites import SUITES, cases
from benchmarks.timing import Settings


@pytest.fixture
def result():
    return small_report()


def test_the_readme_is_up_to_date():
    """If it fails: make results."""
    assert readme.main(["--check"]) == 0


def test_the_readme_follows_the_results(monkeypatch, tmp_path):
    for path in readme.RESULTS.glob("*.json"):
        shutil.copy(path, tmp_path)
    shutil.copy(readme.README, tmp_path / "README.md")
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    path = next(tmp_path.glob("cpu_*.json"))
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
    text = readme.README.read_text()
    assert "| 0.51 x" in text
    assert "OpenCV uint8 (RGB 224x224, batch 1: 0.51 of our time)" in text.partition("Faster than ours: ")[2]
    before, _, rest = (ROOT / "README.md").read_text().partition(readme.BEGIN)
    assert text.startswith(before)
    assert text.endswith(rest.partition(readme.END)[2])


def test_quick_runs_are_no_results(result):
    with pytest.raises(ValueError, match="quick ones are cpu_x"):
        readme.block({"cpu_x": result})


def test_a_claim_without_a_row_is_an_error(result):
    with pytest.raises(LookupError, match="no case memory: Cold"):
        readme.facts(readme.Rows(result))


def test_every_loss_is_told(result):
    assert readme.losses(readme.Rows(result)) == (
        "Faster than ours: a wonder (RGB 224x224, batch 2: 0.50 of our time)."
    )


def test_results_of_a_gpu_are_named_after_it(result):
    result["environment"] |= {"gpu": "GPU 1", "driver": "1", "cuda": "13.0"}
    head, speed, losses, _, accuracy = readme.gpu("cuda_gpu-1", readme.Rows(result))
    assert head.startswith("**GPU 1**, by replay of CUDA graphs")
    assert "(benchmarks/results/cuda_gpu-1.md)" in head
    assert re.search(r"\| OpenCV uint8 +\| 4,000 +\| 4 x +\|", speed)
    assert "a wonder" in losses
    assert re.search(r"\| fused_hog \| bytes \| 0 +\| 0 +\|", accuracy)


@pytest.mark.parametrize(
    "text", ["nothing", f"{readme.END} {readme.BEGIN}", f"{readme.BEGIN} {readme.BEGIN} {readme.END}"]
)
def test_without_its_marks_the_readme_is_left_alone(text):
    with pytest.raises(ValueError, match=r"README.md must have one"):
        readme.with_block(text, "new")


def test_changed_cases_make_results_stale(result):
    now = [(suite, case.title) for suite in SUITES for case in cases(suite, Settings("cpu", 1))]
    result["cases"] = [{"suite": suite, "title": title, "rows": []} for suite, title in now]
    assert readme.outdated(result) == []
    result["cases"][0]["title"] = "another"
    assert readme.outdated(result) == sorted(["hog: another", f"hog: {now[0][1]}"])
    result["cases"] = result["cases"][:2]
    assert f"hog: {now[1][1]}" not in readme.outdated(result)
    assert readme.outdated(result | {"finished": False}) == ["hog: another"], "others were to come"
