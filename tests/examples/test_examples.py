"""The examples that train: that they run to the end, and what they write."""

import json

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
pytest.importorskip("cv2")


@pytest.mark.slow
def test_experiment(tmp_path, monkeypatch, capsys):
    from examples import experiment

    monkeypatch.setattr("sys.argv", ["experiment", "--quick", "--out", str(tmp_path)])
    experiment.main()
    report = json.loads((tmp_path / "experiment.json").read_text())
    assert tuple(report["accuracy"]) == experiment.ARMS
    values = [value for arm in report["accuracy"].values() for kind in arm.values() for value in kind]
    assert len(values) == 3 * 2 * experiment.QUICK.seeds and all(0 <= value <= 100 for value in values)
    assert experiment.table(report) in (tmp_path / "experiment.md").read_text()
    assert (tmp_path / "experiment.png").read_bytes().startswith(b"\x89PNG")
    assert f"wrote {tmp_path}" in capsys.readouterr().out


def test_the_report_of_the_experiment_is_that_of_its_numbers():
    """Also of those of the first run, with fewer steps."""
    from examples import experiment

    report = json.loads((experiment.RESULTS / "experiment.json").read_text())
    text = (experiment.RESULTS / "experiment.md").read_text()
    assert text == experiment.markdown(report)
    assert text.count("| HOG |") == 3 and "first run with 1200 steps" in text and "## Ablation" in text


def test_blank_paper_has_an_orientation_in_sloped_light_only():
    from examples import experiment

    blank = torch.zeros(8, experiment.SIZE, experiment.SIZE)
    for slope in (0.0, experiment.Settings.slope):
        images = experiment.photograph(blank, torch.Generator().manual_seed(0), slope).double()
        assert (images.std((2, 3)).max().item() < 1) is (slope == 0), "noise has a deviation of half a grey level"


def test_errors_of_the_demo():
    """The largest error, and the share of cells in which a bin is off by more than 0.001."""
    from examples import demo

    truth = torch.zeros(1, 3, 9, 2, 2, dtype=torch.float64)
    result = truth.clone()
    result[:, :, 4, 0, 1], result[:, :, 5, 1, 1] = 0.02, 0.0005
    assert demo.errors(result, truth) == ("2.0e-02", "25.0 %")


@pytest.mark.slow  # trains a ViT twice
def test_training_of_the_demo(tmp_path, monkeypatch, capsys):
    """It goes on where it was, so the second time it only draws."""
    from examples import demo

    monkeypatch.setattr(demo, "SECONDS", 1)
    monkeypatch.setattr(demo, "RUN", tmp_path / "run")
    monkeypatch.setattr(demo, "PANEL", tmp_path / "panel.png")
    demo.pretrain()
    assert "Pre-training vit_tiny for" in capsys.readouterr().out
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] >= 10 and log[-1]["loss"] > 0
    assert (tmp_path / "panel.png").read_bytes().startswith(b"\x89PNG")
    demo.pretrain()
    assert "Going on with the training" in capsys.readouterr().out
