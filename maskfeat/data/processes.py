"""The processes that load batches: how they end, and what a user hears of one that died or is stuck."""

import atexit
import ctypes
import os
import traceback
from multiprocessing import RawValue
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

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
    """The error that a user reads if a loader process died or is stuck; None for an error of another kind.

    torch raises it wherever the training is when the process dies.
    """
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
