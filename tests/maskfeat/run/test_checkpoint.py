"""Nothing is lost: runs go on bit for bit, and a folder that cannot be resumed says why."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import media
import pytest
import torch
from test_train import read_log, small, train_small

from maskfeat.build import build
from maskfeat.config import describe, from_dict, get_recipe, override
from maskfeat.data.loader import _source
from maskfeat.run.checkpoint import Checkpoints, find_checkpoint, read_run
from maskfeat.run.distributed import Terminated
from maskfeat.run.train import Trainer, train
from maskfeat.weights.files import read_weights, save_weights
from maskfeat.weights.initialise import initialise
from maskfeat.weights.storage import write_atomically

CLOCKS = ("images_per_s", "data_share", "hog_share", "eta_s")


def timeless_log(folder):
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in read_log(folder)]


def assert_same_run(folder, other):
    """Weights, their average, and every logged number but the clocks."""
    for file in folder.glob("*.safetensors"):
        weights, expected = read_weights(other / file.name)[0], read_weights(file)[0]
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert timeless_log(other) == timeless_log(folder)


@pytest.mark.parametrize(
    "name, changes, steps",
    [
        (
            "vit_tiny",
            ["mask_compat=slowfast", "mask_stride=4", "patch_size=4", "global_loss=yes", "workers=1"],
            (2, 3),
        ),
        pytest.param(
            "vit_tiny_ft",
            ["drop_path=0.5", "mixup=0.8", "cutmix=1", "erasing=0.5", "ema=0.9", "accumulate=2"],
            (2, 5),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "vit_tiny_ft", ["precision=fp16", "head_init=1000"], (3,), marks=pytest.mark.slow
        ),  # with steps left out, as gradients overflow
    ],
)
def test_a_run_goes_on_from_a_step_as_if_it_had_not_stopped(tmp_path, name, changes, steps):
    """Six steps in two epochs at once, and again from some of its checkpoints."""
    changes = [*changes, "image_size=16", "batch_size=4", "samples=12", "steps=6", "save_every=1", "keep=9"]
    train_small(tmp_path / "whole", *changes, name=name)
    checkpoints = sorted((tmp_path / "whole" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == [f"step_{step:08d}" for step in range(1, 7)]
    for step in steps:
        other = tmp_path / f"from_{step}"
        other.mkdir()
        shutil.copy(tmp_path / "whole" / "log.jsonl", other)  # as if killed after step 6
        train_small(other, *changes, f"resume={checkpoints[step - 1]}", "save_every=0", name=name)
        assert_same_run(tmp_path / "whole", other)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    """Killed twice, wherever it happened to be."""
    settings = ["image_size=16", "batch_size=4", "samples=40", "steps=40", "eval_every=2"]
    recipe = small(tmp_path / "killed", *settings, "save_every=1", "keep=1")
    command = [sys.executable, "-m", "maskfeat", "pretrain", "vit_tiny"]
    command += [line.split("#")[0].strip() for line in describe(recipe).splitlines()[1:]]
    log, kills = tmp_path / "killed" / "log.jsonl", 0
    for lines in (3, 20):
        with subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
        ) as process:
            while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < lines):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
    assert kills == 2
    train(recipe)
    train_small(tmp_path / "whole", *settings)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()] == ["step_00000040"]


def test_sigterm_ends_a_run_after_the_step_and_a_checkpoint(tmp_path, monkeypatch):
    settings = ["image_size=16", "batch_size=4", "samples=40", "steps=4", "eval_every=0"]
    step, before = Trainer.train_step, signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda self, parts: (self.step == 1 and kill(), step(self, parts))[1])
        kill = functools.partial(signal.raise_signal, signal.SIGTERM)
        with pytest.raises(Terminated, match="after step 2 of 4"):
            train_small(tmp_path / "ended", *settings)
    assert signal.getsignal(signal.SIGTERM) is before
    assert read_run(find_checkpoint(tmp_path / "ended"))["step"] == 2
    train_small(tmp_path / "ended", *settings)
    train_small(tmp_path / "whole", *settings)
    assert_same_run(tmp_path / "whole", tmp_path / "ended")


def test_sigterm_in_the_last_evaluation_is_not_lost(tmp_path, monkeypatch):
    """A caller who trains twice would go on; the same command again evaluates and is done."""
    settings, evaluate = ["image_size=16", "batch_size=4", "samples=40", "steps=2"], Trainer.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", lambda self: (signal.raise_signal(signal.SIGTERM), evaluate(self))[1])
        for _ in range(2):  # the second begins at its end
            with pytest.raises(Terminated, match="ended by SIGTERM after step 2 of 2, which is saved"):
                train_small(tmp_path, *settings)
    assert train_small(tmp_path, *settings)["val_loss"] == read_log(tmp_path)[-1]["val_loss"]


@pytest.mark.slow
def test_an_evaluation_that_fails_costs_no_training(tmp_path):
    """No held-out file can be read; with others the run goes on from the epoch after which it failed."""
    data = media.image_folder(tmp_path / "data", each=4)
    other = media.image_folder(tmp_path / "other", each=1, split="val")
    for file in media.image_folder(data, each=1, split="val").glob("val/*/*"):
        file.write_bytes(b"damaged")
    settings = ["image_size=16", "batch_size=4", "samples=0", "steps=4", "eval_every=1", f"data={data}"]
    with pytest.raises(ValueError, match=r"no held-out sample of .*data' could be read.*val_data="):
        train_small(tmp_path / "ended", *settings)
    assert read_run(find_checkpoint(tmp_path / "ended"))["step"] == 2
    for folder in ("ended", "whole"):
        train_small(tmp_path / folder, *settings, f"val_data={other}")
    assert_same_run(tmp_path / "whole", tmp_path / "ended")


@pytest.mark.slow
def test_a_cluster_that_wants_its_machine_back_loses_nothing(tmp_path):
    """SIGTERM to all processes of the run, those of the loader too: it ends by itself and goes on bit for bit."""
    settings = ["image_size=16", "batch_size=4", "samples=400", "steps=100", "eval_every=0", "workers=1"]
    recipe = small(tmp_path / "ended", *settings)
    command = [sys.executable, "-m", "maskfeat", "pretrain", "vit_tiny"]
    command += [line.split("#")[0].strip() for line in describe(recipe).splitlines()[1:]]
    log, environment = tmp_path / "ended" / "log.jsonl", {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < 3):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors
    step = read_run(find_checkpoint(tmp_path / "ended"))["step"]
    assert 3 <= step < 100 and f"ended by SIGTERM after step {step} of 100" in errors and "Traceback" not in errors
    train(recipe)
    train_small(tmp_path / "whole", *settings)
    assert_same_run(tmp_path / "whole", tmp_path / "ended")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two steps, with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("run")
    train_small(folder, "steps=2", "save_every=1")
    return folder


def test_a_checkpoint_is_a_copy_of_the_moment(tmp_path, world):
    tensor = torch.zeros(1_000_000)
    checkpoints = Checkpoints(tmp_path, get_recipe("vit_tiny"), world)
    checkpoints.save(1, {"tensor": tensor})
    tensor.fill_(1)
    checkpoints.wait()
    loaded = {"tensor": torch.full_like(tensor, 2)}
    assert checkpoints.load(find_checkpoint(tmp_path), loaded)[0] == 1
    assert (loaded["tensor"] == 0).all()


def test_a_write_that_fails_is_reported_and_leaves_the_older_checkpoint(tmp_path, world, monkeypatch):
    checkpoints = Checkpoints(tmp_path, get_recipe("vit_tiny"), world)
    checkpoints.save(1, {"tensor": torch.zeros(3)})
    checkpoints.wait()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("maskfeat.run.checkpoint.write_atomically", full)
    checkpoints.save(2, {"tensor": torch.zeros(3)})
    with pytest.raises(OSError, match="no space left"):
        checkpoints.wait()
    assert find_checkpoint(tmp_path).name == "step_00000001"


def test_a_run_is_not_written_over(run, tmp_path):
    with pytest.raises(FileExistsError, match="holds the checkpoints of a run"):
        train_small(run, "steps=2", "resume=no")
    with pytest.raises(FileExistsError, match="holds the checkpoints of a run"):
        train_small(run, "steps=2", f"resume={tmp_path}")


def test_another_recipe_is_refused_with_what_differs(run):
    with pytest.raises(ValueError, match=r"another run: lr=0.001 there and 0.002 here, seed=0 there and 1 here"):
        train_small(run, "steps=2", "lr=2e-3", "seed=1")


@pytest.mark.parametrize(
    "change, what",
    [
        ("channels=1", "channels=3 there and 1 here, mean="),
        ("data_range=0,4095", "data_range= there and 0.0,4095.0 here"),
        ("image_size=32x64", "image_size=32 there and 32x64 here"),
        ("mean=0.406,0.456,0.485", "mean=0.485,0.456,0.406 there and 0.406,0.456,0.485 here"),
    ],
)
def test_other_pixels_are_another_run(run, change, what):
    with pytest.raises(ValueError, match=re.escape(f"belongs to another run: {what}")):
        train_small(run, "steps=2", change)


def test_what_does_not_change_the_arithmetic_may_change(run, tmp_path):
    train_small(tmp_path, "steps=2", f"resume={run}", "log_every=7", "keep=1", "recompute=true", "knn=3")
    weights = [read_weights(folder)[0]["mask_token"] for folder in (run, tmp_path)]
    assert torch.equal(*weights)


def test_a_run_goes_on_when_its_data_and_its_first_weights_have_moved(tmp_path, caplog):
    data = media.image_folder(tmp_path / "data", each=8)
    train_small(tmp_path / "init", "steps=1")
    settings = ["samples=0", "steps=4", "eval_every=0", f"init={tmp_path / 'init'}"]
    for out in ("ended", "whole"):
        train_small(tmp_path / out, *settings, f"data={data}", "save_every=2", "keep=9")
    shutil.rmtree(tmp_path / "ended" / "checkpoints" / "step_00000004")
    shutil.rmtree(tmp_path / "init")
    moved = data.rename(tmp_path / "moved")
    train_small(tmp_path / "ended", *settings, f"data={moved}", "save_every=2")
    assert_same_run(tmp_path / "whole", tmp_path / "ended")
    assert f"was trained on {data}; it goes on with {moved}, which has the same samples (16)" in caplog.text
    (moved / "train" / "cat" / "0.jpg").unlink()
    for place in (moved, data):
        moved.rename(place)
        _source.cache_clear()  # as in another process
        with pytest.raises(ValueError, match=f"on 16 samples, and '{place}' now has 15"):
            train_small(tmp_path / "whole", *settings, f"data={place}")


def test_a_finished_run_stays_as_it_is(run):
    before = (run / "log.jsonl").read_bytes()
    results = train_small(run, "steps=2", "save_every=1")
    assert results["val_loss"] == read_log(run)[-1]["val_loss"] and (run / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize("resume, message", [("/nowhere", "no folder /nowhere"), (None, "is not the folder of a run")])
def test_wrong_folders(tmp_path, resume, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        train_small(tmp_path / "new", f"resume={resume or tmp_path / 'empty'}")


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest", "nonsense", "partial"])
def test_half_written_checkpoints(run, tmp_path, damage):
    folder = tmp_path / "checkpoints"
    shutil.copytree(run / "checkpoints", folder)
    newest = folder / "step_00000002"
    if damage == "cut":
        file = newest / "__0_0.distcp"
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "missing":
        (newest / ".metadata").unlink()
    elif damage == "manifest":
        (newest / "run.json").unlink()
    elif damage == "nonsense":
        (newest / "run.json").write_text('{"format": 1, ')
    else:
        newest = newest.rename(folder / "partial_00000002")
        (newest / "run.json").unlink()
        assert find_checkpoint(tmp_path).name == "step_00000001"
    with pytest.raises(ValueError, match=r"half-written"):
        train_small(tmp_path / "new", "steps=2", f"resume={newest}")


def test_manifest_lists_every_file(run):
    path = find_checkpoint(run)
    files = {file.name: file.stat().st_size for file in path.iterdir() if file.name != "run.json"}
    assert read_run(path)["files"] == files and len(files) == 2
    assert find_checkpoint(path) == path == find_checkpoint(run / "checkpoints")


def test_checkpoints_of_another_version(run, tmp_path):
    manifest = json.loads((find_checkpoint(run) / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**manifest, "format": 3}))
    with pytest.raises(ValueError, match="has format 3, this version reads 1 and 2"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="keys that this version does not know: momentum"):
        from_dict({**manifest["recipe"], "momentum": 0.9})


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    write_atomically(tmp_path / "file", b"old")

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_weights_carry_their_recipe(tmp_path):
    recipe = override(get_recipe("vit_tiny"), ["image_size=32"])
    model = build(recipe)
    save_weights(tmp_path / "w.safetensors", model.state_dict(), recipe, 3)
    weights, read = read_weights(tmp_path / "w.safetensors")
    assert read == recipe and all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights"):
        read_weights(tmp_path)
    (tmp_path / "file").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="no safetensors file"):
        read_weights(tmp_path / "file")


def save_encoder(path, name, *changes):
    recipe = override(get_recipe(name), list(changes))
    torch.manual_seed(1)
    model = build(recipe)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    save_weights(path, model.state_dict(), recipe, 1)
    return model


def test_a_classifier_takes_the_encoder_and_keeps_its_head(tmp_path):
    pretrained = save_encoder(tmp_path / "w", "vit_tiny", "image_size=32")
    classifier = build(override(get_recipe("vit_tiny_ft"), ["image_size=32"]))
    head = classifier.head.weight.clone()
    initialise(classifier, tmp_path / "w")
    own, taken = classifier.state_dict(), pretrained.encoder.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in taken.items())
    assert torch.equal(classifier.head.weight, head) and set(own) - set(taken) == {
        f"{name}.{kind}" for name in ("fc_norm", "head") for kind in ("weight", "bias")
    }


def test_positions_are_resized(tmp_path):
    save_encoder(tmp_path / "vit", "vit_tiny", "image_size=32")
    classifier = build(override(get_recipe("vit_tiny_ft"), ["image_size=64"]))
    initialise(classifier, tmp_path / "vit")
    assert classifier.pos_embed.shape == (1, 17, 192)
    video = save_encoder(tmp_path / "mvit", "mvit_tiny")
    classifier = build(get_recipe("mvit_tiny_ft"))
    initialise(classifier, tmp_path / "mvit")
    before, after = (model.blocks[-1].attn.rel_pos_h for model in (video.encoder, classifier))
    assert len(before) == 7 and len(after) == 3
    torch.testing.assert_close(after[1], before[3])  # the centre stays


def test_weights_that_do_not_fit_are_named(tmp_path):
    save_encoder(tmp_path / "w", "vit_tiny", "image_size=32")
    classifier = build(override(get_recipe("vit_tiny_ft"), ["image_size=32", "patch_size=16", "size=small"]))
    with pytest.raises(ValueError, match=r"of another shape: cls_token \(1, 1, 192\) instead of \(1, 1, 384\).* more"):
        initialise(classifier, tmp_path / "w")
    shallow = build(override(get_recipe("vit_tiny"), ["image_size=32", "depths=3"]))
    with pytest.raises(ValueError, match=r"not in the model: encoder.blocks.10"):
        initialise(shallow, tmp_path / "w")
