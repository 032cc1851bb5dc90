"""The workers as actors of Ray Data, which places them, feeds them and starts them again."""

import logging
import os
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from .parts import Job, Part, Worker

if TYPE_CHECKING:
    from .options import Options

MOST_BLOCKS = 10_000
"""Tasks of a call: more of them than parts are of no use, and more than this are slow to keep account of."""


class Actor:
    """A worker as Ray Data calls it, with a row that holds a part. It answers with a mistake of the user's, if any.

    Ray would bury what is raised in its own errors, and make an actor again that cannot be made.
    """

    def __init__(self, job: Job, gpus: float, loaders: int):
        import torch

        if not gpus:
            torch.set_num_threads(1)
        self.worker = cache(partial(Worker, job, "cuda" if gpus else "cpu", loaders))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            self.worker()(row["part"])
        except (OSError, ValueError) as error:
            return {"error": error}
        return {"error": None}


class RayTeam:
    """Actors on the cluster of RAY_ADDRESS, on the one that the program has joined, or on one of this machine alone.

    Raises ValueError if Ray is not installed, is not there, or has no room for one worker.
    """

    def __init__(self, options: "Options", encodes: bool):
        self.options, self.encodes, self.own = options, encodes, False
        try:
            import ray.data
        except ImportError as error:
            raise ValueError(f"engine=ray needs Ray: pip install 'maskfeat-kernels[ray]' ({error})") from error
        self.ray: Any = ray

    def __enter__(self) -> "RayTeam":
        ray, address = self.ray, os.environ.get("RAY_ADDRESS")
        if not ray.is_initialized():
            try:
                ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                reason = str(error).partition("\n")[0]
                raise ValueError(f"there is no Ray cluster at RAY_ADDRESS={address} ({reason})") from error
            self.own = True
        return self

    def __exit__(self, *_: object) -> None:
        if self.own:
            self.ray.shutdown()

    def run(self, job: Job, parts: list[Part], done: Callable[[], object]) -> None:
        if not parts:
            return
        ray, there = self.ray, self.ray.cluster_resources()
        gpus = self.options.gpus if self.options.gpus >= 0 else float(self.encodes and there.get("GPU", 0) >= 1)
        loaders = self.options.loaders if self.options.loaders >= 0 else 4 * bool(gpus)
        cpus = max(loaders, 1)
        room = int(min(there.get("CPU", 0) // cpus, there.get("GPU", 0) / gpus if gpus else float("inf")))
        if not room:
            raise ValueError(
                f"a worker needs {cpus} CPUs and {gpus:g} GPUs, and the cluster has {there.get('CPU', 0):g} and "
                f"{there.get('GPU', 0):g}; set loaders= and gpus="
            )
        workers = min(room if self.options.workers < 1 else self.options.workers, len(parts))
        ray.data.DataContext.get_current().enable_progress_bars = False  # they would count blocks
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=min(len(parts), MOST_BLOCKS))
        found = rows.map(
            Actor,
            fn_constructor_args=(job, gpus, loaders),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        try:
            for row in found.iter_rows():
                if row["error"] is not None:
                    raise row["error"]
                done()
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise OSError(f"Ray gave up: {lines[-1]}; give the same command again to go on") from error
