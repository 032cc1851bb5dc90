"""The detector of compat.opencv against OpenCV's: resizing, scores, groups, mean shift, gradients, files, arguments."""

import os
import subprocess
import sys
import tracemalloc

import cv2
import numpy as np
import pytest
import skimage.data
import torch

from maskfeat_kernels import HogSpec
from maskfeat_kernels.compat import arrays, detection, opencv
from maskfeat_kernels.compat.opencv import HOGDescriptor

if not hasattr(cv2, "HOGDescriptor"):
    pytest.skip("this OpenCV has no HOGDescriptor", allow_module_level=True)

needs_module = pytest.mark.skipif(arrays._numpy_ops is None, reason="maskfeat_kernels._numpy_ops is not built")
HAS_SAME_SUMS = cv2.checkHardwareSupport(11)
"""OpenCV's arc tangent fuses products and sums with AVX2, and does not without."""
ROCKET = skimage.data.rocket()


@pytest.fixture(autouse=True)
def one_thread():
    """The order of OpenCV's hits is certain."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)
    opencv.setNumThreads(-1)


def people(*arguments, **options):
    """(OpenCV's, ours): detectors, of people by default, else with weights drawn at random."""
    pair = cv2.HOGDescriptor(*arguments, **options), HOGDescriptor(*arguments, **options)
    weights = cv2.HOGDescriptor.getDefaultPeopleDetector()
    if arguments:
        weights = np.random.default_rng(0).normal(size=pair[0].getDescriptorSize() + 1).astype(np.float32) / 30
    for hog in pair:
        hog.setSVMDetector(weights)
    return pair


@needs_module
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_resizing_is_opencvs_bit_by_bit(channels):
    rng = np.random.default_rng(channels)
    for _ in range(40):
        (height, width), size = rng.integers(1, 90, 2), tuple(rng.integers(1, 140, 2).tolist())
        image = rng.integers(0, 256, (height, width, channels)).astype(np.uint8)
        expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR_EXACT).reshape(*size, channels)
        result = detection.resize_linear_exact(image.transpose(2, 0, 1), *size)
        np.testing.assert_array_equal(result, expected.transpose(2, 0, 1))
        np.testing.assert_array_equal(detection.resize_linear_exact(image[..., 0], *size), expected[..., 0])


def random_rectangles(seed: int, count: int) -> np.ndarray:  # [count, 4]
    """Hits as dense as those of a low threshold, on 1280 x 720 pixels."""
    rng = np.random.default_rng(seed)
    size = (rng.choice([1, 1.3, 1.7, 2.1], count) * np.array([[64], [128]])).astype(int)
    return np.column_stack([rng.integers(0, 1280, count), rng.integers(0, 720, count), *size])


@pytest.mark.parametrize("is_built, count", [pytest.param(True, 14541, marks=needs_module), (False, 2000)])
def test_groups_of_many_are_opencvs_in_linear_memory(is_built, count, monkeypatch):
    if not is_built:
        monkeypatch.setattr(arrays, "_numpy_ops", None)
    rectangles = random_rectangles(0, count)
    expected, _ = cv2.groupRectangles(rectangles.tolist(), 1, 0.2)
    tracemalloc.start()
    result, weights = detection.group_rectangles(rectangles, np.arange(float(count)), 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(result, np.reshape(expected, (-1, 4)))
    assert len(weights) == len(result) > 3
    assert peak < 1000 * count  # bytes; a table of all pairs has 8 * count of each


@needs_module
def test_mean_shift_of_hits_of_both_signs():
    """Where the weights cancel, a mode is nowhere: OpenCV drops it."""
    options = {"hitThreshold": -0.3, "winStride": (4, 4), "scale": 1.1, "groupThreshold": 0}
    for hog in people():
        rectangles, _ = hog.detectMultiScale(ROCKET, **options, useMeanshiftGrouping=True)
        np.testing.assert_array_equal(rectangles, [[284, 105, 84, 168]])


def assert_same(expected, result, options):
    """To the pixel, and where OpenCV's sums are known to the bit."""
    assert np.shape(result[0]) == np.shape(expected[0]), options
    np.testing.assert_array_equal(result[0], expected[0], err_msg=str(options))
    if options["useMeanshiftGrouping"] and HAS_SAME_SUMS:
        np.testing.assert_array_equal(result[1], expected[1], err_msg=str(options))
    elif len(expected[0]):
        np.testing.assert_allclose(result[1], expected[1], rtol=0, atol=2e-5, err_msg=str(options))


def compare_detections(rng, mean_shift: bool):
    name = rng.choice(["astronaut", "rocket", "camera", "coffee"])
    image = np.ascontiguousarray(getattr(skimage.data, name)()[:300, 60:420])
    options = {
        "hitThreshold": float(rng.uniform(-0.8, 0.3)),
        "winStride": tuple(rng.choice([4, 8, 16], 2).tolist()),
        "padding": tuple(rng.choice([0, 8, 16, 32], 2).tolist()),
        "scale": float(rng.uniform(1.05, 1.6)),
        "groupThreshold": float(rng.choice([-1, 0, 0.0005, 0.01, 0.1] if mean_shift else [0, 1, 2, 3])),
        "useMeanshiftGrouping": mean_shift,
    }
    expected, result = (hog.detectMultiScale(image, **options) for hog in people())
    assert_same(expected, result, options)
    return len(expected[0])


@needs_module
@pytest.mark.parametrize("mean_shift", [False, True])
def test_random_detections(mean_shift):
    rng = np.random.default_rng(2)
    assert sum(compare_detections(rng, mean_shift) for _ in range(24)) > 8


@needs_module
@pytest.mark.slow
@pytest.mark.parametrize("mean_shift", [False, True])
def test_many_random_detections(mean_shift):
    rng = np.random.default_rng(3)
    assert sum(compare_detections(rng, mean_shift) for _ in range(400)) > 50


@needs_module
@pytest.mark.skipif(not HAS_SAME_SUMS, reason="OpenCV has no AVX2 here")
@pytest.mark.parametrize(
    "arguments, options",
    [
        ((), {}),
        (((48, 96), (16, 16), (8, 8), (8, 8), 9), {"_signedGradient": True}),
        (((40, 36), (20, 12), (5, 6), (5, 4), 7), {"_winSigma": 2.5, "_gammaCorrection": True}),
        (((30, 30), (10, 10), (10, 10), (10, 10), 6), {}),
    ],
)
def test_scores_have_opencvs_bits(arguments, options):
    theirs, ours = people(*arguments, **options)
    for image in (ROCKET[:200, :200], np.ascontiguousarray(ROCKET[50:230, 100:301, 1])):
        stride = ours.blockStride
        padding = (16, 8) if stride == (8, 8) else (0, 0)  # of other strides OpenCV rounds it to what it then refuses
        places, expected = theirs.detect(image, -100.0, stride, padding)
        x, stride, padding = ours._prepare(image, stride, stride, padding)
        found, result = ours._detect(x, stride, padding, -100.0, as_opencv=True)
        np.testing.assert_array_equal(found, places)
        np.testing.assert_array_equal(result, expected)


@needs_module
def test_levels_in_threads_are_the_same():
    _, ours = people()
    expected = ours.detectMultiScale(ROCKET, -0.5, groupThreshold=0)
    for threads in (1, 2, 5):
        opencv.setNumThreads(threads)
        assert opencv.getNumThreads() == threads
        for result, numbers in zip(ours.detectMultiScale(ROCKET, -0.5, groupThreshold=0), expected, strict=True):
            np.testing.assert_array_equal(result, numbers)
    tensor = ours.detectMultiScale(torch.from_numpy(ROCKET), -0.5, groupThreshold=0)
    np.testing.assert_array_equal(tensor[0], expected[0])


def test_number_of_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert opencv.getNumThreads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert opencv.getNumThreads() >= 1
    opencv.setNumThreads(0)
    assert opencv.getNumThreads() == 1
    with pytest.raises(opencv.error, match="nthreads must be an integer, got 1"):
        opencv.setNumThreads(1.0)


@needs_module
@pytest.mark.skipif(not HAS_SAME_SUMS, reason="OpenCV has no AVX2 here")
def test_gradients_have_opencvs_bits():
    rng = np.random.default_rng(0)
    for case in range(40):
        height, width = rng.integers(1, 50), rng.integers(16, 90)
        image = rng.integers(0, rng.choice([3, 256]), (height, width, 3)).astype(np.uint8)
        image = image if case % 3 else np.ascontiguousarray(image[..., 0])
        sizes = (64, 128), (16, 16), (8, 8), (8, 8), int(rng.integers(1, 128))
        options = {"_gammaCorrection": bool(rng.integers(2)), "_signedGradient": bool(rng.integers(2))}
        padding = [tuple(rng.integers(0, 9, 2).tolist()) for _ in range(2)]
        theirs, ours = (hog(*sizes, **options) for hog in (cv2.HOGDescriptor, HOGDescriptor))
        for expected, result in zip(
            theirs.computeGradient(image, None, None, *padding),
            ours.computeGradient(image, None, None, *padding),
            strict=True,
        ):
            np.testing.assert_array_equal(result, expected)
            assert result.dtype == expected.dtype


@needs_module
def test_results_of_gradients_may_be_given():
    grad, bins = np.zeros((64, 80, 2), np.float32), np.zeros((64, 80, 2), np.uint8)
    for hog in (cv2.HOGDescriptor(), HOGDescriptor()):
        result = hog.computeGradient(ROCKET[:64, :80], grad, bins)
        assert result[0] is grad and result[1] is bins and grad.any()
        grad[:] = 0
        assert hog.computeGradient(ROCKET[:65, :80], grad, bins)[0].shape == (65, 80, 2)
    votes, places = HOGDescriptor().computeGradient(torch.from_numpy(ROCKET[:64, :80]))
    assert votes.dtype == torch.float32 and places.dtype == torch.uint8
    np.testing.assert_array_equal(votes, HOGDescriptor().computeGradient(ROCKET[:64, :80])[0])
    with pytest.raises(opencv.error, match="leave no pixel of 80 x 64"):
        HOGDescriptor().computeGradient(ROCKET[:64, :80], paddingTL=(-80, 0))


ATTRIBUTES = ("winSize", "blockSize", "blockStride", "cellSize", "nbins", "derivAperture", "winSigma")
ATTRIBUTES += ("histogramNormType", "L2HysThreshold", "gammaCorrection", "nlevels", "signedGradient")


@pytest.mark.parametrize("name", ["hog.yml", "hog.xml", "hog.json", "9 a-b.c.yml.gz"])
@pytest.mark.parametrize("objname", ["", "people"])
def test_files_go_both_ways(name, objname, tmp_path):
    theirs, ours = people((48, 96), (16, 16), (8, 8), (8, 8), 7, 1, 3.3, 0, 0.3, True, 9, True)
    theirs.save(str(tmp_path / name), objname)
    (tmp_path / "ours").mkdir()
    ours.save(tmp_path / "ours" / name, objname)
    for path in (tmp_path / name, tmp_path / "ours" / name):
        readers = cv2.HOGDescriptor(), HOGDescriptor()
        assert readers[0].load(str(path), objname) and readers[1].load(path, objname)
        for reader in readers:
            assert [getattr(reader, key) for key in ATTRIBUTES] == [getattr(theirs, key) for key in ATTRIBUTES]
            np.testing.assert_array_equal(reader.svmDetector, theirs.svmDetector)
    if not name.endswith("gz"):
        heads = [(folder / name).read_text().split("SVMDetector")[0] for folder in (tmp_path, tmp_path / "ours")]
        assert heads[0] == heads[1]


SAVED = "%YAML:1.0\n---\nx:\n   winSize: [ 64, 128 ]\n"


@pytest.mark.parametrize(
    "content, words",
    [
        ("hello", "not a file of OpenCV"),
        ("", "not a file of OpenCV"),
        ("<html><body>404</body></html>", "not a file of OpenCV"),
        ("%YAML:1.0\n---\nx: [1,\n", "not a file of OpenCV"),
        ("%YAML:1.0\n---\nx: 1\n", "has no winSize"),
        (SAVED, "has no blockSize"),
        ('{"a": 1}', "has no winSize"),
        (b"\x00\xff" * 99, "not a file of OpenCV"),
        (None, "no such file"),
        ("folder", "not a file"),
    ],
)
def test_files_without_a_descriptor(content, words, tmp_path):
    path = tmp_path / ("hog.json" if content and "{" in str(content) else "hog.yml")
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    hog = HOGDescriptor(*FIVE)
    for use in (HOGDescriptor, hog.load):
        with pytest.raises(opencv.error, match=words) as caught:
            use(str(path))
        assert "\n" not in str(caught.value) and "hog." in str(caught.value)
    assert hog.winSize == (48, 96)


@pytest.mark.parametrize(
    "before, after, words",
    [
        ("nbins: 9", "nbins: 0", "nbins must be at least 1"),
        ("nbins: 9", "nbins: nine", "nbins must be an integer"),
        ("[ 48, 96 ]", "[ 48 ]", "winSize must be"),
        ("[ 48, 96 ]", "[ 48, -96 ]", "winSize must be at least 1"),
        ("[ 48, 96 ]", "[ 47, 96 ]", "whole steps"),
        ("gammaCorrection: 0", "gammaCorrection: no", "gammaCorrection must be a number"),
        ("signedGradient: 0", "SVMDetector: [ 1., 2. ]", "svmdetector must have 1980 weights"),
        ("signedGradient: 0", "SVMDetector: [ 1., x ]", "SVMDetector must be numbers"),
        ("winSigma: 4.", "wrong: 4.", "has no winSigma"),
    ],
)
def test_files_with_wrong_values(before, after, words, tmp_path):
    path = tmp_path / "hog.yml"
    HOGDescriptor(*FIVE).save(path)
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(opencv.error, match=words):
        HOGDescriptor(path)


def test_files_that_cannot_be_written(tmp_path):
    with pytest.raises(opencv.error, match="there is no folder"):
        HOGDescriptor().save(tmp_path / "none" / "hog.yml")
    with pytest.raises(opencv.error, match="a folder"):
        HOGDescriptor().save(tmp_path)
    with pytest.raises(opencv.error, match="a name must be a string or a path, got 3"):
        HOGDescriptor().save(3)


FIVE = (48, 96), (16, 16), (8, 8), (8, 8), 9
IMAGE = np.zeros((128, 64), np.uint8)


def with_detector(hog):
    hog = hog()
    hog.setSVMDetector(np.ones(3780, np.float32))
    return hog


@needs_module
@pytest.mark.parametrize(
    "use",
    [
        lambda hog: with_detector(hog).detect(IMAGE, searchLocations=None),
        lambda hog: with_detector(hog).detect(IMAGE, searchLocations=[]),
        lambda hog: with_detector(hog).detect(IMAGE, None, None, None, [[0, 0]]),
        lambda hog: with_detector(hog).detect(IMAGE, np.float32(-1), [8, 8], np.array([8, 8])),
        lambda hog: with_detector(hog).detectMultiScale(IMAGE, useMeanshiftGrouping=np.bool_(True)),
        lambda hog: with_detector(hog).detectMultiScale(IMAGE, useMeanshiftGrouping=1),
        lambda hog: with_detector(hog).detectMultiScale(IMAGE, groupThreshold=np.int64(0)),
        lambda hog: with_detector(hog).detectMultiScale(IMAGE, scale=None, groupThreshold=None),
        lambda hog: hog().compute(IMAGE, locations=None),
        lambda hog: hog(*FIVE, _gammaCorrection=np.bool_(True)).gammaCorrection,
        lambda hog: hog(*FIVE, _gammaCorrection=1).gammaCorrection,
        lambda hog: hog(*FIVE, _signedGradient=None).signedGradient,
        lambda hog: hog([48, 96], np.array([16, 16]), (8, 8), (8, 8), np.int64(9)).winSize,
        lambda hog: hog(*FIVE, _winSigma=None, _L2HysThreshold=None, _nlevels=None).nlevels,
        lambda hog: hog(*FIVE, _winSigma=np.float32(2)).winSigma,
        lambda hog: hog(*FIVE, _winSigma=float("nan")).getWinSigma(),
        lambda hog: hog(*FIVE, _winSigma=float("inf")).getWinSigma(),
    ],
)
def test_what_opencv_takes(use):
    expected, result = use(cv2.HOGDescriptor), use(HOGDescriptor)
    assert type(result) is type(expected)
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (result, expected)), strict=True):
        np.testing.assert_allclose(a, b)


@needs_module
@pytest.mark.parametrize(
    "use",
    [
        lambda hog: hog(*FIVE, _gammaCorrection=1.0),
        lambda hog: hog(*FIVE, _gammaCorrection="no"),
        lambda hog: hog(*FIVE[:4], True),
        lambda hog: hog(*FIVE[:4], np.bool_(True)),
        lambda hog: hog(*FIVE[:4], 2**40),
        lambda hog: hog(*FIVE, _winSigma=True),
        lambda hog: hog(*FIVE, _winSigma="1"),
        lambda hog: hog(64, *FIVE[1:]),
        lambda hog: hog("ab", *FIVE[1:]),
        lambda hog: hog((True, 96), *FIVE[1:]),
        lambda hog: hog((48, 96), (16, 16), (8, 8), (0, 8), 9).getDescriptorSize(),
        lambda hog: with_detector(hog).detect(IMAGE, "a"),
        lambda hog: with_detector(hog).detect(IMAGE, True),
        lambda hog: with_detector(hog).detectMultiScale(IMAGE, scale="a"),
        lambda hog: with_detector(hog).detectMultiScale(IMAGE, useMeanshiftGrouping=0.5),
        lambda hog: with_detector(hog).detect(IMAGE, searchLocations=[(1, 2), (3,)]),
        lambda hog: hog().computeGradient(IMAGE.astype(np.float32), None, None),
        lambda hog: with_detector(lambda: hog((64, 128), (16, 16), (8, 8), (8, 8), 9, _nlevels=0)).detectMultiScale(
            IMAGE
        ),
    ],
)
def test_what_opencv_refuses(use):
    with pytest.raises(cv2.error):
        use(cv2.HOGDescriptor)
    with pytest.raises(opencv.error):
        use(HOGDescriptor)


@pytest.mark.parametrize("bins", [0, -1])
def test_no_bins(bins):
    """OpenCV dies of none."""
    with pytest.raises(opencv.error, match="nbins must be at least 1"):
        HOGDescriptor(*FIVE[:4], bins)


@pytest.mark.parametrize("threshold", [-0.2, float("nan")])
def test_negative_thresholds(threshold):
    """OpenCV returns a window of equal numbers."""
    with pytest.raises(opencv.error, match="L2HysThreshold must not be negative"):
        HOGDescriptor(*FIVE, _L2HysThreshold=threshold)


@needs_module
def test_extreme_deviations():
    """An infinite one weighs all pixels alike; the narrowest leave the pixel in the middle of each block."""
    image = np.ascontiguousarray(ROCKET[:96, :48])
    wide, theirs = (hog(*FIVE, _winSigma=float("inf")).compute(image) for hog in (HOGDescriptor, cv2.HOGDescriptor))
    np.testing.assert_allclose(wide, theirs, rtol=0, atol=1e-5)
    narrow, narrower = (HOGDescriptor(*FIVE, _winSigma=sigma) for sigma in (1e-3, 1e-200))
    np.testing.assert_allclose(narrower.compute(image), narrow.compute(image), rtol=0, atol=1e-6)
    narrower.setSVMDetector(np.ones(1980))
    assert np.isfinite(narrower.detect(image, -1e9)[1]).all()
    assert HogSpec(block_sigma=1e-200, block=2).block_sigma == 1e-200
    unlimited = HOGDescriptor(*FIVE, _L2HysThreshold=float("inf"))
    np.testing.assert_allclose(
        unlimited.compute(image), HOGDescriptor(*FIVE, _L2HysThreshold=1.5).compute(image), rtol=0, atol=1e-6
    )


def test_mean_shift_without_the_module(monkeypatch):
    monkeypatch.setattr(arrays, "_numpy_ops", None)
    with pytest.raises(RuntimeError, match="mean shift needs the compiled module"):
        detection.group_rectangles_meanshift(np.zeros((1, 4), int), np.ones(1), np.ones(1), 0.0, (64, 128))


NARROW = """
import hashlib, sys
import numpy as np
from maskfeat_kernels.compat.opencv import HOGDescriptor

image, weights = np.load(sys.argv[1]).values()
hog = HOGDescriptor()
hog.setSVMDetector(weights)
numbers = *hog.detectMultiScale(image, -0.5, groupThreshold=0), *hog.computeGradient(image)
print(hashlib.sha256(b"".join(x.tobytes() for x in numbers)).hexdigest())
"""


@needs_module
def test_the_narrowest_vectors_return_the_same_bits(tmp_path):
    np.savez(tmp_path / "x.npz", ROCKET[:300, :400], HOGDescriptor.getDefaultPeopleDetector())
    printed = set()
    for instruction_set in ("baseline", ""):
        environment = {**os.environ, "MASKFEAT_CPU": instruction_set}
        command = [sys.executable, "-c", NARROW, str(tmp_path / "x.npz")]
        printed.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(printed) == 1
