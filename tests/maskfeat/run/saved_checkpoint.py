"""A small checkpoint that is saved and loaded again, for the tests of what may happen to one in between."""

import json

import pytest
import torch

from maskfeat.config import get_recipe, override
from maskfeat.run.checkpoint import Checkpoints, find_checkpoint

RECIPE = override(get_recipe("vit_tiny"), ["image_size=32"])
RUN = {"format": 2, "step": 7, "recipe": None, "samples": 3}
RUN["recipe"] = json.loads(json.dumps({"task": "pretrain", **RECIPE.__dict__}))


def saved(folder, world):
    """Its path, and what loads it."""
    checkpoints = Checkpoints(folder, RECIPE, world, samples=3, data="abc")
    state = {"model": {"weight": torch.arange(12.0).view(3, 4)}, "optimizer": {"lr": 0.5, "betas": (0.9, 0.95)}}
    checkpoints.save(7, state)
    checkpoints.wait()
    return find_checkpoint(folder), checkpoints


def loaded(checkpoints, path):
    state = {"model": {"weight": torch.zeros(3, 4)}, "optimizer": {"lr": 0.0, "betas": (0.0, 0.0)}}
    return checkpoints.load(path, state)[0], state


def legacy(path):
    """run.json of a checkpoint as format 1 had it."""
    run = {**RUN, "format": 1, "files": {}}
    run["files"] = {file.name: file.stat().st_size for file in path.iterdir() if file.name != "run.json"}
    return run


def refused(call, match):
    """The error, which is one line."""
    with pytest.raises(ValueError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)
