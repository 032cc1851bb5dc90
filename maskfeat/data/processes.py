"""The processes that load batches: how they end, and what a user hears of one that died or is stuck."""

import atexit
import copy
import ctypes
import errno
import gc
import os
import pickle
import re
import signal
import threading
import traceback
from collections.abc import Generator, Iterator
from functools import partial
from multiprocessing import RawValue, connection
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..mask import Masks
from ..sigterm import on_sigterm

LONGEST_WAIT = 600
"""Seconds after which a batch that does not come is an error."""

LOOK = 1
"""Seconds of waiting for a batch from one look at the processes to the next."""

SHARED_MEMORY = (
    "the shared memory, through which loader processes send batches, is full; use fewer workers or workers=0, or a "
    "smaller batch_size, or enlarge /dev/shm (docker run --shm-size=8g or --ipc=host)"
)

ENDS = RawValue(ctypes.c_byte)
"""Shared with the workers: true when this process ends, before multiprocessing ends the workers that are left."""
atexit.register(setattr, ENDS, "value", True)


def loader_failure(error: RuntimeError) -> OSError | None:
    """The error that a user reads if a process died or lacks memory or files; None for an error of another kind."""
    text = str(error)
    if "killed by signal: Bus error" in text or "No space left on device" in text:
        return OSError(f"{SHARED_MEMORY} ({text.splitlines()[0]})")
    if "Too many open files" in text:
        return OSError("the loader processes have too many files open; raise `ulimit -n`, or use fewer workers")
    if "DataLoader worker (pid" in text:
        return OSError(
            f"a loader process died ({text.splitlines()[0]}). If the system killed it for memory, use fewer workers, a "
            "smaller batch_size, or workers=0; the run goes on from its last checkpoint"
        )
    return None


def batches_of(loader: DataLoader[dict[str, Any]]) -> Generator[dict[str, Any]]:
    """The batches. Closing ends the workers. OSError if one died or is stuck."""
    try:
        waiting = Waiting(loader)
        try:
            yield from waiting
        finally:
            waiting.end()
    except RuntimeError as error:
        if failure := loader_failure(error):
            raise failure from error
        raise


class Waiting(Iterator[dict[str, Any]]):
    """The batches of a loader. The death of one of its workers is raised where a batch is waited for.

    torch raises it from a handler of SIGCHLD, and so between any two lines of the training. A lock that is just being
    taken would fail in its own way, and a destructor would swallow it. So the handler is kept quiet while nothing is
    waited for, and every wait looks at the workers.
    """

    OPEN: ClassVar[list["Waiting"]] = []
    listens: ClassVar[bool] = False

    def __init__(self, loader: DataLoader[dict[str, Any]]):
        # A worker must not free garbage of this process. A process group or a decoder joins its threads when it is
        # freed, and a worker would wait for ever: it is forked without them.
        # The caller may have frozen objects too, and these stay so.
        were_frozen = gc.get_freeze_count()
        gc.freeze()
        try:
            self.batches: Any = iter(loader)
        except OSError as error:  # of starting the workers: the semaphores of their queues are in shared memory too
            raise OSError(f"{SHARED_MEMORY} ({error})") if error.errno == errno.ENOSPC else error from None
        finally:
            if not were_frozen:
                gc.unfreeze()
        self.waits = False
        self.workers: list[BaseProcess] = getattr(self.batches, "_workers", [])
        self.OPEN.append(self)
        torchs = signal.getsignal(signal.SIGCHLD)
        main = threading.current_thread() is threading.main_thread()  # where torch sets its handler
        if self.workers and main and callable(torchs) and not Waiting.listens:
            signal.signal(signal.SIGCHLD, partial(Waiting.hear, torchs))
            Waiting.listens = True

    def __next__(self) -> dict[str, Any]:
        for _ in range(max(LONGEST_WAIT // LOOK, 1)):
            self.look()
            try:
                self.waits = threading.current_thread() is threading.main_thread()
                return next(self.batches)
            except (RuntimeError, ConnectionError, EOFError) as error:
                if not self.workers or "in DataLoader worker process" in str(error):  # an error of the data
                    raise
                waited = "DataLoader timed out" in str(error)
                self.look(0 if waited else 2)  # the connection to a process breaks before it counts as dead
                if not waited:
                    raise
            finally:
                self.waits = False
        for worker in self.workers:
            worker.kill()  # as it would not hear that it shall end
        raise OSError(
            f"no batch came within {LONGEST_WAIT} s: the storage or a loader process is stuck. Look at the disk that "
            "holds the data, or load in the training process (workers=0) to see at which file"
        )

    def look(self, seconds: float = 0) -> None:
        """RuntimeError if a worker is dead, or dies within so many seconds."""
        ended = connection.wait([worker.sentinel for worker in self.workers], seconds) if self.workers else ()
        for worker in self.workers:
            if worker.sentinel not in ended:
                continue
            worker.join(2)
            code = worker.exitcode or 0
            how = f"is killed by signal: {signal.strsignal(-code)}" if code < 0 else f"exited with code {code}"
            raise RuntimeError(f"DataLoader worker (pid {worker.pid}) {how}")

    def end(self) -> None:
        """End the workers, though an error that somebody keeps may hold the iterator."""
        try:
            if self.workers:
                self.batches._shutdown_workers()
        finally:
            self.OPEN.remove(self)

    @classmethod
    def hear(cls, torchs: Any, number: int, frame: Any) -> None:
        """A handler of SIGCHLD: torch's, less what it says of workers while nobody waits for their batches.

        It has to speak to one who waits: half a message of a worker that died would be read for ever.
        """
        try:
            torchs(number, frame)
        except RuntimeError as error:
            quiet = {worker.pid for waiting in cls.OPEN if not waiting.waits for worker in waiting.workers}
            if not any(int(pid) in quiet for pid in re.findall(r"\(pid (\d+)\)", str(error))):
                raise


def outlive_sigterm(ends: ctypes.c_byte, worker: int) -> None:
    """A cluster signals all processes of a job; a worker goes on until the process that it works for ends."""
    on_sigterm(lambda: ends.value and os._exit(0))


class Reporting(Dataset[dict[str, Any]]):
    """What a worker sends: batches, or the error that kept it from one, which DataLoader would bury in a traceback.

    Batches are put into shared memory here: where it is full, DataLoader's own thread would lose the batch, and the
    training wait for ever.
    """

    def __init__(self, batches: Dataset[dict[str, Any]]):
        self.batches = batches

    def __getitem__(self, number: int) -> dict[str, Any]:
        try:
            batch = self.batches[number]
            for value in batch.values():
                for tensor in value if isinstance(value, Masks) else [value]:
                    if isinstance(tensor, Tensor):
                        tensor.share_memory_()
            return batch
        except RuntimeError as error:
            failure = loader_failure(error)
            if failure is None:
                raise
            return {"error": failure, "traceback": traceback.format_exc()}
        except (OSError, TypeError, ValueError) as error:
            return {"error": sendable(error), "traceback": traceback.format_exc()}


def sendable(error: OSError | TypeError | ValueError) -> OSError | TypeError | ValueError:
    """The error, or one of its kind that says the same; where it cannot be pickled, the training would wait for it."""
    try:
        pickle.dumps(copy.copy(error))  # which is made from its arguments, as it would be where it arrives
        return error
    except Exception:  # whatever its attributes or its constructor raise
        kind = next(kind for kind in (OSError, TypeError, ValueError) if isinstance(error, kind))
        return kind(f"{type(error).__name__}: {error}")
