"""Loader processes never keep a run from its end, and what goes wrong in them is said as in the run itself."""

import gc
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from multiprocessing.resource_sharer import DupFd

import media
import pytest
import torch
from test_train import SMALL
from torch.utils.data._utils import signal_handling

from maskfeat import sigterm
from maskfeat.cli import main
from maskfeat.config import get_recipe, override
from maskfeat.data import loader, processes
from maskfeat.data.loader import make_loader

PLAIN = ["size=micro", *(text for text in SMALL if not text.startswith(("samples", "eval_every")))]
COMMAND = ["finetune", "vit_tiny_ft", *PLAIN, "samples=0", "eval_every=0", "patch_size=8", "workers=1"]
SMALL_RECIPE = override(get_recipe("vit_tiny"), ["image_size=32", "batch_size=8", "samples=80"])
LOADER = """
import gc
import multiprocessing
from maskfeat.config import get_recipe, override
from maskfeat.data.loader import make_loader
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
    with pytest.raises(OSError, match=r"^100 samples in a row") as caught:
        main(["--traceback", *command])
    assert "in __getitem__\n" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "ending, status",
    [
        pytest.param("", 0, marks=pytest.mark.slow),
        ("raise MemoryError", 1),
        pytest.param("multiprocessing.active_children()[0].kill(); list(batches)", 1, marks=pytest.mark.slow),
    ],
)
def test_a_process_ends_though_workers_are_left(ending, status):
    assert run("-c", LOADER + ending).returncode == status


LONG = [text for text in PLAIN if not text.startswith("steps")] + ["samples=64", "steps=100000", "eval_every=0"]


@pytest.fixture
def running(tmp_path):
    """Starts a command with workers, or python code; what is still there at the end is killed with its children."""
    started = []

    def start(*arguments, steps=True):
        out = tmp_path / "out"
        process = subprocess.Popen(
            [sys.executable, *arguments, *([f"out={out}"] if steps else [])],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        while steps and not ((out / "log.jsonl").exists() and (out / "log.jsonl").read_text()):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        return process

    yield start
    for process in started:
        process.kill()
        process.stderr.close()
        process.wait()


def children(process) -> list[int]:
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return [int(pid) for pid in file.read().split()]


def test_a_worker_that_is_killed_ends_the_run_with_one_line(running):
    """Wherever in an epoch the training is. At its end the run would go on, as the worker has done its work."""
    process = running("-m", "maskfeat", "pretrain", "vit_tiny", *LONG, "samples=100000", "workers=1")
    os.kill(children(process)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("maskfeat: a loader process died (DataLoader worker (pid")
    assert "Killed" in last or "exited unexpectedly" in last  # torch may see that it is gone before it hears why
    assert "use fewer workers, a smaller batch_size, or workers=0" in last


def begun():
    """Batches that a process loads, of which one has come, and the process."""
    before = multiprocessing.active_children()
    batches = iter(make_loader(SMALL_RECIPE, "train", seed=0, workers=1))
    next(batches)
    [worker] = set(multiprocessing.active_children()) - set(before)
    return batches, worker


@pytest.mark.parametrize(
    "number, told",
    [(signal.SIGKILL, "^a loader process died .* is killed by signal: Killed"), (signal.SIGBUS, "^the shared memory")],
)
def test_a_death_is_told_where_a_batch_is_waited_for(number, told):
    """It came up between any two lines of the training, and a lock that was being taken failed in its own way."""
    batches, worker = begun()
    others, _ = begun()
    os.kill(worker.pid, number)
    time.sleep(1)  # in which Python calls the handler
    next(others)
    with pytest.raises(OSError, match=told):
        next(batches)
    assert len(list(others)) == 8


def test_a_death_is_told_in_the_thread_that_waits():
    batches, worker = begun()
    caught = []

    def wait():
        with pytest.raises(OSError, match="is killed by signal: Killed") as error:
            list(batches)
        caught.append(error)

    worker.kill()
    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(20)
    assert len(caught) == 1


def kill(pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    time.sleep(0.1)


@pytest.mark.parametrize("known", [False, True])
def test_a_death_at_the_start_is_told_at_once(known, monkeypatch):
    """The run waited for the batch until LONGEST_WAIT where torch did not know the process yet."""
    iterator = torch.utils.data.dataloader._MultiProcessingDataLoaderIter

    def register(key, pids, register=signal_handling._set_worker_pids):
        kill(pids)
        register(key, pids)

    def reset(self, *arguments, reset=iterator._reset, **options):
        reset(self, *arguments, **options)
        kill([worker.pid for worker in self._workers])

    others, _ = begun()
    if known:
        monkeypatch.setattr(iterator, "_reset", reset)
    else:
        monkeypatch.setattr(signal_handling, "_set_worker_pids", register)
    monkeypatch.setattr(processes, "LONGEST_WAIT", 20)
    with pytest.raises(OSError, match="is killed by signal: Killed"):
        next(iter(make_loader(SMALL_RECIPE, "train", seed=0, workers=1)))
    monkeypatch.undo()
    assert len(list(others)) == 9


def test_a_death_in_the_middle_of_a_message_is_told():
    """The rest of the message was waited for, as this process has the writing end of the pipe, too."""
    batches, worker = begun()
    [waiting] = processes.Waiting.OPEN
    os.kill(worker.pid, signal.SIGSTOP)
    queue = waiting.batches._data_queue
    while queue._reader.poll(0.2):
        queue._reader.recv_bytes()
    os.write(queue._writer.fileno(), struct.pack("!i", 1000) + b"half")
    threading.Timer(0.5, worker.kill).start()
    with pytest.raises(OSError, match="is killed by signal: Killed"):
        next(batches)


def test_a_death_while_a_batch_is_handed_over_is_told(monkeypatch):
    """The connection breaks before the process counts as dead. The line was: Connection reset by peer."""

    def broken(*_):
        threading.Timer(0.3, multiprocessing.active_children()[0].kill).start()
        raise ConnectionResetError("Connection reset by peer")

    monkeypatch.setattr(DupFd, "detach", broken)
    with pytest.raises(OSError, match=r"^a loader process died .* is killed by signal: Killed"):
        next(iter(make_loader(SMALL_RECIPE, "train", seed=0, workers=1)))


UNHEARD = f"""
import os, signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGCHLD}})  # threads that begin now have the same mask
{LOADER}
multiprocessing.active_children()[0].kill()
try:
    list(batches)
except OSError as error:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {{signal.SIGCHLD}})
    time.sleep(0.5)
    print(error)
"""


def test_a_death_that_was_told_is_not_told_again():
    """By the handler of SIGCHLD, while what the run had open was being closed."""
    done = run("-c", UNHEARD)
    assert done.stdout.startswith("a loader process died (DataLoader worker (pid") and not done.stderr, done.stderr


def test_a_death_in_a_loader_of_others_is_told_as_torch_does():
    ours, _ = begun()
    before = multiprocessing.active_children()
    theirs = iter(torch.utils.data.DataLoader(range(100), num_workers=1))
    next(theirs)
    [worker] = set(multiprocessing.active_children()) - set(before)
    threading.Timer(0.2, worker.kill).start()
    with pytest.raises(RuntimeError, match="is killed by signal: Killed"):
        time.sleep(10)
    assert len(list(ours)) == 9


@pytest.mark.parametrize("error", [RuntimeError("mat1"), EOFError("half a file"), KeyError("x")])
def test_an_error_of_the_data_is_no_death(error, monkeypatch):
    def fail(self, number):
        raise error

    monkeypatch.setattr(loader.Batches, "__getitem__", fail)
    with pytest.raises(type(error), match=error.args[0]):
        next(iter(make_loader(SMALL_RECIPE, "train", seed=0, workers=1)))
    assert multiprocessing.active_children() == []  # though the error holds the iterator of torch


class TwoWords(OSError):
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def test_an_error_that_cannot_be_sent_is_said_by_one_that_can(monkeypatch):
    """It was lost in a thread of the worker, and the training waited for the batch."""
    locked = ValueError("of a lock")
    locked.lock = threading.Lock()
    told = (locked, ValueError, "^ValueError: of a lock$"), (TwoWords("a", "b"), OSError, "^TwoWords: a b$")
    for error, kind, said in told:

        def fail(self, number, error=error):
            raise error

        monkeypatch.setattr(loader.Batches, "__getitem__", fail)
        with pytest.raises(kind, match=said):
            next(iter(make_loader(SMALL_RECIPE, "train", seed=0, workers=1)))


def test_full_shared_memory_is_one_line():
    """A batch of 8 MB through 1 MB: the error came up in a thread of the worker, the batch was lost, all waited."""
    code = """
import sys, torch
from maskfeat.config import get_recipe, override
from maskfeat.data.loader import make_loader
recipe = override(get_recipe("vit_tiny"), ["image_size=224", "batch_size=56", "samples=56", "mask_stride=16"])
try:
    list(make_loader(recipe, "train", seed=0, workers=1))
except OSError as error:
    sys.exit(f"ended: {error}")
"""
    mount = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$0" -c "$1"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if subprocess.run([*command, "mount -t tmpfs -o size=1m tmpfs /dev/shm"], capture_output=True).returncode:
        pytest.skip("mounts a small /dev/shm, which this machine does not let it")
    done = subprocess.run([*command, mount, sys.executable, code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ended: the shared memory") and "workers=0" in last and "--shm-size" in last


def test_full_shared_memory_is_told_from_within_the_worker(monkeypatch):
    def full(self):
        raise RuntimeError("unable to write to file </torch_1_2_3>: No space left on device (28)")

    recipe = override(get_recipe("vit_tiny"), ["image_size=32", "batch_size=8", "samples=8"])
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(OSError, match=r"fewer workers or workers=0, .* enlarge /dev/shm .*No space left"):
        list(make_loader(recipe, "train", seed=0, workers=1))
    assert multiprocessing.active_children() == []


class JoinsItsThreads:
    """Garbage as a process group of gloo is: freed in a process that was forked, it waits for threads of the other."""

    def __init__(self):
        self.itself, self.process = self, os.getpid()

    def __del__(self):
        if os.getpid() != self.process:
            time.sleep(60)


def test_a_worker_does_not_free_the_garbage_of_its_parent(monkeypatch):
    def collect(self, number, load=loader.Batches.__getitem__):
        gc.collect()
        return load(self, number)

    monkeypatch.setattr(processes, "LONGEST_WAIT", 20)
    monkeypatch.setattr(loader.Batches, "__getitem__", collect)
    recipe = override(get_recipe("vit_tiny"), ["image_size=32", "batch_size=8", "samples=8"])
    batches = make_loader(recipe, "train", seed=0, workers=1)
    gc.disable()
    try:
        JoinsItsThreads()
        assert len(list(batches)) == 1
    finally:
        gc.enable()


def test_a_loader_that_is_stuck_is_an_error(monkeypatch):
    monkeypatch.setattr(processes, "LONGEST_WAIT", 1)
    monkeypatch.setattr(loader.Batches, "__getitem__", lambda self, number: time.sleep(2))
    recipe = override(get_recipe("vit_tiny"), ["image_size=32", "batch_size=8", "samples=8"])
    with pytest.raises(OSError, match=r"no batch came within 1 s: .* stuck\. .* \(workers=0\)"):
        list(make_loader(recipe, "train", seed=0, workers=1))


@pytest.mark.parametrize(
    "text, told",
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "a loader process died"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is", "the shared memory"),
        ("DataLoader worker (pid 7) exited with code 1", "a loader process died"),
        ("Caught RuntimeError in DataLoader worker process 0", None),
        ("Too many open files. Communication with", "ulimit -n"),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_what_is_said_of_failures(text, told):
    failure = processes.loader_failure(RuntimeError(text))
    assert failure is None if told is None else told in str(failure) and "\n" not in str(failure)


STUCK = """
import ctypes, sys
from maskfeat import sigterm
sigterm.SAME = 0.2
with sigterm.watch_sigterm():
    print("here", file=sys.stderr, flush=True)
    while True:
        ctypes.CDLL(None).sleep(1000)
"""


def test_a_second_sigterm_ends_a_process_that_is_stuck(running):
    """In C code that never returns to Python, where no handler of Python's is called."""
    process = running("-c", STUCK, steps=False)
    assert process.stderr.readline() == "here\n"
    process.terminate()
    time.sleep(0.4)
    assert process.poll() is None
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM and "ended at once by a second SIGTERM" in errors


def test_signals_at_once_are_one_and_leave_no_trace(monkeypatch):
    """torchrun passes on a signal that the whole group has got. Handlers are as before, and the pipe is closed."""
    before, ended = signal.getsignal(signal.SIGTERM), []
    monkeypatch.setattr(sigterm.os, "_exit", ended.append)
    with sigterm.watch_sigterm() as received:
        assert not received
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert len(received) == 3
        time.sleep(0.2)
    assert not ended and signal.getsignal(signal.SIGTERM) is before and signal.set_wakeup_fd(-1) == -1
