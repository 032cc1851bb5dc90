"""Whatever is killed, and when: no row is lost or doubled, no reader sees half a file, and the bits are the same.

Workers, drivers and a node are killed at random moments. A folder that gets done is compared with one of a call that
nothing interrupted, and the next is begun, until there were KILLS.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import media
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

import maskfeat
from maskfeat.extraction.engines import LocalTeam
from maskfeat.extraction.features import Hog, Reading
from maskfeat.extraction.parts import Job, divide
from maskfeat_kernels import MASKFEAT

KILLS = 20
LONGEST_WAIT = 180
SETTINGS = ["image_size=256", "rows=3", "batch_size=2"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = media.image_folder(tmp_path_factory.mktemp("photos"), each=90, width=900, height=700)
    media.text_named_jpg(folder / "train" / "cat" / "text.jpg")
    media.truncate(folder / "train" / "dog" / "4.jpg")
    return folder


@pytest.fixture(scope="module")
def whole(data):
    """What an uninterrupted call writes."""
    out = data.parent / "whole"
    assert maskfeat.extract("hog", str(data), out, image_size=256, rows=3, batch_size=2)["unreadable"] == 2
    return out


class Killing:
    """One extraction after the other, each by drivers that are started again until it is done."""

    def __init__(self, data: Path, whole: Path, *words: str, **environment: str):
        self.data, self.whole, self.words = data, whole, words
        self.environment = os.environ | environment
        self.random = random.Random(4)
        self.kills: list[str] = []
        self.done = 0
        self.driver: subprocess.Popen[bytes] | None = None

    @property
    def out(self) -> Path:
        return self.whole.with_name(f"out{'_'.join(self.words)}{self.done}")

    def wait(self) -> bool:
        """Start a driver unless one works; wait until a random moment while it does; whether there is one to kill."""
        if self.driver is None:
            command = [sys.executable, "-m", "maskfeat", "extract", "hog", f"data={self.data}", f"out={self.out}"]
            self.driver = subprocess.Popen([*command, *SETTINGS, *self.words], env=self.environment)
        before, end = self.files(), time.monotonic() + LONGEST_WAIT
        while self.driver.poll() is None and self.files() < before + 3:
            assert time.monotonic() < end, f"nothing is written after {self.kills}"
            time.sleep(0.01)
        time.sleep(self.random.uniform(0, 0.3))
        if self.driver.poll() is None:
            return True
        assert self.driver.returncode == 0
        self.compare()
        self.driver, self.done = None, self.done + 1
        return False

    def files(self) -> int:
        return len(list(self.out.glob("*.parquet")))

    def kill(self, what: str, pid: int) -> None:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it has ended since it was listed
            return
        self.kills.append(what)
        for path in self.out.glob("*.parquet"):  # what any reader takes
            assert pq.ParquetFile(path).read().num_columns == 3

    def kill_driver(self) -> None:
        assert self.driver is not None
        self.kill("driver", self.driver.pid)
        self.driver.wait()
        self.driver = None

    def finish(self) -> None:
        done = self.done
        while self.done == done:
            self.wait()

    def compare(self) -> None:
        ours, right = (pyarrow.dataset.dataset(str(folder)).to_table() for folder in (self.out, self.whole))
        assert len(right) == 179 and ours.equals(right, check_metadata=True)
        assert ours["features"].combine_chunks().buffers()[-1].equals(right["features"].combine_chunks().buffers()[-1])
        listed = [(folder / "_unreadable.jsonl").read_text() for folder in (self.out, self.whole)]
        assert listed[0] == listed[1]


def processes() -> dict[int, tuple[int, str]]:
    """The parent and the command of each process."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    lines = (line.split(None, 2) for line in found.splitlines())
    return {int(pid): (int(parent), rest) for pid, parent, *rest in lines}


def grandchildren(pid: int, name: str = "") -> list[int]:
    """Processes whose parent is a child of ``pid``: a fork server, or the raylet of a node of Ray."""
    known = processes()
    parents = {child for child, (parent, _) in known.items() if parent == pid}
    return [child for child, (parent, words) in known.items() if parent in parents and name in " ".join(words)]


def test_processes_of_this_machine(data, whole):
    killing = Killing(data, whole, "workers=2")
    while len(killing.kills) < KILLS:
        if not killing.wait():
            continue
        workers = grandchildren(killing.driver.pid)
        if workers and killing.random.random() < 0.6:
            killing.kill("worker", killing.random.choice(workers))
        else:
            killing.kill_driver()
    killing.finish()
    assert set(killing.kills) == {"worker", "driver"}


class Deadly(Hog):
    """A feature that kills its process at a black picture, as a fault in a decoder would."""

    def __call__(self, images):
        if images.device.type == "cpu" and not images.any():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(images)


def test_a_sample_that_kills_ends_the_call_when_all_others_are_done(tmp_path):
    folder = media.image_folder(tmp_path / "data", each=6)
    Image.new("RGB", (40, 30)).save(folder / "train" / "cat" / "0.jpg")
    out, feature, reading = tmp_path / "out", Deadly(MASKFEAT), Reading(data=str(folder), image_size=32)
    out.mkdir()
    (out / "_extract.json").write_text("{}")
    files, _, _ = divide(reading, "train", rows=1, before=1, size=4)
    job = Job(feature, reading, "train", out, feature.shape(reading), "float32", "{}")
    with pytest.raises(OSError, match="workers die without finishing a file"):
        LocalTeam(["cpu", "cpu"], 0).run(job, files, lambda: None)
    assert sorted(path.name for path in out.glob("*.parquet")) == [f"part-{i:06}.parquet" for i in range(1, 12)]


@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_a_cluster_of_ray_loses_workers_drivers_and_a_node(data, whole):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = dict(num_cpus=1, object_store_memory=100 << 20, include_dashboard=False)
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        lost, _ = [cluster.add_node(num_cpus=1, object_store_memory=100 << 20) for _ in range(2)]
        cluster.wait_for_nodes()
        killing = Killing(data, whole, "engine=ray", RAY_ADDRESS=cluster.address)
        while len(killing.kills) < KILLS:
            if not killing.wait():
                continue
            workers = grandchildren(os.getpid(), "ray::MapWorker")
            if len(killing.kills) == KILLS // 2:
                cluster.remove_node(lost, allow_graceful=False)
                killing.kills.append("node")
                killing.finish()  # by the driver that lost it
            elif workers and killing.random.random() < 0.7:
                killing.kill("worker", killing.random.choice(workers))
            else:
                killing.kill_driver()
        killing.finish()
        assert set(killing.kills) == {"worker", "driver", "node"}
    finally:
        cluster.shutdown()
