"""``cv2.HOGDescriptor`` on the kernels of this package: ``from maskfeat_kernels.compat import opencv as cv2``.

OpenCV 4 and 5 differ in the default of ``gammaCorrection``, which takes the square root of every pixel: in OpenCV 4 it
is on in ``HOGDescriptor()`` and off in ``HOGDescriptor(winSize, blockSize, ...)``, in OpenCV 5 on in both. The same
call gives other features, and a classifier trained on one is wrong on the other. Here :class:`HOGDescriptor` has the
default of OpenCV 4, and :class:`HOGDescriptor5` that of OpenCV 5 (whose main wheel has no descriptor any more; the
contrib wheel has). To move from one to the other, give ``_gammaCorrection`` by name.
"""

import os
from collections.abc import Sequence

import numpy as np

from . import arrays
from .arrays import Array, is_tensor, like, on_cpu, to_numpy
from .detection import clip_rectangles, group_rectangles, group_rectangles_meanshift, in_threads, resize_linear_exact
from .opencv_checks import as_bool, as_integer, as_number, as_pair, as_pixels, as_places, error
from .opencv_files import ORDER, PARAMETERS, FileName, opencv, read, write
from .opencv_windows import Places, Windows, planes

Found = tuple[np.ndarray, np.ndarray] | tuple[tuple[()], tuple[()]]
"""(places, scores), or ((), ()) for none."""

_threads: int | None = None  # None for the default


def setNumThreads(nthreads: int) -> None:
    """Threads for ``detectMultiScale`` on arrays; 0 and 1 for none besides the caller's, below 0 for the default.

    The default is OMP_NUM_THREADS where it is set, else the cores that this process may use. Tensors on the CPU have as
    many threads as torch.
    """
    global _threads
    nthreads = as_integer("nthreads", nthreads)
    _threads = None if nthreads < 0 else max(1, nthreads)


def getNumThreads() -> int:
    """What :func:`setNumThreads` has set, or the default."""
    if _threads is not None:
        return _threads
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class HOGDescriptor(Windows):
    """Windows of overlapping blocks, as ``cv2.HOGDescriptor`` of OpenCV 4 computes them, and its linear detector.

    All sizes and places are (width, height) and (x, y). Arguments are given by place or by cv2's names, with the
    underscore. No argument gives the detector of people of 64 x 128 pixels. A string is the name of a file that OpenCV
    has saved, which the installed OpenCV reads. The parameters can be read under their names without underscore.

    ``_derivAperture`` and ``_histogramNormType`` are kept and do nothing, as in OpenCV. Images are uint8, [H, W]
    or [H, W, 1 or 3], NumPy arrays or torch tensors on any device. Features are within 1e-5 of OpenCV's; with more than
    36 bins, or a ``_winSigma`` below a pixel, within 1e-4, since orientations are rounded to float32 by both.

    Some defects of OpenCV are not mirrored. It keeps the first L2HysThreshold of the process for all descriptors. It
    reads outside an image that is smaller than a window; here that is an error. It crashes where a block has fewer than
    4 entries and where a stride is 0; here a stride of 0 is an error. It counts wrongly with more than 128 bins, and
    with one bin loses a part of each vote. It forgets the pixels where ``_winSigma`` is below 1e-19. It raises
    SystemError for a file that holds no descriptor.
    """

    _gamma_default = False

    def __init__(
        self,
        _winSize: Sequence[int] | FileName | None = None,
        _blockSize: Sequence[int] | None = None,
        _blockStride: Sequence[int] | None = None,
        _cellSize: Sequence[int] | None = None,
        _nbins: int | None = None,
        _derivAperture: int | None = 1,
        _winSigma: float | None = -1.0,
        _histogramNormType: int | None = 0,
        _L2HysThreshold: float | None = 0.2,
        _gammaCorrection: bool | None = None,
        _nlevels: int | None = 64,
        _signedGradient: bool | None = False,
        *,
        filename: FileName | None = None,
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
        self.derivAperture = as_integer("derivAperture", 1 if _derivAperture is None else _derivAperture)
        self.histogramNormType = as_integer(
            "histogramNormType", 0 if _histogramNormType is None else _histogramNormType
        )
        self.nlevels = as_integer("nlevels", 64 if _nlevels is None else _nlevels)
        self.svmDetector = ()
        self._set_parameters(
            **shape,
            nbins=_nbins,
            winSigma=-1.0 if _winSigma is None else _winSigma,
            L2HysThreshold=0.2 if _L2HysThreshold is None else _L2HysThreshold,
            gammaCorrection=self._gamma_default if _gammaCorrection is None else _gammaCorrection,
            signedGradient=False if _signedGradient is None else _signedGradient,
        )
        if filename is not None:
            self.load(filename)

    def compute(
        self,
        img: Array,
        winStride: Sequence[int] | None = None,
        padding: Sequence[int] | None = None,
        locations: Places | None = (),
    ) -> Array:
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

    def setSVMDetector(self, svmdetector: Array | None) -> None:
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
        weights: np.ndarray = opencv("HOGDescriptor", "the people detector").getDefaultPeopleDetector()
        return weights

    @staticmethod
    def getDaimlerPeopleDetector() -> np.ndarray:  # [1981] float32
        """The installed OpenCV's classifier of people of 48 x 96 pixels."""
        weights: np.ndarray = opencv("HOGDescriptor", "the people detector").getDaimlerPeopleDetector()
        return weights

    def load(self, filename: FileName, objname: str = "") -> bool:
        """Take parameters and detector from a file that OpenCV, or :meth:`save`, has written.

        The installed OpenCV reads it. ``objname`` is the object's name in the file, by default the first's. Raises
        :class:`error` for a file that holds no descriptor, and then changes nothing.
        """
        values = read(filename, objname)
        weights = values.pop("SVMDetector", None)
        other = type(self)()
        other._set_parameters(**{name: values[name] for name in PARAMETERS})
        for name in ("derivAperture", "histogramNormType", "nlevels"):
            setattr(other, name, values[name])
        other.getDescriptorSize()
        if weights is not None:
            if not isinstance(weights, list) or not all(isinstance(w, (int, float)) for w in weights):
                raise error(f"SVMDetector must be numbers in {filename!r}")
            other.setSVMDetector(np.array(weights, float))
        self.__dict__.update(other.__dict__)
        return True

    def save(self, filename: FileName, objname: str = "") -> None:
        """Write parameters and detector in OpenCV's form, as YAML, XML or JSON by the name's ending.

        The installed OpenCV writes it. ``objname`` is the object's name in the file, by default the file's.
        """
        values = {name: getattr(self, name) for name in ORDER} | {"winSigma": self.getWinSigma()}
        values |= {name: int(values[name]) for name in ("gammaCorrection", "signedGradient")}
        write(filename, objname, values | ({"SVMDetector": self.svmDetector} if len(self.svmDetector) else {}))

    def computeGradient(
        self,
        img: Array,
        grad: np.ndarray | None = None,
        angleOfs: np.ndarray | None = None,
        paddingTL: Sequence[int] | None = None,
        paddingBR: Sequence[int] | None = None,
    ) -> tuple[Array, Array]:
        """The votes of each pixel, and the bins that they are for, bit for bit OpenCV's where it uses AVX2.

        Args:
            img: as in :meth:`compute`.
            grad, angleOfs: results, which are filled where they are arrays of the shape and dtype that are returned.
            paddingTL, paddingBR: pixels to add at the left and top, and at the right and bottom, by mirroring; fewer
                than none cut the image.

        Returns:
            ([height, width, 2] float32, [height, width, 2] uint8): a pixel's magnitude, shared between the bins before
            and after its orientation. A tensor gives tensors on its device.

        Raises:
            error: as :meth:`compute`; more than 255 bins; padding that leaves no pixel.
        """
        x, before, after = as_pixels(img), as_pair("paddingTL", paddingTL), as_pair("paddingBR", paddingBR)
        size = [n + a + b for n, a, b in zip(x.shape[:-3:-1], before, after, strict=True)]
        if min(size) < 1:
            raise error(f"paddingTL {before} and paddingBR {after} leave no pixel of {x.shape[-1]} x {x.shape[-2]}")
        if self.nbins > 255:
            raise error(f"nbins must be at most 255 here, where a bin is a byte, got {self.nbins}")
        compute = arrays.compiled("computeGradient").opencv_gradient
        results = compute(planes(x), self.nbins, self.gammaCorrection, self.signedGradient, before, after)
        if is_tensor(img):
            return like(img, results[0]), like(img, results[1])
        return _put(results[0], grad), _put(results[1], angleOfs)

    def detect(
        self,
        img: Array,
        hitThreshold: float | None = 0.0,
        winStride: Sequence[int] | None = None,
        padding: Sequence[int] | None = None,
        searchLocations: Places | None = None,
    ) -> Found:
        """The windows that the detector takes for what it was trained on.

        Returns (places [N, 2] int32, scores [N] float64), arrays also where ``img`` is a tensor, or ((), ()) for none.
        """
        x, stride, padding = self._prepare(img, winStride, self.cellSize, padding)
        places, scores = self._detect(on_cpu(x)[0], stride, padding, _threshold(hitThreshold), searchLocations)
        return (places.astype(np.int32), scores) if len(places) else ((), ())

    def detectMultiScale(
        self,
        img: Array,
        hitThreshold: float | None = 0.0,
        winStride: Sequence[int] | None = None,
        padding: Sequence[int] | None = None,
        scale: float | None = 1.05,
        groupThreshold: float | None = 2.0,
        useMeanshiftGrouping: bool | None = False,
    ) -> Found:
        """:meth:`detect` on the image and on ``nlevels`` copies of it, each smaller by ``scale``, and the hits grouped.

        No stride is that of the blocks here. Returns (rectangles [N, 4] int32: x, y, width, height; scores [N]
        float64), arrays also where ``img`` is a tensor, or ((), ()) for none. Levels are shared among threads, see
        :func:`setNumThreads`; results do not depend on their number. Those of mean shift are OpenCV's to the pixel:
        their hits have its own scores, bit for bit where it uses AVX2.
        """
        x, stride, pad = self._prepare(img, winStride, self.blockStride, padding)
        x, threads = on_cpu(x)
        threads = threads or getNumThreads()
        height, width = x.shape[-2:]
        threshold, scale = _threshold(hitThreshold), as_number("scale", 1.05 if scale is None else scale)
        group = as_number("groupThreshold", 2.0 if groupThreshold is None else groupThreshold)
        by_mean_shift = as_bool("useMeanshiftGrouping", useMeanshiftGrouping or False)

        def hits(factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            size = round(height / factor), round(width / factor)
            level = x if size == (height, width) else resize_linear_exact(x, *size)
            places, scores = self._detect(level, stride, pad, threshold, as_opencv=by_mean_shift)
            window = np.rint(np.array(self.winSize) * factor)
            rectangles = np.hstack([np.rint(places * factor), np.broadcast_to(window, (len(places), 2))])
            return rectangles.astype(np.int64), scores, np.full(len(places), factor)

        found = in_threads(hits, self._levels(width, height, scale), threads)
        rectangles, scores, scales = (np.concatenate(part) for part in zip(*found, strict=True))
        if by_mean_shift:
            grouped = group_rectangles_meanshift(rectangles, scores, scales, group, self.winSize, threads)
        else:
            grouped = group_rectangles(rectangles, scores, int(max(-1.0, min(group, float(1 << 31)))))
        rectangles, scores = clip_rectangles(*grouped, width, height)
        return (rectangles.astype(np.int32), scores) if len(rectangles) else ((), ())


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


def _put(result: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """``result``, in ``out`` where that is an array of its shape and dtype."""
    if not isinstance(out, np.ndarray) or out.shape != result.shape or out.dtype != result.dtype:
        return result
    out[...] = result
    return out


def _threshold(value: float | None) -> float:
    return as_number("hitThreshold", 0.0 if value is None else value)
