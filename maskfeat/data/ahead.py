"""Samples of stores, fetched while those before them are decoded: a store takes long to answer, but answers many."""

import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

DEPTH = 16
"""Samples that are fetched, or wait to be decoded."""


class Fetches(Protocol):
    def fetch(self, index: int) -> bytes: ...


class Ahead:
    """The samples that a process will ask for. Threads do not outlive a fork, so each process has its own."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(DEPTH, "fetch")
        self.plan(None, ())

    def plan(self, source: "Fetches | None", indices: Iterable[int]) -> None:
        self.source, self.next = source, deque(indices)
        self.begun: dict[int, Future[bytes]] = {}

    def take(self, source: Fetches, index: int) -> bytes:
        if source is self.source:
            while self.next and len(self.begun) < DEPTH:
                number = self.next.popleft()
                if number not in self.begun:
                    self.begun[number] = self.pool.submit(source.fetch, number)
            if index in self.begun:
                return self.begun.pop(index).result()
        return source.fetch(index)


_of_process: dict[int, Ahead] = {}


def _ahead() -> Ahead:
    if os.getpid() not in _of_process:
        _of_process.clear()
        _of_process[os.getpid()] = Ahead()
    return _of_process[os.getpid()]


def plan(source: Fetches, indices: Iterable[int]) -> None:
    """Say which samples of a source will be taken next, in about this order."""
    _ahead().plan(source, indices)


def take(source: Fetches, index: int) -> bytes:
    """``source.fetch(index)``, which may have been begun."""
    return _ahead().take(source, index)
