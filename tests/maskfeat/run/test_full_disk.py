"""A full disk costs no checkpoint, and is told in one line."""

import contextlib
import os
import resource
import subprocess
import sys

import pytest
import torch
from saved_checkpoint import RECIPE
from test_checkpoint import assert_same_run
from test_train import small, train_small

from maskfeat.build import build
from maskfeat.cli import main
from maskfeat.config import describe
from maskfeat.run.checkpoint import Checkpoints, find_checkpoint, read_run
from maskfeat.weights.files import save_weights
from maskfeat.weights.storage import save_tensors, write_atomically


@contextlib.contextmanager
def room(size):
    """No file may grow beyond ``size`` bytes: the error is that of a disk quota or of `ulimit -f`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 1500, 50_000])
def test_a_checkpoint_without_room_leaves_the_older_ones(tmp_path, world, size):
    checkpoints = Checkpoints(tmp_path, RECIPE, world)
    state = {"model": {"weight": torch.arange(20_000.0)}, "optimizer": {"lr": 0.5}}
    checkpoints.save(1, state)
    checkpoints.wait()
    error = None
    with room(size):  # what pytest prints goes to a file as well
        checkpoints.save(2, state)
        try:
            checkpoints.wait()
        except OSError as failure:
            error = failure
    assert error.errno == 27 and "\n" not in str(error)
    assert error.filename.startswith(str(tmp_path / "checkpoints" / "partial_00000002"))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert read_run(find_checkpoint(tmp_path))["step"] == 1
    checkpoints.save(2, state)
    checkpoints.wait()
    assert find_checkpoint(tmp_path).name == "step_00000002"


def test_every_file_that_has_no_room_is_named_and_leaves_nothing(tmp_path, world):
    weights = build(RECIPE).state_dict()
    target = tmp_path / "file"
    for write in (
        lambda: write_atomically(target, bytes(10_000)),
        lambda: save_weights(target, weights, RECIPE, 1),
        lambda: save_tensors(target, weights, {}),
    ):
        error = None
        with room(1000):
            try:
                write()
            except OSError as failure:
                error = failure
        assert error.filename == str(target) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [300, 20_000])
def test_a_run_without_room_says_so_in_one_line_and_goes_on_with_room(tmp_path, capsys, size):
    """The log at first, then the checkpoint."""
    recipe = small(tmp_path / "out", "steps=3", "save_every=1", "image_size=16", "log_every=1")
    settings = [line.split("#")[0].strip() for line in describe(recipe).splitlines()[1:]]
    capsys.readouterr()
    with room(size):
        status = main(["pretrain", "vit_tiny", *settings])
    error = capsys.readouterr().err
    said = [line for line in error.split("begins\n")[1].splitlines() if not line.startswith("vit_tiny  step")]
    assert status == 1 and len(said) == 1, error
    assert said[0].startswith("maskfeat: [Errno 27] File too large: '") and "make room" in said[0]
    assert str(tmp_path / "out") in said[0]
    train_small(tmp_path / "out", "steps=3", "save_every=1", "image_size=16", "log_every=1")
    assert find_checkpoint(tmp_path / "out").name == "step_00000003"


@pytest.mark.slow
def test_a_run_on_a_full_disk_goes_on_bit_for_bit_when_there_is_room(tmp_path):
    """40 MB hold three checkpoints."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system is not allowed here")
    changes = ["steps=8", "save_every=1", "keep=9", "image_size=16"]
    command = [sys.executable, "-m", "maskfeat", "pretrain", "vit_tiny"]
    command += [line.split("#")[0].strip() for line in describe(small(disk / "out", *changes)).splitlines()[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        said = done.stderr.split("begins\n")[1].splitlines()
        said = [line for line in said if not line.startswith("vit_tiny  step")]
        assert done.returncode == 1 and len(said) == 1, done.stderr
        assert said[0].startswith(f"maskfeat: [Errno 28] No space left on device: '{disk / 'out'}")
        whole = sorted((disk / "out" / "checkpoints").iterdir())
        assert [path.name for path in whole] == [f"step_{step:08d}" for step in range(1, len(whole) + 1)] and whole
        assert [read_run(path)["step"] for path in whole] == list(range(1, len(whole) + 1))
        subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
        subprocess.run(command, env=environment, capture_output=True, check=True)
        train_small(tmp_path / "whole", *changes)
        assert_same_run(tmp_path / "whole", disk / "out")
    finally:
        subprocess.run(["umount", disk], check=True)
