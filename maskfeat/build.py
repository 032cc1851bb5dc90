"""Models of a recipe."""

import math
from typing import Any

from torch import nn

from maskfeat_kernels import MASKFEAT

from .config import Finetune, Pretrain, Recipe
from .encoders.mvit import MViT, mvit
from .encoders.timm import TimmEncoder, timm_vit
from .encoders.vit import VisionTransformer, vit
from .model import MaskFeat
from .target import HogTarget, MixTarget, PixelTarget, Target, cell_size


def build(recipe: Recipe) -> nn.Module:
    """The module that the recipe trains: a :class:`~maskfeat.model.MaskFeat` or a classifier."""
    if isinstance(recipe, Finetune):
        return classifier(recipe)
    assert isinstance(recipe, Pretrain)
    return pretrainer(recipe)


def pretrainer(recipe: Pretrain) -> MaskFeat:
    encoder = _encoder(recipe, {"last_stride": 1} if recipe.encoder == "mvit" else {})
    depths = recipe.depths or (len(encoder.widths) - 1,)
    if max(depths) >= len(encoder.widths) or min(depths) < 0:
        raise ValueError(f"depths must be blocks of the encoder, 0 to {len(encoder.widths) - 1}, got {depths}")
    strides = [_stride(encoder, depth) for depth in depths]
    if recipe.mask_stride % max(strides):  # in MViT a multiple of all
        raise ValueError(
            f"mask_stride={recipe.mask_stride} is not a multiple of the {max(strides)} pixels of a token; "
            f"set mask_stride={max(strides)}"
        )
    return MaskFeat(encoder, [_target(recipe, stride) for stride in strides], depths)


def classifier(recipe: Finetune) -> nn.Module:
    options: dict[str, Any] = dict(num_classes=recipe.classes, head_init_scale=recipe.head_init, dropout=recipe.dropout)
    return _encoder(recipe, {**options, "last_stride": 2} if recipe.encoder == "mvit" else options)


def _encoder(recipe: Recipe, options: dict[str, Any]) -> VisionTransformer | MViT | TimmEncoder:
    common: dict[str, Any] = dict(
        img_size=recipe.image_size, in_chans=recipe.channels, drop_path_rate=recipe.drop_path, **options
    )
    model: VisionTransformer | MViT | TimmEncoder
    if recipe.encoder == "mvit":
        model = mvit(recipe.size, num_frames=recipe.frames, **common)
    elif recipe.timm:
        model = timm_vit(recipe.timm, **common)
    else:
        model = vit(recipe.size, patch_size=recipe.patch_size, **common)
    model.set_grad_checkpointing(recipe.recompute)
    return model


def _stride(encoder: VisionTransformer | MViT | TimmEncoder, depth: int) -> int:
    """The side in pixels of what a token stands for after the block ``depth``."""
    if isinstance(encoder, TimmEncoder):
        return encoder.patch_size[0]
    if isinstance(encoder, VisionTransformer):
        return encoder.patch_size
    return 4 * math.prod(block.q_stride for block in encoder.blocks[: depth + 1])


def _target(recipe: Pretrain, stride: int) -> Target:
    temporal = 2 if recipe.frames else 1
    pixels = PixelTarget(stride, temporal, recipe.channels)
    if recipe.target == "pixel":
        return pixels
    if recipe.hog_cell and stride % recipe.hog_cell:
        raise ValueError(f"hog_cell={recipe.hog_cell} does not divide the {stride} pixels of a predicted token")
    spec = MASKFEAT.replace(bins=recipe.hog_bins, cell=recipe.hog_cell or cell_size(stride))
    hog = HogTarget(stride, temporal, spec, recipe.channels, gray=recipe.hog_gray)
    return hog if recipe.target == "hog" else MixTarget([hog, pixels], list(recipe.target_weights))
