"""The results in the documents: every number from a row, all losses told, and stale where a report has changed."""

import json
import re
import shutil

import pytest
from benchmark_report import ratio, row, small_report

from benchmarks import documents
from benchmarks.machine import ROOT


@pytest.fixture
def result():
    return small_report()


@pytest.fixture
def copy(tmp_path):
    """A copy of the results and the documents."""
    pytest.importorskip("matplotlib")
    shutil.copytree(ROOT / documents.RESULTS, tmp_path / documents.RESULTS)
    for name in documents.DOCUMENTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_documents_are_up_to_date():
    """If it fails: make results."""
    assert documents.main(["--check"]) == 0


def test_the_documents_and_the_plots_follow_the_results(copy, capsys):
    (path,) = (copy / documents.RESULTS).glob("cpu_*.json")
    report = json.loads(path.read_text())
    for case in report["cases"]:
        for line in case["rows"]:
            if line["name"] == "OpenCV uint8" and "ratio" in line:
                line["ratio"]["median"] = 0.51
    path.write_text(json.dumps(report))
    capsys.readouterr()
    assert documents.main(["--check"], copy) == 1
    stale = {"README.md", "benchmarks.md", f"{path.stem}.md"}
    stale |= {f"{path.stem}_{name}.png" for name in ("roofline", "time-and-pixels")}
    assert set(re.findall(r"[\w-]+\.\w+", capsys.readouterr().out)) == stale
    assert documents.main([], copy) == documents.main(["--check"], copy) == 0
    for name in documents.DOCUMENTS:
        text = (copy / name).read_text()
        assert "**OpenCV uint8 0.51**" in text, "bold, as it is faster"
        before, _, rest = (ROOT / name).read_text().partition(documents.BEGIN)
        assert text.startswith(before) and text.endswith(rest.partition(documents.END)[2])
    path.with_name(f"{path.stem}_roofline.png").write_bytes(b"another picture")
    path.with_suffix(".md").unlink()
    assert documents.main(["--check"], copy) == 1
    assert documents.main([], copy) == documents.main(["--check"], copy) == 0


def test_a_plot_is_stale_where_the_code_that_draws_it_is_another(copy, monkeypatch):
    from benchmarks import plots

    monkeypatch.setattr(plots, "__file__", __file__)
    assert documents.main(["--check"], copy) == 1


def test_a_line_for_each_row_that_others_are_compared_with(result):
    gray = [row("fasthog float64", 2.0, ratio=ratio("fused_hog float64", 14.6), items_per_second=500.0)]
    gray += [row("fused_hog float64", 0.5, share_of_copy=0.5), {"name": "OpenCV uint8", "failed": "Error: no | yes"}]
    result["cases"].append({"suite": "hog", "title": "Gray 224x224", "axis": None, "rows": gray})
    result["cases"].append({"suite": "step", "title": "Step", "axis": None, "rows": [], "failed": "Error: no memory"})
    lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in documents.summary(result)]
    assert lines[2:] == [
        ["hog: RGB 224x224, batch 2, from memory", "fused_hog uint8", "1,000 us", "OpenCV uint8 4; **a wonder 0.5**"],
        ["hog: Gray 224x224", "fused_hog float64", "500 us, 50 % of a copy", "fasthog float64 15"],
        ["", "OpenCV uint8", "", r"failed: Error: no \| yes"],
        ["step: Step", "failed: Error: no memory", "", ""],
    ]
    assert len(documents.summary(result, documents.MAIN)) == len(lines) - 1


def test_what_is_said_of_a_machine(result):
    result |= {"quick": False, "finished": False}
    result["environment"]["commit"] = None
    text = documents.block({"cpu_x": result}, whole=True)
    for told in (
        "Commit unknown",
        "The run was cut short.",
        "[All tables](benchmarks/results/cpu_x.md)",
        "from 256x256 on: fused_hog 1.50.",
        "](benchmarks/results/cpu_x_time-and-pixels.png)",
        "On GPUs: **not yet measured**",
        "| no single bin ",
    ):
        assert told in text
    assert "not yet measured" not in documents.block({"x": result | {"device": "cuda"}}, whole=False)
    with pytest.raises(ValueError, match="quick ones are cpu_x"):
        documents.block({"cpu_x": small_report()}, whole=True)


BOTH = documents.BEGIN + documents.END


@pytest.mark.parametrize("text", ["nothing", f"{documents.END} {documents.BEGIN}", BOTH + BOTH])
def test_without_its_marks_a_document_is_left_alone(text, tmp_path):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match=r"README.md must have one"):
        documents.with_block(tmp_path / "README.md", "new")
