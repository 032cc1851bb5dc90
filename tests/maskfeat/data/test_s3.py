"""Data in a server that speaks S3, behind a proxy that fails, dawdles and cuts off; run by `make test-slow`."""

import http.server
import json
import os
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import media
import pyarrow.dataset
import pytest
import test_stores
import torch
from safetensors.torch import load
from test_data import assert_same, batches, images

import maskfeat
from maskfeat.cli import main
from maskfeat.data import stores
from maskfeat.data.loader import forget_sources, make_loader
from maskfeat.data.stores import StoreError

pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")

pytestmark = pytest.mark.slow


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on. ``fault(attempt, order)`` says what goes wrong with those for parts of a file.

    attempt: how often this part was asked for before. order: how many other parts were.

    "500", "503" and "403" are answers, "cut" ends in the middle, "short" also says so few bytes, "slow" takes seconds.
    """

    daemon_threads = True

    def __init__(self, to: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.to, self.attempts, self.asked = to, Counter(), Counter()
        self.fault = lambda attempt, order: ""
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server, part = self.server, self.headers.get("Range")
        request = urllib.request.Request(server.to + self.path, method=self.command, headers=dict(self.headers))
        try:
            answer = urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            answer = error
        body = answer.read()
        fault = ""
        with server.lock:
            if part:
                request = self.path, part
                server.attempts[request] += 1
                fault = server.fault(server.attempts[request] - 1, list(server.attempts).index(request))
                server.asked[fault] += 1
        if fault.isdigit():
            self.answer(int(fault), b"<Error><Code>%s</Code></Error>" % fault.encode(), {})
            return
        headers = {name: value for name, value in answer.headers.items() if name.lower() in KEPT}
        if self.command == "HEAD":
            headers["Content-Length"] = answer.headers["Content-Length"]
        if fault == "slow":
            time.sleep(2.5)
        if fault == "short":
            body = body[: len(body) // 2]
        self.answer(answer.status, body, headers, cut=fault == "cut")

    do_HEAD = do_GET

    def answer(self, status, body, headers, cut=False):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if not (self.command == "HEAD" and "Content-Length" in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, *args):
        pass


KEPT = ("etag", "last-modified", "content-type", "content-range")


@pytest.fixture(scope="module")
def server():
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def proxy(server, monkeypatch):
    """In front of a bucket "data"; credentials and address come from the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAHUNTER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    import boto3

    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST")).read()
    proxy = Proxy(server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_address[1]}")
    monkeypatch.setattr(stores, "FIRST_PAUSE", 0.01)
    proxy.bucket = boto3.resource("s3", endpoint_url=server).create_bucket(Bucket="data")
    forget_sources()
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()  # it knows the address of the test before
    yield proxy
    proxy.shutdown()
    proxy.server_close()
    forget_sources()


def put(proxy: Proxy, folder: Path, to: str = "") -> str:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            proxy.bucket.put_object(Key=f"{to}{path.relative_to(folder)}", Body=path.read_bytes())
    return f"s3://data/{to}".rstrip("/")


def faults(attempt: int, order: int) -> str:
    """Up to four faults before a part is given."""
    return ("500", "cut", "short", "503")[(order + attempt) % 4] if attempt < order % 5 else ""


def test_folders_lists_and_shards(proxy, tmp_path):
    media.image_folder(tmp_path / "pets", each=5)
    media.image_folder(tmp_path / "pets", each=2, split="val")
    media.image_folder(tmp_path / "pets2", each=1)  # whose name begins alike
    (tmp_path / "pets" / "all.csv").write_text("path,label\ntrain/cat/0.jpg,3\nval/dog/1.png,4\n")
    test_stores.shards(tmp_path / "tars")
    put(proxy, tmp_path)
    for name, split in (("pets", "train"), ("pets", "val"), ("tars", "train"), ("tars/train-{0..2}.tar", "train")):
        assert_same(batches(images(f"s3://data/{name}"), split), batches(images(tmp_path / name), split))
        assert_same(batches(images(f"s3://data/{name}"), split, workers=2), batches(images(tmp_path / name), split))
    options = dict(classes=10, batch_size=2)
    right = batches(images("x", val_data=str(tmp_path / "pets" / "all.csv"), **options), "val")
    assert_same(batches(images("x", val_data="s3://data/pets/all.csv", **options), "val"), right)


def test_no_sample_is_lost_or_doubled(proxy, tmp_path, caplog):
    url = put(proxy, test_stores.shards(tmp_path / "tars", number=4, each=20))
    right = batches(images(tmp_path / "tars", batch_size=8))
    proxy.fault = faults
    loader = make_loader(images(url, batch_size=8), "train", seed=0, workers=2)
    found = list(loader)
    assert_same(found, right)
    assert torch.cat([batch["indices"] for batch in found]).unique().numel() == 80 and loader.skipped == 0
    assert min(proxy.asked[fault] for fault in ("500", "503", "cut", "short", "")) > 10, proxy.asked
    assert "hunter2" not in caplog.text and "AKIAHUNTER" not in caplog.text


def test_slow_answers_are_waited_for_and_then_given_up(proxy, tmp_path, monkeypatch):
    url = put(proxy, test_stores.shards(tmp_path / "tars", number=1))
    proxy.fault = lambda attempt, order: "slow" if attempt == 0 and order in (1, 3) else ""
    assert_same(batches(images(url)), batches(images(tmp_path / "tars")))
    monkeypatch.setattr(stores, "PATIENCE", 0.3)
    forget_sources()
    loader = make_loader(images(url), "train", seed=0)
    proxy.fault = lambda attempt, order: "slow"
    with pytest.raises(StoreError, match=r"s3://data/train-0.tar cannot be read: FSTimeoutError.* \(tried 5 times in"):
        list(loader)


@pytest.mark.parametrize(
    "fault, message",
    [
        (
            "500",
            r"s3://data/train-\d.tar cannot be read: .* \(tried 5 times in \d+ s\); give the same command",
        ),
        ("cut", r"s3://data/train-\d.tar cannot be read: .* \(tried 5 times in"),
        ("short", r"s3://data/train-\d.tar cannot be read: ShortRead: \d+ of \d+ bytes came from byte \d+ on"),
        ("403", r"no permission to read s3://data/train-\d.tar \(PermissionError.*\); credentials come from"),
    ],
)
def test_what_stays_broken_ends_in_a_line(proxy, tmp_path, capsys, fault, message):
    url = put(proxy, test_stores.shards(tmp_path / "tars"))
    proxy.fault = lambda attempt, order: fault
    words = [f"data={url}", "image_size=32", "patch_size=16", "batch_size=4", "workers=0", f"out={tmp_path / 'run'}"]
    assert main(["pretrain", "vit_tiny", *words]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(f"maskfeat: {message}", line)
    assert "hunter2" not in line


def test_what_is_not_there(proxy, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no train data in 's3://none/x'.*; there is no bucket s3://none"):
        batches(images("s3://none/x"))
    with pytest.raises(FileNotFoundError, match=r"no train data in 's3://data/none': there is none of s3://data/none"):
        batches(images("s3://data/none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(StoreError, match=r"no credentials to read s3://data/none.*AWS_PROFILE"):
        batches(images("s3://data/none"))


def test_a_run_goes_on_where_it_was(proxy, tmp_path, monkeypatch):
    """With the headers that are beside it, in the order that it began with, bit for bit."""
    url = put(proxy, test_stores.shards(tmp_path / "tars", number=4, each=8))
    words = ["image_size=32", "patch_size=16", "batch_size=4", "workers=0", "eval_every=0", "save_every=2", "seed=3"]
    for data, out in ((tmp_path / "tars", "local"), (url, "remote")):
        assert main(["pretrain", "vit_tiny", f"data={data}", "steps=6", f"out={tmp_path / out}", *words]) == 0
    again = tmp_path / "again"
    assert main(["pretrain", "vit_tiny", f"data={url}", "steps=6", f"out={again}", *words]) == 0
    for path in (again / "checkpoints").glob("step_*6"):
        shutil.rmtree(path)
    forget_sources()
    proxy.fault = faults
    assert main(["pretrain", "vit_tiny", f"data={url}", "steps=6", f"out={again}", *words]) == 0
    assert len(list((again / "shards").glob("*.json"))) == 4
    weights = [(tmp_path / out / "weights.safetensors").read_bytes() for out in ("local", "remote", "again")]
    local, *others = map(load, weights)
    for other in others:
        assert all(torch.equal(local[name], other[name]) for name in local)


def rows(folder: Path):
    rows = pyarrow.dataset.dataset(str(folder)).to_table().to_pylist()
    return [(Path(row["name"]).name, row["label"], row["features"]) for row in rows]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns of its own settings
@pytest.mark.parametrize(
    "kind, engine",
    [("folder", dict(workers=2)), ("shards", dict(workers=0)), ("shards", dict(engine="ray", workers=2))],
    ids=str,
)
def test_extraction(proxy, tmp_path, kind, engine):
    """Rows are those of the local files, although the store fails; a store that is gone costs no row."""
    if engine.get("engine") == "ray":
        pytest.importorskip("ray")
    if kind == "folder":
        media.image_folder(tmp_path / "data", each=8)
        settings = dict(image_size=32, rows=3)
    else:
        test_stores.shards(tmp_path / "data", number=4)
        settings = dict(image_size=32)
    url = put(proxy, tmp_path / "data")
    maskfeat.extract("hog", tmp_path / "data", tmp_path / "right", workers=0, **settings)
    proxy.fault = lambda attempt, order: "500"
    with pytest.raises(OSError, match=r"^s3://data/.* cannot be read: .*tried 5 times.* answers$"):
        maskfeat.extract("hog", url, tmp_path / "out", **settings, **engine)
    assert not list((tmp_path / "out").glob("part-*.parquet"))
    proxy.fault = faults
    done = maskfeat.extract("hog", url, tmp_path / "out", **settings, **engine)
    assert done["samples"] == 16 and done["unreadable"] == 0
    assert rows(tmp_path / "out") == rows(tmp_path / "right")
    plan = json.loads((tmp_path / "out" / "_extract.json").read_text())
    assert plan["data"] == json.loads((tmp_path / "right" / "_extract.json").read_text())["data"]
    text = "".join(path.read_text(errors="ignore") for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert "hunter2" not in text and "AKIAHUNTER" not in text and os.environ["AWS_ENDPOINT_URL"] not in text


def test_http(tmp_path):
    """Folders that a server shows as pages of links; a server that knows no parts is refused."""
    media.image_folder(tmp_path / "data", each=3)
    test_stores.shards(tmp_path / "data" / "tars")

    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / "data"))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        assert_same(batches(images(f"{url}/train")), batches(images(tmp_path / "data" / "train")))
        with pytest.raises(StoreError, match="the server gives whole files where a part is asked for"):
            batches(images(f"{url}/tars/train-{{0..2}}.tar"))
    finally:
        server.shutdown()
        server.server_close()
