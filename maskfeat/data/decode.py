"""Frames from the bytes of an image or a video."""

import os
import stat
import warnings
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image

from .augment import Frames

Choose = Callable[[int, float], np.ndarray]
"""Chooses the frames to read, ``[clips, T]``, from a video's number of frames and its frames per second."""
Decode = Callable[["str | BytesIO", Choose | None], list[Frames]]

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may hold, however it is named. Pillow knows others, and for PostScript starts a program on the file."""

PLAYED_AT = 30
"""Frames per second at which the ``step`` of a clip counts, whatever the rate of the file."""


class Unreadable(Exception):
    """A sample that cannot be decoded; the message has its name and the reason."""


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


def read_image(file: "str | BytesIO", choose: Choose | None) -> list[Frames]:
    """One clip of one frame. ValueError for more pixels than Pillow takes for harmless (``MAX_IMAGE_PIXELS``)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # check_size says it with the name
        image = Image.open(file, formats=FORMATS)
    with image:
        check_size(*image.size)
        if image.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255
            return [[Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")]]
        if "transparency" in image.info:
            return [[image.convert("RGBA").convert("RGB")]]
        return [[image.convert("RGB")]]


def check_size(width: int, height: int) -> None:
    """ValueError for a picture that would take too much memory, though its file may have some hundred bytes."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit and width * height > limit:
        raise ValueError(f"{width} x {height} pixels are more than the {limit} of PIL.Image.MAX_IMAGE_PIXELS")


def read_clips(
    file: "str | BytesIO",
    choose: Choose | None,
) -> list[Frames]:  # [clips][T]
    """The frames of the first video stream that ``choose`` names, decoded from the key frame before them.

    A header may promise a few frames more than there are: the last frame then stands for those. ValueError if more
    than half of the frames are missing.
    """
    import av  # needed for videos only

    assert choose is not None

    with av.open(file, "r") as container:
        if not container.streams.video:
            raise ValueError("the file has no video stream")
        stream = container.streams.video[0]
        check_size(stream.width, stream.height)
        stream.codec_context.thread_count = 1  # the loader already runs one process for each core
        if stream.average_rate is None or stream.time_base is None:
            raise ValueError("the video stream has no frame rate")
        tick, rate, start = stream.time_base, float(stream.average_rate), stream.start_time or 0
        seconds = stream.duration * tick if stream.duration else (container.duration or 0) / av.time_base
        wanted = choose(stream.frames or round(seconds * rate), rate)
        numbers = sorted(set(wanted.flatten().tolist()))
        container.seek(start + int(numbers[0] / rate / tick), stream=stream)
        pictures: list[Image.Image] = []
        for frame in container.decode(stream):
            check_size(frame.width, frame.height)  # which may change within a stream
            if frame.pts is None:
                raise ValueError("a frame has no time")
            number = round((frame.pts - start) * tick * rate)
            while len(pictures) < len(numbers) and number >= numbers[len(pictures)]:
                pictures.append(frame.to_image())
            if len(pictures) == len(numbers):
                break
    if 2 * len(pictures) < len(numbers):
        raise ValueError(f"only {len(pictures)} of {len(numbers)} frames could be decoded")
    place = {number: min(i, len(pictures) - 1) for i, number in enumerate(numbers)}
    return [[pictures[place[number]] for number in clip] for clip in wanted.tolist()]


def decoded(decode: Decode, file: "str | BytesIO", name: str, choose: Choose | None) -> list[Frames]:
    """Call ``decode``; whatever it raises becomes Unreadable.

    Only regular files are opened, as a pipe would keep us waiting for ever.
    """
    try:
        if isinstance(file, str) and not stat.S_ISREG(os.stat(file).st_mode):
            raise OSError("a folder, pipe, socket or device, no file")
        return decode(file, choose)
    except ImportError:  # of PyAV: no fault of the file
        raise
    except Exception as error:  # a decoder may fail in any way on a damaged file
        raise Unreadable(f"{name} ({type(error).__name__}: {error})") from error
