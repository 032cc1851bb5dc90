"""Loader processes never keep a run from its end, and what goes wrong in them is said as in the run itself."""

import os
import subprocess
import sys

import media
import pytest
from test_train import SMALL

PLAIN = [text for text in SMALL if not text.startswith(("samples", "eval_every"))]
COMMAND = ["finetune", "vit_tiny_ft", *PLAIN, "samples=0", "eval_every=0", "patch_size=8", "workers=1"]
LOADER = """
import multiprocessing
from maskfeat.config import get_recipe, override
from maskfeat.data import make_loader
recipe = override(get_recipe("vit_tiny"), ["image_size=32", "batch_size=8", "samples=80"])
batches = iter(make_loader(recipe, "train", seed=0, workers=2))
next(batches)
"""


def run(*arguments):
    """The finished process; TimeoutExpired if it does not end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60)


def test_an_error_in_a_worker_is_one_line(tmp_path):
    for path in media.image_folder(tmp_path, each=4).glob("train/*/*"):
        path.write_text("no image")
    command = [*COMMAND, f"data={tmp_path}", f"out={tmp_path / 'out'}"]
    done = run("-m", "maskfeat", *command)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("maskfeat: 100 samples in a row could not be read")
    done = run("-m", "maskfeat", "--traceback", *command)
    assert "in __getitem__\n" in done.stderr and "OSError: 100 samples" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "ending, status",
    [("", 0), ("raise MemoryError", 1), ("multiprocessing.active_children()[0].kill(); list(batches)", 1)],
)
def test_a_process_ends_though_workers_are_left(ending, status):
    assert run("-c", LOADER + ending).returncode == status
