"""HOG as a transformer of scikit-learn: ``from maskfeat_kernels.compat.sklearn import HOGTransformer``."""

import itertools
import math
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from ..hog.plan import Region, block_shape, whole
from ..hog.spec import SKIMAGE, HogSpec
from ..layouts import LAYOUTS
from ..scalars import at_least
from .arrays import hog_blocks

NAMES = {"rows": "row", "columns": "column", "block_rows": "down", "block_columns": "across", "bins": "bin"}
"""What an axis of a layout is called in the name of a feature."""


class HOGTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # of classes without types
    """Rows of pixels to rows of HOG, in a pipeline of scikit-learn. It works on NumPy arrays and never imports torch.

    A sample is an image: :func:`maskfeat_kernels.fused_hog` of it, flattened. The default, SKIMAGE, gives
    scikit-image's ``hog`` on whole numbers. On floats its bins are exact; ``SKIMAGE.replace(arithmetic="skimage")``
    rounds as scikit-image does.

    Args:
        spec: a :class:`maskfeat_kernels.HogSpec`, as OPENCV or ``SKIMAGE.replace(norm="l1")``; None is SKIMAGE.
        image_shape: (height, width) or (height, width, channels), by which a row is folded into an image, as
            ``images.reshape(len(images), -1)`` has unrolled it. None: a row is an image of one row of pixels, a signal.
        bins, cell, block: changes to the spec, for a search over them; None leaves what it says.

    ``fit`` and ``transform`` take rows ``[N, features]`` or images ``[N, H, W]`` and ``[N, H, W, C]``, which need no
    ``image_shape``. uint8, float16 and float32 give float32, and all others float64. Bytes are exact and fastest.

    Attributes:
        image_shape_: the shape of the images that it was fitted to.
        n_features_in_: pixels of an image, times its channels.

    Raises ValueError for images smaller than a block or of another shape than fitted to, for rows that do not fill
    ``image_shape``, and for NaN and infinity; TypeError for a spec that is none.
    """

    def __init__(
        self,
        spec: HogSpec | None = None,
        *,
        image_shape: tuple[int, ...] | None = None,
        bins: int | None = None,
        cell: int | tuple[int, int] | None = None,
        block: int | tuple[int, int] | None = None,
    ):
        self.spec = spec
        self.image_shape = image_shape
        self.bins = bins
        self.cell = cell
        self.block = block

    def fit(
        self,
        X: Any,  # [N, features], [N, H, W] or [N, H, W, C]
        y: object = None,
    ) -> "HOGTransformer":
        """Learn the shape of the images, and refuse what does not fit; nothing else depends on the data."""
        rows, shape = _unrolled(X)
        rows = validate_data(self, rows)
        given = None if self.image_shape is None else _checked_shape(self.image_shape)
        if given and not (shape == given if shape else math.prod(given) == rows.shape[1]):
            raise ValueError(f"image_shape {given} is not that of samples of shape {shape or rows.shape[1:]}")
        shape = shape or given or (1, rows.shape[1])
        self._plan(shape)
        self.image_shape_ = shape
        return self

    def transform(
        self,
        X: Any,  # [N, features], [N, H, W] or [N, H, W, C]
    ) -> np.ndarray:  # [N, features of the HOG]
        """The HOG of each image."""
        check_is_fitted(self)
        rows, shape = _unrolled(X)
        if shape not in (None, self.image_shape_):
            raise ValueError(f"images must be of shape {self.image_shape_}, as fitted to, got {shape}")
        rows = validate_data(self, rows, reset=False)
        if rows.dtype != np.uint8 and rows.dtype.char not in "efd":
            rows = rows.astype(np.float64)
        images = rows.reshape(len(rows), *self.image_shape_[:2], -1)
        blocks: np.ndarray = hog_blocks(np.moveaxis(images, -1, 1), *self._plan(self.image_shape_))
        return blocks.reshape(len(rows), -1)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names that say where a number stands, as "row0_column2_down1_across0_bin8"."""
        check_is_fitted(self)
        known = getattr(self, "feature_names_in_", None)
        if input_features is not None:
            if len(input_features) != self.n_features_in_:
                raise ValueError(
                    f"input_features should have length equal to number of features ({self.n_features_in_}),"
                    f" got {len(input_features)}"
                )
            if known is not None and not np.array_equal(known, input_features):
                raise ValueError("input_features is not equal to feature_names_in_")
        spec, region = self._plan(self.image_shape_)
        sizes = block_shape(spec, region)
        axes = [NAMES[axis] for axis in LAYOUTS[spec.layout][-len(sizes) :]]
        if spec.channels == "each":
            axes, sizes = ["channel", *axes], (*(self.image_shape_[2:] or (1,)), *sizes)
        places = itertools.product(*(range(size) for size in sizes))
        return np.array(["_".join(f"{a}{i}" for a, i in zip(axes, place, strict=True)) for place in places], object)

    def __sklearn_tags__(self) -> Tags:
        tags: Tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _plan(self, shape: tuple[int, ...]) -> tuple[HogSpec, Region]:
        """The spec with its changes, and the region that is an image of ``shape``."""
        spec = SKIMAGE if self.spec is None else self.spec
        if not isinstance(spec, HogSpec):
            raise TypeError(f"spec must be a HogSpec or None, got {spec!r}")
        changes = {"bins": self.bins, "cell": self.cell, "block": self.block}
        spec = spec.replace(**{name: value for name, value in changes.items() if value is not None})
        (height, width), (block_h, block_w) = shape[:2], spec.block_size
        if height < block_h or width < block_w:
            raise ValueError(
                f"an image of {height} x {width} pixels is smaller than a block of {block_h} x {block_w}; image_shape"
                " says how a row is folded into an image"
            )
        window = spec.gaussian_window
        if window and (height % window or width % window):
            raise ValueError(f"gaussian_window {window} does not tile an image of {height} x {width} pixels")
        return spec, whole(spec, height, width)


def _unrolled(X: Any) -> tuple[Any, tuple[int, ...] | None]:
    """(rows, shape): images as rows, and their shape, which rows do not tell."""
    X = np.asarray(X) if isinstance(X, (list, tuple)) else X
    if getattr(X, "ndim", 2) not in (3, 4):
        return X, None
    X = np.asarray(X)
    return X.reshape(len(X), -1), X.shape[1:]


def _checked_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, (tuple, list, np.ndarray)) or len(shape) not in (2, 3):
        raise ValueError(f"image_shape must be (height, width) or (height, width, channels), got {shape!r}")
    return tuple(at_least("image_shape", side, 1) for side in shape)
