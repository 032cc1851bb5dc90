"""Samples of stores, fetched while those before them are decoded: a store takes long to answer, but answers many."""

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

from .decode import Unreadable

DEPTH = 16
"""Samples that are fetched, or wait to be decoded."""


class Fetches(Protocol):
    def groups(self, indices: Sequence[int]) -> list[list[int]]:
        """The samples, in order, divided into those that one request gives."""

    def fetch(self, group: Sequence[int]) -> list[bytes]:
        """Their bytes."""


class Ahead:
    """The samples that a process will ask for. Threads do not outlive a fork, so each process has its own."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(DEPTH, "fetch")
        self.plan(None, ())

    def plan(self, source: "Fetches | None", indices: Sequence[int]) -> None:
        self.source, self.next = source, deque(source.groups(indices) if source else ())
        self.begun: dict[int, tuple[Future[list[bytes]], int]] = {}

    def take(self, source: Fetches, index: int) -> bytes:
        if source is self.source:
            while self.next and len(self.begun) < DEPTH:
                group = self.next.popleft()
                future = self.pool.submit(source.fetch, group)
                self.begun |= {number: (future, place) for place, number in enumerate(group)}
            if index in self.begun:
                future, place = self.begun.pop(index)
                with suppress(Unreadable):  # it may be another one of the group that is
                    return future.result()[place]
        return source.fetch([index])[0]


_of_process: dict[int, Ahead] = {}


def _ahead() -> Ahead:
    if os.getpid() not in _of_process:
        _of_process.clear()
        _of_process[os.getpid()] = Ahead()
    return _of_process[os.getpid()]


def plan(source: Fetches, indices: Sequence[int]) -> None:
    """Say which samples of a source will be taken next, in about this order."""
    _ahead().plan(source, indices)


def take(source: Fetches, index: int) -> bytes:
    """The bytes of a sample, which may have been begun."""
    return _ahead().take(source, index)
