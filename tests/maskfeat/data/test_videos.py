"""Every frame that is asked for is the frame that one gets: containers and codecs that PyAV can write here."""

import io
import multiprocessing
import struct

import media
import numpy as np
import pytest
from test_data import clips
from test_source import pictures

from maskfeat.data import videos
from maskfeat.data.loader import make_loader
from maskfeat.data.videos import read_clips

B = {"bf": "3"}
OPEN = {"bf": "3", "x264-params": "open-gop=1"}
OPEN_265 = {"x265-params": "log-level=none:open-gop=1:keyint=12"}
VARIABLE = np.cumsum([0] + [1, 1, 2, 1, 4, 1] * 9 + [3] * 5).tolist()
LATE = list(range(45, 105))
LONG_END = [*range(58), 70, 90]
JITTER = [20 * i + i * 7 % 5 for i in range(60)]  # of 600 a second, as telephones record
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
STREAMED = {"live": "1"}  # without duration and index

QUICK = [
    ("0.mp4", "libx264", OPEN, None, None),
    ("0.mp4", "libx264", B, VARIABLE, None),
    ("0.mp4", "libx264", B, None, FRAGMENTS),
    ("0.mp4", "libx264", B, LONG_END, None),
    ("0.mp4", "libx264", B | {"rate": 600}, JITTER, None),
    ("0.mov", "mpeg4", {}, LATE, None),
    ("0.mkv", "libx264", B, VARIABLE, STREAMED),
    ("0.webm", "libvpx", {}, None, STREAMED),
    ("0.avi", "libx264", B, None, None),
    ("0.flv", "libx264", B, None, None),
    ("0.mpg", "mpeg2video", {"bf": "2"}, None, None),
    ("0.ts", "libx264", OPEN, None, None),
    ("0.h264", "libx264", B, None, None),
]
ALL = [
    *((f"0.{suffix}", "libx264", options, None, None)
      for suffix in ("mp4", "mov", "mkv", "avi", "flv", "ts", "mpg", "h264") for options in ({"bf": "0"}, B, OPEN)),
    *((f"0.{suffix}", codec, options, None, None)
      for suffix in ("mp4", "mov", "mkv", "avi", "ts", "mpg") for codec in ("mpeg4", "mpeg2video", "mpeg1video")
      for options in ({}, {"bf": "2"})),
    *((f"0.{suffix}", "libx265", OPEN_265, None, None) for suffix in ("mp4", "mkv", "flv", "ts", "mpg", "hevc")),
    *((f"0.{suffix}", codec, {}, times, muxer) for suffix in ("webm", "mkv") for codec in ("libvpx", "libvpx-vp9")
      for times in (None, VARIABLE, LATE) for muxer in (None, STREAMED)),
    *((f"0.{suffix}", "libx264", B, times, None) for suffix in ("mp4", "mov", "mkv", "flv")
      for times in (VARIABLE, LATE)),
    ("0.mp4", "libx264", B, VARIABLE, FRAGMENTS), ("0.m2v", "mpeg2video", {"bf": "2"}, None, None),
    ("0.m1v", "mpeg1video", {"bf": "2"}, None, None), ("0.avi", "mjpeg", {}, None, None),
    ("0.mkv", "ffv1", {}, None, None), ("0.flv", "flv", {}, None, None), ("0.asf", "wmv2", {}, None, None),
]  # fmt: skip


def frames_got(path, asked, **options):
    """The numbers of the frames that a clip of the frames ``asked`` has, and how many frames the file is said to have.

    Of every second clip the file is in memory, as in a shard.
    """
    said = []

    def choose(total, rate):
        said.append(total)
        return np.array([asked])

    source = str(path) if asked[0] % 2 else io.BytesIO(path.read_bytes())
    [clip] = read_clips(source, choose, **options)
    return [media.number(frame) for frame in clip], said[0]


def assert_every_frame(path, frames, step):
    for first in [*range(0, frames, step), frames - 1]:
        asked = [first, min(first + 1, frames - 1), min(first + 7, frames - 1)]
        assert frames_got(path, asked) == (asked, frames), path


@pytest.mark.parametrize("name, codec, options, times, muxer", QUICK)
def test_frames_are_those_that_were_asked_for(tmp_path, name, codec, options, times, muxer):
    path = media.write_numbered(tmp_path / name, codec, times=times, muxer=muxer, **options)
    assert_every_frame(path, 60, 7)


@pytest.mark.slow
@pytest.mark.parametrize("name, codec, options, times, muxer", ALL)
def test_every_frame_of_every_container(tmp_path, name, codec, options, times, muxer):
    path = media.write_numbered(tmp_path / name, codec, frames=60, times=times, muxer=muxer, **options)
    assert_every_frame(path, 60, 1)


def edit_list(path, *, skip, shown):
    """Cut as ``ffmpeg -ss -t -c copy`` does: ``skip`` frames are hidden, and ``shown`` milliseconds follow."""
    data = bytearray(path.read_bytes())
    place = data.find(b"elst") + 12
    _, start = struct.unpack_from(">Ii", data, place)
    struct.pack_into(">Ii", data, place, shown, start + skip * 512)  # of 15360 a second
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("skip, shown, left", [(17, 1000, 30), (5, 9000, 55), (0, 500, 15)])
def test_what_an_edit_list_cuts_off_is_not_there(tmp_path, skip, shown, left):
    path = edit_list(media.write_numbered(tmp_path / "0.mp4", bf="3"), skip=skip, shown=shown)
    asked = [0, 1, 8, left - 1]
    assert frames_got(path, asked) == ([number + skip for number in asked], left)


def test_videos_that_are_decoded_from_their_beginning_are_counted(tmp_path, caplog):
    for i, suffix in enumerate(("mpg", "mpg", "ts", "mp4")):
        codec = "mpeg2video" if suffix == "mpg" else "libx264"
        media.write_numbered(tmp_path / "val" / "a" / f"{i}.{suffix}", codec)
    for workers in (0, 1):
        caplog.clear()
        loader = make_loader(clips(tmp_path), "val", seed=0, workers=workers)
        assert sum(len(batch["images"]) for batch in loader) == 4
        assert loader.rewound == {"mpeg": 2, "mpegts": 1}
        assert "2 of mpeg, 1 of mpegts" in caplog.text


def test_pictures_and_playlists_are_no_videos(tmp_path):
    """A playlist would open the files that it names, whatever they are."""
    media.write_numbered(tmp_path / "secret.ts")
    (tmp_path / "0.mp4").write_text("ffconcat version 1.0\nfile 'secret.ts'\n")
    media.write_image(tmp_path / "1.png", 0).rename(tmp_path / "1.mp4")
    for name in ("0.mp4", "1.mp4"):
        with pytest.raises(ValueError, match="it holds none of the formats mov, mp4"):
            frames_got(tmp_path / name, [1])


MATRICES = {
    "as it is": (1, 0, 0, 1), "mirrored": (-1, 0, 0, 1), "upside down": (1, 0, 0, -1), "half a turn": (-1, 0, 0, -1),
    "clockwise": (0, 1, -1, 0), "counterclockwise": (0, -1, 1, 0), "transposed": (0, 1, 1, 0), "both": (0, -1, -1, 0),
}  # fmt: skip


def display_matrix(path, a, b, c, d):
    data = bytearray(path.read_bytes())
    place = data.find(b"tkhd") + 44
    struct.pack_into(">9i", data, place, *(round(65536 * value) for value in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    path.write_bytes(data)
    return path


def quarters(path, **options):
    """Mean greys of the quarters of a frame, [2, 2]."""
    [[frame]] = read_clips(str(path), lambda total, rate: np.array([[3]]), **options)
    grey = np.asarray(frame, np.float32).mean(2)
    return np.array([[part.mean() for part in np.split(row, 2, 1)] for row in np.split(grey, 2, 0)])


@pytest.mark.parametrize("turn", MATRICES)
def test_frames_are_turned_as_the_display_matrix_says(tmp_path, turn):
    """Quarter (row, column) of the stored frame has to be where the matrix takes its centre."""
    path = display_matrix(media.write_quarters(tmp_path / "0.mp4"), *MATRICES[turn])
    a, b, c, d = MATRICES[turn]
    stored, shown = quarters(path, autorotate=False), quarters(path)
    assert [stored[0, 0] < stored[0, 1] < stored[1, 0] < stored[1, 1]] == [True]
    for row, column in np.ndindex(2, 2):
        x, y = 2 * column - 1, 2 * row - 1
        new_x, new_y = a * x + c * y, b * x + d * y
        assert abs(shown[(new_y + 1) // 2, (new_x + 1) // 2] - stored[row, column]) < 1


def test_a_frame_that_lies_askew_is_refused(tmp_path):
    path = display_matrix(media.write_quarters(tmp_path / "0.mp4"), 0.7, 0.7, -0.7, 0.7)
    with pytest.raises(ValueError, match=r"turns it by -45 degrees; read are multiples of 90, and autorotate=false"):
        quarters(path)
    assert quarters(path, autorotate=False).shape == (2, 2)


def test_a_recipe_says_whether_frames_are_turned(tmp_path):
    display_matrix(media.write_quarters(tmp_path / "val" / "0.mp4"), 0, 1, -1, 0)
    seen = {}
    for turned in (True, False):
        recipe = pictures(tmp_path, batch_size=1, encoder="mvit", size="tiny", frames=4, mask="cube", autorotate=turned)
        [batch] = make_loader(recipe, "val", seed=0)
        seen[turned] = batch["images"][0, :, 0].float()
    clockwise = seen[False].rot90(-1, (1, 2))
    assert (seen[True] - clockwise).abs().mean() < 8 < (seen[True] - seen[False]).abs().mean()


def test_a_process_that_is_forked_later_can_let_go_of_frames(tmp_path, monkeypatch):
    """It would hang on ending threads that it does not have."""
    kept, picture = [], videos._picture
    monkeypatch.setattr(videos, "_picture", lambda frame: kept.append(frame) or picture(frame))
    frames_got(media.write_numbered(tmp_path / "0.mp4", frames=12), [0, 4], autorotate=False)
    child = multiprocessing.get_context("fork").Process(target=kept.clear)
    child.start()
    child.join(30)
    child.kill()
    assert len(kept) == 2 and child.exitcode == 0
