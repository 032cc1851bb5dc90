"""Data named by URLs, in the memory of fsspec: the batches of local files, and what a store that fails costs."""

import dataclasses
import json
import logging
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import media
import pytest
from PIL import Image
from test_data import assert_same, batches, clips, images

from maskfeat.config import Pretrain
from maskfeat.data import disk_cache, headers, stores
from maskfeat.data.disk_cache import DiskCache
from maskfeat.data.fingerprint import fingerprint
from maskfeat.data.loader import forget_sources, make_loader
from maskfeat.data.shards import NEAR
from maskfeat.data.stores import StoreError, Url
from maskfeat.keys import check_url

fsspec = pytest.importorskip("fsspec")
memory = fsspec.filesystem("memory")


@pytest.fixture(autouse=True)
def store(monkeypatch):
    """An empty store, and no pauses before another try."""
    memory.store.clear()
    monkeypatch.setattr(stores, "FIRST_PAUSE", 0.0)
    forget_sources()
    yield memory
    memory.store.clear()
    forget_sources()


def put(folder: Path, to: str = "/data") -> str:
    """Copy a local folder into the store; the URL of the copy."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            memory.pipe_file(f"{to}/{path.relative_to(folder)}", path.read_bytes())
    return f"memory:/{to}"


class Faults:
    """Takes the place of a method of the store. ``plan`` says what goes wrong with a call, by how often it was made."""

    def __init__(self, monkeypatch, name: str, plan):
        self.right, self.plan, self.calls = getattr(type(memory), name), plan, []
        monkeypatch.setattr(type(memory), name, lambda fs, *args, **options: self(fs, *args, **options))

    def __call__(self, fs, *args, **options):
        self.calls.append((args, options))
        fault = self.plan(self.calls.count((args, options)) - 1)
        if isinstance(fault, Exception):
            raise fault
        answer = self.right(fs, *args, **options)
        return answer[:-1] if fault == "short" else answer


def shards(folder: Path, number: int = 3, each: int = 4) -> Path:
    for shard in range(number):
        names = [f"{each * shard + i:03}" for i in range(each)]
        samples = {f"{name}.jpg": media.jpeg(int(name)) for name in names} | {
            f"{n}.cls": b"%d" % (int(n) % 7) for n in names
        }
        media.write_shard(folder / f"train-{shard}.tar", dict(sorted(samples.items())))
    return folder


def test_folders(tmp_path, caplog):
    media.image_folder(tmp_path / "pets", each=5)
    media.image_folder(tmp_path / "pets", each=2, split="val")
    for hidden in (".hidden/9.jpg", "train/cat/.9.jpg", "train/cat/notes.md"):
        path = tmp_path / "pets" / hidden
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(media.jpeg(1))
    url = put(tmp_path / "pets")
    for split in ("train", "val"):
        assert_same(batches(images(url), split), batches(images(tmp_path / "pets"), split))
    assert_same(batches(images(f"{url}/"), workers=2), batches(images(tmp_path / "pets")))
    assert "left out 1 files of other kinds in memory://data/train (1 .md)" in caplog.text
    here, there = (make_loader(images(place), "train", seed=0).source for place in (tmp_path / "pets", url))
    assert fingerprint(here) == fingerprint(there), "a run goes on from data that moved into a store"
    assert there.name(0) == "memory://data/train/cat/0.jpg"
    memory.pipe_file("/data/train/cat/0.jpg", media.jpeg(77) + b"more")
    forget_sources()
    assert fingerprint(make_loader(images(url), "train", seed=0).source) != fingerprint(here)


def test_lists(tmp_path, caplog):
    for i in range(4):
        media.write_image(tmp_path / "in" / "pictures" / f"{i}.png", i)
    (tmp_path / "in" / "lists").mkdir()
    lines = [f"../pictures/{i}.png {i + 3}" for i in range(4)]
    (tmp_path / "in" / "lists" / "val.txt").write_text("\n".join(lines))
    url = put(tmp_path / "in")
    right = batches(images(tmp_path / "in" / "lists"), "val")
    assert_same(batches(images(f"{url}/lists"), "val"), right)
    (tmp_path / "val.csv").write_text("path,label\n" + "\n".join(f"{url}/pictures/{i}.png,{i + 3}" for i in range(4)))
    assert_same(batches(images(tmp_path), "val"), right)
    memory.rm_file("/data/pictures/2.png")
    loader = make_loader(images("x", val_data=f"{url}/lists/val.txt"), "val", seed=0)
    assert [batch["labels"].tolist() for batch in loader] == [[3, 4, 6]] and loader.skipped == 1
    assert "memory://data/pictures/2.png is not there" in caplog.text
    (tmp_path / "val.csv").write_text("https://x.org/1.png?X-Amz-Signature=abc,3\n")
    forget_sources()
    with pytest.raises(ValueError, match=r"a line of .*val.csv must have no credentials.*1\.png\?\.\.\.'"):
        batches(images(tmp_path), "val")


@pytest.mark.parametrize("name", ["a b", "a#b", "a?b=c", "a%20b", "ü", "a*[1]"])
def test_names_of_files_mean_nothing(name):
    memory.pipe_file(f"/data/{name}.jpg", media.jpeg(1))
    assert stores.read(f"memory://data/{name}.jpg", 0, stores.UNKNOWN) == media.jpeg(1)
    assert stores.file_statuses([f"memory://data/{name}.jpg"])[0].size == len(media.jpeg(1))


def test_a_name_with_colons_is_no_chain_of_stores():
    pytest.importorskip("s3fs")
    assert stores._filesystem("s3://bucket/std::map.jpg")[1] == "bucket/std::map.jpg"


@pytest.mark.parametrize("data", ["s3:", "s3:/", "./s3://"])
def test_a_local_folder_may_be_named_as_a_store(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    media.image_folder(Path("s3:"), each=2)
    assert_same(batches(images(data)), batches(images(tmp_path / "s3:")))


@pytest.mark.parametrize("data", ["s3://", "memory:///"])
def test_a_url_of_nothing(data):
    with pytest.raises(ValueError, match=f"data must say what is read after '://', got '{data}'"):
        images(data)


def test_videos(tmp_path):
    for i in range(2):
        media.write_video(tmp_path / "clips" / "train" / f"run{i}" / f"{i}.mp4", frames=20 + i)
    url = put(tmp_path / "clips")
    assert_same(batches(clips(url)), batches(clips(tmp_path / "clips")))
    media.write_image(tmp_path / "frames" / "train" / "run" / "0" / "0.jpg", 0)
    with pytest.raises(FileNotFoundError, match=r"no videos .* in memory://frames/train; clips of pictures have to be"):
        make_loader(clips(put(tmp_path / "frames", "/frames")), "train", seed=0)


def test_shards(tmp_path, monkeypatch):
    shards(tmp_path / "in")
    right = batches(images(tmp_path / "in"))
    url = put(tmp_path / "in")
    calls = Faults(monkeypatch, "cat_file", lambda call: None).calls
    for place in (f"{url}/train-{{0..2}}.tar", url, f"{url}/*.tar", f"{url}/{{split}}-*.tar"):
        assert_same(batches(images(place)), right)
    asked = [(options["start"], options["end"]) for _, options in calls]
    whole = len(memory.cat_file("/data/train-0.tar"))
    assert max(end - start for start, end in asked) < whole, "parts are read, no whole shard"
    assert_same(batches(images(url), workers=2), right)
    loader = make_loader(images(url, batch_size=12), "train", seed=0, augment=False)
    del calls[:]
    assert_same(list(loader), batches(images(tmp_path / "in", batch_size=12), augment=False))
    assert len(calls) == 3, "in the order of the shards one request gives many samples"
    here, there = (make_loader(images(place), "train", seed=0).source for place in (tmp_path / "in", url))
    assert fingerprint(here) == fingerprint(there)
    assert pickle.loads(pickle.dumps(there)).name(0) == "memory://data/train-0.tar:000"
    with pytest.raises(
        FileNotFoundError, match=r"2 of 5 shards .* are missing, the first is memory://data/train-3\.tar"
    ):
        batches(images(f"{url}/train-{{0..4}}.tar"))


def test_a_label_may_be_far_from_its_picture(tmp_path):
    samples = {f"{i}.jpg": media.jpeg(i) for i in range(4)} | {"0.bin": bytes(2 * NEAR)}
    media.write_shard(tmp_path / "in" / "0.tar", samples | {f"{i}.cls": b"%d" % (i + 3) for i in range(4)})
    assert_same(batches(images(put(tmp_path / "in"))), batches(images(tmp_path / "in")))


def test_headers_of_shards_are_kept_beside_the_run(tmp_path, monkeypatch, caplog):
    url = put(shards(tmp_path / "in"))
    run = tmp_path / "run"
    run.mkdir()
    recipe = images(url, out=str(run))
    right = batches(recipe)
    walked = Faults(monkeypatch, "cat_file", lambda call: None).calls
    forget_sources()
    assert_same(batches(recipe, start=1), right[1:])
    assert 0 < len(walked) <= 8, "one request a sample, with its label"
    assert all(options["start"] >= 512 for _, options in walked), "and none for the header at the beginning"
    kept = sorted((run / "shards").iterdir())
    assert len(kept) == 3 and json.loads(kept[0].read_text())[0][0] == headers.FORMAT
    kept[0].write_text("[1, 2")
    kept[1].write_text(json.dumps([*json.loads(kept[1].read_text())[:2], [[1, 2]]]))
    forget_sources()
    assert_same(batches(recipe), right)
    assert caplog.text.count("is damaged") == 2 and "are read again" in caplog.text
    before = fingerprint(make_loader(recipe, "train", seed=0).source)
    media.write_shard(tmp_path / "in" / "train-1.tar", {f"{i}.jpg": media.jpeg(i) for i in range(4)})
    put(tmp_path / "in")
    forget_sources()
    other = make_loader(Pretrain(data=url, image_size=16, batch_size=4, mask_ratio=1, out=str(run)), "train", seed=0)
    here = make_loader(dataclasses.replace(other.recipe, data=str(tmp_path / "in"), out=""), "train", seed=0)
    assert fingerprint(other.source) == fingerprint(here.source) != before, "a shard that has changed is read anew"


@pytest.mark.parametrize("mark", ["Last-Modified", ""])
def test_another_shard_of_the_same_size_is_read_anew(tmp_path, monkeypatch, mark):
    """A server of HTTP may say the time of a change alone, or nothing."""
    info = type(memory).info

    def of_server(fs, path):
        found = info(fs, path)
        created = str(found.pop("created", ""))
        return {**found, mark: created} if mark else found

    monkeypatch.setattr(type(memory), "info", of_server)
    for name in ("a", "b"):
        media.write_shard(tmp_path / "in.tar", {f"{name}.jpg": media.jpeg(1)})
        memory.pipe_file("/data/in.tar", (tmp_path / "in.tar").read_bytes())
        found = headers.stored_headers("memory://data/in.tar", str(tmp_path / "kept"))
        assert [member.path for member in found.members] == [f"{name}.jpg"]
    assert (tmp_path / "kept").exists() == bool(mark)


def test_a_store_that_fails_now_and_then_costs_no_sample(tmp_path, monkeypatch, caplog):
    """Errors, answers that are cut off, and both in a row: no sample is lost, none comes twice."""
    caplog.set_level(logging.INFO)
    url = put(shards(tmp_path / "in", each=8))
    right = batches(images(tmp_path / "in"))
    plan = {0: OSError("500 Internal Server Error"), 1: "short", 2: TimeoutError("too slow"), 3: "short"}
    Faults(monkeypatch, "cat_file", lambda call: plan.get(call))
    for name in ("info", "ls"):
        Faults(monkeypatch, name, lambda call: OSError("503 Slow Down") if call < 3 else None)
    loader = make_loader(images(url), "train", seed=0)
    assert_same(list(loader), right)
    assert loader.skipped == 0
    assert "OSError: 500 Internal Server Error; try 2 of 5" in caplog.text
    assert "bytes came from byte" in caplog.text and "memory://data/train-" in caplog.text


@pytest.mark.parametrize(
    "fault, message",
    [
        (
            OSError("503 Slow Down"),
            r"memory://data/train-\d.tar cannot be read: OSError: 503 Slow Down \(tried 5 times",
        ),
        ("short", r"cannot be read: ShortRead: \d+ of \d+ bytes came from byte \d+ on \(tried 5 times in"),
        (PermissionError("Access Denied"), r"no permission to read memory://data/train-\d.tar .*the environment"),
        (OSError(22, "range not satisfiable"), r"cannot be read: OSError: \[Errno 22\] range not satisfiable$"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_store_that_stays_broken_ends_the_run(tmp_path, monkeypatch, fault, message, workers):
    """And costs no sample, whose place another would take."""
    url = put(shards(tmp_path / "in"))
    loader = make_loader(images(url), "train", seed=0, workers=workers)
    Faults(monkeypatch, "cat_file", lambda call: fault)
    with pytest.raises(StoreError, match=message):
        list(loader)


def test_what_is_not_there_or_no_data(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.tar").write_text("no tar" * 200)
    url = put(tmp_path / "in")
    with pytest.raises(FileNotFoundError, match=r"no train data in 'memory://nothing/x': there is none of memory://"):
        batches(images("memory://nothing/x"))
    with pytest.raises(
        FileNotFoundError, match=r"in memory://data/0.tar; memory:.* no tar header at byte 0, so it is no tar"
    ):
        batches(images(url))
    memory.pipe_file("/empty/readme.md", b"")
    with pytest.raises(FileNotFoundError, match=r"there are no files \.jpg, .* in memory://empty"):
        batches(images("memory://empty"))
    with pytest.raises(ValueError, match="there is no store ftp://; there are s3, "):
        batches(images("ftp://host/x"))
    with pytest.raises(ValueError, match=r"az://box/x.* is read by fsspec and adlfs: pip install fsspec adlfs"):
        batches(images("az://box/x"))
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ValueError, match="memory://data is read by fsspec: pip install fsspec"):
        Url("memory://data").info()


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIA:hunter2@bucket/x",
        "s3://me:hunter1@hunter2@bucket/x",
        "https://user@host/train-{0..9}.tar",
        "https://host/0.tar?X-Amz-Signature=hunter2&Expires=1",
        "https://host/0.tar?a=1&sv=2&sig=hunter2",
        "abfss://container:hunter2@account.dfs.core.windows.net/x",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url):
    for name in ("data", "val_data"):
        with pytest.raises(ValueError, match=f"^{name} must have no credentials in it, got .*environment") as caught:
            images("x", **{name: url}) if name == "val_data" else images(url)
        assert "hunter2" not in str(caught.value) and "user@" not in str(caught.value)
    assert images("https://host/x.tar?download=true").data.endswith("true")


def test_reasons_show_no_secret():
    error = OSError("GET https://me:p@w@host/a/b.tar?X-Amz-Signature=abc&x=1, not found")
    assert stores._reason(error) == "OSError: GET https://host/a/b.tar?... not found"


def test_cache(tmp_path, monkeypatch, caplog):
    """What was read comes from the disk, is checked, and is limited; a broken disk is no error."""
    monkeypatch.setenv("MASKFEAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MASKFEAT_CACHE_GB", "0.001")
    url = put(shards(tmp_path / "in"))
    right = batches(images(tmp_path / "in"))
    assert_same(batches(images(url)), right)
    calls = Faults(monkeypatch, "cat_file", lambda call: OSError("the store is gone")).calls
    forget_sources()
    assert_same(batches(images(url)), right)
    assert not calls
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            whole = path.read_bytes()
            path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1 << 7]) + whole[-4:])
    forget_sources()
    with pytest.raises(StoreError, match="the store is gone"):
        batches(images(url))
    assert "is damaged after" not in caplog.text, "a broken copy is not taken for the shard"
    for wrong in ("much", "-1", "inf", ""):
        monkeypatch.setenv("MASKFEAT_CACHE_GB", wrong)
        with pytest.raises(ValueError, match="MASKFEAT_CACHE_GB must be the gigabytes of the cache"):
            disk_cache.cache()


@pytest.mark.parametrize("files", [4, 12])  # which are asked for one by one, and listed
def test_a_picture_that_changes_is_not_taken_from_the_cache(tmp_path, monkeypatch, files):
    """Of the same name and size."""
    monkeypatch.setenv("MASKFEAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MASKFEAT_CACHE_GB", "0.001")
    for grey in (5, 200):
        for number in range(files):
            path = tmp_path / "in" / "train" / ("cat", "dog")[number % 2] / f"{number}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (32, 32), grey).save(path)
        url = put(tmp_path / "in")
        forget_sources()
        assert {int(picture) for batch in batches(images(url)) for picture in batch["images"].unique()} == {grey}


def test_the_cache_forgets_what_was_used_longest_ago(tmp_path, caplog):
    cache = DiskCache(tmp_path, 64_000)
    for i in range(200):
        cache.put(str(i), b"x" * 900)
        if cache.get("0"):
            os.utime(cache._path("0"), ns=(2**62, 2**62))  # used last, however coarse the clock
    used = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert 40_000 < used <= 64_000
    assert cache.get("0") and cache.get("199") == b"x" * 900 and cache.get("1") is None
    cache.put("large", b"x" * 1001)
    assert cache.get("large") is None
    roomy = DiskCache(tmp_path / "roomy", 10**9)  # which seldom sweeps, where the other does for each copy
    with ThreadPoolExecutor(8) as pool:  # the same copy, at the same time
        for shared, copies in ((cache, 200), (roomy, 2000)):
            list(pool.map(lambda i, shared=shared: shared.put(f"same {i % 2}", b"x" * 900), range(copies)))
            assert "no copy in" not in caplog.text and shared.get("same 0") == b"x" * 900
    (tmp_path / "file").write_text("")
    broken = DiskCache(tmp_path / "file", 64_000)
    broken.put("0", b"x")
    broken.put("1", b"x")
    assert broken.get("0") is None and caplog.text.count("no copy in") == 1


def test_a_copy_that_another_user_owns_is_taken(tmp_path, monkeypatch):
    cache = DiskCache(tmp_path, 64_000)
    cache.put("key", b"x")
    monkeypatch.setattr(os, "utime", lambda path: os.stat(tmp_path / "not there"))  # its time is not ours to set
    assert cache.get("key") == b"x"


def test_a_container_before_its_account_is_no_credential():
    check_url("data", "abfss://container@account.dfs.core.windows.net/train")
