"""Two processes compute what one computes: the same losses and weights at the same batch, whoever shares the model."""

import os
import subprocess
import sys

import pytest
import torch
from test_train import losses, read_log, small, train_small

from maskfeat.checkpoint import read_weights
from maskfeat.config import describe, task

pytestmark = pytest.mark.slow  # each test starts several processes
SETTINGS = ["image_size=16", "batch_size=8", "samples=16", "steps=4", "eval_every=1"]
VARYING = ["image_size=32", "mask_compat=slowfast", "mask_stride=4", "patch_size=4", "global_loss=true"]


def launch(recipe):
    """The recipe's command in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "maskfeat", "--traceback", task(recipe), recipe.name]
    command += [line.split("#")[0].strip() for line in describe(recipe).splitlines()[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def two_processes(out, *changes, name="vit_tiny"):
    launch(small(out, *SETTINGS, *changes, name=name))


def assert_same(folder, other, file="weights.safetensors"):
    assert losses(other) == pytest.approx(losses(folder), rel=1e-4)
    results, expected = read_log(other)[-1], read_log(folder)[-1]
    assert results == pytest.approx(expected, rel=1e-3)
    weights, expected = (read_weights(out / file)[0] for out in (other, folder))
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=2e-5, msg=name)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A process that does four parts of a batch one after the other."""
    folder = tmp_path_factory.mktemp("one")
    train_small(folder, *SETTINGS, "accumulate=4", "save_every=2", "keep=2")
    return folder


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_with_two_parts_each_are_one_process(one_process, tmp_path, parallel):
    two_processes(tmp_path, f"parallel={parallel}", "accumulate=2")
    assert_same(one_process, tmp_path)


def test_two_ranks_are_one_batch(tmp_path):
    """Without parts: all patches are hidden, so that the masks agree."""
    two_processes(tmp_path / "two", "mask_ratio=1")
    train_small(tmp_path / "one", *SETTINGS, "mask_ratio=1")
    assert_same(tmp_path / "one", tmp_path / "two")


def test_loss_over_the_masked_tokens_of_all_ranks(tmp_path):
    """Masks of different sizes: every token weighs the same, however the batch is shared."""
    two_processes(tmp_path / "two", *VARYING)
    train_small(tmp_path / "one", *SETTINGS, *VARYING, "accumulate=2")
    train_small(tmp_path / "parts", *SETTINGS, *VARYING, "accumulate=2", "global_loss=false")
    assert_same(tmp_path / "one", tmp_path / "two")
    assert losses(tmp_path / "parts") != pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_sharded_runs_go_on_in_one_process_and_back(one_process, tmp_path):
    middle = one_process / "checkpoints" / "step_00000002"
    two_processes(tmp_path / "back", "parallel=fsdp", "accumulate=2", f"resume={middle}", "save_every=1")
    assert losses(tmp_path / "back") == pytest.approx(losses(one_process)[2:], rel=1e-4)
    sharded = tmp_path / "back" / "checkpoints" / "step_00000003"
    assert len(list(sharded.glob("*.distcp"))) == 2
    train_small(tmp_path / "forth", *SETTINGS, "accumulate=4", f"resume={sharded}")
    assert losses(tmp_path / "forth") == pytest.approx(losses(one_process)[3:], rel=1e-4)


def test_finetuning_with_averaged_weights(tmp_path):
    changes = ["ema=0.5", "mixup=0.8", "drop_path=0.2", "clip_grad=0.1", "steps=2"]
    two_processes(tmp_path / "two", *changes, "parallel=fsdp", name="vit_tiny_ft")
    train_small(tmp_path / "one", *SETTINGS, *changes, "accumulate=2", name="vit_tiny_ft")
    assert_same(tmp_path / "one", tmp_path / "two")
    assert_same(tmp_path / "one", tmp_path / "two", "weights_ema.safetensors")


def test_a_batch_that_does_not_divide_is_an_error(tmp_path):
    with pytest.raises(AssertionError, match="batch_size 9 does not divide into 2 ranks"):
        two_processes(tmp_path, "batch_size=9")
