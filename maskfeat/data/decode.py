"""Which frames make up a clip, and what a sample that cannot be decoded raises."""

import os
import stat
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image

from .augment import Frames

Choose = Callable[[int, float], np.ndarray]
"""Chooses the frames to read, ``[clips, T]``, from a video's number of frames and its frames per second."""
Decode = Callable[["str | BytesIO", Choose | None], list[Frames]]

PLAYED_AT = 30
"""Frames per second at which the ``step`` of a clip counts, whatever the rate of the file."""


CUT = 900
"""Seconds at which the annotated part of a film of AVA begins."""


class Unreadable(Exception):
    """A sample that cannot be decoded: its name and the reason."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def frame_numbers(
    total: int,
    rate: float,
    *,
    frames: int,
    step: int,
    clips: int = 1,
    sampling: str = "dense",
    rng: np.random.Generator | None = None,
) -> np.ndarray:  # [clips, frames] int64
    """Which of ``total`` frames make up the clips: at random places with ``rng``, else evenly spread over the video.

    dense: frames about ``step`` apart at 30 frames per second, so more or fewer of a file of another ``rate``.
    uniform: the video in as many parts as there are frames; of each a random frame, or the middle one.

    A video that is too short ends in copies of its last frame.

    Source: SlowFast's sampling (dense as for Kinetics, uniform as for Something-Something).
    """
    if sampling == "uniform":
        edges = np.linspace(0, total - 1, frames + 1).round()
        places = rng.random((clips, frames)) if rng else np.full((clips, frames), 0.5)
        numbers = edges[:-1] + places * (edges[1:] - edges[:-1])
    else:
        span = step * frames * rate / PLAYED_AT
        spare = max(total - span, 0)
        starts = rng.uniform(0, spare, clips) if rng else spare * (np.arange(clips) / (clips - 1) if clips > 1 else 0.5)
        numbers = np.linspace(starts, starts + span - 1, frames, axis=-1).reshape(clips, frames)
    return numbers.clip(0, total - 1).astype(np.int64)


def around(choose: Choose, second: float) -> Choose:
    """The clips of ``choose``, with their middle at a second of the film, or as near as it allows.

    Of films that were cut to begin at minute 15, as those of AVA often are, the second may still be that of the whole.
    """

    def chosen(total: int, rate: float) -> np.ndarray:
        numbers, place = choose(total, rate), second * rate
        if place >= total:
            place -= CUT * rate
        middle = (numbers.min() + numbers.max()) / 2
        return (numbers + round(place - middle)).clip(0, total - 1)

    return chosen


def check_size(width: int, height: int) -> None:
    """ValueError for a picture that would take too much memory, though its file may have some hundred bytes."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit and width * height > limit:
        raise ValueError(f"{width} x {height} pixels are more than the {limit} of PIL.Image.MAX_IMAGE_PIXELS")


def decoded(decode: Decode, file: "str | BytesIO", name: str, choose: Choose | None) -> list[Frames]:
    """Call ``decode``; whatever it raises becomes Unreadable.

    A pipe or a device is not opened, as it would keep us waiting for ever.
    """
    try:
        mode = os.stat(file).st_mode if isinstance(file, str) else stat.S_IFREG
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError("a pipe, socket or device, no file")
        return decode(file, choose)
    except ImportError:  # of PyAV: no fault of the file
        raise
    except Exception as error:  # a decoder may fail in any way on a damaged file
        raise Unreadable(name, f"{type(error).__name__}: {error}") from error
