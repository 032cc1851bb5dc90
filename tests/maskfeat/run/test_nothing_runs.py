"""Nothing that is read runs: checkpoints, weights, configurations, pictures, names and labels."""

import ast
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import media
import pytest
import torch
import torch.distributed.checkpoint as dcp
from saved_checkpoint import RECIPE, RUN, legacy, loaded, refused, saved
from test_convert import VIT_CFG

import maskfeat
import maskfeat_kernels
from maskfeat.config import override
from maskfeat.data.fingerprint import fingerprint
from maskfeat.data.source import open_source
from maskfeat.weights.checkpoints import read_model
from maskfeat.weights.convert import convert, load_slowfast
from maskfeat.weights.files import read_weights
from maskfeat.weights.storage import json_checksum, save_tensors


class Payload:
    """Unpickled in the usual way, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def reseal(path, **changes):
    """Sizes and checksums as an attacker would put them in."""
    run = json.loads((path / "run.json").read_text()) | changes
    run.pop("checksum")
    names = [file.name for file in path.iterdir() if file.name != "run.json"]
    run["files"] = {name: (path / name).stat().st_size for name in names}
    run["checksums"] = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
    (path / "run.json").write_text(json.dumps({**run, "checksum": json_checksum(run)}))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_metadata_of_a_checkpoint_runs_nothing(tmp_path, world, protocol):
    path, checkpoints = saved(tmp_path / "out", world)
    (path / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol))
    reseal(path)
    refused(lambda: loaded(checkpoints, path), r"cannot be read: it asks for posix.mkdir, which no checkpoint needs")
    (path / "run.json").write_text(json.dumps(legacy(path)))
    refused(lambda: loaded(checkpoints, path), "it asks for posix.mkdir")
    assert not (tmp_path / "ran").exists()


def test_values_in_a_checkpoint_run_nothing(tmp_path, world):
    """What is no tensor is a pickle within the file of the tensors, which torch reads without precaution."""
    path, checkpoints = saved(tmp_path / "out", world)
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


def test_a_checkpoint_reads_no_files_outside_of_it(tmp_path, world):
    path, checkpoints = saved(tmp_path / "out", world)
    shutil.copy(path / "__0_0.distcp", tmp_path)
    metadata = pickle.loads((path / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../../../__0_0.distcp"
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    reseal(path)
    refused(lambda: loaded(checkpoints, path), r"names a file that is not of the checkpoint, '../../../__0_0.distcp'")


@pytest.mark.parametrize(
    "part, value, message",
    [
        ("chunks", [], "it has 0 numbers of model.weight, not 12"),
        ("size", torch.Size([10**13]), "it has 12 numbers of model.weight, not 10000000000000"),
        ("size", torch.Size([-3, -4]), "negative dimension"),
        ("size", None, "NoneType"),
        ("properties", None, "NoneType"),
    ],
)
def test_tensors_of_a_checkpoint_that_are_not_in_it_are_refused(tmp_path, world, part, value, message):
    path, checkpoints = saved(tmp_path / "out", world)
    metadata = pickle.loads((path / ".metadata").read_bytes())
    setattr(metadata.state_dict_metadata["model.weight"], part, value)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    reseal(path)
    refused(lambda: read_model(path), f"cannot be read: .*{message}")
    if part == "chunks":
        refused(lambda: loaded(checkpoints, path), message)


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
    ("maskfeat/weights/torch_files.py", "torch.load(weights_only=True)"),
    ("maskfeat/weights/checkpoint_files.py", "torch.load(weights_only=True)"),
    ("maskfeat/weights/checkpoint_files.py", "_Unpickler()"),
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
