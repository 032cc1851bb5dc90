"""MaskFeat: masked feature prediction on images and video, on top of :mod:`maskfeat_kernels`."""

from typing import TYPE_CHECKING, Any

from .encoders.mvit import MViT, mvit
from .encoders.timm import TimmEncoder
from .encoders.vit import VisionTransformer, vit
from .mask import Masks, make_masks
from .model import MaskFeat, PredictionHead
from .target import FeatureTarget, HogTarget, MixTarget, PixelTarget, Target, TokenTarget

if TYPE_CHECKING:
    from .extraction.api import extract

__all__ = [
    "FeatureTarget",
    "HogTarget",
    "MViT",
    "MaskFeat",
    "Masks",
    "MixTarget",
    "PixelTarget",
    "PredictionHead",
    "Target",
    "TimmEncoder",
    "TokenTarget",
    "VisionTransformer",
    "extract",
    "make_masks",
    "mvit",
    "vit",
]


def __getattr__(name: str) -> Any:
    if name != "extract":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .extraction.api import extract  # which reads images, for which not everyone who trains has the libraries

    return extract
