"""Features in Parquet files: what is in them, what is refused, and that a second call does only what is missing."""

import json
import multiprocessing
import os
import re
import signal
import sys
import warnings
from functools import partial
from pathlib import Path

import media
import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from test_train import small, train_small

import maskfeat
from maskfeat.build import build
from maskfeat.cli import main
from maskfeat.data.augment import eval_crops
from maskfeat.data.images import read_image
from maskfeat.data.loader import to_tensor
from maskfeat.extraction import parts
from maskfeat.extraction.features import encoded, reading_of
from maskfeat.run.evaluate import feature_maps
from maskfeat.run.step import infer
from maskfeat.weights.files import load_model, save_weights
from maskfeat_kernels import SKIMAGE, HogSpec, fused_hog

QUICK = dict(image_size=32, rows=3, workers=0)


def table(folder):
    """All rows, in the order of the files, as any reader of a folder takes them."""
    return pyarrow.dataset.dataset(str(folder)).to_table()


def features(folder) -> np.ndarray:
    rows = table(folder)["features"].combine_chunks()
    return rows.flatten().to_numpy().reshape(len(rows), -1)


def said(folder):
    return json.loads(pq.read_schema(next(folder.glob("part-*.parquet"))).metadata[b"maskfeat"])


@pytest.fixture
def data(tmp_path):
    return media.image_folder(tmp_path / "data", each=4)


def test_rows_are_the_hog_of_the_images(data, tmp_path):
    """Computed here image by image, with the names and classes of the folder."""
    out = tmp_path / "out"
    done = maskfeat.extract("hog", str(data), out, preset="skimage", cell="16x8", block=2, **QUICK)
    assert done == {"samples": 8, "unreadable": 0, "files": 3, "new": 3}
    rows, spec = table(out), SKIMAGE.replace(cell=(16, 8), block=2)
    paths = sorted((data / "train").rglob("*.*"))
    assert rows["name"].to_pylist() == [str(path) for path in paths]
    assert rows["label"].to_pylist() == [0] * 4 + [1] * 4
    crops = [eval_crops(read_image(str(path), None)[0], (32, 32), (37, 37), "bicubic", 1)[0] for path in paths]
    right = fused_hog(to_tensor(crops).squeeze(2), spec)
    assert np.array_equal(features(out), right.flatten(1).numpy())
    assert rows.schema.field("features").type.list_size == right[0].numel()
    assert said(out)["shape"] == list(right.shape[1:]) and HogSpec(**said(out)["feature"]["hog"]) == spec
    assert pd.read_parquet(out)["features"][7].tolist() == right[7].flatten().tolist()


def test_hog_of_clips_and_of_rendered_scenes(tmp_path):
    folder = tmp_path / "clips"
    for i in range(2):
        media.write_video(folder / f"{i}.mp4", frames=20)
    settings = dict(frames=4, frame_step=2, **QUICK)
    maskfeat.extract("hog", str(folder), tmp_path / "video", **settings)
    assert said(tmp_path / "video")["shape"] == [4, 3, 9, 4, 4]
    assert table(tmp_path / "video")["label"].to_pylist() == [None, None]
    maskfeat.extract("hog", "synthetic", tmp_path / "scenes", samples=7, channels=1, **QUICK)
    assert said(tmp_path / "scenes")["shape"] == [1, 9, 4, 4] and len(table(tmp_path / "scenes")) == 7
    maskfeat.extract("hog", "synthetic", tmp_path / "strongest", samples=2, channels="strongest", **QUICK)
    assert said(tmp_path / "strongest")["shape"] == [9, 4, 4]


@pytest.mark.parametrize("name, kind", [("vit_tiny", "pooled"), ("vit_tiny_ft", "maps")])
def test_features_of_an_encoder(data, tmp_path, capsys, name, kind):
    """Those of the encoder on the same crops; of a classifier too, whose data need no labels here."""
    train_small(tmp_path / "run", "steps=1", "samples=8", "eval_every=0", name=name)
    out = tmp_path / "out"
    words = ["features=" + kind, "workers=0", "rows=3", "dtype=float16"]
    assert main(["extract", str(tmp_path / "run"), f"data={data / 'train' / 'cat'}", f"out={out}", *words]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 4
    model, recipe, _ = load_model(tmp_path / "run", lambda recipe: recipe)
    paths = sorted((data / "train" / "cat").iterdir())
    crops = [eval_crops(read_image(str(path), None)[0], (32, 32), (37, 37), "bicubic", 1)[0] for path in paths]
    with torch.no_grad():
        encode = partial(feature_maps, getattr(model, "encoder", model))
        maps = infer(encode, to_tensor(crops).squeeze(2), recipe, torch.device("cpu"))
    right = maps.flatten(2).mean(2) if kind == "pooled" else maps
    assert said(out)["shape"] == list(right.shape[1:]) and said(out)["feature"]["encoder"]["encoder"] == "vit"
    np.testing.assert_allclose(features(out), right.flatten(1), rtol=2e-3, atol=2e-3)


def test_shards_and_what_cannot_be_read(tmp_path, capsys):
    """A file for each shard. What cannot be read costs its row alone, and is listed once, however often it is tried."""
    shards, out = tmp_path / "shards", tmp_path / "out"
    media.write_shard(shards / "0.tar", {f"{i}.jpg": media.jpeg(i) for i in range(3)} | {"1.cls": b"5", "2.jpg": b"no"})
    media.truncate(media.write_shard(shards / "1.tar", {f"{i}.jpg": media.jpeg(i) for i in range(4)}), 0.4)
    (shards / "2.tar").write_text("no tar" * 200)
    words = ["extract", "hog", f"data={shards}", f"out={out}", "workers=0", "image_size=32"]
    for lost in (0, 1, None):
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out) == {
            "samples": 4,
            "unreadable": 3,
            "files": 3,
            "new": {0: 3, 1: 1, None: 1}[lost],
        }
        listed = [json.loads(line) for line in (out / "_unreadable.jsonl").read_text().splitlines()]
        assert [entry["name"] for entry in listed] == [f"{shards}/0.tar:2", f"{shards}/1.tar", f"{shards}/2.tar"]
        assert "UnidentifiedImageError" in listed[0]["reason"] and "damaged after 2 samples" in listed[1]["reason"]
        assert "no tar header" in listed[2]["reason"] and [entry["part"] for entry in listed] == [0, 1, 2]
        if lost is not None:
            (out / f"part-00000{lost}.parquet").unlink()
    assert table(out)["label"].to_pylist() == [None, 5, None, None]


def test_nothing_that_can_be_read(tmp_path):
    media.text_named_jpg(media.image_folder(tmp_path / "a", ("cat",), 1) / "train" / "cat" / "0.jpg")
    with pytest.raises(ValueError, match=r"none of the samples could be read; .*/_unreadable.jsonl has the reasons"):
        maskfeat.extract("hog", str(tmp_path / "a"), tmp_path / "out", **QUICK)


@pytest.mark.parametrize(
    "words, message",
    [
        (["hog"], "extract needs out=FOLDER"),
        (["hog", "out=OUT"], "extract hog needs data=..."),
        (["hogg", "data=DATA", "out=OUT"], "there is no 'hogg'; did you mean 'hog'?"),
        (["opencv", "data=DATA", "out=OUT"], "there is no 'opencv'; did you mean hog preset=opencv?"),
        (["hog", "data=/nowhere", "out=OUT"], "no train data in '/nowhere'"),
        (["hog", "data=EMPTY", "out=OUT"], "there are no files .jpg"),
        (["hog", "data=DATA", "out=OUT", "bin=3"], "extract hog has no key 'bin'; did you mean 'bins'?"),
        (["hog", "data=DATA", "out=OUT", "image_size=32", "test_size=8"], "test_size=8 is below image_size=32"),
        (["hog", "data=DATA", "out=OUT", "preset=dlib"], "preset must be one of 'maskfeat', 'skimage'"),
        (["hog", "data=DATA", "out=OUT", "engine=spark"], "engine must be one of 'local', 'ray', got 'spark'"),
        (["hog", "data=DATA", "out=OUT", "cell=500"], "smaller than a cell of 500 x 500"),
        (["hog", "data=DATA", "out=OUT", "image_size=60000"], "does not fit a page of Parquet"),
        (["hog", "data=DATA", "out=DATA"], "holds other files, such as train; choose another out"),
        (["hog", "data=DATA", "out=OUT", "norm=none", "dtype=float16", "cell=112", "workers=0"], "use dtype=float32"),
    ],
)
def test_mistakes_are_one_line(data, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    places = {"OUT": str(tmp_path / "out"), "DATA": str(data), "EMPTY": str(tmp_path / "empty")}
    for place, path in places.items():
        words = [word.replace(place, path) for word in words]
    assert main(["extract", *words]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("maskfeat: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert not list(tmp_path.glob("out/part-*"))


def test_another_extraction_in_the_same_folder_is_refused(data, tmp_path):
    def again(**changes):
        return maskfeat.extract("hog", **dict(data=str(data), out=tmp_path / "out", bins=9, **QUICK) | changes)

    shards = media.write_shard(tmp_path / "a.tar", {"0.jpg": media.jpeg(0)})
    again()
    assert again(rows=0, workers=0, batch_size=2)["new"] == 0
    for changes, why in (
        (dict(bins=12), "of another extraction .bins was 9, is 12.; choose another out"),
        (dict(rows=4), "rows was 3, is 4"),
        (dict(data=str(shards)), "rows=3 slices what is in no shard; a tar shard is one file"),
        (dict(image_size=48), "image_size was 32, is 48"),
        (dict(dtype="float16"), "dtype was float32, is float16"),
        (dict(data=str(media.image_folder(tmp_path / "b", each=3))), "of other data"),
    ):
        with pytest.raises(ValueError, match=why):
            again(**changes)
    media.write_image(data / "train" / "cat" / "9.jpg", 9)
    maskfeat.data.loader._source.cache_clear()
    with pytest.raises(ValueError, match="names, sizes or classes of the samples differ"):
        again()


def killed_within_the_second_file(data, out, settings):
    """Extract, and kill this process with the fourth batch."""
    torch.set_num_threads(1)  # others of the parent's are not here
    before, calls = parts.Worker.tables, []

    def tables(self, part, failures):
        for rows in before(self, part, failures):
            calls.append(1)
            if len(calls) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            yield rows

    parts.Worker.tables, parts.GROUP_BYTES = tables, 1
    maskfeat.extract("hog", str(data), out, **settings)


def test_a_killed_call_is_resumed(data, tmp_path):
    """What is there stays as it is; a reader sees whole files alone; the rows are those of an uninterrupted call."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    settings = dict(batch_size=1, **QUICK)
    process = multiprocessing.get_context("fork").Process(
        target=killed_within_the_second_file, args=(data, killed, settings)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork where there are threads
        process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in killed.glob("*.parquet")] == ["part-000000.parquet"] and len(table(killed)) == 3
    assert len(list(killed.glob(".part-000001.*.partial"))) == 1
    first = (killed / "part-000000.parquet").stat()
    assert maskfeat.extract("hog", str(data), killed, **settings)["new"] == 2
    assert not list(killed.glob(".part-*")) and (killed / "part-000000.parquet").stat() == first
    maskfeat.extract("hog", str(data), whole, **settings)
    assert table(killed).equals(table(whole)) and len(table(whole)) == 8


@pytest.mark.parametrize(
    "library, words, message",
    [
        ("ray", {"engine": "ray"}, "engine=ray needs Ray: pip install 'maskfeat-kernels[ray]'"),
        ("pyarrow", {}, "features are written by pyarrow: pip install pyarrow"),
    ],
)
def test_a_library_that_is_missing_is_named(data, tmp_path, monkeypatch, library, words, message):
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=re.escape(message)):
        maskfeat.extract("hog", str(data), tmp_path / "out", **QUICK, **words)


def test_a_machine_that_does_not_see_the_folder_or_other_weights_ends_the_extraction(tmp_path):
    """Else its files would be lost, or be of another model."""
    recipe = small(tmp_path / "run")
    model, file = build(recipe), tmp_path / "weights.safetensors"
    save_weights(file, model.state_dict(), recipe, 0)
    feature, _ = encoded(file, lambda recipe: recipe, pooled=True)
    job = parts.Job(feature, reading_of(recipe), "train", tmp_path / "nowhere", (192,), "float32", "{}")
    with pytest.raises(OSError, match=r"nowhere on .* is not the folder that the extraction began in"):
        parts.Worker(job, "cpu", 0)
    job.out.mkdir()
    (job.out / "_extract.json").write_text("{}")
    parts.Worker(job, "cpu", 0)
    save_weights(file, {name: 2 * tensor for name, tensor in model.state_dict().items()}, recipe, 1)
    with pytest.raises(ValueError, match="has changed since the extraction began"):
        parts.Worker(job, "cpu", 0)


def test_names_that_are_no_text(tmp_path):
    path = media.image_folder(tmp_path / "data", ("cat",), 1) / "train" / "cat" / "0.jpg"
    path.rename(os.fsdecode(os.fsencode(path.parent) + b"/\xff.jpg"))
    maskfeat.extract("hog", str(tmp_path / "data"), tmp_path / "out", **QUICK)
    assert table(tmp_path / "out")["name"].to_pylist() == [f"{path.parent}/\\xff.jpg"]


def test_the_neighbours_of_the_document(data, tmp_path, monkeypatch, capsys):
    """Each of five images is its own nearest neighbour."""
    pytest.importorskip("faiss")
    maskfeat.extract("hog", str(data), tmp_path / "features", **QUICK)
    document = (Path(__file__).parents[3] / "docs" / "scale.md").read_text()
    (code,) = re.findall(r"```py\n(.*?)```", document, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    names = eval(capsys.readouterr().out)
    assert names[::3] == table(tmp_path / "features")["name"].to_pylist()[:5]


@pytest.mark.parametrize("page, folder", [("scale", "hog"), ("your-own-images", "features")])
def test_the_pages_open_what_was_written(data, tmp_path, monkeypatch, page, folder):
    maskfeat.extract("hog", str(data), tmp_path / folder, **QUICK)
    document = (Path(__file__).parents[3] / "docs" / f"{page}.md").read_text()
    (code,) = re.findall(r"```python no-run\n(.*?)```", document, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert names.get("shape", [1]) == list(getattr(names.get("hog"), "shape", [1]))


def test_what_has_changed_since_the_last_call_of_this_process_is_seen(data, tmp_path):
    """A picture more; and a part of which one was listed as unreadable, by a worker that died before its rows."""
    first, out = tmp_path / "first", tmp_path / "out"
    assert maskfeat.extract("hog", data, first, **QUICK)["samples"] == 8
    parts.list_unreadable(out, 1, [("there.png", "a disk that did not answer")])
    media.write_image(data / "train" / "cat" / "more.png", 9)
    assert maskfeat.extract("hog", data, out, **QUICK) == {"samples": 9, "unreadable": 0, "files": 3, "new": 3}
    with pytest.raises(ValueError, match="holds features of other data"):
        maskfeat.extract("hog", data, first, **QUICK)
    (out / "part-000001.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"part-000001\.parquet is damaged"):
        maskfeat.extract("hog", data, out, **QUICK)


def test_a_sigterm_that_python_drops_ends_the_command_after_the_file(data, tmp_path, monkeypatch, capsys):
    """As what a handler raises in a finaliser is dropped."""

    class Dropped:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    right = parts.Worker.__call__

    def call(self, part):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Dropped()
        return right(self, part)

    monkeypatch.setattr(parts.Worker, "__call__", call)
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: None)
    with pytest.raises(SystemExit) as ended:
        main(["extract", "hog", f"data={data}", f"out={tmp_path / 'out'}", *(f"{k}={v}" for k, v in QUICK.items())])
    assert ended.value.code == 143
    assert len(list((tmp_path / "out").glob("part-*.parquet"))) == 1
