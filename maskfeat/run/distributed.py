"""The ranks of a run: joining them, sharing a model between them, and sums over them."""

import atexit
import gc
import itertools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..config import Recipe
from ..model import trunk
from .device import device_named


@dataclass(frozen=True)
class World:
    """This process among those of the run.

    group: a second group of all ranks, on the CPU. Checkpoints use it while training goes on.
    """

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, one rank after the other. Each rank may have another number of them."""
        if self.size == 1:
            return rows
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, rows.cpu())  # on the CPU, as in any()
        return torch.cat([part for part in parts if len(part)] or [rows]).to(rows.device)

    def any(self, value: bool) -> bool:
        """Whether ``value`` is true on any rank. It does not wait for the accelerator."""
        if self.size == 1:
            return value
        flag = torch.tensor(value, dtype=torch.int32)  # on the CPU; not over `group`, which a checkpoint may be using
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def first(self, value: Any) -> Any:
        """The value of the first rank, on all ranks. Do not call this while a checkpoint is being written."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, 0, self.group)
        return values[0]

    def every(self, value: Any) -> list[Any]:
        """The values of all ranks, in the order of the ranks. They are sent over the group of checkpoints."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, self.group)
        return values

    def wait(self) -> None:
        """Wait for all ranks; not while a checkpoint is being written."""
        dist.barrier(self.group)


class Terminated(Exception):
    """The run was asked to end (SIGTERM), and did so after saving a checkpoint."""


ENDED: list[Any] = []
"""The gloo backends of the newest run, if it has several ranks."""

RUNS = itertools.count()
"""How many runs this process has joined."""


@atexit.register
def let_go() -> None:
    """Wait for gloo's threads, without the GIL. A thread that wants it when Python is gone would abort the process."""
    if ENDED:
        gc.collect()  # DDP is in cycles; whoever lets go of gloo last waits for its threads
        ENDED.clear()


@cache
def meet(address: str, port: str) -> tuple[dist.Store, int]:
    """The store of the job and the rank. Runs of a process share it: its server could not start twice at one port."""
    store, rank, _ = next(dist.rendezvous("env://"))
    return store, rank


@contextmanager
def join(device: str = "auto", precision: str = "fp32") -> Iterator[World]:
    """The processes that torchrun started, or this one alone, on ``device``.

    Raises ValueError if there is no such device, if it lacks the precision, or if only a part of torchrun's variables
    is set.
    """
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        if not (text := os.environ.get(name, "0")).isdecimal():
            raise ValueError(f"{name} must be a whole number, as torchrun sets it, got {text!r}")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if size > 1 and missing:
        raise ValueError(
            f"WORLD_SIZE={size} is set, but not {', '.join(missing)}: start the ranks with torchrun --nproc-per-node, "
            "or unset WORLD_SIZE for one process"
        )
    let_go()
    kind = device_named(device, precision)
    if size > 1 and kind.type != "cpu":
        kind = device_named(f"{kind.type}:{os.environ['LOCAL_RANK']}")
    if kind.index is not None:
        torch.accelerator.set_device_index(kind.index)
    if size == 1:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    else:
        backend = dist.get_default_backend_for_device(kind)
        store, rank = meet(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"])
        dist.init_process_group(
            "gloo" if kind.type == "cpu" else f"cpu:gloo,{kind.type}:{backend}",
            # gloo leaves its addresses in the store, and would find those of an earlier run
            store=dist.PrefixStore(f"run {next(RUNS)}", store), rank=rank, world_size=size,
        )  # fmt: skip
    try:
        default, group = dist.group.WORLD, dist.new_group(backend="gloo")
        # A thread of gloo may want the GIL, to free a tensor of the last collective. If DDP were the last to hold gloo,
        # it would wait for the thread with the GIL, for ever. So gloo is held beyond the run.
        if size > 1:
            ENDED.extend(each._get_backend(torch.device("cpu")) for each in (default, group) if each)
        yield World(dist.get_rank(), size, kind, group)
    finally:
        dist.destroy_process_group()


def share(model: nn.Module, recipe: Recipe, world: World) -> nn.Module:
    """The model on this rank's device, compiled if the recipe says so, as DDP or FSDP2 if there are several ranks.

    FSDP2 shards ``model`` in place, a block at a time.
    """
    model.to(world.device)
    if recipe.compile:
        model.compile()
    if world.size == 1:
        return model
    if recipe.parallel == "ddp":
        return DistributedDataParallel(model, device_ids=None if world.device.type == "cpu" else [world.device.index])
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in getattr(trunk(model), "blocks", ()):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)  # in place: it becomes a module and an FSDPModule
    return model


def synchronise(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Around a part of an accumulated step: ranks exchange gradients in the last part only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together on every rank; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def finite(model: nn.Module) -> bool:
    """Whether all that this rank holds of the parameters is; waits for the device."""
    shares = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in model.parameters()]
    return bool(torch.stack([share.isfinite().all() for share in shares]).all())
