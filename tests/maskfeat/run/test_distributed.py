"""Two processes compute what one computes: the same losses and weights at the same batch, whoever shares the model."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_checkpoint import assert_same_run
from test_train import losses, read_log, small, train_small

from maskfeat.config import describe, task
from maskfeat.run.checkpoint import find_checkpoint, read_run
from maskfeat.weights.files import read_weights

pytestmark = pytest.mark.slow  # each test starts several processes
SETTINGS = ["image_size=16", "batch_size=8", "samples=16", "steps=4", "eval_every=1"]
VARYING = ["image_size=32", "mask_compat=slowfast", "mask_stride=4", "patch_size=4", "global_loss=true"]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(recipe):
    settings = [line.split("#")[0].strip() for line in describe(recipe).splitlines()[1:]]
    return ["maskfeat", "--traceback", task(recipe), recipe.name, *settings]


def launch(recipe):
    """The recipe's command in two processes."""
    done = subprocess.run([*TORCHRUN, *command(recipe)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def two_processes(out, *changes, name="vit_tiny"):
    launch(small(out, *SETTINGS, *changes, name=name))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


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
    """Without parts: all patches are hidden, so that the masks agree. Neighbours are looked for on both ranks."""
    changes = ["mask_ratio=1", "knn=3", "samples=80"]
    two_processes(tmp_path / "two", *changes)
    train_small(tmp_path / "one", *SETTINGS, *changes)
    assert 0 < read_log(tmp_path / "one")[-1]["knn_accuracy"] < 1
    assert_same(tmp_path / "one", tmp_path / "two")


SLOW_TO_SHARE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sys.setswitchinterval(20)
from maskfeat.cli import main
sys.exit(main())
"""


def test_a_run_ends_though_gloo_waits_for_the_gil(tmp_path):
    """On one core, a thread of gloo frees its last tensor late. Three runs of four waited for ever at their end."""
    (tmp_path / "slow_to_share.py").write_text(SLOW_TO_SHARE)
    recipe = small(tmp_path / "two", *SETTINGS, *VARYING, name="vit_tiny")
    words = [*TORCHRUN[:-1], str(tmp_path / "slow_to_share.py"), *command(recipe)[1:]]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-3000:]


TWICE = """
import sys
from maskfeat.config import get_recipe, override
from maskfeat.run.train import train
for out in sys.argv[1:3]:
    train(override(get_recipe(sys.argv[3]), [*sys.argv[4:], "out=" + out]))
"""


@pytest.mark.parametrize("launcher", ["torchrun", "none"])
def test_one_run_after_another_in_the_same_processes(launcher, tmp_path):
    """The second found the addresses that the first had left in the store of torchrun, and waited or failed."""
    (tmp_path / "twice.py").write_text(TWICE)
    _, _, _, name, *settings = command(small(tmp_path, *SETTINGS, *VARYING, name="vit_tiny"))
    outs = [tmp_path / "first", tmp_path / "second"]
    words = [str(tmp_path / "twice.py"), *map(str, outs), name, *settings]
    if launcher == "torchrun":
        done = subprocess.run([*TORCHRUN[:-1], *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr[-3000:]
    else:  # as srun does, whose processes find each other by variables
        place = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
        ranks = [place | dict(RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
        started = [subprocess.Popen([sys.executable, *words], env=ENVIRONMENT | rank) for rank in ranks]
        assert [process.wait(60) for process in started] == [0, 0]
    assert_same(*outs)


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


FAULTS = """
import resource, sys
from pathlib import Path
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from maskfeat.run.checkpoint import Checkpoints, find_checkpoint
from maskfeat.config import get_recipe
from maskfeat.run.distributed import join
from maskfeat.run.lock import RunLock

def said(call):
    try:
        return call()
    except (OSError, ValueError) as error:
        return str(error)

def run(out):  # whose variables are gone when Python ends
    with join("cpu") as world, RunLock(out, world):
        mesh, checkpoints = init_device_mesh("cpu", (2,)), Checkpoints(out, get_recipe("vit_tiny"), world)

        def save(step, rows):
            checkpoints.save(step, {"w": distribute_tensor(torch.full((rows, 4), 3.0), mesh, [Shard(0)])})
            checkpoints.wait()

        answers = [said(RunLock(out, world).__enter__)]
        save(1, 8)
        world.wait()
        path, state = find_checkpoint(out), {"w": distribute_tensor(torch.zeros(8, 4), mesh, [Shard(0)])}
        answers += [checkpoints.load(path, state)[0], state["w"].full_tensor().sum().item()]
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if world.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        answers.append(said(lambda: save(2, 20_000)))
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        world.wait()
        if world.rank == 0:
            data = bytearray((path / "__1_0.distcp").read_bytes())
            data[900] ^= 1
            (path / "__1_0.distcp").write_bytes(data)
        world.wait()
        answers.append(said(lambda: checkpoints.load(path, state)))
        world.wait()
        (out / f"rank_{world.rank}").write_text("\\n".join(map(str, answers)))

run(Path(sys.argv[1]))
"""


def test_what_befalls_one_rank_is_said_by_all(tmp_path):
    """A second job, a disk that is full on one rank only, and damage to the file of one rank."""
    (tmp_path / "faults.py").write_text(FAULTS)
    run = [*TORCHRUN[:-1], tmp_path / "faults.py", tmp_path]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ((tmp_path / f"rank_{rank}").read_text().splitlines() for rank in range(2))
    assert first == second and first[1:3] == ["1", "96.0"]
    assert re.fullmatch(rf"{tmp_path} is in use by process \d+ on host .*choose another out", first[0])
    file = tmp_path / "checkpoints" / "partial_00000002" / "__1_0.distcp"
    assert first[3] == f"[Errno 27] File too large: '{file}'"
    assert "is damaged: __1_0.distcp does not have its checksum" in first[4]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert not (tmp_path / "run.lock").exists()


def test_a_batch_that_does_not_divide_is_an_error(tmp_path):
    with pytest.raises(AssertionError, match="batch_size 9 does not divide into 2 ranks"):
        two_processes(tmp_path, "batch_size=9")


LONG = [*SETTINGS, "samples=320", "steps=40", "eval_every=0", "workers=1"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of two ranks to its end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    two_processes(folder, *LONG)
    return folder


def children(process):
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="torchrun's processes are looked for in /proc")
@pytest.mark.parametrize("to", ["rank 0", "rank 1", "torchrun", "all"])
def test_sigterm_to_any_of_them_ends_all_ranks_after_the_same_step(undisturbed, tmp_path, to):
    """Each rank ends by itself, with a whole checkpoint, from which the run goes on bit for bit."""
    log = tmp_path / "log.jsonl"
    run = [*TORCHRUN, *command(small(tmp_path, *LONG))]
    with subprocess.Popen(run, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < 3):
            time.sleep(0.01)
        ranks = [child for child in children(process.pid) if b"maskfeat" in Path(f"/proc/{child}/cmdline").read_bytes()]
        loaders = [child for rank in ranks for child in children(rank)]
        everyone = [process.pid, *ranks, *loaders]
        reached = {"rank 0": ranks[:1], "rank 1": ranks[1:], "torchrun": [process.pid], "all": everyone}
        for receiver in reached[to]:
            os.kill(receiver, signal.SIGTERM)
        try:
            errors = process.communicate(timeout=60)[1]
        finally:
            if process.poll() is None:
                for left in everyone:
                    os.kill(left, signal.SIGKILL)
    assert len(ranks) == len(loaders) == 2
    assert process.returncode and "SIGKILL" not in errors, errors
    statuses = re.findall(r"exitcode +: (-?\d+)", errors)  # torchrun reports them if it was not asked to end itself
    assert statuses == ([str(128 + signal.SIGTERM)] * 2 if to.startswith("rank") else []), errors
    step = read_run(find_checkpoint(tmp_path))["step"]
    assert 3 <= step < 40 and errors.count(f"ended by SIGTERM after step {step} of 40, which is saved") == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"step_{step:08d}"]
    two_processes(tmp_path, *LONG)
    assert_same_run(undisturbed, tmp_path)
