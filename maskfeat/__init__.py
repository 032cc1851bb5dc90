"""MaskFeat: masked feature prediction on images and video, on top of :mod:`maskfeat_kernels`."""

from .encoders.mvit import MViT, mvit
from .encoders.timm import TimmEncoder
from .encoders.vit import VisionTransformer, vit
from .mask import Masks, make_masks
from .model import MaskFeat, PredictionHead
from .target import FeatureTarget, HogTarget, MixTarget, PixelTarget, Target, TokenTarget

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
