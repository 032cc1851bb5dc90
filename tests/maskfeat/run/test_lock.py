"""One job has a folder, until it ends or gives no sign of life."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_train import small, train_small

from maskfeat.config import describe
from maskfeat.run import lock as lock_module
from maskfeat.run.distributed import World
from maskfeat.run.lock import RunLock
from maskfeat.weights.storage import write_atomically


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


def test_the_heart_has_stopped_when_the_lock_is_free(tmp_path, world, monkeypatch):
    """It holds the process group. To free that while Python ends aborts the process, as it did in 2 runs of 51."""
    beats, renew, before = threading.Event(), os.utime, set(threading.enumerate())

    def slow(path):
        beats.set()
        time.sleep(0.2)
        renew(path)

    monkeypatch.setattr(lock_module, "BEAT", 0.01)
    monkeypatch.setattr(lock_module.os, "utime", slow)
    with RunLock(tmp_path, world):
        assert beats.wait(10)
    assert set(threading.enumerate()) == before and list(tmp_path.iterdir()) == []


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
