"""Nothing that is read runs, damage is refused in one line, a full disk costs no checkpoint, one job has a folder."""

import ast
import contextlib
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import media
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from test_checkpoint import assert_same_run
from test_convert import VIT_CFG
from test_train import small, train_small

import maskfeat
import maskfeat_kernels
from maskfeat.build import build
from maskfeat.cli import main
from maskfeat.config import describe, get_recipe, override
from maskfeat.data.fingerprint import fingerprint
from maskfeat.data.loader import _source
from maskfeat.data.source import DecodedOnce, open_source
from maskfeat.run import lock as lock_module
from maskfeat.run.checkpoint import Checkpoints, find_checkpoint, read_run
from maskfeat.run.distributed import World, join
from maskfeat.run.lock import RunLock
from maskfeat.weights.convert import convert, load_slowfast
from maskfeat.weights.files import read_weights, save_weights
from maskfeat.weights.storage import json_checksum, save_tensors, write_atomically

RECIPE = override(get_recipe("vit_tiny"), ["image_size=32"])


class Payload:
    """Unpickled in the usual way, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def world():
    with join("cpu") as world:
        yield world


@pytest.fixture
def checkpoint(tmp_path, world):
    """A small one, what loads it, and what was saved."""
    checkpoints = Checkpoints(tmp_path / "out", RECIPE, world, samples=3, data="abc")
    state = {"model": {"weight": torch.arange(12.0).view(3, 4)}, "optimizer": {"lr": 0.5, "betas": (0.9, 0.95)}}
    checkpoints.save(7, state)
    checkpoints.wait()
    return find_checkpoint(tmp_path / "out"), checkpoints


def loaded(checkpoints, path):
    state = {"model": {"weight": torch.zeros(3, 4)}, "optimizer": {"lr": 0.0, "betas": (0.0, 0.0)}}
    return checkpoints.load(path, state), state


def reseal(path, **changes):
    """Sizes and checksums as an attacker would put them in."""
    run = json.loads((path / "run.json").read_text()) | changes
    run.pop("checksum")
    names = [file.name for file in path.iterdir() if file.name != "run.json"]
    run["files"] = {name: (path / name).stat().st_size for name in names}
    run["checksums"] = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
    (path / "run.json").write_text(json.dumps({**run, "checksum": json_checksum(run)}))


def refused(call, match):
    """The error, which is one line."""
    with pytest.raises(ValueError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Nothing that is read runs.


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_metadata_of_a_checkpoint_runs_nothing(checkpoint, tmp_path, protocol):
    path, checkpoints = checkpoint
    (path / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol))
    reseal(path)
    refused(lambda: loaded(checkpoints, path), r"cannot be read: it asks for posix.mkdir, which no checkpoint needs")
    (path / "run.json").write_text(json.dumps(legacy(path)))
    refused(lambda: loaded(checkpoints, path), "it asks for posix.mkdir")
    assert not (tmp_path / "ran").exists()


def test_values_in_a_checkpoint_run_nothing(checkpoint, tmp_path, world):
    """What is no tensor is a pickle within the file of the tensors, which torch reads without precaution."""
    path, checkpoints = checkpoint
    shutil.rmtree(path)
    path.mkdir()
    lr = Payload(tmp_path / "ran")
    state = {"model": {"weight": torch.zeros(3, 4)}, "optimizer": {"lr": lr, "betas": (0.0, 0.0)}}
    dcp.save(state, checkpoint_id=path, process_group=world.group)
    (path / "run.json").write_text(json.dumps({**RUN, "checksum": ""}))
    reseal(path)
    refused(lambda: loaded(checkpoints, path), "cannot be read: ")
    assert not (tmp_path / "ran").exists()
    dcp.load({"optimizer": {"lr": 0.0}}, checkpoint_id=path, process_group=world.group)
    assert (tmp_path / "ran").exists()  # the payload is one: what torch does by itself


def test_a_checkpoint_reads_no_files_outside_of_it(checkpoint, tmp_path):
    path, checkpoints = checkpoint
    shutil.copy(path / "__0_0.distcp", tmp_path)
    metadata = pickle.loads((path / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../../../__0_0.distcp"
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    reseal(path)
    refused(lambda: loaded(checkpoints, path), r"names a file that is not of the checkpoint, '../../../__0_0.distcp'")


@pytest.mark.parametrize("old", [True, False])
def test_files_of_torch_run_nothing(tmp_path, old):
    file = {"model_state": {"weight": torch.zeros(2), "evil": Payload(tmp_path / "ran")}, "cfg": VIT_CFG}
    torch.save(file, tmp_path / "file.pyth", _use_new_zipfile_serialization=not old)
    for read in (load_slowfast, lambda path: convert(path, tmp_path / "out.safetensors")):
        refused(lambda read=read: read(tmp_path / "file.pyth"), "cannot be read as tensors alone: .*posix.mkdir")
    assert not (tmp_path / "ran").exists()


def test_configurations_run_nothing(tmp_path):
    evil = f"!!python/object/apply:os.mkdir ['{tmp_path / 'ran'}']"
    torch.save({"model_state": {}, "cfg": f"MVIT: {evil}\n"}, tmp_path / "file.pyth")
    refused(lambda: load_slowfast(tmp_path / "file.pyth"), "the cfg of file is none that SlowFast writes")
    code = f"__import__('os').mkdir('{tmp_path / 'ran'}')"
    for name in ("lr", "betas", "flip", "encoder"):
        refused(lambda name=name: override(RECIPE, [f"{name}={code}"]), f"{name} must be")
    assert not (tmp_path / "ran").exists()


def test_headers_of_weights_run_nothing(tmp_path):
    code = f"__import__('os').mkdir('{tmp_path / 'ran'}')"
    for text in (code, json.dumps(code), json.dumps({"task": code}), json.dumps({"task": "pretrain", "lr": code})):
        save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(2)}, {"recipe": text})
        refused(lambda: read_weights(tmp_path / "w.safetensors"), "the recipe in .* is damaged")
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    refused(lambda: read_weights(tmp_path / "w.safetensors"), "is no safetensors file")
    assert not (tmp_path / "ran").exists()


def test_pictures_run_nothing(tmp_path, monkeypatch):
    """Pillow would start Ghostscript on PostScript, whatever the name of the file."""
    program, ran = tmp_path / "bin" / "gs", tmp_path / "ran"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nmkdir -p {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # as long as it has not looked for one
    media.image_folder(tmp_path / "data", each=2)
    evil = tmp_path / "data" / "train" / "cat" / "0.jpg"
    evil.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    source = open_source(str(tmp_path / "data"), "train", False, train_data=str(tmp_path / "data"))
    with pytest.raises(Exception, match=r"0\.jpg \(UnidentifiedImageError"):
        source.read(0, None)
    assert not ran.exists()


def test_names_and_labels_of_data_run_nothing(tmp_path):
    code = f"__import__('os').mkdir('{tmp_path / 'ran'}')"
    (tmp_path / "train.csv").write_text(f"$(mkdir {tmp_path}/ran).jpg 0\n|mkdir {tmp_path}/ran 1\n")
    media.write_shard(tmp_path / "s.tar", {"a.jpg": media.jpeg(1), "a.cls": code.encode()})
    for data in (tmp_path / "train.csv", tmp_path / "s.tar"):
        source = open_source(str(data), "train", False, train_data=str(data))
        fingerprint(source)
        for i in range(len(source)):
            with pytest.raises(Exception, match=r"FileNotFoundError|its label is"):
                source.read(i, None)
    assert not (tmp_path / "ran").exists()


READERS = {
    ("maskfeat/weights/convert.py", "torch.load(weights_only=True)"),
    ("maskfeat/run/checkpoint_files.py", "torch.load(weights_only=True)"),
    ("maskfeat/run/checkpoint_files.py", "_Unpickler()"),
    ("maskfeat/weights/convert.py", "yaml.safe_load()"),
}


def test_no_other_reader_could_run_anything():
    """All calls in the packages of what can run what it reads, with the arguments that keep it from doing so."""
    found = set()
    for package in (maskfeat, maskfeat_kernels):
        root = Path(package.__file__).parent
        for file in root.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                name = ast.unparse(node.func)
                keywords = ", ".join(ast.unparse(k) for k in node.keywords if k.arg in ("weights_only", "allow_pickle"))
                last = name.split(".")[-1].lower()
                suspicious = name.endswith(("pickle.load", "pickle.loads", "torch.load", "np.load")) or last in (
                    *("eval", "exec", "compile", "__import__", "unpickler", "_unpickler", "unsafe_load", "full_load"),
                    *("safe_load", "system", "popen", "load_module", "fromfile", "read_parquet", "loadtxt"),
                )
                if suspicious and name not in ("re.compile", "model.compile", "model.eval", "encoder.eval"):
                    found.add((str(file.relative_to(root.parent)), f"{name}({keywords})"))
    found = {(file, call) for file, call in found if not call.endswith(".eval()")}
    assert found == READERS


# Damage is refused.


def flips(number, files, seed=0):
    """Random places in files, and what is put there."""
    rng = random.Random(seed)
    for _ in range(number):
        file = rng.choice(files)
        place = rng.randrange(file.stat().st_size)
        yield file, place, rng.randrange(1, 256)


@contextlib.contextmanager
def flipped(file, place, bits):
    data = bytearray(file.read_bytes())
    data[place] ^= bits
    file.write_bytes(data)
    yield
    data[place] ^= bits
    file.write_bytes(data)


def one_line_about(path, error):
    return "\n" not in str(error) and str(path) in str(error)


def test_damage_anywhere_in_a_checkpoint_is_refused_or_changes_nothing(checkpoint):
    path, checkpoints = checkpoint
    step, expected = loaded(checkpoints, path)
    assert step == 7 and expected["optimizer"] == {"lr": 0.5, "betas": (0.9, 0.95)}
    assert torch.equal(expected["model"]["weight"], torch.arange(12.0).view(3, 4))
    refusals, changed_nothing = 0, 0
    for file, place, bits in flips(200, sorted(path.iterdir())):
        with flipped(file, place, bits):
            try:
                again, state = loaded(checkpoints, path)
            except ValueError as error:
                refusals += one_line_about(path, error)
                continue
        assert again == step and state["optimizer"] == expected["optimizer"]
        assert torch.equal(state["model"]["weight"], expected["model"]["weight"])
        changed_nothing += 1
    assert refusals + changed_nothing == 200 and changed_nothing < 20  # the layout of run.json


@pytest.mark.parametrize(
    "old, new", [('"step": 7', '"step": 8'), ('"samples": 3', '"samples": 4'), ('"keep": 2', '"keep": 3')]
)
def test_another_number_in_run_json_is_refused(checkpoint, old, new):
    path, checkpoints = checkpoint
    text = (path / "run.json").read_text()
    assert text.count(old) == 1
    (path / "run.json").write_text(text.replace(old, new))
    refused(lambda: loaded(checkpoints, path), "is damaged: run.json does not have its checksum")


def test_damage_anywhere_in_weights_is_refused_or_changes_nothing(tmp_path):
    file = tmp_path / "w.safetensors"
    weights = {"a": torch.randn(5, 7), "b": torch.arange(3), "c": torch.tensor(2.5, dtype=torch.bfloat16)}
    save_weights(file, weights, RECIPE, 3)
    refusals, changed_nothing = 0, 0
    for _, place, bits in flips(200, [file]):
        with flipped(file, place, bits):
            try:
                tensors, recipe = read_weights(file)
            except ValueError as error:
                refusals += one_line_about(file, error)
                continue
        assert recipe == RECIPE and tensors.keys() == weights.keys()
        assert all(torch.equal(tensors[name], weights[name]) for name in weights)
        changed_nothing += 1
    assert refusals + changed_nothing == 200 and changed_nothing < 20  # the name of the checksum, spaces


def legacy(path):
    """run.json of a checkpoint as format 1 had it."""
    run = {**RUN, "format": 1, "files": {}}
    run["files"] = {file.name: file.stat().st_size for file in path.iterdir() if file.name != "run.json"}
    return run


RUN = {"format": 2, "step": 7, "recipe": None, "samples": 3}
RUN["recipe"] = json.loads(json.dumps({"task": "pretrain", **RECIPE.__dict__}))


def test_old_checkpoints_without_checksums_load_and_say_so(checkpoint, caplog):
    """Damage to them is one line where torch notices it."""
    path, checkpoints = checkpoint
    (path / "run.json").write_text(json.dumps(legacy(path)))
    step, state = loaded(checkpoints, path)
    assert step == 7 and state["model"]["weight"].sum() == 66
    assert "written without checksums" in caplog.text
    data = path / "__0_0.distcp"
    whole = data.read_bytes()
    data.write_bytes(whole.replace(b"PK\x03\x04", b"PK\x07\x04"))
    refused(lambda: loaded(checkpoints, path), "cannot be read: ")
    data.write_bytes(whole)
    for _, place, bits in flips(30, [path / ".metadata"]):
        with flipped(path / ".metadata", place, bits), contextlib.suppress(ValueError):
            loaded(checkpoints, path)


def test_old_weights_without_a_checksum_load_and_say_so(tmp_path, caplog):
    metadata = {"format": "pt", "recipe": json.dumps(RUN["recipe"])}
    save_file({"a": torch.ones(3)}, tmp_path / "old.safetensors", metadata)
    assert read_weights(tmp_path / "old.safetensors")[0]["a"].sum() == 3
    assert "written without a checksum" in caplog.text


def test_a_damaged_checkpoint_is_one_line_of_the_command(tmp_path, capsys):
    train_small(tmp_path, "steps=1", "eval_every=0")
    file = find_checkpoint(tmp_path) / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[5_000_000:5_000_040] = bytes(byte ^ 0x55 for byte in data[5_000_000:5_000_040])
    file.write_bytes(data)
    settings = [line.split("#")[0].strip() for line in describe(small(tmp_path, "steps=1")).splitlines()[1:]]
    capsys.readouterr()
    assert main(["pretrain", "vit_tiny", *settings]) == 1
    error = capsys.readouterr().err
    assert "is damaged: __0_0.distcp does not have its checksum; remove it to use an older one" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "content",
    [
        {"model_state": 3, "cfg": VIT_CFG},
        {"model_state": {"a": "text"}, "cfg": VIT_CFG},
        {"model_state": {"a": torch.zeros(1)}, "cfg": "MODEL: {}"},
        {"model_state": {"a": torch.zeros(1)}, "cfg": None},
        {"model_state": {"a": torch.zeros(1)}, "cfg": "[" * 2000},
        {"state_dict": [torch.zeros(1)]},
        {"epoch": 3},
        {},
    ],
)
def test_files_of_torch_that_hold_something_else(tmp_path, content):
    torch.save(content, tmp_path / "file.pyth")
    refused(lambda: convert(tmp_path / "file.pyth", tmp_path / "out.safetensors"), "file")


# A full disk.


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
    error = capsys.readouterr().err.replace("\r", "\n")
    said = [line for line in error.splitlines() if line and "step/s" not in line]
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
        said = [line for line in done.stderr.replace("\r", "\n").splitlines() if line and "step/s" not in line]
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


# One job in a folder.


def test_a_second_job_is_refused_by_host_and_process(tmp_path):
    with RunLock(tmp_path / "out", World(0, 1, None, None)):
        with pytest.raises(FileExistsError, match=f"in use by process {os.getpid()} on host {os.uname().nodename}"):
            train_small(tmp_path / "out", "steps=1")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.lock"]
    assert not (tmp_path / "out").exists()


def holder(**changes):
    return json.dumps({"host": "elsewhere", "machine": "another", "pid": 1, "started": 5, **changes})


def test_a_lock_of_another_machine_counts_until_its_heartbeat_is_old(tmp_path, world):
    path = tmp_path / "run.lock"
    path.write_text(holder())
    with pytest.raises(FileExistsError, match="process 1 on host elsewhere, which gave a sign of life 0 s ago"):
        RunLock(tmp_path, world).__enter__()
    assert path.read_text() == holder() and list(tmp_path.iterdir()) == [path]
    os.utime(path, (time.time() - 121,) * 2)
    with RunLock(tmp_path, world):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_a_dead_process_here_does_not_count(tmp_path, world):
    """Another process of its number, one that is not waited for, and a lock that was not written to its end."""
    machine = lock_module._machine()
    ended = subprocess.Popen(["true"])
    while Path(f"/proc/{ended.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    for content in (holder(machine=machine, pid=os.getpid()), holder(machine=machine, pid=ended.pid, started=1)):
        (tmp_path / "run.lock").write_text(content)
        with RunLock(tmp_path, world):
            pass
    ended.wait()
    (tmp_path / "run.lock").write_text(holder(machine=machine)[:20])
    os.utime(tmp_path / "run.lock", (0, 0))
    with RunLock(tmp_path, world):
        pass


def test_a_job_renews_its_lock_and_ends_when_it_lost_it(tmp_path, world, monkeypatch):
    monkeypatch.setattr(lock_module, "BEAT", 0.01)
    path = tmp_path / "run.lock"
    with RunLock(tmp_path, world) as lock:
        os.utime(path, (0, 0))
        while path.stat().st_mtime == 0:
            time.sleep(0.01)
        lock.check()
        write_atomically(path, holder().encode())
        while not lock.lost:
            time.sleep(0.01)
        with pytest.raises(FileExistsError, match="process 1 on host elsewhere has taken over"):
            lock.check()
    assert path.read_text() == holder()


def test_of_two_jobs_that_take_over_the_same_lock_one_goes_on(tmp_path, world, monkeypatch):
    """The other one writes its name in the moment in which a job waits for that."""
    path = tmp_path / "run.lock"
    path.write_text(holder())
    os.utime(path, (0, 0))
    monkeypatch.setattr(lock_module.time, "sleep", lambda _: path.write_text(holder(pid=2)))
    with pytest.raises(FileExistsError, match="in use by process 2 on host elsewhere"):
        RunLock(tmp_path, world).__enter__()


@pytest.mark.slow
def test_two_jobs_that_find_the_same_dead_lock(tmp_path):
    """One of them gets it, whoever writes last."""
    (tmp_path / "run.lock").write_text(holder(machine=lock_module._machine(), pid=2**22 + 1))
    code = (
        "import sys, time; from pathlib import Path; from maskfeat.run.lock import RunLock\n"
        "from maskfeat.run.distributed import World\n"
        "with RunLock(Path(sys.argv[1]), World(0, 1, None, None)): print('has it', flush=True); time.sleep(3)"
    )
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [job.communicate(timeout=60)[0] for job in jobs]
    assert sorted(said) == [b"", b"has it\n"] and sorted(job.returncode for job in jobs) == [0, 1]


@pytest.mark.slow
def test_a_killed_run_is_free_at_once_and_a_living_one_is_not(tmp_path):
    recipe = small(tmp_path, "image_size=16", "batch_size=4", "samples=400", "steps=1000", "eval_every=0", "workers=1")
    command = [sys.executable, "-m", "maskfeat", "pretrain", "vit_tiny"]
    command += [line.split("#")[0].strip() for line in describe(recipe).splitlines()[1:]]
    log, environment = tmp_path / "log.jsonl", {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < 3):
            time.sleep(0.01)
        second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        process.send_signal(signal.SIGKILL)
    host = os.uname().nodename
    assert second.returncode == 1 and second.stderr.count("\n") == 1
    assert f"maskfeat: {tmp_path} is in use by process {process.pid} on host {host}" in second.stderr
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        lines = log.read_bytes().count(b"\n")
        while process.poll() is None and log.read_bytes().count(b"\n") <= lines + 3:
            time.sleep(0.01)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)


# The data are those of the run.


def names_permuted(root):
    (root / "train" / "cat").rename(root / "train" / "zebra")


def other_file(root):
    (root / "train" / "cat" / "0.jpg").rename(root / "train" / "cat" / "0a.jpg")


def other_size(root):
    media.write_image(root / "train" / "cat" / "0.jpg", seed=9, width=80)


@pytest.mark.parametrize("change", [names_permuted, other_file, other_size])
def test_other_data_of_equal_number_are_refused(tmp_path, change):
    data = media.image_folder(tmp_path / "data", each=4)
    settings = ["samples=0", "steps=1", "eval_every=0", f"data={data}"]
    train_small(tmp_path / "out", *settings)
    change(data)
    _source.cache_clear()  # as in another process
    refused(lambda: train_small(tmp_path / "out", *settings), "other data than .* names, sizes or classes differ")


def test_fingerprints(tmp_path):
    """Of folders, lists and shards: the same wherever they are, others for other names, sizes, classes or orders."""

    def of(data):
        return fingerprint(open_source(str(data), "train", False, train_data=str(data)))

    folder = media.image_folder(tmp_path / "a", each=3)
    shutil.copytree(folder, tmp_path / "b" / "c")
    assert of(folder) == of(tmp_path / "b" / "c")
    kept = DecodedOnce(open_source(str(folder), "train", False, train_data=str(folder)), 1)
    assert fingerprint(kept) == of(folder)
    files = sorted((folder / "train").rglob("*.jpg"))
    lists = {}
    for name, lines in {
        "one": [f"{file.relative_to(folder)} {i % 2}" for i, file in enumerate(files)],
        "classes": [f"{file.relative_to(folder)} {(i + 1) % 2}" for i, file in enumerate(files)],
        "order": [f"{file.relative_to(folder)} {i % 2}" for i, file in enumerate(files)][::-1],
        "none": [f"{file.relative_to(folder)}" for file in files],
        "missing": [f"{file.relative_to(folder)}{'x' * (i == 1)} {i % 2}" for i, file in enumerate(files)],
    }.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))
        lists[name] = of(folder / f"{name}.txt")
    (folder / "absolute.txt").write_text("\n".join(f"{file} {i % 2}" for i, file in enumerate(files)))
    assert of(folder / "absolute.txt") == lists["one"]
    samples = {"a.jpg": media.jpeg(1), "a.cls": b"0", "b.jpg": media.jpeg(2), "b.cls": b"1"}
    shards = [of(media.write_shard(tmp_path / f"{name}" / "s.tar", samples)) for name in ("x", "y")]
    assert shards[0] == shards[1]
    other = of(media.write_shard(tmp_path / "z" / "s.tar", {**samples, "a.cls": b"1", "b.cls": b"0"}))
    assert len({*lists.values(), of(folder), shards[0], other}) == len(lists) + 3


def test_old_checkpoints_without_a_fingerprint_go_by_the_number(checkpoint):
    path, checkpoints = checkpoint
    (path / "run.json").write_text(json.dumps(legacy(path)))
    checkpoints.data = "other"
    assert loaded(checkpoints, path)[0] == 7
    checkpoints.samples = 4
    refused(lambda: loaded(checkpoints, path), "on 3 samples, and 'synthetic' now has 4")
