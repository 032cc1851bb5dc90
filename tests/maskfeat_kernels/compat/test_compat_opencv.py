"""compat.opencv.HOGDescriptor against OpenCV: features, detections, attributes, errors, and what is not mirrored."""

import math
import subprocess
import sys

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from conftest import device_of

from maskfeat_kernels import backend as backends
from maskfeat_kernels.compat import arrays, opencv
from maskfeat_kernels.compat.detection import group_rectangles, resize_linear_exact
from maskfeat_kernels.compat.opencv import HOGDescriptor, HOGDescriptor5

needs_module = pytest.mark.skipif(arrays._numpy_ops is None, reason="maskfeat_kernels._numpy_ops is not built")
ATOL = 1e-5
"""OpenCV's own float32 sums are off from float64 by up to 3.5e-6."""

if not hasattr(cv2, "HOGDescriptor"):
    pytest.skip("this OpenCV has no HOGDescriptor", allow_module_level=True)


def random_case(seed: int) -> tuple[np.ndarray, tuple, dict, dict]:
    """An image, the arguments of a constructor, its options, and those of compute. Few levels make ties of channels."""
    rng = np.random.default_rng(seed)

    def pair(low, high):
        return rng.integers(low, high, 2)

    cell, cells, stride = pair(2, 9), pair(1, 4), pair(2, 12)
    window = cell * cells + stride * pair(0, 4)
    bins = int(rng.integers(2, 20))
    if bins * math.prod(cells) < 4:
        bins = 4  # with fewer entries OpenCV crashes
    width, height = window + pair(0, 30)
    image = rng.integers(
        0, rng.choice([3, 16, 256]), [(height, width), (height, width, 1), (height, width, 3)][seed % 3]
    )
    sizes = tuple(tuple(size.tolist()) for size in (window, cell * cells, stride, cell))
    options = {"_winSigma": float(rng.choice([-1, 0, 2.5]))}
    options |= {"_gammaCorrection": bool(rng.integers(2)), "_signedGradient": bool(rng.integers(2))}
    call = {}
    if rng.integers(2):
        call["winStride"] = tuple(pair(1, 10).tolist())
    if rng.integers(2):
        call["padding"] = tuple(pair(0, 40).tolist())
    if rng.integers(2):
        call["locations"] = [tuple(pair(-12, 25).tolist()) for _ in range(rng.integers(1, 9))]
    return image.astype(np.uint8), (*sizes, bins), options, call


@needs_module
@pytest.mark.parametrize("first", range(0, 240, 24))
def test_random_parameters(first):
    for seed in range(first, first + 24):
        image, arguments, options, call = random_case(seed)
        theirs, ours = cv2.HOGDescriptor(*arguments, **options), HOGDescriptor(*arguments, **options)
        expected, result = theirs.compute(image, **call), ours.compute(image, **call)
        assert ours.getDescriptorSize() == theirs.getDescriptorSize()
        assert result.dtype == expected.dtype and result.shape == expected.shape
        np.testing.assert_allclose(result, expected, rtol=0, atol=ATOL, err_msg=str(seed))


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("apart", [1, 4, 8])
@pytest.mark.parametrize("window", [(16, 16), (32, 48)], ids=str)
def test_many_locations(window, apart, as_tensor):
    """Each window by itself, or blocks that windows share; some windows do not fit, some lie in the padding."""
    if not as_tensor and arrays._numpy_ops is None:
        pytest.skip("the module for arrays is not built")
    rng = np.random.default_rng(apart)
    image = (rng.integers(0, 256, (75, 97, 3)) // 32 * 32).astype(np.uint8)
    places = rng.integers(-2, 12, (60, 2)) * apart
    places[-1] = 100, 0
    hogs = [module.HOGDescriptor(window, (16, 16), (8, 8), (8, 8), 9) for module in (cv2, opencv)]
    call = {"padding": (8, 16), "locations": places.tolist()}
    expected = hogs[0].compute(image, **call)
    result = np.asarray(hogs[1].compute(torch.from_numpy(image) if as_tensor else image, **call))
    assert not expected.reshape(60, -1)[-1].any()
    np.testing.assert_allclose(result, expected, rtol=0, atol=ATOL)


@needs_module
@pytest.mark.parametrize("shape", [(16, 16), (16, 24), (32, 48), (17, 19)])
def test_windows_side_by_side(shape):
    """Blocks without overlap in windows without overlap: as many places as blocks, in another order."""
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    sizes = (16, 16), (8, 8), (8, 8), (4, 4)
    expected = cv2.HOGDescriptor(*sizes, 9).compute(image, (16, 16))
    np.testing.assert_allclose(HOGDescriptor(*sizes, 9).compute(image, (16, 16)), expected, rtol=0, atol=ATOL)


@pytest.fixture
def use_backend(backend, monkeypatch):
    """Tensors are computed by the backend under test, whose device this is."""
    monkeypatch.setattr(backends, "choose_backend", lambda device, name: backend)
    return device_of(backend)


@pytest.mark.sampled(lambda seed: seed == 1001)
@pytest.mark.parametrize("seed", range(1000, 1024))
def test_tensors(seed, use_backend):
    image, arguments, options, call = random_case(seed)
    expected = cv2.HOGDescriptor(*arguments, **options).compute(image, **call)
    result = HOGDescriptor(*arguments, **options).compute(torch.from_numpy(image).to(use_backend), **call)
    assert result.device.type == use_backend and result.dtype == torch.float32
    np.testing.assert_allclose(result.cpu(), expected, rtol=0, atol=ATOL)


@needs_module
@pytest.mark.parametrize("threshold", [0.05, 0.3, 1.0])
def test_thresholds_each_in_a_process_of_its_own(threshold, tmp_path):
    """OpenCV keeps the first threshold of a process."""
    image = np.random.default_rng(0).integers(0, 256, (128, 64, 3)).astype(np.uint8)
    arguments = (64, 128), (16, 16), (8, 8), (8, 8), 9, 1, -1.0, 0, threshold
    np.save(tmp_path / "image.npy", image)
    code = f"""
import cv2, numpy
image = numpy.load({str(tmp_path / "image.npy")!r})
numpy.save({str(tmp_path / "result.npy")!r}, cv2.HOGDescriptor(*{arguments!r}).compute(image))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    expected = np.load(tmp_path / "result.npy")
    np.testing.assert_allclose(HOGDescriptor(*arguments).compute(image), expected, rtol=0, atol=ATOL)


def block_by_definition(
    image: np.ndarray,  # [H, W], one block
    cell: int,
    bins: int,
    clip: float,
) -> np.ndarray:  # [cells across, cells down, bins]
    """A block of OpenCV in float64 loops, with the exact arc tangent: off by up to 1.7e-4 radians in each vote."""
    side = len(image)
    mirrored = np.pad(image.astype(float), 1, mode="reflect")
    cells = side // cell
    histogram = np.zeros((cells, cells, bins))
    for i in range(side):
        for j in range(side):
            gx, gy = mirrored[i + 1, j + 2] - mirrored[i + 1, j], mirrored[i + 2, j + 1] - mirrored[i, j + 1]
            gaussian = math.exp(-((i - side / 2) ** 2 + (j - side / 2) ** 2) / (2 * (side / 4) ** 2))
            place = math.atan2(gy, gx) % (2 * math.pi) * bins / math.pi - 0.5
            below, share = math.floor(place), place - math.floor(place)
            for bin_, part in ((below, 1 - share), (below + 1, share)):
                for y in range(cells):
                    for x in range(cells):
                        weight = max(0, 1 - abs((i + 0.5) / cell - 0.5 - y)) * max(
                            0, 1 - abs((j + 0.5) / cell - 0.5 - x)
                        )
                        histogram[x, y, bin_ % bins] += weight * gaussian * part * math.hypot(gx, gy)
    v = histogram / (np.sqrt((histogram**2).sum()) + 0.1 * histogram.size)
    v = np.minimum(v, clip)
    return v / (np.sqrt((v**2).sum()) + 1e-3)


@needs_module
@pytest.mark.parametrize(
    "cell, cells, bins, clip", [(8, 1, 1, 0.2), (8, 1, 2, 0.2), (6, 2, 1, 0.3), (5, 2, 200, 0.2), (4, 2, 9, 0.1)]
)
def test_what_is_not_mirrored_follows_the_definition(cell, cells, bins, clip):
    """Fewer than 4 entries, one bin, more than 128 bins, and a second threshold in this process."""
    side = cell * cells
    image = np.random.default_rng(bins).integers(0, 256, (side, side)).astype(np.uint8)
    sizes = (side, side), (side, side), (side, side), (cell, cell)
    result = HOGDescriptor(*sizes, bins, _L2HysThreshold=clip).compute(image)
    expected = block_by_definition(image, cell, bins, clip).reshape(-1)
    # A vote moves by its error times bins / pi, and the norm of a block is 1.
    np.testing.assert_allclose(result, expected, rtol=0, atol=1.7e-4 * bins / math.pi)


@needs_module
def test_images_smaller_than_a_window_are_refused():
    hog = HOGDescriptor()
    hog.setSVMDetector(np.zeros(3780))
    for shape in ((127, 64), (128, 60), (48, 112)):
        for method in (hog.compute, hog.detect, hog.detectMultiScale):
            with pytest.raises(opencv.error, match=f"{shape[1]} x {shape[0]} pixels, smaller than winSize"):
                method(np.zeros(shape, np.uint8))
    assert hog.compute(np.zeros((120, 60), np.uint8), padding=(8, 8)).shape == (2 * 2 * 3780,)


@pytest.mark.parametrize("size", [(17, 23), (40, 31), (64, 90), (1, 5), (63, 45)])
@pytest.mark.parametrize("as_image", [np.array, torch.tensor])
def test_resize_is_that_of_opencv_bit_by_bit(size, as_image):
    image = np.random.default_rng(0).integers(0, 256, (63, 45, 3)).astype(np.uint8)
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR_EXACT)
    result = resize_linear_exact(as_image(image.transpose(2, 0, 1)), *size)
    np.testing.assert_array_equal(result, expected.transpose(2, 0, 1))


@pytest.fixture
def people():
    """(OpenCV's, ours): detectors of people; one thread, so that the order of OpenCV's hits is certain."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    theirs, ours = cv2.HOGDescriptor(), HOGDescriptor()
    theirs.setSVMDetector(cv2.HOGDescriptor.getDefaultPeopleDetector())
    ours.setSVMDetector(HOGDescriptor.getDefaultPeopleDetector())
    yield theirs, ours
    cv2.setNumThreads(threads)


def assert_same_detections(expected, result):
    assert [type(x) for x in result] == [type(x) for x in expected]
    if len(expected[0]):
        assert [x.dtype for x in result] == [x.dtype for x in expected]
        np.testing.assert_array_equal(result[0], expected[0])
        np.testing.assert_allclose(result[1], expected[1], rtol=0, atol=2e-5)


@needs_module
@pytest.mark.parametrize("name", ["astronaut", "rocket", "camera"])
@pytest.mark.parametrize(
    "options, least",
    [
        ({"scale": 1.2}, 0),
        ({"scale": 1.3, "hitThreshold": -1.0, "groupThreshold": 1}, 1),
        ({"scale": 1.4, "hitThreshold": -1.0, "groupThreshold": 0, "winStride": (4, 8), "padding": (16, 9)}, 5),
        ({"scale": 1.4, "hitThreshold": -0.8, "winStride": (16, 16), "padding": (32, 32), "groupThreshold": 1}, 0),
        ({"scale": 1.3, "hitThreshold": 0.0, "useMeanshiftGrouping": True, "groupThreshold": 0.001}, 0),
        ({"scale": 1.0, "hitThreshold": -1.0, "groupThreshold": 0}, 5),
    ],
)
def test_people_in_photographs(name, options, least, people):
    image = getattr(skimage.data, name)()
    expected, result = (hog.detectMultiScale(image, **options) for hog in people)
    assert len(expected[0]) >= least
    assert_same_detections(expected, result)


@needs_module
@pytest.mark.parametrize(
    "options",
    [
        {"hitThreshold": -1.0},
        {"hitThreshold": -1.2, "winStride": (4, 8), "padding": (16, 8)},
        {"hitThreshold": -3.0, "padding": (8, 8), "searchLocations": [(8, 0), (3, 5), (-8, -8), (-9, 0), (400, 300)]},
        {"hitThreshold": 9.0},
    ],
)
def test_detect(options, people):
    image = skimage.data.astronaut()[:300, :300]
    expected, result = (hog.detect(image, **options) for hog in people)
    assert (len(expected[0]) > 0) == (options["hitThreshold"] < 0)
    assert_same_detections(expected, result)


def test_detections_on_tensors(use_backend, people):
    """A level that is resized, with the image as a tensor: one small image, for the sake of Triton's interpreter."""
    image = np.ascontiguousarray(skimage.data.astronaut()[80:230, 180:260])
    expected = people[0].detectMultiScale(image, hitThreshold=-20.0, groupThreshold=0, scale=1.1, winStride=(16, 16))
    result = people[1].detectMultiScale(
        torch.from_numpy(image).to(use_backend), hitThreshold=-20.0, groupThreshold=0, scale=1.1, winStride=(16, 16)
    )
    assert len({tuple(size) for size in expected[0][:, 2:]}) > 1
    assert_same_detections(expected, result)


NAMES = ("winSize", "blockSize", "blockStride", "cellSize", "nbins", "derivAperture", "winSigma", "histogramNormType")
NAMES += ("L2HysThreshold", "gammaCorrection", "nlevels", "signedGradient")
FIVE = (48, 96), (16, 16), (8, 8), (8, 8), 9


@pytest.mark.parametrize("arguments", [(), *((*FIVE, 1, 4.5, 0, 0.3, True, 10, True)[:n] for n in range(5, 13))])
def test_every_arity_gives_the_attributes_of_opencv(arguments):
    theirs, ours = cv2.HOGDescriptor(*arguments), HOGDescriptor(*arguments)
    for name in NAMES:
        assert getattr(ours, name) == getattr(theirs, name), name
        assert type(getattr(ours, name)) is type(getattr(theirs, name)), name
    assert len(ours.svmDetector) == len(theirs.svmDetector) == 0
    assert ours.getWinSigma() == theirs.getWinSigma()
    assert ours.checkDetectorSize() and theirs.checkDetectorSize()


def test_arguments_by_name():
    names = "_" + NAMES[0], "_" + NAMES[1], "_" + NAMES[2], "_" + NAMES[3], "_nbins"
    theirs, ours = (
        hog(**dict(zip(names, FIVE, strict=True)), _nlevels=3) for hog in (cv2.HOGDescriptor, HOGDescriptor)
    )
    assert [getattr(ours, name) for name in NAMES] == [getattr(theirs, name) for name in NAMES]


def test_gamma_by_default():
    assert HOGDescriptor().gammaCorrection and not HOGDescriptor(*FIVE).gammaCorrection
    assert HOGDescriptor5().gammaCorrection and HOGDescriptor5(*FIVE).gammaCorrection
    assert not HOGDescriptor5(*FIVE, _gammaCorrection=False).gammaCorrection


@pytest.mark.parametrize("name", ["hog.yml", "hog.xml", "hog.json"])
def test_a_file_of_opencv_is_read(name, tmp_path):
    theirs = cv2.HOGDescriptor(*FIVE, _winSigma=3.5, _gammaCorrection=True, _signedGradient=True, _nlevels=7)
    theirs.setSVMDetector(np.linspace(-1, 1, theirs.getDescriptorSize() + 1))
    theirs.save(str(tmp_path / name))
    for ours in (HOGDescriptor(str(tmp_path / name)), HOGDescriptor(filename=tmp_path / name)):
        assert [getattr(ours, name) for name in NAMES] == [getattr(theirs, name) for name in NAMES]
        np.testing.assert_array_equal(ours.svmDetector, theirs.svmDetector)
    with pytest.raises(opencv.error, match="cannot read"):
        HOGDescriptor(str(tmp_path / "other.yml"))


@pytest.mark.parametrize("has_opencv", [False, True])
def test_without_opencvs_own_a_clear_error(has_opencv, monkeypatch):
    if has_opencv:
        monkeypatch.delattr(cv2, "HOGDescriptor")
    else:
        monkeypatch.setitem(sys.modules, "cv2", None)
    for function in (HOGDescriptor.getDefaultPeopleDetector, HOGDescriptor.getDaimlerPeopleDetector):
        with pytest.raises(RuntimeError, match="the people detector needs an OpenCV with HOGDescriptor"):
            function()


IMAGE = np.zeros((128, 64), np.uint8)


@needs_module
@pytest.mark.parametrize(
    "use",
    [
        lambda hog: hog((64, 128)),
        lambda hog: hog((64, 128), (16, 16), (8, 8), (8, 8)),
        lambda hog: hog((64.0, 128), (16, 16), (8, 8), (8, 8), 9),
        lambda hog: hog((64, 128, 1), (16, 16), (8, 8), (8, 8), 9),
        lambda hog: hog((64, 128), (16, 16), (8, 8), (8, 8), 9.5),
        lambda hog: hog((64, 126), (16, 16), (8, 8), (8, 8), 9).getDescriptorSize(),
        lambda hog: hog((64, 128), (16, 17), (8, 8), (8, 8), 9).getDescriptorSize(),
        lambda hog: hog().compute(IMAGE.astype(np.float32)),
        lambda hog: hog().compute(IMAGE > 0),
        lambda hog: hog().compute(np.stack([IMAGE] * 2, -1)),
        lambda hog: hog().compute(np.stack([IMAGE] * 4, -1)),
        lambda hog: hog().compute(IMAGE[:0]),
        lambda hog: hog().compute(IMAGE.tolist()),
        lambda hog: hog().compute(IMAGE, (8,)),
        lambda hog: hog().compute(IMAGE, ()),
        lambda hog: hog().compute(IMAGE, (8, 8.5)),
        lambda hog: hog().compute(IMAGE, locations=[(1.5, 2)]),
        lambda hog: hog().setSVMDetector(np.zeros(5)),
    ],
)
def test_errors_are_those_of_opencv(use):
    with pytest.raises(cv2.error):
        use(cv2.HOGDescriptor)
    with pytest.raises(opencv.error):
        use(HOGDescriptor)


@needs_module
def test_strides_must_be_positive():
    """OpenCV dies of some."""
    for stride in ((8, 0), (-8, 8)):
        with pytest.raises(opencv.error, match="winStride must be positive"):
            HOGDescriptor().compute(IMAGE, stride)
    with pytest.raises(opencv.error, match="blockStride must be at least 1"):
        HOGDescriptor((64, 128), (16, 16), (0, 8), (8, 8), 9)


@pytest.mark.parametrize("seed", range(30))
def test_groups_are_those_of_opencv(seed):
    """Clusters in and beside each other; OpenCV's function for rectangles alone drops inner ones in the same way."""
    rng = np.random.default_rng(seed)
    clusters = []
    for size in rng.integers(1, 8, 6):
        side = rng.integers(20, 120, 2)
        clusters.append(np.hstack([rng.integers(0, 60, 2), side]) + rng.integers(-2, 3, (size, 4)))
    rectangles = rng.permutation(np.vstack(clusters))
    for threshold in (0, 1, 2):
        expected, _ = cv2.groupRectangles(rectangles.tolist(), threshold, 0.2)
        result, weights = group_rectangles(rectangles, np.ones(len(rectangles)), threshold)
        np.testing.assert_array_equal(result, np.reshape(expected, (-1, 4)))
        assert len(weights) == len(result)
