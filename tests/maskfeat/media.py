"""Real files for tests, made on the spot: JPEG, PNG, H.264 mp4, tar shards, and damaged ones."""

import io
import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """A smooth picture that differs from those of other seeds."""
    colours = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def write_image(path: Path, seed: int, **size) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, **size).save(path)
    return path


def image_folder(root: Path, classes=("cat", "dog"), each: int = 4, split: str = "train", **size) -> Path:
    for label, name in enumerate(classes):
        for i in range(each):
            write_image(root / split / name / f"{i}.{'png' if i % 2 else 'jpg'}", 100 * label + i, **size)
    return root


def write_frames(
    path: Path,
    codec: str,
    pictures: list[np.ndarray],  # [H, W, 3] uint8
    *,
    rate: int = 30,
    times: "list[int] | None" = None,
    muxer: "dict[str, str] | None" = None,
    **options: str,
) -> Path:
    """A video with a key frame every twelve.

    times: when each frame is shown, in units of 1 / rate. muxer: options of the container; ``options`` of the codec.

    Skips the test where PyAV, which writes and reads videos, is not installed.
    """
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=rate, options={"g": "12"} | options)
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.height, stream.width = pictures[0].shape[:2]
        stream.codec_context.thread_count = 1
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_video(path: Path, frames: int = 60, rate: int = 30, width: int = 64, height: int = 48, **options) -> Path:
    """Frame i is of the grey 40 + 3 i; H.264 unless ``codec`` says otherwise."""
    greys = [np.full((height, width, 3), min(40 + 3 * i, 255), np.uint8) for i in range(frames)]
    muxer = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    return write_frames(path, options.pop("codec", "libx264"), greys, rate=rate, muxer=muxer, **options)


def shown(frame) -> int:
    """The number of a frame of :func:`write_video`, from its grey."""
    return round((float(np.asarray(frame).mean()) - 40) / 3)


def write_numbered(path: Path, codec: str = "libx264", frames: int = 60, **options) -> Path:
    """Frame i shows the bits of i, up to 255, as eight bars: any loss of quality leaves them."""
    bits = [np.array([220 if i >> bit & 1 else 30 for bit in range(8)], np.uint8) for i in range(frames)]
    return write_frames(path, codec, [np.tile(b.repeat(8)[None, :, None], (48, 1, 3)) for b in bits], **options)


def number(frame) -> int:
    """The number of a frame of :func:`write_numbered`."""
    bars = np.asarray(frame, np.float32).mean((0, 2)).reshape(8, 8)[:, 2:-2].mean(1)
    return sum(1 << bit for bit in range(8) if bars[bit] > 125)


def write_quarters(path: Path) -> Path:
    """Eight frames, each quarter of another grey."""
    greys = np.array([[40, 100], [160, 220]], np.uint8).repeat(24, 0).repeat(32, 1)
    return write_frames(path, "libx264", [np.stack([greys] * 3, -1)] * 8)


def truncate(path: Path, share: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def text_named_jpg(path: Path) -> Path:
    path.write_text("this is no picture\n" * 20)
    return path


def write_shard(path: Path, samples: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "jpeg")
    return file.getvalue()
