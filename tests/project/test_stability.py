"""What docs/stability.md promises: public names, the schemas of ops, the codes of a saved spec, and an old program."""

from pathlib import Path

import torch

import maskfeat
import maskfeat_kernels
from maskfeat_kernels import OPENCV, SKIMAGE, fused_hog, fused_hog_tokens, ops
from maskfeat_kernels.hog import plan
from maskfeat_kernels.hog.spec import CHOICES
from maskfeat_kernels.testing import images

KERNELS = """__version__ DALAL_TRIGGS HogSpec MASKFEAT OPENCV SKIMAGE available_backends convert_layout fused_hog
fused_hog_tokens fused_mask_tokens fused_masked_gather hog_image planes_to_tokens tokens_to_planes"""
TRAINING = """FeatureTarget HogTarget MViT MaskFeat Masks MixTarget PixelTarget PredictionHead Target TimmEncoder
TokenTarget VisionTransformer extract make_masks mvit vit"""
SCHEMAS = """
hog(Tensor x, int bins, int cell_h, int cell_w, int gaussian_window) -> Tensor
hog_blocks(Tensor x, int[] numbers, float[] reals, SymInt[] region, SymInt[] shape) -> Tensor
hog_blocks_backward(Tensor grad, Tensor x, int[] numbers, float[] reals, SymInt[] region) -> Tensor
hog_tokens(Tensor x, Tensor token_ids, int patch_size, int bins, int cell_h, int cell_w, int gaussian_window) -> Tensor
mask_tokens(Tensor tokens, Tensor mask_token, Tensor mask) -> Tensor
masked_gather(Tensor tokens, Tensor token_ids) -> Tensor
masked_scatter_add(Tensor values, Tensor token_ids, SymInt length) -> Tensor
masked_sum(Tensor x, Tensor mask) -> Tensor
"""
WORDS = {
    "gradient": ("sobel", "central"),
    "channels": ("each", "strongest"),
    "angle_from": ("vertical", "horizontal"),
    "votes": ("hard", "linear"),
    "cells": ("box", "bilinear"),
    "reduction": ("sum", "mean"),
    "norm": ("unit", "none", "l1", "l1-sqrt", "l2", "l2-hys"),
    "arithmetic": ("exact", "opencv", "skimage"),
    "layout": ("planes", "rows", "columns"),
}
FIELDS = ("bins", "sqrt", "gradient", "channels", "signed", "angle_from", "votes", "norm", "arithmetic", "layout")


def test_public_names_stay():
    assert set(KERNELS.split()) <= set(maskfeat_kernels.__all__)
    assert set(TRAINING.split()) <= set(maskfeat.__all__)


def test_schemas_stay():
    for schema in SCHEMAS.strip().splitlines():
        op = getattr(torch.ops.maskfeat_kernels, schema.split("(")[0]).default
        assert str(op._schema) == f"maskfeat_kernels::{schema}"
    assert ops.hog


def test_codes_of_a_saved_spec_stay():
    """A saved program holds the places of these words and fields, so that new ones can only come behind them."""
    for name, words in WORDS.items():
        assert CHOICES[name][: len(words)] == words
    assert plan._PACKED[: len(FIELDS)] == FIELDS


def test_a_program_that_an_older_version_saved_runs():
    saved = sorted(Path(__file__).parent.glob("program_*.pt2"))
    assert saved
    x, ids = images(2, 3, 32, 48, dtype=torch.uint8), torch.tensor([[0, 5], [3, 1]])
    expected = (
        fused_hog(x),
        fused_hog(x, SKIMAGE),
        fused_hog(x, OPENCV, bins=8, signed=True),
        fused_hog_tokens(x, ids),
    )
    for path in saved:
        results = torch.export.load(path).module()(x, ids)
        for result, right in zip(results, expected, strict=True):
            torch.testing.assert_close(result, right, atol=2e-6, rtol=0)
