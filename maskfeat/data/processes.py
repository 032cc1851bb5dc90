"""The processes that load batches: how they end, and what a user hears of one that died or is stuck."""

import atexit
import ctypes
import errno
import gc
import os
import signal
import threading
import time
import traceback
from collections.abc import Generator, Iterator
from functools import partial
from multiprocessing import RawValue
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..mask import Masks
from ..sigterm import on_sigterm

LONGEST_WAIT = 600
"""Seconds after which a batch that does not come is an error."""

SHARED_MEMORY = (
    "the shared memory, through which loader processes send batches, is full; use fewer workers or workers=0, or a "
    "smaller batch_size, or enlarge /dev/shm (docker run --shm-size=8g or --ipc=host)"
)

ENDS = RawValue(ctypes.c_byte)
"""Shared with the workers: true when this process ends, before multiprocessing ends the workers that are left."""
atexit.register(setattr, ENDS, "value", True)


def loader_failure(error: RuntimeError) -> OSError | None:
    """The error that a user reads if a loader process died or is stuck; None for an error of another kind."""
    text = str(error)
    if "killed by signal: Bus error" in text or "No space left on device" in text:
        return OSError(f"{SHARED_MEMORY} ({text.splitlines()[0]})")
    if "DataLoader timed out" in text:
        return OSError(
            f"no batch came within {LONGEST_WAIT} s: the storage or a loader process is stuck. Look at the disk that "
            "holds the data, or load in the training process (workers=0) to see at which file"
        )
    if "Too many open files" in text:
        return OSError("the loader processes have too many files open; raise `ulimit -n`, or use fewer workers")
    if "DataLoader worker" in text:
        return OSError(
            f"a loader process died ({text.splitlines()[0]}). If the system killed it for memory, use fewer workers, a "
            "smaller batch_size, or workers=0; the run goes on from its last checkpoint"
        )
    return None


def batches_of(loader: DataLoader[dict[str, Any]]) -> Generator[dict[str, Any]]:
    """The batches. Closing ends the workers at once. OSError if one died or is stuck."""
    waiting = Waiting(loader)
    try:
        while True:
            failure = None
            try:
                batch = next(waiting)
            except StopIteration:
                return
            except RuntimeError as error:
                failure = loader_failure(error)
                if failure is None:
                    raise
            if failure:  # raised without the other error, whose traceback would keep the iterator and so the workers
                raise failure
            yield batch
    finally:
        waiting.close()


class Waiting(Iterator[dict[str, Any]]):
    """The batches of a loader. That a worker died is raised while a batch is waited for, and at no other time.

    torch raises it from its handler of SIGCHLD, and so between any two lines of the training. A lock that is just being
    taken would fail in its own way, and a destructor would swallow it.
    """

    OPEN: ClassVar[list["Waiting"]] = []
    listens: ClassVar[bool] = False

    def __init__(self, loader: DataLoader[dict[str, Any]]):
        self.loader, self.death, self.waits = loader, "", False
        # A worker must not free garbage of this process. A process group or a decoder joins its threads when it is
        # freed, and a worker would wait for ever: it is forked without them.
        # The caller may have frozen objects too, and these stay so.
        were_frozen = gc.get_freeze_count()
        gc.freeze()
        try:
            self.batches = iter(loader)
        except OSError as error:  # of starting the workers: the semaphores of their queues are in shared memory too
            raise OSError(f"{SHARED_MEMORY} ({error})") if error.errno == errno.ENOSPC else error from None
        finally:
            if not were_frozen:
                gc.unfreeze()
        self.OPEN.append(self)
        if loader.num_workers and threading.current_thread() is threading.main_thread():  # where torch has a handler
            torchs = signal.getsignal(signal.SIGCHLD)
            if callable(torchs) and not Waiting.listens:
                signal.signal(signal.SIGCHLD, partial(Waiting.hear, torchs))
                Waiting.listens = True
            signal.raise_signal(signal.SIGCHLD)  # a worker may have died before torch knew of it

    def __next__(self) -> dict[str, Any]:
        self.waits = True
        try:
            if self.death:
                raise RuntimeError(self.death)
            return next(self.batches)
        except (ConnectionError, EOFError) as error:
            if not self.loader.num_workers:
                raise
            time.sleep(2)  # the worker is about to be dead, and then the handler raises, and says of what
            raise RuntimeError(f"DataLoader worker ended while it sent a batch: {error!r}") from error
        finally:
            self.waits = False

    def close(self) -> None:
        """End the workers. Whatever is heard of them until they have ended is not raised."""
        del self.batches
        self.OPEN.remove(self)

    @classmethod
    def hear(cls, torchs: Any, number: int, frame: Any) -> None:
        """A handler of SIGCHLD: keeps what torch's handler raises until a batch is waited for."""
        try:
            torchs(number, frame)
        except RuntimeError as error:
            if not cls.OPEN or any(waiting.waits for waiting in cls.OPEN):
                raise
            for waiting in cls.OPEN:
                waiting.death = str(error)


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
            return {"error": error, "traceback": traceback.format_exc()}
