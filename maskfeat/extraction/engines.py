"""Who does the parts: processes of this machine, or actors of Ray Data. Both call the same worker.

A part is done by one worker, and is done again from its beginning if that one dies. The engine decides who does which
part; nothing here does.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from multiprocessing import connection
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..run.device import device_named
from .features import Encoded, Hog, Reading
from .parts import Job, Part, Worker, clear

if TYPE_CHECKING:
    from .options import Options

MOST_DEATHS = 3
"""So many times in a row workers may die without that a part gets done; then something is wrong with all of them."""


class Team(Protocol):
    """Workers, as a context. ``run`` calls ``done`` after each part."""

    def __enter__(self) -> "Team": ...
    def __exit__(self, *_: object) -> None: ...
    def run(self, job: Job, parts: list[Part], done: Callable[[], object]) -> None: ...


def team(options: "Options", feature: Hog | Encoded, reading: Reading) -> Team:
    """The workers that the settings ask for; ValueError if this machine or cluster has no such."""
    if options.engine == "ray":
        from .on_ray import RayTeam

        return RayTeam(options, isinstance(feature, Encoded))
    precision = feature.recipe.precision if isinstance(feature, Encoded) else "fp32"
    device = device_named(reading.device, precision)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.type == "cpu":
        devices = ["cpu"] * (cores if options.workers < 0 else options.workers)
        return LocalTeam(devices, max(options.loaders, 0))
    count = torch.accelerator.device_count()
    names = [str(device)] if device.index is not None else [f"{device.type}:{i}" for i in range(count)]
    each = int(1 / options.gpus) if options.gpus > 0 else 1
    devices = (names * each)[: options.workers if options.workers >= 0 else None]
    return LocalTeam(devices, options.loaders if options.loaders >= 0 else max(cores // max(len(devices), 1), 1))


class LocalTeam:
    """Processes of this machine, one for each name of a device; without any, this process does the work."""

    def __init__(self, devices: Sequence[str], loaders: int):
        self.devices, self.loaders = list(devices), loaders

    def __enter__(self) -> "LocalTeam":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, job: Job, parts: list[Part], done: Callable[[], object]) -> None:
        if not self.devices:
            worker = Worker(job, str(device_named(job.reading.device)), self.loaders) if parts else None
            for part in parts:
                assert worker is not None
                worker(part)
                done()
            return
        left, deaths = {part.number: part for part in parts}, 0
        while left:
            before = set(multiprocessing.active_children())
            executor = self.executor(job, len(left))
            try:
                for future in as_completed([executor.submit(_work, part) for part in left.values()]):
                    del left[future.result()]
                    deaths = 0
                    done()
            except BrokenProcessPool as error:
                begun = clear(job.out)  # come last, as one of them may be what kills
                left = dict(sorted(left.items(), key=lambda item: item[0] in begun))
                deaths += 1
                if deaths == MOST_DEATHS:
                    raise OSError(
                        "workers die without finishing a file; if the system kills them for memory, use fewer workers "
                        "or a smaller batch_size, else see which sample with workers=0"
                    ) from error
            finally:
                executor.shutdown(wait=False, cancel_futures=True)
                for process in set(multiprocessing.active_children()) - before:
                    process.kill()  # what they have begun is hidden, and is done again

    def executor(self, job: Job, parts: int) -> Executor:
        context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
        if os.name == "posix":
            context.set_forkserver_preload([__name__])
        devices = context.SimpleQueue()
        for device in self.devices[:parts]:
            devices.put(device)
        number = min(len(self.devices), parts)
        return ProcessPoolExecutor(number, context, _begin, (job, devices, self.loaders, dict(os.environ)))


_made: "list[Callable[[], Worker]]" = []
"""In a process of the pool: what makes its worker, or gives it from the second call on."""


def _begin(job: Job, devices: Any, loaders: int, environment: dict[str, str]) -> None:
    """In a new process: become the worker of one of the devices. It is made with its first part, which can fail.

    environment: of the caller now. The fork server has that of the first call, and with it older credentials.
    """
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, which reaches the driver too
    threading.Thread(target=_end_with_parent, daemon=True).start()
    device = devices.get()
    if device == "cpu":
        torch.set_num_threads(1)
    _made.append(cache(partial(Worker, job, device, loaders)))


def _end_with_parent() -> None:
    """A worker whose driver was killed would wait for ever, and hold its memory."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _work(part: Part) -> int:
    return _made[0]()(part)
