"""Clips of a video file, decoded with PyAV."""

from io import BytesIO

import av
from PIL import Image

from .source import Choose


def read_clips(
    file: "str | BytesIO",
    choose: Choose,
) -> list[list[Image.Image]]:  # [clips][T]
    """The frames of the first video stream that ``choose`` names, decoded from the key frame before them.

    A header may promise a few frames more than there are: the last frame then stands for those. ValueError if more
    than half of the frames are missing.
    """
    with av.open(file) as container:
        if not container.streams.video:
            raise ValueError("the file has no video stream")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # the loader already runs one process for each core
        rate, start = float(stream.average_rate), stream.start_time or 0
        seconds = stream.duration * stream.time_base if stream.duration else container.duration / av.time_base
        wanted = choose(stream.frames or round(seconds * rate), rate)
        numbers = sorted(set(wanted.flatten().tolist()))
        container.seek(start + int(numbers[0] / rate / stream.time_base), stream=stream)
        pictures = []
        for frame in container.decode(stream):
            number = round((frame.pts - start) * stream.time_base * rate)
            while len(pictures) < len(numbers) and number >= numbers[len(pictures)]:
                pictures.append(frame.to_image())
            if len(pictures) == len(numbers):
                break
    if 2 * len(pictures) < len(numbers):
        raise ValueError(f"only {len(pictures)} of {len(numbers)} frames could be decoded")
    place = {number: min(i, len(pictures) - 1) for i, number in enumerate(numbers)}
    return [[pictures[place[number]] for number in clip] for clip in wanted.tolist()]
