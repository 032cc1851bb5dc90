"""The frames of a video that a clip asks for, whatever the container.

Frame n is the n-th that a player shows that starts at the beginning. A file says in three ways where it is. Of mp4 and
mov there is an index, read on opening. Where its frames are evenly spaced, the time of a frame is its number. In
Matroska, WebM and FLV every packet carries the time at which its frame is shown, so all packets are listed, none of
them decoded. Anything else is decoded from its beginning and counted: MPEG program and transport streams and AVI seek
to places that they guess, or show frames at times that they guess, and raw streams have no times at all.
"""

import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO
from itertools import chain, islice
from typing import Any

import numpy as np
from PIL import Image

from .augment import Frames
from .bands import of_picture
from .decode import PLAYED_AT, Choose, check_size
from .images import IMAGES, read_image

VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".flv", ".avi", ".mpg", ".mpeg", ".m2v", ".vob"),
    *(".ts", ".mts", ".m2ts", ".wmv", ".asf", ".ogv", ".h264", ".hevc", ".gif"),
)

INDEXED = "mov,mp4,m4a,3gp,3g2,mj2"
SOUGHT = (INDEXED, "matroska,webm", "flv")
"""Formats, as FFmpeg calls them, in which one can seek, and whose packets carry the time at which they are shown."""

FORMATS = (
    *("mov", "mp4", "matroska", "webm", "flv", "avi", "mpeg", "mpegts", "mpegvideo", "asf", "ogg"),
    *("h264", "hevc", "m4v", "ivf", "nut", "mxf", "gif"),
)
"""What a file may hold, however it is named: a playlist called ``.mp4`` would open other files."""

REWOUND: Counter[str] = Counter()
"""How many videos of which format this process decoded from their beginning; the loader takes them out."""

BACK = (0, 2, 10, 60)
"""Seconds to seek further back where decoding begins behind the frame: then from the beginning."""

REORDERED = 32
"""Packets among which frames may be stored in another order than they are shown; H.264 and H.265 allow 16."""

TURNS: dict[tuple[int, ...], Image.Transpose | None] = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,  # Pillow turns counterclockwise
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""What makes a stored frame the one to show: of (a, b, c, d), where (x, y) is shown at (a x + c y, b x + d y)."""


def read_clips(
    file: "str | BytesIO",
    choose: Choose | None,
    *,
    autorotate: bool = True,
    channels: int = 3,
    data_range: tuple[float, ...] = (),
) -> list[Frames]:  # [clips][T]
    """The frames of the first video stream that ``choose`` names, or of a folder of pictures at 30 a second.

    autorotate: turn and mirror them as the display matrix of the file says.
    channels, data_range: of pictures, as :func:`.images.read_image` has them; of a video 3, or 1 for the brightness.

    A header may promise a few frames more than there are: the last frame then stands for those. Where a frame cannot
    be decoded, the next one does. ValueError if more than half of the frames are missing.
    """
    assert choose is not None
    if isinstance(file, str) and os.path.isdir(file):
        return _of_folder(file, choose, autorotate=autorotate, channels=channels, data_range=data_range)
    if channels not in (1, 3):
        raise ValueError(
            f"a video of 3 channels, and channels={channels}; set channels=3, or make each clip a folder of pictures"
        )
    with _opened(file) as container:
        stream = _video(container)
        name, rate, total = container.format.name, stream.average_rate, stream.frames
        times: list[int] = []
        indexed = bool(name == INDEXED and rate and _complete(stream))
        if not indexed:
            total, times = _listed(container, stream)
            rate = _rate(stream, times)
        if not total:
            raise ValueError("the video stream has no frames")
        wanted = choose(total, float(rate))
        numbers = sorted(set(wanted.flatten().tolist()))
        spacing = _spacing(stream, numbers[-1]) if indexed else 0.0
        pictures = _sought(container, stream, numbers, spacing, [], autorotate) if spacing else None
        if indexed and pictures is None:
            _, times = _listed(container, stream)
        if pictures is None and name in SOUGHT and times:
            pictures = _sought(container, stream, numbers, 0.0, times, autorotate)
    if pictures is None:
        REWOUND[name] += 1
        if not isinstance(file, str):
            file.seek(0)
        with _opened(file) as container:
            frames = enumerate(container.decode(_video(container)))
            pictures = _pictures(frames, numbers, autorotate)
    if 2 * len(pictures) < len(numbers):
        raise ValueError(f"only {len(pictures)} of {len(numbers)} frames could be decoded")
    shown = [of_picture(picture, channels) for picture in pictures] if channels != 3 else pictures
    place = {number: min(i, len(pictures) - 1) for i, number in enumerate(numbers)}
    return [[shown[place[number]] for number in clip] for clip in wanted.tolist()]


def _of_folder(folder: str, choose: Choose, **pixels: Any) -> list[Frames]:
    """Frames are the pictures in the order of the numbers in their names: frame_2 before frame_10."""
    pictures = [name for name in os.listdir(folder) if name.lower().endswith(IMAGES) and not name.startswith(".")]
    if not pictures:
        raise ValueError(f"a folder without pictures {', '.join(IMAGES)}")
    pictures.sort(key=lambda name: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)])
    wanted = choose(len(pictures), float(PLAYED_AT))
    shown = {}
    for number in sorted(set(wanted.flatten().tolist())):
        [[shown[number]]] = read_image(os.path.join(folder, pictures[number]), choose, **pixels)
    return [[shown[number] for number in clip] for clip in wanted.tolist()]


def _opened(file: "str | BytesIO") -> Any:
    import av  # needed for videos only

    try:
        return av.open(file, options={"format_whitelist": ",".join(FORMATS)})
    except av.ArgumentError:
        raise ValueError(f"it holds none of the formats {', '.join(FORMATS)}") from None


def _video(container: Any) -> Any:
    if not container.streams.video:
        raise ValueError("the file has no video stream")
    stream = container.streams.video[0]
    check_size(stream.width, stream.height)
    stream.codec_context.thread_count = 1  # the loader already runs one process for each core
    return stream


def _complete(stream: Any) -> bool:
    """Whether the index has all frames of the stream, none of them cut off by an edit list."""
    entries = stream.index_entries
    return len(entries) == stream.frames > 0 and not entries[0].is_discard


def _spacing(stream: Any, last: int) -> float:
    """Ticks from one frame to the next, where the packets up to frame ``last`` come evenly, to a quarter; else 0.

    Frames are the packets in another order.
    """
    entries = islice(stream.index_entries, last + REORDERED)
    times = np.fromiter((entry.timestamp for entry in entries), np.int64)
    if len(times) < 2:
        return float(1 / (stream.average_rate * stream.time_base))
    spacing = (times[-1] - times[0]) / (len(times) - 1)
    even = abs(times - times[0] - np.arange(len(times)) * spacing).max() <= spacing / 4
    return float(spacing) if even else 0.0


def _listed(container: Any, stream: Any) -> tuple[int, list[int]]:
    """The number of frames, and when each is shown, in order; no times where not all are known and differ.

    Nothing is decoded. Of a damaged file, frames before the damage are listed.
    """
    import av

    hides = stream.codec_context.name == "vp8"  # which marks frames that are only referred to, never shown
    times = []
    with suppress(av.FFmpegError):
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard and not (hides and not bytes(packet)[0] & 16):
                times.append(packet.pts)
    known = None not in times and len(set(times)) == len(times)
    return len(times), sorted(times) if known else []


def _rate(stream: Any, times: list[int]) -> Any:
    """Frames per second: what the file says, unless its times say otherwise by more than a twentieth."""
    said = stream.average_rate or stream.guessed_rate or PLAYED_AT
    if len(times) < 2:
        return said
    measured = (len(times) - 1) / ((times[-1] - times[0]) * stream.time_base)
    return measured if abs(measured - said) > said / 20 else said


def _sought(
    container: Any,
    stream: Any,
    numbers: list[int],
    spacing: float,  # ticks from one frame to the next; 0 where ``times`` are given
    times: list[int],  # of all frames
    autorotate: bool,
) -> "list[Image.Image] | None":
    """Frames decoded from the key frame before the first; None if no seek comes before it, or they come unevenly."""
    start, even, before = stream.start_time or 0, True, -1

    def number(time: int) -> int:
        nonlocal even, before
        if times:
            return bisect_left(times, time)
        place = (time - start) / spacing
        even &= abs(place - round(place)) <= 0.25 and before in (-1, round(place) - 1)
        before = round(place)
        return before

    first = times[min(numbers[0], len(times) - 1)] if times else start + int(numbers[0] * spacing)
    for seconds in BACK:
        target = max(first - int(seconds / stream.time_base), start)
        container.seek(target, stream=stream)
        before = -1
        frames = ((number(frame.pts), frame) for frame in container.decode(stream) if frame.pts is not None)
        head = next(frames, None)
        # An open group of pictures begins with frames that need those before it, which no decoder shows.
        if head and (head[0] <= numbers[0] or target == start):
            pictures = _pictures(chain([head], frames), numbers, autorotate)
            return pictures if even else None
    return None


def _pictures(frames: Iterable[tuple[int, Any]], numbers: list[int], autorotate: bool) -> list[Image.Image]:
    """Of frames with their numbers, in order, those with ``numbers``, or the next after each."""
    pictures: list[Image.Image] = []
    turn = None
    for number, frame in frames:
        check_size(frame.width, frame.height)  # which may change within a stream
        while number >= numbers[len(pictures)]:
            if autorotate and not pictures:
                turn = _turn(frame)
            picture = _picture(frame)
            pictures.append(picture if turn is None else picture.transpose(turn))
            if len(pictures) == len(numbers):
                return pictures
    return pictures


def _picture(frame: Any) -> Image.Image:
    """The frame in RGB, converted by one thread: a process that is forked later could not end the threads, and hang."""
    try:
        return frame.to_image(threads=1)
    except TypeError:  # a PyAV that has no threads here
        return frame.to_image()


def _turn(frame: Any) -> Image.Transpose | None:
    """What the display matrix of the stream says; ValueError for angles between the right ones.

    One frame is asked: in PyAV its side data and it hold each other, so it stays until Python looks for garbage.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return None
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    turn = tuple((value > 0) - (value < 0) for value in (a, b, c, d))
    if turn not in TURNS:
        raise ValueError(
            f"its display matrix turns it by {frame.rotation} degrees; read are multiples of 90, and autorotate=false "
            "takes frames as they are stored"
        )
    return TURNS[turn]
