"""One job at a time in the folder of a run.

``OUT/run.lock`` names the process that holds the folder. On its own machine that process is looked for, so that a run
that was killed leaves nothing behind that is in the way. From another machine it cannot be seen: there it counts as
alive until the time of its file, which it renews, is old. Times are compared as the file server gives them.
"""

import json
import os
import platform
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..weights.storage import writing
from .distributed import World

BEAT, STALE = 15.0, 120.0
"""Seconds from one renewal to the next, and without one after which a process on another machine counts as dead."""

SETTLE = 0.5
"""Seconds in which another process that takes over the same old lock would have done so."""


class RunLock:
    """Holds the folder ``out`` for all ranks of a job, as a context.

    Raises FileExistsError, on all ranks, if another job holds it.
    """

    def __init__(self, out: Path, world: World, name: str = "run.lock"):
        self.path, self.world = Path(out) / name, world
        self.own: dict[str, Any] = {
            "host": platform.node(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
        }
        self.lost, self._made = False, False
        self._ends = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "RunLock":
        reason = None
        if self.world.rank == 0:
            try:
                self._take()
            except OSError as error:
                reason = error
        reason = self.world.first(reason)
        if reason is not None:
            raise reason
        if self.world.rank == 0:
            self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        if self._heart.is_alive():  # a thread that frees the process group while Python ends would abort
            self._heart.join()
        if self.world.rank == 0 and _read(self.path) == self.own:
            self.path.unlink()
            if self._made:
                with suppress(OSError):  # it holds something by now, unless the run ended before it began
                    self.path.parent.rmdir()

    def check(self) -> None:
        """FileExistsError if another job has taken the folder over, as it may from a machine that slept."""
        if self.lost:
            raise FileExistsError(f"{_name(_read(self.path))} has taken over {self.path.parent}; this run ends")

    def _take(self) -> None:
        self._made = not self.path.parent.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps(self.own)
        try:
            self.path.touch(exist_ok=False)
        except FileExistsError:
            self._take_over(data)
            return
        try:
            with writing(self.path):
                self.path.write_text(data)
        except OSError:
            self.path.unlink()
            raise

    def _take_over(self, data: str) -> None:
        """Put a lock in the place of one whose process is dead; of several that try, the last one has it."""
        new = self.path.with_name(f"{self.path.name}.{self.own['host']}.{self.own['pid']}")
        try:
            with writing(new):
                new.write_text(data)
            try:
                age = new.stat().st_mtime - self.path.stat().st_mtime
            except FileNotFoundError:  # the other process ended at this moment
                age = float("inf")
            holder = _read(self.path)
            if _alive(holder, age, self.own["machine"]):
                raise FileExistsError(
                    f"{self.path.parent} is in use by {_name(holder)}, which gave a sign of life {max(age, 0):.0f} s "
                    "ago; end it, or choose another out"
                )
            os.replace(new, self.path)
        finally:
            new.unlink(missing_ok=True)
        time.sleep(SETTLE)
        if _read(self.path) != self.own:
            raise FileExistsError(f"{self.path.parent} is in use by {_name(_read(self.path))}; choose another out")

    def _beat(self) -> None:
        while not self._ends.wait(BEAT):
            if _read(self.path) not in (self.own, {}):
                self.lost = True
                return
            try:
                os.utime(self.path)
            except OSError:  # a file server may be away for a while
                continue


def _read(path: Path) -> dict[str, Any]:
    """The values in the file of a lock; {} if it cannot be read, or is being written."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on host {holder.get('host', '?')}"


def _alive(holder: dict[str, Any], age: float, machine: str) -> bool:
    if holder.get("machine") != machine or not isinstance(holder.get("pid"), int):
        return age < STALE
    try:
        os.kill(holder["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user, of whose processes nothing else may be known
        return age < STALE
    return _started(holder["pid"]) == holder.get("started")


def _machine() -> str:
    """The kernel that is running, and which of its processes this one can see."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _started(pid: int) -> int:
    """When a process started, in ticks after the machine started; 0 if it has ended or the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])
