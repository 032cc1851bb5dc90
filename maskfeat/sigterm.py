"""SIGTERM, as a cluster sends it before it takes a machine away."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SAME = 3.0
"""Signals within so many seconds are one: torchrun passes them on to processes that have had them already."""


def on_sigterm(act: Callable[[], object], handler: Callable[..., object] = lambda *_: None) -> Callable[[], None]:
    """Call ``act`` in a thread of its own at each SIGTERM, though the main thread be stuck in a decoder or on a disk.

    Python calls ``handler`` in the main thread only, when the C function that it is in returns; a wake-up pipe is
    written to at once. Returns what undoes this. Only the main thread may call it.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        while numbers := os.read(reading, 64):
            for number in numbers:
                if number == signal.SIGTERM:
                    act()
        os.close(reading)

    before = signal.signal(signal.SIGTERM, handler)
    descriptor = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    PIPES.add(writing)
    thread = threading.Thread(target=watch, name="sigterm", daemon=True)
    thread.start()

    def undo() -> None:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, before)
        PIPES.discard(writing)
        os.close(writing)  # which ends the thread
        thread.join(1.0)

    return undo


def _let_go() -> None:
    """A child that is forked must not report its own signals through the pipe of its parent."""
    if PIPES:
        signal.set_wakeup_fd(-1)
    while PIPES:
        os.close(PIPES.pop())


PIPES: set[int] = set()
os.register_at_fork(after_in_child=_let_go)


@contextmanager
def watch_sigterm() -> Iterator[list[int]]:
    """A list that is empty until this process is asked to end; a second SIGTERM ends it at once, whatever it does.

    Only the main thread gets signals; in another one the list stays empty.
    """
    received: list[int] = []
    times: list[float] = []

    def count() -> None:
        times.append(time.monotonic())
        if times[-1] - times[0] > SAME:
            os.write(2, b"maskfeat: ended at once by a second SIGTERM; give the same command again to go on\n")
            for child in multiprocessing.active_children():
                child.kill()
            os._exit(128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    undo = on_sigterm(count, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        undo()
