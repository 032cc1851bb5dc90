"""Real files for tests, made on the spot: JPEG, PNG, H.264 mp4, tar shards, and damaged ones."""

import io
import tarfile
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


def write_video(path: Path, frames: int = 60, rate: int = 30, width: int = 64, height: int = 48, **options) -> Path:
    """Frame i is of the grey 40 + 3 i, with a key frame every twelve; H.264 unless ``codec`` says otherwise.

    Skips the test where PyAV, which writes and reads videos, is not installed.
    """
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(options.pop("codec", "libx264"), rate=rate, options={"g": "12"} | options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            grey = np.full((height, width, 3), min(40 + 3 * i, 255), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
        container.mux(stream.encode())
    return path


def shown(frame) -> int:
    """The number of a frame of :func:`write_video`, from its grey."""
    return round((float(np.asarray(frame).mean()) - 40) / 3)


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
