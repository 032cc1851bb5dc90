"""Windows of OpenCV: the parameters of ``cv2.HOGDescriptor``, and the features and scores of windows in an image."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..hog.plan import NEVER, Region
from ..hog.spec import OPENCV, HogSpec
from . import arrays
from .arrays import Array, hog_blocks, hog_blocks_at, is_tensor, like, to_numpy
from .opencv_checks import as_bool, as_integer, as_number, as_pair, as_pixels, as_places, error

Size = tuple[int, int]  # across, down
Places = Sequence[Sequence[int]] | np.ndarray  # [N, 2]: x, y
FEATURE_ERROR = 5e-6
"""By which features may differ from OpenCV's; scores nearer to a threshold than this allows are OpenCV's own."""
NARROWEST = 1e-18
"""Standard deviation of the narrowest Gaussian whose square float32 holds, with OpenCV's own scores."""


class Windows:
    """What :class:`HOGDescriptor` is and computes, without its methods for users."""

    winSize: tuple[int, int]
    blockSize: tuple[int, int]
    blockStride: tuple[int, int]
    cellSize: tuple[int, int]
    nlevels: int
    nbins: int
    svmDetector: Any  # () or an array [features] or [features + 1], float32

    def _set_parameters(
        self,
        *,
        nbins: Any,
        winSigma: Any,
        L2HysThreshold: Any,
        gammaCorrection: Any,
        signedGradient: Any,
        **sizes: Any,
    ) -> None:
        """Check all, and then keep them."""
        pairs = {name: as_pair(name, value, least=1) for name, value in sizes.items()}
        nbins = as_integer("nbins", nbins, least=1)
        winSigma, L2HysThreshold = as_number("winSigma", winSigma), as_number("L2HysThreshold", L2HysThreshold)
        if not L2HysThreshold >= 0:
            raise error(f"L2HysThreshold must not be negative, got {L2HysThreshold}")
        gammaCorrection = as_bool("gammaCorrection", gammaCorrection)
        signedGradient = as_bool("signedGradient", signedGradient)
        for name, value in pairs.items():
            setattr(self, name, value)
        self.nbins, self.winSigma, self.L2HysThreshold = nbins, winSigma, L2HysThreshold
        self.gammaCorrection, self.signedGradient = gammaCorrection, signedGradient

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

    @property
    def _cells(self) -> tuple[int, int]:
        """Cells of a block, (across, down)."""
        return self.blockSize[0] // self.cellSize[0], self.blockSize[1] // self.cellSize[1]

    @property
    def _entries(self) -> int:
        """Entries of a block."""
        return math.prod(self._cells) * self.nbins

    @property
    def _is_as_opencv(self) -> bool:
        """OpenCV has none of its defects that are not mirrored here."""
        return 1 < self.nbins <= 128 and self._entries >= 4 and self.getWinSigma() >= NARROWEST

    @property
    def _window_blocks(self) -> tuple[int, int]:
        """Blocks of a window, (across, down)."""
        across, down = (
            (window - width) // stride + 1
            for window, width, stride in zip(self.winSize, self.blockSize, self.blockStride, strict=True)
        )
        return across, down

    def _prepare(self, img: Any, stride: Any, default: Size, padding: Any) -> tuple[Array, Size, Size]:
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

    def _spec(self, stride: Size) -> HogSpec:
        """The blocks at each stride."""
        return _spec(
            self.nbins,
            self.cellSize[::-1],
            self._cells[::-1],
            stride[::-1],
            self.gammaCorrection,
            self.signedGradient,
            0.0 if math.isinf(self.getWinSigma()) else self.getWinSigma(),
            min(self.L2HysThreshold, 2.0),  # no entry is above 1
        )

    def _blocks(
        self, x: Array, padding: Size, left: int, top: int, width: int, height: int, stride: Size
    ) -> Array:  # [columns, rows, entries]
        """The blocks of a rectangle in the image, at each stride."""
        blocks = hog_blocks(x, self._spec(stride), Region(top, left, height, width, _tie_column(x, padding) - left))
        return blocks.reshape(*blocks.shape[:2], -1)

    def _dense(self, x: Array, stride: Size, padding: Size) -> tuple[Array, np.ndarray, np.ndarray]:
        """(blocks, columns, rows): the blocks of all windows, each once, and where those of a window are:
        [windows across, blocks across] and [windows down, blocks down]."""
        step = _common(stride, self.blockStride)
        size = x.shape[-1] + 2 * padding[0], x.shape[-2] + 2 * padding[1]
        blocks = self._blocks(x, padding, -padding[0], -padding[1], *size, step)
        room = size[0] - self.winSize[0], size[1] - self.winSize[1]
        columns, rows = map(_places_of_blocks, room, stride, self._window_blocks, self.blockStride, step)
        return blocks, columns, rows

    def _fits(self, x: Array, padding: Size, places: np.ndarray) -> np.ndarray:  # [windows] bool
        """Which windows lie in the image and its padding."""
        last = x.shape[-1] + padding[0] - self.winSize[0], x.shape[-2] + padding[1] - self.winSize[1]
        fits: np.ndarray = np.all((places >= (-padding[0], -padding[1])) & (places <= last), axis=1)
        return fits

    def _located(self, x: Array, padding: Size, places: np.ndarray) -> Array:  # [windows, features]
        """The features of windows at any places, and zeros for those that do not fit.

        Blocks on few grids are computed once and shared by their windows, where that is less work.
        """
        fits = self._fits(x, padding, places)
        if not fits.all():
            result = like(x, np.zeros((len(places), self.getDescriptorSize()), np.float32))
            if fits.any():
                result[like(x, fits)] = self._located(x, padding, places[fits])
            return result
        if self._window_blocks != (1, 1):
            first, last = places.min(0), places.max(0)
            on_grids = (places - first) % self.blockStride
            grids, grid = np.unique(on_grids[:, 0] * self.blockStride[1] + on_grids[:, 1], return_inverse=True)
            area = math.prod((last - first + self.winSize).tolist())
            if len(grids) * area < len(places) * math.prod(self.winSize):
                return self._on_grids(x, padding, places, [grid == i for i in range(len(grids))])
        width, height = self.winSize
        region = Region(0, 0, height, width, _tie_column(x, padding))
        return hog_blocks_at(x, places[:, ::-1].copy(), self._spec(self.blockStride), region).reshape(len(places), -1)

    def _on_grids(
        self, x: Array, padding: Size, places: np.ndarray, grids: Sequence[np.ndarray]
    ) -> Array:  # [windows, features]
        """The same for windows in the image. ``grids`` are masks of those whose blocks lie on one grid."""
        result = like(x, np.empty((len(places), self.getDescriptorSize()), np.float32))
        for grid in grids:
            left, top = places[grid].min(0).tolist()
            width, height = (np.ptp(places[grid], axis=0) + self.winSize).tolist()
            blocks = self._blocks(x, padding, left, top, width, height, self.blockStride)
            first = (places[grid] - (left, top)) // self.blockStride
            columns, rows = (first[:, i, None] + np.arange(self._window_blocks[i]) for i in range(2))
            windows = blocks[like(x, columns[:, :, None]), like(x, rows[:, None, :])]
            result[like(x, grid)] = windows.reshape(len(windows), -1)
        return result

    def _detect(
        self,
        x: Array,
        stride: Size,
        padding: Size,
        threshold: float,
        locations: Places | None = None,
        as_opencv: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(places [N, 2] int64, scores [N] float64) of the windows whose score is not below the threshold.

        Scores near the threshold, or all of them ``as_opencv``, are computed in the order of OpenCV's sums.
        """
        if len(self.svmDetector) == 0:
            return np.zeros((0, 2), np.int64), np.zeros(0)
        if not self.checkDetectorSize():
            raise error(f"svmDetector must have {self.getDescriptorSize()} weights, got {len(self.svmDetector)}")
        size = self.getDescriptorSize()
        weights = self.svmDetector[:size]
        offset = float(self.svmDetector[size]) if len(self.svmDetector) > size else 0.0
        if locations is not None and len(locations):
            places = as_places(locations)
            places = places[self._fits(x, padding, places)]
            scores = to_numpy(self._located(x, padding, places) @ like(x, weights)).astype(float) + offset
        else:
            places, scores = self._dense_scores(x, stride, padding, weights, offset)
        if arrays._numpy_ops is not None and self._is_as_opencv:
            error_ = FEATURE_ERROR * float(np.abs(weights, dtype=float).sum())
            near = scores >= threshold - error_
            if not as_opencv:
                near &= scores <= threshold + error_
            scores[near] = self._opencv_scores(x, padding, weights, offset, places[near])
        hit = scores >= threshold
        return places[hit], scores[hit]

    def _opencv_scores(
        self, x: Array, padding: Size, weights: np.ndarray, offset: float, places: np.ndarray
    ) -> np.ndarray:  # [N] float64
        """The scores of windows, bit for bit."""
        if len(places) == 0:
            return np.zeros(0)
        sizes = self.winSize, self.blockSize, self.blockStride, self.cellSize
        rest = self.nbins, self.getWinSigma(), self.L2HysThreshold, self.gammaCorrection, self.signedGradient
        ops = arrays.compiled("detection")
        scores: np.ndarray = ops.opencv_scores(planes(x), sizes, *rest, padding, weights, offset, places)
        return scores

    def _dense_scores(
        self, x: Array, stride: Size, padding: Size, weights: np.ndarray, offset: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """(places [N, 2] int64, scores [N] float64) of all windows, row by row."""
        step = _common(stride, self.blockStride)
        if any(pad % g for pad, g in zip(padding, step, strict=True)):
            raise error(
                f"padding {padding} must be a multiple of what winStride {stride} and blockStride have in common"
            )
        blocks, columns, rows = self._dense(x, stride, padding)
        if is_tensor(x):  # every block times every place in the window, once
            products = to_numpy(like(x, weights.reshape(-1, self._entries)) @ blocks.flatten(0, 1).T)
            products = products.reshape(-1, *blocks.shape[:2])  # [blocks of a window, *blocks]
            scores = np.full((len(columns), len(rows)), offset)
            for k, product in enumerate(products):
                i, j = divmod(k, rows.shape[1])
                scores += product[_steps(columns[:, i]), _steps(rows[:, j])]
            scores = scores.T
        else:
            weights = weights.reshape(*self._window_blocks, self._entries)
            per_window, per_block = ([a // b for a, b in zip(c, step, strict=True)] for c in (stride, self.blockStride))
            windows = len(columns), len(rows)
            scores = arrays.compiled("detection").window_scores(blocks, weights, offset, windows, per_window, per_block)
        places = np.empty((*scores.shape, 2), np.int64)
        places[..., 0] = np.arange(scores.shape[1]) * stride[0] - padding[0]
        places[..., 1] = (np.arange(scores.shape[0]) * stride[1] - padding[1])[:, None]
        return places.reshape(-1, 2), scores.reshape(-1)

    def _levels(self, width: int, height: int, scale: float) -> list[float]:
        """By how much the image is made smaller, until a window does not fit."""
        if self.nlevels < 1:
            raise error(f"nlevels must be at least 1, got {self.nlevels}")
        factors = [1.0]
        while len(factors) < self.nlevels and scale > 1:
            factor = factors[-1] * scale
            if round(width / factor) < self.winSize[0] or round(height / factor) < self.winSize[1]:
                break
            factors.append(factor)
        return factors


@functools.lru_cache
def _spec(
    bins: int, cell: Size, block: Size, stride: Size, gamma: bool, signed: bool, sigma: float, clip: float
) -> HogSpec:
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


def _tie_column(x: Array, padding: Size) -> int:
    """OpenCV takes the last of equally strong channels in the columns that its vectors leave over."""
    width = x.shape[-1] + 2 * padding[0]
    return width // 4 * 4 - padding[0] if width % 4 else NEVER


@functools.lru_cache
def _places_of_blocks(room: int, stride: int, count: int, block_stride: int, step: int) -> np.ndarray:
    """[windows, blocks of a window] along an axis: where they are in a row of all blocks, each ``step`` pixels."""
    return np.arange(room // stride + 1)[:, None] * (stride // step) + np.arange(count) * (block_stride // step)


def _steps(index: np.ndarray) -> slice:
    """Evenly spaced indices as a slice."""
    return slice(index[0], index[-1] + 1, index[1] - index[0] if len(index) > 1 else 1)


def _common(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return math.gcd(a[0], b[0]), math.gcd(a[1], b[1])


def planes(x: Array) -> np.ndarray:  # [C, H, W]
    """Make an array of three axes of an image, with one channel if it has no axis for channels."""
    pixels = to_numpy(x)
    return pixels if pixels.ndim == 3 else pixels[None]
