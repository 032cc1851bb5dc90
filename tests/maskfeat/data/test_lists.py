"""Lists of every kind that users have, folders of frames, and what is said of what is not read."""

import json
import shutil
from contextlib import suppress

import media
import numpy as np
import pytest
from PIL import Image
from test_data import batches, clips, images

from maskfeat.data.decode import frame_numbers
from maskfeat.data.fingerprint import fingerprint
from maskfeat.data.source import open_source


def listed(data, split="train", video=False):
    """The names and labels of a split, names without the folder."""
    source = open_source(str(data), split, video, train_data=str(data))
    names = [source.name(i).rpartition("/")[2] for i in range(len(source))]
    return names, None if source.labels is None else source.labels.tolist()


DIALECTS = {
    "space": "a b.jpg 3\nc,d.jpg 5\n",
    "comma": "a b.jpg,3\nc,d.jpg,5\n",
    "tab": "a b.jpg\t3\nc,d.jpg\t5\n",
    "semicolon": "a b.jpg;3\nc,d.jpg;5\n",
    "byte order mark": "\ufeffa b.jpg 3\nc,d.jpg 5\n",
    "Windows": "\ufeffa b.jpg;3\r\nc,d.jpg;5\r\n",
    "quotes": '"a b.jpg",3\n"c,d.jpg",5\n',
    "quotes and semicolons": '"a b.jpg";"3"\n"c,d.jpg";"5"\n',
    "quotes and spaces": '"a b.jpg" 3\n"c,d.jpg" 5\n',
    "header": 'path,label\na b.jpg,3\n"c,d.jpg",5\n',
    "header in another order": "\ufeffLabel;ID;File_Name\n3;0;a b.jpg\n5;1;c,d.jpg\n",
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_of_lists(tmp_path, dialect):
    (tmp_path / "train.csv").write_bytes(DIALECTS[dialect].encode())
    assert listed(tmp_path) == (["a b.jpg", "c,d.jpg"], [3, 5])


@pytest.mark.parametrize("lines", [
    "a b.jpg cat\nc.png the dog\n", "a b.jpg,cat\nc.png,the dog\n", 'class\tpath\ncat\ta b.jpg\nthe dog\tc.png\n',
    '"a b.jpg";"cat"\n"c.png";"the dog"\n',
])  # fmt: skip
def test_classes_have_names(tmp_path, lines):
    """Their numbers are those of the names to train on in order, as folders' are."""
    (tmp_path / "train.csv").write_text(lines)
    assert listed(tmp_path) == (["a b.jpg", "c.png"], [0, 1])
    (tmp_path / "val.csv").write_text("c.png,the dog\n")
    assert listed(tmp_path, "val") == (["c.png"], [1])
    (tmp_path / "val.csv").write_text("c.png,the dgo\n")
    with pytest.raises(ValueError, match=r"val\.csv has a class 'the dgo' that the training data have not"):
        listed(tmp_path, "val")


def test_labels_that_could_be_seconds_of_ava_are_labels(tmp_path):
    (tmp_path / "train.csv").write_text("a.jpg,902\nb.jpg,905\n")
    assert listed(tmp_path) == (["a.jpg", "b.jpg"], [902, 905])
    (tmp_path / "train.csv").write_text("clips/a,902\nclips/b,905\n")
    assert listed(tmp_path, video=True) == (["a", "b"], [902, 905])


def test_noise_is_a_list_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    marks = [
        *"a0.,;\t \"\n\n[]{}:'\0\ufeff",
        "\n.jpg",
        ".jpg",
        "path",
        "label",
        "youtube_id",
        "902",
        "0.5,",
        '{"id": "1"}',
    ]
    for i in range(400):
        file = tmp_path / f"train.{('csv', 'json')[i % 2]}"
        file.write_text("".join(rng.choice(marks, 30).tolist()))
        with suppress(ValueError, FileNotFoundError):
            names, labels = listed(file, video=i % 4 > 1)
            assert names and (labels is None or len(labels) == len(names))


@pytest.mark.parametrize("lines, message", [
    ("x,902,0,0,1,1,3,1\nx,oops,0,0,1,1,3,1\n", "is one of AVA's, with video,second,.* but for 'x,oops"),
    ("a.jpg,4\n" * 2 + "b.jpg,x,y\n", "line 3 of .* has 3 columns, which a first line has to name"),
    ("a.jpg,cat,4\n", "line 1 of .* has 3 columns"),
    ("a.jpg,4\nb.jpg,cat\n", "has both numbers, as '4', and names, as 'cat'"),
    ("path,label\na.jpg,4\nb.jpg,\n", "b.jpg in .* has no label"),
    ("path,label\na.jpg,4\n,4\n", "a line of .* has no path"),
    ("id,breed,label\n1,x,4\n", "first line of .*, 'id,breed,label', names no column of paths; call it 'path'"),
])  # fmt: skip
def test_lists_that_cannot_be_understood(tmp_path, lines, message):
    (tmp_path / "train.csv").write_text(lines)
    with pytest.raises(ValueError, match=message):
        listed(tmp_path)


def test_annotations_of_kinetics(tmp_path, caplog):
    """A class of which no video is there keeps its number."""
    rows = [
        "label,youtube_id,time_start,time_end,split",
        '"riding a bike",-abc_0,3,13,train',
        "juggling,xyz,100,110,train",
    ]
    (tmp_path / "train.csv").write_text("\n".join([*rows, "climbing,gone,0,10,train", "juggling,xyz,100,110,val"]))
    for name in ("riding a bike/-abc_0_000003_000013.mp4", "juggling/xyz.mp4", "juggling/other.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    assert listed(tmp_path, video=True) == (["-abc_0_000003_000013.mp4", "xyz.mp4"], [2, 1])
    assert "1 of 3 videos of" in caplog.text and "such as gone_000000_000010" in caplog.text
    (tmp_path / "videos" / "riding a bike" / "-abc_0_000003_000013.mp4").unlink()
    (tmp_path / "videos" / "juggling" / "xyz.mp4").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"none of the 3 videos .* looked for -abc_0_000003_000013\.mp4 or -abc"
    ):
        listed(tmp_path, video=True)


def test_annotations_of_something_something(tmp_path):
    """Its lists are in a folder beside that of the videos."""
    rows = [("7", "Holding [something]"), ("8", "Closing [something]")]
    labels = tmp_path / "labels"
    labels.mkdir()
    (tmp_path / "videos").mkdir()
    for number, _ in rows:
        (tmp_path / "videos" / f"{number}.webm").touch()
    (labels / "train.json").write_text(json.dumps([{"id": i, "label": "x", "template": t} for i, t in rows]))
    with pytest.raises(FileNotFoundError, match=r"needs the numbers of its classes, and there is no .*labels\.json"):
        listed(labels, video=True)
    (labels / "labels.json").write_text(json.dumps({"Holding something": "51", "Closing something": "4"}))
    assert listed(labels, video=True) == (["7.webm", "8.webm"], [51, 4])
    (labels / "test.json").write_text('[{"id": "8"}]')
    assert listed(labels, "val", video=True) == (["8.webm"], None)
    (labels / "labels.json").write_text(json.dumps({"Holding something": "51"}))
    with pytest.raises(ValueError, match=r"labels\.json has no class 'Closing something'"):
        listed(labels, video=True)
    for text in ('{"images": []}', "{}", "[]", "[1]", "?"):
        (labels / "train.json").write_text(text)
        with pytest.raises(ValueError, match="is no list of Something-Something v2, the only JSON that is read"):
            listed(labels, video=True)


def test_annotations_of_ava(tmp_path):
    """One clip around every key frame, in a film as a whole or one that was cut to begin at its minute 15."""
    media.write_numbered(tmp_path / "clips" / "cut.mp4", frames=255)
    (tmp_path / "val.csv").write_text(
        "cut,0902,0.077,0.151,0.283,0.811,80,1\ncut,0902,0.077,0.151,0.283,0.811,9,1\ncut,0905,0.1,0.2,0.3,0.4,12,0\n"
    )
    assert listed(tmp_path, "val", video=True) == (["cut.mp4 at 902 s", "cut.mp4 at 905 s"], None)
    source = open_source(str(tmp_path), "val", True, train_data=str(tmp_path))
    for i, second in enumerate((2, 5)):
        [clip], label = source.read(i, lambda total, rate: np.array([[100, 110, 120]]))
        assert label is None and [media.number(frame) for frame in clip] == [second * 30 + k for k in (-10, 0, 10)]


def test_a_folder_of_frames_is_a_clip(tmp_path, caplog):
    for video in ("a/run", "a/walk", "b/jump"):
        for i in range(12):
            (tmp_path / "val" / video).mkdir(parents=True, exist_ok=True)
            Image.new("L", (40, 30), 20 * i).save(tmp_path / "val" / video / f"frame_{i}.png")
    [first, second] = batches(clips(tmp_path, frame_step=1), "val")
    assert first["labels"].tolist() + second["labels"].tolist() == [0, 0, 1]
    assert "has no videos: each of its 3 folders of pictures is a clip" in caplog.text
    shown = [round(float(first["images"][0, :, t].float().mean()) / 20) for t in range(4)]
    assert shown == [4, 5, 6, 7], "from the middle, 10 and 11 after 9"
    (tmp_path / "list.txt").write_text("val/a/run 3\nval/b/jump 4\n")
    [batch] = batches(clips("x", val_data=str(tmp_path / "list.txt")), "val")
    assert batch["labels"].tolist() == [3, 4]


def test_clips_of_frames_that_were_moved_are_the_same_data(tmp_path):
    for i in range(3):
        media.write_image(tmp_path / "a" / "train" / "run" / "clip" / f"{i}.png", i)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for i in range(300):  # the folder itself grows, and does not shrink again
        (tmp_path / "b" / "train" / "run" / "clip" / f"{'x' * 200}{i}").touch()
    for path in (tmp_path / "b" / "train" / "run" / "clip").glob("x*"):
        path.unlink()
    marks = [fingerprint(open_source(str(tmp_path / x), "train", True, train_data=str(tmp_path / x))) for x in "ab"]
    assert marks[0] == marks[1]
    (tmp_path / "b" / "train" / "run" / "clip" / "1.png").unlink()
    assert fingerprint(open_source(str(tmp_path / "b"), "train", True, train_data=str(tmp_path / "b"))) != marks[0]


def test_what_is_not_read_is_counted(tmp_path, caplog):
    media.image_folder(tmp_path, each=2)
    for name in ("a.xml", "b.xml", "c.npy"):
        (tmp_path / "train" / "cat" / name).touch()
    media.write_image(tmp_path / "train" / "stray.png", 0)
    assert listed(tmp_path)[1] is None
    assert "left out 3 files of other kinds in" in caplog.text and "(2 .xml, 1 .npy), such as" in caplog.text
    assert "no labels: 1 of 5 files of" in caplog.text and "such as" in caplog.text


def test_splits_are_no_classes(tmp_path):
    media.image_folder(tmp_path, split="", classes=("Train", "Test"))
    with pytest.raises(
        ValueError, match=r"has the folders Test, Train, which are splits, not classes; name them train"
    ):
        listed(tmp_path)


@pytest.mark.parametrize("form", ["gif", "avif", "jp2"])
def test_formats_that_folders_may_hold(tmp_path, form):
    (tmp_path / "val" / "a").mkdir(parents=True)
    media.picture(0).save(tmp_path / "val" / "a" / f"0.{form}")
    [batch] = batches(images(tmp_path), "val")
    assert len(batch["images"]) == 1


def test_an_animated_gif_is_a_video(tmp_path):
    frames = [Image.new("L", (40, 30), 20 * i) for i in range(12)]
    (tmp_path / "val" / "a").mkdir(parents=True)
    frames[0].save(tmp_path / "val" / "a" / "0.gif", save_all=True, append_images=frames[1:], duration=40)
    [batch] = batches(clips(tmp_path, frame_step=1), "val")
    shown = [round(float(batch["images"][0, :, t].float().mean()) / 20) for t in range(4)]
    assert shown == frame_numbers(12, 25, frames=4, step=1)[0].tolist()
