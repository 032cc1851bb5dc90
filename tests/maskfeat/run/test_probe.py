"""Probes of frozen features, confusion matrices and learning curves."""

import json
import shutil
from pathlib import Path

import media
import pytest
import torch
from PIL import Image
from test_train import small, train_small

from maskfeat.build import build
from maskfeat.cli import main
from maskfeat.data.loader import make_loader
from maskfeat.model import trunk
from maskfeat.run.distributed import join
from maskfeat.run.evaluate import classifier_accuracy, confusion_matrix
from maskfeat.run.plots import curves
from maskfeat.run.probe import accuracies, pooled, probe
from maskfeat.run.step import normalise


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One that was pre-trained and one that was fine-tuned, on pictures of two classes."""
    folder = tmp_path_factory.mktemp("probed")
    data = media.image_folder(folder / "data", each=12)
    media.image_folder(folder / "data", each=6, split="val")
    train_small(folder / "pt", f"data={data}", "samples=0", "steps=2", "batch_size=8")
    train_small(folder / "ft", f"data={data}", "samples=0", "steps=2", "classes=2", name="vit_tiny_ft")
    return folder


def width(picture):
    with Image.open(picture) as image:
        return image.width


def test_what_is_separable_is_found_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    noise = torch.randn(400, 16, generator=generator)
    clear = torch.nn.functional.one_hot(labels, 16).float() * 4 + noise
    train, test = slice(0, 300), slice(300, 400)

    def found(x):
        return accuracies((x[train], labels[train]), (x[test], labels[test]), (1e-6, 0.1), 20, seed=0)

    slow, fast = found(clear)
    assert fast > 0.95 and max(found(noise)) < 0.45
    alone = accuracies((clear[train], labels[train]), (clear[test], labels[test]), (0.1,), 20, seed=0)
    assert alone == [fast], "probes do not know each other"
    assert slow <= fast
    rare, first = (labels == 1).long(), torch.zeros_like(labels)
    assert accuracies((clear, rare), (clear, first), (1e38,), 2, seed=0) == [0], "what is no number is no first class"


def test_features_are_those_of_the_blocks(runs):
    recipe = small(runs / "pt", f"data={runs / 'data'}", "samples=0")
    encoder = trunk(build(recipe)).eval()
    loader = make_loader(recipe, "val", seed=0, augment=False)
    with join("cpu") as world:
        found, labels = pooled(encoder, loader, (0, 1), world)
    assert found.keys() == {(0, "mean"), (0, "class"), (1, "mean"), (1, "class")}
    assert labels.tolist() == [0] * 6 + [1] * 6
    images = torch.cat([batch["images"] for batch in loader])
    pixels = normalise(images, recipe.mean, recipe.std)
    [(tokens, _)] = encoder.encode(*encoder.embed(pixels), (1,))
    torch.testing.assert_close(found[1, "mean"], tokens[:, 1:].mean(1).detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1, "class"], tokens[:, 0].detach(), rtol=1e-4, atol=1e-5)


def test_one_sample_has_no_spread(runs):
    recipe = small(runs / "pt", f"data={runs / 'data'}", "samples=1", "batch_size=1")
    with join("cpu") as world:
        found = probe(build(recipe), recipe, world, (0,), (0.1,), 1)
    assert len(found) == 2 and all(0 <= entry["top1"] <= 1 for entry in found)


@pytest.mark.parametrize("kind", ["pt", "ft"])
def test_the_command_gives_every_probe_and_the_best_first(runs, capsys, kind):
    assert main(["probe", str(runs / kind), "--depths", "0,1", "--rates", "0.1,1", "--epochs", "3"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(found) == 2 * 2 * 2 and {entry["depth"] for entry in found} == {0, 1}
    tops = [entry["top1"] for entry in found]
    assert tops == sorted(tops, reverse=True) and all(0 <= top <= 1 for top in tops)


def test_by_default_four_blocks_are_probed_with_every_rate(runs):
    recipe = small(runs / "ft", f"data={runs / 'data'}", "samples=0", "classes=2", "size=tiny", name="vit_tiny_ft")
    with join("cpu") as world:
        found = probe(build(recipe), recipe, world, epochs=1)
        assert {entry["depth"] for entry in found} == {2, 5, 8, 11} and len(found) == 4 * 2 * 5
        with pytest.raises(ValueError, match="depths must be from 0 to 11, got 12"):
            probe(build(recipe), recipe, world, depths=(3, 12))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--depths", "one"], "must be numbers of blocks, as 3,7,11, got 'one'"),
        (["--rates", "0.1,-1"], "must be rates above 0, as 0.1,0.3, got '0.1,-1'"),
    ],
)
def test_numbers_that_are_none(runs, capsys, words, message):
    with pytest.raises(SystemExit):
        main(["probe", str(runs / "pt"), *words])
    assert message in capsys.readouterr().err


def test_a_probe_needs_labels(runs, capsys):
    assert main(["probe", str(runs / "pt"), "data=skimage"]) == 1
    assert "a probe needs labels, and no sample of 'skimage'" in capsys.readouterr().err


def test_confusions_are_counted_and_drawn(runs, tmp_path, capsys):
    assert main(["eval", str(runs / "ft"), "--confusion", str(tmp_path / "confusion.png")]) == 0
    assert width(tmp_path / "confusion.png") > 100
    recipe = small(runs / "ft", f"data={runs / 'data'}", "samples=0", "classes=2", name="vit_tiny_ft")
    model = build(recipe).eval()
    with join("cpu") as world:
        matrix = confusion_matrix(model, make_loader(recipe, "test", seed=0), recipe, world)
        top1 = classifier_accuracy(model, make_loader(recipe, "test", seed=0), recipe, world)["top1"]
    assert matrix.sum(1).tolist() == [6, 6] and matrix.trace() / 12 == pytest.approx(top1)
    assert main(["eval", str(runs / "pt"), "--confusion", "x.png"]) == 1
    assert "--confusion needs a classifier" in capsys.readouterr().err


def test_learning_curves_are_drawn_for_several_runs(runs, tmp_path, capsys):
    picture = tmp_path / "curves.png"
    assert main(["plot", str(runs / "pt"), str(runs / "ft"), "--output", str(picture)]) == 0
    one = tmp_path / "one.png"
    assert main(["plot", str(runs / "pt"), "--output", str(one)]) == 0
    assert width(picture) > width(one), "a classifier has its accuracy as well"
    capsys.readouterr()
    shutil.copytree(runs / "pt", tmp_path / "empty")
    damaged = dict.fromkeys(["{", "5", '{"loss": 3}', '{"step": 1, "loss": "a"}', "[" * 9999], "is damaged")
    for content, message in {"": "is empty", '{"step": 1, "a": 2}': "is empty", **damaged}.items():
        (tmp_path / "empty" / "log.jsonl").write_text(f"{content}\n" if content else "")
        assert main(["plot", str(tmp_path / "empty"), "--output", str(one)]) == 1
        assert message in capsys.readouterr().err
    assert main(["plot", str(tmp_path / "none"), "--output", str(one)]) == 1
    assert "there is no log" in capsys.readouterr().err


def test_curves_of_a_run_that_is_writing_its_log_and_has_a_name_like_a_formula(tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr("maskfeat.run.plots._save", lambda figure, path: labels.append(figure.axes[0].get_legend()))
    for name in ("_x", "$x_{$"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    monkeypatch.chdir(tmp_path)
    curves([Path("_x"), Path("$x_{$")], tmp_path / "curves.png")
    assert [text.get_text() for text in labels[0].get_texts()] == [" _x", r" \$x_{\$"]
