"""``cv2.HOGDescriptor`` on the kernels of this package: ``from maskfeat_kernels.compat import opencv as cv2``.

OpenCV 4 and 5 differ in the default of ``gammaCorrection``, which takes the square root of every pixel: in OpenCV 4 it
is on in ``HOGDescriptor()`` and off in ``HOGDescriptor(winSize, blockSize, ...)``, in OpenCV 5 on in both. The same
call gives other features, and a classifier trained on one is wrong on the other. Here :class:`HOGDescriptor` has the
default of OpenCV 4, and :class:`HOGDescriptor5` that of OpenCV 5 (whose main wheel has no descriptor any more; the
contrib wheel has). To move from one to the other, give ``_gammaCorrection`` by name.
"""

import functools
import math
import os

import numpy as np

from ..blocks import Region
from ..spec import OPENCV, HogSpec
from .arrays import hog_blocks, like, to_numpy
from .detection import clip_rectangles, group_rectangles, group_rectangles_meanshift, resize_linear_exact
from .opencv_checks import as_integer, as_pair, as_pixels, as_places, error


class HOGDescriptor:
    """Windows of overlapping blocks, as ``cv2.HOGDescriptor`` of OpenCV 4 computes them, and its linear detector.

    All sizes and places are (width, height) and (x, y). Arguments are given by place or by cv2's names, with the
    underscore; none gives the detector of people of 64 x 128 pixels; a string is the name of a file that OpenCV has
    saved, which the installed OpenCV reads. The parameters can be read under their names without underscore.

    ``_derivAperture`` and ``_histogramNormType`` are kept and do nothing, as in OpenCV. Images are uint8, [H, W]
    or [H, W, 1 or 3], NumPy arrays or torch tensors on any device. Features are within 1e-5 of OpenCV's; with more than
    36 bins, or a ``_winSigma`` below a pixel, within 1e-4, since orientations are rounded to float32 by both.

    These defects of OpenCV are not mirrored: it keeps the first L2HysThreshold of the process for all descriptors;
    reads outside an image that is smaller than a window (here an error); crashes where a block has fewer than 4 entries
    and where a stride is 0 (here an error); counts wrongly with more than 128 bins; and loses a part of each vote with
    one bin.
    """

    _gamma_default = False

    def __init__(
        self,
        _winSize=None,
        _blockSize=None,
        _blockStride=None,
        _cellSize=None,
        _nbins=None,
        _derivAperture=1,
        _winSigma=-1.0,
        _histogramNormType=0,
        _L2HysThreshold=0.2,
        _gammaCorrection=None,
        _nlevels=64,
        _signedGradient=False,
        *,
        filename=None,
    ):
        shape = {"winSize": _winSize, "blockSize": _blockSize, "blockStride": _blockStride, "cellSize": _cellSize}
        given = [value for value in (*shape.values(), _nbins) if value is not None]
        if len(given) == 1 and isinstance(_winSize, (str, os.PathLike)):
            given, filename = [], _winSize
        if not given:
            shape = {"winSize": (64, 128), "blockSize": (16, 16), "blockStride": (8, 8), "cellSize": (8, 8)}
            _nbins = 9
            _gammaCorrection = True if _gammaCorrection is None else _gammaCorrection
        elif len(given) < 5:
            raise error(f"give all of {', '.join('_' + name for name in shape)} and _nbins, or none of them")
        for name, value in shape.items():
            setattr(self, name, as_pair(name, value, least=1))
        self.nbins = as_integer("nbins", _nbins)
        self.derivAperture = as_integer("derivAperture", _derivAperture)
        self.winSigma = -1.0 if _winSigma is None else float(_winSigma)
        self.histogramNormType = as_integer("histogramNormType", _histogramNormType)
        self.L2HysThreshold = float(_L2HysThreshold)
        self.gammaCorrection = self._gamma_default if _gammaCorrection is None else bool(_gammaCorrection)
        self.nlevels = as_integer("nlevels", _nlevels)
        self.signedGradient = bool(_signedGradient)
        self.svmDetector = ()
        if filename is not None:
            self.load(filename)

    def compute(self, img, winStride=None, padding=None, locations=()):
        """The features of all windows of an image, one after the other: row by row, or those at ``locations``.

        Args:
            img: uint8, [H, W], [H, W, 1] or [H, W, 3].
            winStride: from a window to the next; None or (0, 0) is a cell.
            padding: pixels to add on all sides, by mirroring, rounded up as OpenCV does it.
            locations: (x, y) of windows in the image, may be negative within the padding; a window that does not fit
                is a row of zeros.

        Returns:
            [windows * getDescriptorSize()] float32; a window is [block columns, block rows, cell columns, cell
            rows, bins]. A tensor gives a tensor on its device.

        Raises:
            error: an image of another dtype or shape, or smaller than a window with its padding; sizes that do not fit.
        """
        x, stride, padding = self._prepare(img, winStride, self.cellSize, padding)
        if locations is not None and len(locations):
            return self._located(x, padding, as_places(locations)).reshape(-1)
        blocks, columns, rows = self._dense(x, stride, padding)
        if len(columns) == len(rows) == 1 and columns.size * rows.size == len(blocks) * blocks.shape[1]:
            return blocks.reshape(-1)  # one window, of all blocks
        columns, rows = like(x, columns), like(x, rows)
        return blocks[columns[None, :, :, None], rows[:, None, None, :]].reshape(-1)

    def getDescriptorSize(self) -> int:
        """Entries of a window."""
        for width, cell in zip(self.blockSize, self.cellSize, strict=True):
            if width % cell:
                raise error(f"blockSize {self.blockSize} must be a multiple of cellSize {self.cellSize}")
        for window, width, stride in zip(self.winSize, self.blockSize, self.blockStride, strict=True):
            if window < width or (window - width) % stride:
                raise error(
                    f"winSize {self.winSize} must be blockSize {self.blockSize} and whole steps of blockStride"
                    f" {self.blockStride}"
                )
        across, down = self._window_blocks
        return across * down * self._entries

    def getWinSigma(self) -> float:
        """Standard deviation in pixels of the Gaussian of a block: ``winSigma``, or (width + height) / 8."""
        return self.winSigma if self.winSigma > 0 else sum(self.blockSize) / 8.0

    def checkDetectorSize(self) -> bool:
        """Whether there is no detector, or one with a weight for each entry of a window and perhaps an offset."""
        size = self.getDescriptorSize()
        return len(self.svmDetector) in (0, size, size + 1)

    def setSVMDetector(self, svmdetector) -> None:
        """Take the weights of a linear classifier, and perhaps its offset: an array or a tensor; None drops them."""
        weights = np.empty(0) if svmdetector is None else to_numpy(svmdetector)
        before, self.svmDetector = self.svmDetector, weights.astype(np.float32).reshape(-1)
        if not self.checkDetectorSize():
            got, self.svmDetector = len(self.svmDetector), before
            raise error(
                f"svmdetector must have {self.getDescriptorSize()} weights, and one more for an offset; got {got}"
            )

    @staticmethod
    def getDefaultPeopleDetector() -> np.ndarray:  # [3781] float32
        """The installed OpenCV's classifier of people of 64 x 128 pixels."""
        return _opencv("HOGDescriptor", "the people detector").getDefaultPeopleDetector()

    @staticmethod
    def getDaimlerPeopleDetector() -> np.ndarray:  # [1981] float32
        """The installed OpenCV's classifier of people of 48 x 96 pixels."""
        return _opencv("HOGDescriptor", "the people detector").getDaimlerPeopleDetector()

    def load(self, filename, objname="") -> bool:
        """Take parameters and detector from a file that OpenCV has saved; read by the installed OpenCV."""
        file = _opencv("FileStorage", "reading files")(str(filename), 0)
        if not file.isOpened():
            raise error(f"cannot read {filename!r}")
        node = file.getNode(objname) if objname else file.getFirstTopLevelNode()
        if node.getNode("winSize").empty():
            raise error(f"{filename!r} holds no HOGDescriptor")
        numbers = {name: node.getNode(name) for name in node.keys()}  # noqa: SIM118, a FileNode is no mapping
        for name in ("winSize", "blockSize", "blockStride", "cellSize"):
            setattr(self, name, tuple(int(numbers[name].at(i).real()) for i in range(2)))
        for name in ("nbins", "derivAperture", "histogramNormType", "nlevels"):
            setattr(self, name, int(numbers[name].real()) if name in numbers else getattr(self, name))
        self.winSigma, self.L2HysThreshold = numbers["winSigma"].real(), numbers["L2HysThreshold"].real()
        self.gammaCorrection = bool(numbers["gammaCorrection"].real())
        self.signedGradient = "signedGradient" in numbers and bool(numbers["signedGradient"].real())
        if "SVMDetector" in numbers:
            weights = numbers["SVMDetector"]
            self.setSVMDetector(np.array([weights.at(i).real() for i in range(weights.size())]))
        return True

    def detect(self, img, hitThreshold=0.0, winStride=None, padding=None, searchLocations=()):
        """The windows that the detector takes for what it was trained on.

        Returns (places [N, 2] int32, scores [N] float64), arrays also where ``img`` is a tensor, or ((), ()) for none.
        """
        places, scores = self._detect(
            *self._prepare(img, winStride, self.cellSize, padding), hitThreshold, searchLocations
        )
        return (places.astype(np.int32), scores) if len(places) else ((), ())

    def detectMultiScale(
        self,
        img,
        hitThreshold=0.0,
        winStride=None,
        padding=None,
        scale=1.05,
        groupThreshold=2.0,
        useMeanshiftGrouping=False,
    ):
        """:meth:`detect` on the image and on ``nlevels`` copies of it, each smaller by ``scale``, and the hits grouped.

        No stride is that of the blocks here. Returns (rectangles [N, 4] int32: x, y, width, height; scores [N]
        float64), arrays also where ``img`` is a tensor, or ((), ()) for none.
        """
        x, stride, pad = self._prepare(img, winStride, self.blockStride, padding)
        height, width = x.shape[-2:]
        rectangles, scores, scales = [], [], []
        for factor in self._levels(width, height, scale):
            size = round(height / factor), round(width / factor)
            level = x if size == (height, width) else resize_linear_exact(x, *size)
            places, found = self._detect(level, stride, pad, hitThreshold)
            window = np.rint(np.array(self.winSize) * factor)
            rectangles.append(
                np.hstack([np.rint(places * factor), np.broadcast_to(window, (len(places), 2))]).astype(int)
            )
            scores.append(found)
            scales.append(np.full(len(places), factor))
        rectangles, scores = np.vstack(rectangles), np.concatenate(scores)
        if useMeanshiftGrouping:
            scales = np.concatenate(scales)
            rectangles, scores = group_rectangles_meanshift(rectangles, scores, scales, groupThreshold, self.winSize)
        else:
            rectangles, scores = group_rectangles(rectangles, scores, int(groupThreshold))
        rectangles, scores = clip_rectangles(rectangles, scores, width, height)
        return (rectangles.astype(np.int32), scores) if len(rectangles) else ((), ())

    @property
    def _cells(self) -> tuple[int, int]:
        """Cells of a block, (across, down)."""
        return self.blockSize[0] // self.cellSize[0], self.blockSize[1] // self.cellSize[1]

    @property
    def _entries(self) -> int:
        """Entries of a block."""
        return math.prod(self._cells) * self.nbins

    @property
    def _window_blocks(self) -> tuple[int, int]:
        """Blocks of a window, (across, down)."""
        across, down = (
            (window - width) // stride + 1
            for window, width, stride in zip(self.winSize, self.blockSize, self.blockStride, strict=True)
        )
        return across, down

    def _prepare(self, img, stride, default, padding):
        """(pixels [C, H, W] or [H, W], stride, padding): what a method is given, checked and completed."""
        self.getDescriptorSize()
        stride, padding = as_pair("winStride", stride), as_pair("padding", padding)
        stride = default if stride == (0, 0) else stride
        if min(stride) <= 0:
            raise error(f"winStride must be positive, got {stride}")
        # A rounding up to multiples where they are powers of two; OpenCV does the same to other numbers.
        padding = tuple(
            (max(pad, 0) + g - 1) & -g for pad, g in zip(padding, _common(stride, self.blockStride), strict=True)
        )
        x = as_pixels(img)
        size = x.shape[-1] + 2 * padding[0], x.shape[-2] + 2 * padding[1]
        if size[0] < self.winSize[0] or size[1] < self.winSize[1]:
            raise error(f"img with its padding is {size[0]} x {size[1]} pixels, smaller than winSize {self.winSize}")
        return x, stride, padding

    def _blocks(self, x, padding, left, top, width, height, stride):  # [columns, rows, entries]
        """The blocks of a rectangle in the image, at each stride."""
        spec = _spec(
            self.nbins,
            self.cellSize[::-1],
            self._cells[::-1],
            stride[::-1],
            self.gammaCorrection,
            self.signedGradient,
            self.getWinSigma(),
            self.L2HysThreshold,
        )
        # OpenCV takes the last of equally strong channels in the columns that its vectors leave over.
        tie_column = (x.shape[-1] + 2 * padding[0]) // 4 * 4 - (left + padding[0])
        blocks = hog_blocks(x, spec, Region(top, left, height, width, tie_column))
        return blocks.reshape(*blocks.shape[:2], -1)

    def _dense(self, x, stride, padding):
        """(blocks, columns, rows): the blocks of all windows, each once, and where those of a window are:
        [windows across, blocks across] and [windows down, blocks down]."""
        step = _common(stride, self.blockStride)
        size = x.shape[-1] + 2 * padding[0], x.shape[-2] + 2 * padding[1]
        blocks = self._blocks(x, padding, -padding[0], -padding[1], *size, step)
        room = size[0] - self.winSize[0], size[1] - self.winSize[1]
        columns, rows = map(_places_of_blocks, room, stride, self._window_blocks, self.blockStride, step)
        return blocks, columns, rows

    def _fits(self, x, padding, places: np.ndarray) -> np.ndarray:  # [windows] bool
        """Which windows lie in the image and its padding."""
        last = x.shape[-1] + padding[0] - self.winSize[0], x.shape[-2] + padding[1] - self.winSize[1]
        return ((places >= (-padding[0], -padding[1])) & (places <= last)).all(1)

    def _located(self, x, padding, places: np.ndarray):  # [windows, features]
        """The features of windows at any places; those whose blocks lie on one grid share them if that is less work."""
        fits = self._fits(x, padding, places)
        result = like(x, np.zeros((len(places), self.getDescriptorSize()), np.float32))
        grids = {}
        for i in np.flatnonzero(fits):
            grids.setdefault(tuple(places[i] % self.blockStride), []).append(i)
        for members in map(np.array, grids.values()):
            size = np.ptp(places[members], axis=0) + self.winSize
            shared = math.prod(size.tolist()) < len(members) * math.prod(self.winSize)
            for some in [members] if shared else np.split(members, len(members)):
                left, top = places[some].min(0).tolist()
                width, height = (np.ptp(places[some], axis=0) + self.winSize).tolist()
                blocks = self._blocks(x, padding, left, top, width, height, self.blockStride)
                first = (places[some] - (left, top)) // self.blockStride
                columns, rows = (first[:, i, None] + np.arange(self._window_blocks[i]) for i in range(2))
                windows = blocks[like(x, columns[:, :, None]), like(x, rows[:, None, :])]
                result[like(x, some)] = windows.reshape(len(some), -1)
        return result

    def _detect(self, x, stride, padding, threshold, locations=()) -> tuple[np.ndarray, np.ndarray]:
        """(places [N, 2], scores [N]) of the windows whose score is not below the threshold."""
        if len(self.svmDetector) == 0:
            return np.zeros((0, 2), int), np.zeros(0)
        if not self.checkDetectorSize():
            raise error(f"svmDetector must have {self.getDescriptorSize()} weights, got {len(self.svmDetector)}")
        size = self.getDescriptorSize()
        weights = like(x, self.svmDetector[:size].reshape(-1, self._entries))
        offset = float(self.svmDetector[size]) if len(self.svmDetector) > size else 0.0
        if len(locations):
            places = as_places(locations)
            places = places[self._fits(x, padding, places)]
            scores = to_numpy(self._located(x, padding, places) @ weights.reshape(-1)).astype(float) + offset
        else:
            places, scores = self._dense_scores(x, stride, padding, weights)
            scores += offset
        hit = scores >= threshold
        return places[hit], scores[hit]

    def _dense_scores(self, x, stride, padding, weights):
        """(places [N, 2], scores [N]) of all windows, row by row: every block times every place in the window, once."""
        if any(pad % g for pad, g in zip(padding, _common(stride, self.blockStride), strict=True)):
            raise error(
                f"padding {padding} must be a multiple of what winStride {stride} and blockStride have in common"
            )
        blocks, columns, rows = self._dense(x, stride, padding)
        products = to_numpy(weights @ blocks.reshape(-1, blocks.shape[-1]).T)  # [blocks of a window, blocks]
        products = products.reshape(-1, *blocks.shape[:2])
        scores = np.zeros((len(columns), len(rows)))
        for k, product in enumerate(products):
            i, j = divmod(k, rows.shape[1])
            scores += product[_steps(columns[:, i]), _steps(rows[:, j])]
        x0, y0 = (np.arange(n) * step - pad for n, step, pad in zip(scores.shape, stride, padding, strict=True))
        places = np.stack(np.broadcast_arrays(x0, y0[:, None]), -1)
        return places.reshape(-1, 2), scores.T.reshape(-1)

    def _levels(self, width: int, height: int, scale: float) -> list[float]:
        """By how much the image is made smaller, until a window does not fit."""
        factors = [1.0]
        while len(factors) < self.nlevels and scale > 1:
            factor = factors[-1] * scale
            if round(width / factor) < self.winSize[0] or round(height / factor) < self.winSize[1]:
                break
            factors.append(factor)
        return factors


class HOGDescriptor5(HOGDescriptor):
    """:class:`HOGDescriptor` with the default of OpenCV 5: gamma correction is on."""

    _gamma_default = True


# cv2's own second names.
HOGDescriptor_getDefaultPeopleDetector = HOGDescriptor.getDefaultPeopleDetector
HOGDescriptor_getDaimlerPeopleDetector = HOGDescriptor.getDaimlerPeopleDetector
HOGDescriptor_L2Hys = HOGDESCRIPTOR_L2HYS = 0
HOGDescriptor_DEFAULT_NLEVELS = HOGDESCRIPTOR_DEFAULT_NLEVELS = 64
HOGDescriptor_DESCR_FORMAT_COL_BY_COL = HOGDESCRIPTOR_DESCR_FORMAT_COL_BY_COL = 0
HOGDescriptor_DESCR_FORMAT_ROW_BY_ROW = HOGDESCRIPTOR_DESCR_FORMAT_ROW_BY_ROW = 1


@functools.lru_cache
def _spec(bins, cell, block, stride, gamma, signed, sigma, clip) -> HogSpec:
    return OPENCV.replace(
        bins=bins,
        cell=cell,
        block=block,
        block_stride=stride,
        sqrt=gamma,
        signed=signed,
        block_sigma=sigma,
        clip=clip,
    )


@functools.lru_cache
def _places_of_blocks(room: int, stride: int, count: int, block_stride: int, step: int) -> np.ndarray:
    """[windows, blocks of a window] along an axis: where they are in a row of all blocks, each ``step`` pixels."""
    return np.arange(room // stride + 1)[:, None] * (stride // step) + np.arange(count) * (block_stride // step)


def _steps(index: np.ndarray) -> slice:
    """Evenly spaced indices as a slice."""
    return slice(index[0], index[-1] + 1, index[1] - index[0] if len(index) > 1 else 1)


def _common(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return math.gcd(a[0], b[0]), math.gcd(a[1], b[1])


def _opencv(name: str, what: str):
    """Something of the installed OpenCV, for what is its own."""
    try:
        import cv2

        return getattr(cv2, name)
    except (ImportError, AttributeError):
        raise RuntimeError(f"{what} needs an OpenCV with {name}: pip install 'opencv-python-headless<5'") from None
