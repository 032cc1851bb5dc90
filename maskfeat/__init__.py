"""MaskFeat: masked feature prediction on images and video, on top of :mod:`maskfeat_kernels`."""

from .mask import Masks, make_masks
from .model import MaskFeat, PredictionHead, TimmEncoder
from .mvit import MViT, mvit
from .target import FeatureTarget, HogTarget, MixTarget, PixelTarget, Target, TokenTarget
from .vit import VisionTransformer, vit

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
    "make_masks",
    "mvit",
    "vit",
]
