"""Which device a run takes, and what is said of one that it cannot have, on a machine that is made up."""

import pytest
import torch

from maskfeat.run.device import device_named
from maskfeat.run.distributed import join


@pytest.fixture
def two_gpus(monkeypatch):
    """The indices that became the current device."""
    chosen = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    return chosen


@pytest.mark.parametrize("name, index", [("cuda:1", [1]), ("cuda", []), ("auto", []), ("cpu", [])])
def test_the_device_of_one_process_is_the_current_one(two_gpus, name, index):
    with join(name) as world:
        assert world.device == torch.device("cuda" if name == "auto" else name) and two_gpus == index


def test_devices_that_a_machine_has_not(two_gpus):
    with pytest.raises(ValueError, match="device=cuda:5, but this machine has 2 of them, numbered from 0"):
        device_named("cuda:5")
    with pytest.raises(ValueError, match="Old GPU has no bf16 arithmetic; use precision=fp16"), join("auto", "bf16"):
        pass
    assert device_named("cpu", "bf16") == torch.device("cpu")


def test_a_part_of_the_variables_of_torchrun(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    message = "WORLD_SIZE=2 is set, but not RANK, LOCAL_RANK, MASTER_PORT: start the ranks with torchrun"
    with pytest.raises(ValueError, match=message), join("cpu"):
        pass


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"])
def test_variables_of_torchrun_that_are_no_numbers(monkeypatch, name):
    monkeypatch.setenv(name, "x")
    with pytest.raises(ValueError, match=f"{name} must be a whole number, as torchrun sets it, got 'x'"), join("cpu"):
        pass
