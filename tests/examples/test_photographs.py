"""The experiment on photographs in miniature: every step of it, that it goes on where it was, and that bits repeat."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import t as student

from examples.photographs import baselines, pack, picture, report
from examples.photographs.__main__ import main, repeat
from examples.photographs.runs import Runs
from examples.photographs.settings import ARMS, Settings
from maskfeat.weights.files import read_weights

torch.set_num_threads(1)
CLASSES = [f"class {i}" for i in range(10)]
MINIATURE = dict(seeds=(1,), pretrain_epochs=1, finetune_epochs=2, few=4, few_epochs=1, pilot_epochs=1, evaluations=1)
MINIATURE |= dict(pretrain_rates=(1e-3, 1e38), finetune_rates=(1e-3,))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Forty pictures to train on and twenty held out, of ten plain colours in noise."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, each in {"train": 4, "val": 2}.items():
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = rng.integers(0, 156, (40, 40, 3)) + 10 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    return str(folder)


def miniature(data, folder, said=None, **changes):
    settings = Settings(**MINIATURE | changes)
    small = dict(settings.model, image_size=32), dict(settings.run, batch_size=8, save_every=100)
    settings = dataclasses.replace(settings, model=small[0], run=small[1])
    return Runs(settings, data, folder / "out", folder / "results", (said if said is not None else []).append)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    miniature(data, folder).make_all()
    return folder


def read(folder, name):
    return json.loads((folder / "results" / f"{name}.json").read_text())


@pytest.mark.slow
def test_every_arm_leaves_a_pilot_and_a_result(finished):
    files = {f"{arm}_{which}.json" for arm in ARMS for which in ("pilot", 1)}
    assert {file.name for file in (finished / "results").iterdir()} == files
    for arm in ARMS:
        found = read(finished, f"{arm}_1")
        assert ("pretrain" in found) == (arm != "none") and found["seed"] == 1 and found["instructions"]
        answers = np.unpackbits(np.frombuffer(bytes.fromhex(found["finetune"]["right"]), np.uint8))[:20]
        assert answers.mean() == pytest.approx(found["finetune"]["top1"]) and found["finetune"]["photographs"] == 20
        assert found["finetune"]["steps"] == 10 and found["few"]["steps"] == 1
        assert set(found["frozen"]) == {"linear", "knn"}


@pytest.mark.slow
def test_the_pilot_tries_as_many_rates_for_every_arm_and_passes_over_those_that_diverge(finished):
    for arm in ARMS[1:]:
        pilot = read(finished, f"{arm}_pilot")
        assert len(pilot["tries"]["pretrain"]) == 2 and len(pilot["tries"]["finetune"]) == 1
        assert pilot["tries"]["pretrain"]["1e+38"] == math.inf and pilot["chosen"]["pretrain"] == 1e-3
    assert "pretrain" not in read(finished, "none_pilot")["tries"]


@pytest.mark.slow
def test_only_what_is_missing_is_made_and_with_the_same_bits(data, finished, tmp_path):
    """Results travel, as a later call on another machine has them; trainings do not."""
    kept = {}
    for file in (finished / "results").iterdir():
        kept[file.name] = file.read_text()
        if file.name != "hog_1.json":
            (tmp_path / "results").mkdir(exist_ok=True)
            (tmp_path / "results" / file.name).write_text(file.read_text())
    said = []
    runs = miniature(data, tmp_path, said)
    assert runs.missing() == [("hog", 1)]
    runs.make_all()
    assert runs.missing() == [] and said[0].startswith("hog, seed 1: 1 of 4 runs are left")
    again, before = read(tmp_path, "hog_1"), json.loads(kept["hog_1.json"])
    for part in ("pretrain", "finetune", "few"):
        assert again[part]["weights"] == before[part]["weights"] and again[part]["losses"] == before[part]["losses"]
    assert again["frozen"] == before["frozen"]
    assert repeat(runs, "hog", 1) == 0
    for part, key in (("pretrain", "weights"), ("few", "right")):
        other = before | {part: before[part] | {key: "other"}}
        runs.file("hog", 1).write_text(json.dumps(other))
        assert repeat(runs, "hog", 1) == 1


def test_what_another_process_makes_is_left_to_it(data, tmp_path):
    runs, other = miniature(data, tmp_path), miniature(data, tmp_path)
    with other.locked("none_1") as first, runs.locked("none_1") as second:
        assert first and not second


def test_the_protocol_has_the_numbers_of_the_settings():
    settings = Settings()
    text = " ".join((Path(sys.modules[Runs.__module__].__file__).parent / "PROTOCOL.md").read_text().split())
    batches = f"epochs in batches of {settings.run['batch_size']}"
    assert f"Pre-training takes {settings.pretrain_epochs} {batches}" in text
    assert f"Fine-tuning of all weights takes {settings.finetune_epochs} {batches}" in text
    assert f"({settings.few_epochs} passes over these)" in text and "Seeds 1, 2, 3 and 4." in text
    assert settings.seeds == (1, 2, 3, 4) and settings.pilot_epochs == 5 and "five epochs each" in text
    assert settings.finetune_rates == (5e-4, 1e-3, 2e-3) and settings.pretrain_rates == (1e-3, 2e-3, 4e-3)


REHEARSAL = """
import dataclasses, sys
from examples.photographs import __main__, settings
run = dict(settings.GPU.run, batch_size=4, workers=0)
settings.GPU = dataclasses.replace(settings.GPU, run=run, pretrain_epochs=10**6, pilot_epochs=1, pretrain_rates=(1e-3,))
__main__.main(sys.argv[1:])
"""


def test_results_of_a_gpu_are_not_mixed_with_those_of_a_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(report.HERE.parent)
    for results in ([], ["--results", "photographs/results"]):
        with pytest.raises(SystemExit):
            main(["--gpu", "--data", str(tmp_path), "--out", str(tmp_path / "out"), *results])
        assert "--gpu needs --results" in capsys.readouterr().err


NOT_HEARD = """
import signal, sys, threading, time
from examples.photographs.__main__ import alarm
heard = []
class Finalised:
    def __del__(self):
        while not heard:
            time.sleep(0.01)
signal.signal(signal.SIGTERM, lambda *_: (heard.append(1), sys.exit(f"heard {len(heard)}")))
threading.Thread(target=alarm, args=(0.1, 0.1), daemon=True).start()
Finalised()
time.sleep(20)
"""


def test_a_patch_beside_its_like_is_foretold(tmp_path, capsys):
    """Stripes go down or across, as chance has it: no constant tells which, and the patch beside always does."""
    rng, stripes = np.random.default_rng(1), np.repeat(255 * (np.arange(64) // 4 % 2), 64).reshape(64, 64)
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        for i in range(12):
            pixels = (stripes if rng.random() < 0.5 else stripes.T).astype(np.uint8)
            Image.fromarray(np.stack([pixels] * 3, -1)).save(tmp_path / split / "a" / f"{i}.png")
    baselines.main([str(tmp_path), "--to", str(tmp_path / "baselines.json")])
    found = json.loads((tmp_path / "baselines.json").read_text())
    for target, spread in {"hog": 0.04, "pixel": 0.4}.items():
        losses = found[target]
        assert losses["constant"] > spread and losses["placed"] > spread
        assert losses["beside"] < 0.02 * losses["constant"] and losses["around"] < 0.02 * losses["constant"]
    assert capsys.readouterr().out.startswith("hog {'constant': ") and found["commit"]


def test_an_alarm_that_is_not_heard_rings_again():
    """What a handler raises while an object is finalised goes nowhere."""
    done = subprocess.run([sys.executable, "-c", NOT_HEARD], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.endswith("heard 2\n") and "SystemExit: heard 1" in done.stderr


@pytest.mark.slow  # two processes that train for 15 seconds
def test_the_protocol_of_a_gpu_runs_on_a_packed_copy_and_ends_in_time(data, tmp_path):
    """A call that is out of time leaves a checkpoint, from which the next goes on."""
    archive, out = tmp_path / "data.zip", tmp_path / "out"
    pack.main([data, str(archive)])
    unpacked = pack.unpack(archive, tmp_path / "unpacked") / "val" / "0009" / "000019.webp"
    packed, original = (Image.open(file) for file in (unpacked, Path(data) / "val" / CLASSES[9] / "1.png"))
    assert packed.size == original.size == (40, 40)
    assert abs(np.asarray(packed).mean() - np.asarray(original).mean()) < 3
    unpacked.write_bytes(b"half")
    pack.unpack(archive, tmp_path / "unpacked")
    assert unpacked.stat().st_size > 100
    settings = ["--gpu", "--data", str(archive), "--out", str(out), "--results", str(tmp_path / "results")]
    command = [sys.executable, "-c", REHEARSAL, *settings, "--minutes", "0.25"]
    reached = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert "ended by SIGTERM" in done.stderr and "the same command goes on" in done.stderr, done.stderr
        logs = [file.read_text().splitlines() for file in out.glob("**/log.jsonl")]
        reached.append(sum(json.loads(lines[-1])["step"] for lines in logs if lines))
    assert reached[1] > reached[0]


def answers_of(*rights):  # a run each, of which photographs it got right
    return [{"finetune": {"right": np.packbits(r).tobytes().hex(), "photographs": len(r)}} for r in np.asarray(rights)]


def test_a_difference_is_paired_by_seed_and_by_photograph():
    """Two seeds and four photographs, by hand: gains of 50 and 25 points; 100, 50, 0 and 0 by photograph."""
    first = answers_of([1, 1, 1, 0], [1, 0, 1, 0])
    second = answers_of([0, 0, 1, 0], [0, 0, 1, 0])
    found = report.difference(first, second)
    of_seeds, of_photographs = 312.5 / 2, (62.5**2 + 12.5**2 + 2 * 37.5**2) / 3 / 4
    total = of_seeds + of_photographs
    freedom = total**2 / (of_seeds**2 / 1 + of_photographs**2 / 3)
    assert found.mean == 37.5
    assert found.half == pytest.approx(student.ppf(0.975, freedom) * math.sqrt(total))
    assert found.detectable == pytest.approx(found.half + student.ppf(0.8, freedom) * math.sqrt(total))
    assert found.verdict("hog", "pixel") == "no difference that this design can see"
    assert report.difference(second, first).mean == -37.5


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Photographs differ in difficulty and seeds in luck; 95 in 100 hold the true difference, or a few more."""
    rng, held, wrong = np.random.default_rng(0), 0, 0
    for _ in range(400):
        difficulty, luck = rng.uniform(-0.3, 0.3, 500), rng.normal(0, 0.01, (2, 4, 1))
        chance = np.array([0.52, 0.5])[:, None, None] + difficulty + luck  # [arm, seed, photograph]
        first, second = (answers_of(*(rng.random((4, 500)) < of_arm).astype(int)) for of_arm in chance)
        found = report.difference(first, second)
        held += abs(found.mean - 2) <= found.half
        wrong += found.verdict("hog", "pixel") == "pixels win"
    assert held >= 0.95 * 400 - 3 * math.sqrt(400 * 0.95 * 0.05) and wrong <= 4


@pytest.mark.slow
@pytest.mark.parametrize("gain, verdict", [(400, "HOG wins"), (-400, "pixels win"), (0, "no difference")])
def test_the_report_tells_what_was_found(gain, verdict, tmp_path, finished):
    """From a finished run of each arm, copied to every seed with other answers."""
    folder, rng = tmp_path / "results", np.random.default_rng(1)
    folder.mkdir()
    for arm in ARMS[:3]:
        (folder / f"{arm}_pilot.json").write_text((finished / "results" / f"{arm}_pilot.json").read_text())
        for seed in Settings().seeds:
            run = read(finished, f"{arm}_1") | {"seed": seed}
            correct = rng.permutation(np.arange(3925) < 2000 + (gain if arm == "hog" else 0)).astype(int)
            run["finetune"] |= answers_of(correct)[0]["finetune"] | {"top1": correct.mean()}
            (folder / f"{arm}_{seed}.json").write_text(json.dumps(run))
    losses = dict.fromkeys(report.BASELINES, 0.25)
    (folder / "baselines.json").write_text(json.dumps({"hog": losses, "pixel": losses | {"around": 0.125}}))
    document = tmp_path / "evidence.md"
    document.write_text(f"# Before\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter\n")
    report.main(["--results", str(folder), "--document", str(document)])
    text = document.read_text()
    assert text.startswith("# Before\n") and text.endswith("\n\nAfter\n") and "old" not in text
    assert f"| HOG - pixels | {gain / 39.25:+.1f} |" in text and verdict in text.split("HOG - pixels")[1].split("\n")[0]
    assert "| pixels | 0.2500 | 0.2500 | 0.2500 | 0.1250 | " in text
    assert "| pixels | 51.0 ± 0.0 |" in text and "on 3,925 held-out" in text
    assert (tmp_path / report.PLOT).read_bytes().startswith(b"\x89PNG")
    (folder / "hog_2.json").unlink()
    with pytest.raises(SystemExit, match="not every seed of hog"):
        report.main(["--results", str(folder), "--document", str(document)])


def test_the_document_has_what_the_results_give():
    assert report.block(report.HERE / "results", Settings()) in report.DOCUMENT.read_text()


def test_the_model_of_the_picture_goes_on_with_whole_photographs(data, tmp_path, monkeypatch):
    small, still = dict(batch_size=8, epochs=1, warmup_epochs=0), dict(lr=1e-6)
    monkeypatch.setattr(picture, "CROPS", picture.CROPS | small | dict(image_size=32))
    monkeypatch.setattr(picture, "WHOLE", picture.WHOLE | small | dict(image_size=64) | still)
    picture.main([data, str(tmp_path)])
    picture.main([data, str(tmp_path)])  # finds everything done
    crops, whole = (read_weights(tmp_path / name)[0] for name in ("crops", "whole"))
    moved = (crops.pop(picture.POSITIONS)[0, 1:] - picture.waves(4, 128)).mean(0)
    assert moved.abs().max() > 1e-3
    torch.testing.assert_close(whole.pop(picture.POSITIONS)[0, 1:], picture.waves(8, 128) + moved, rtol=0, atol=1e-4)
    torch.testing.assert_close(whole, crops, rtol=0, atol=1e-4)


def test_waves_tell_offsets_alike_at_every_size():
    """The products of positions are those of their rows' and columns' differences."""
    small, large = picture.waves(3, 16), picture.waves(5, 16)
    assert torch.equal(large.unflatten(0, (5, 5))[:3, :3].flatten(0, 1), small)
    products = large @ large.T
    torch.testing.assert_close(products[0, 6], products[6, 12])  # (0, 0) and (1, 1); (1, 1) and (2, 2)
    assert products[0, 1] > products[0, 4]
