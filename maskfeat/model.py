"""MaskFeat: hide some tokens, encode the rest with them, and predict a feature of what was hidden."""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskfeat_kernels import fused_mask_tokens, fused_masked_gather

from .mask import Masks
from .target import Target


class MaskFeat(nn.Module):
    """Masked feature prediction.

    encoder: :class:`~maskfeat.vit.VisionTransformer`, :class:`~maskfeat.mvit.MViT`, or any timm-like ViT, which is
        wrapped in a :class:`TimmEncoder`. What lies beyond the deepest predicted block is removed from it.
    target: what to predict, or one target for each depth.
    depths: the blocks, from 0, whose outputs predict; by default the last.
    weights: factor on the loss of each depth; the losses are added.

    An encoder of your own has ``embed_dim``, ``num_prefix_tokens``, ``widths``, ``embed``, ``encode`` and ``truncate``
    as VisionTransformer has them; ``encodes_some`` says that ``encode`` takes ``ids``.

    Parameters are named as in SlowFast, the encoder's after ``encoder.``: ``mask_token`` (1, 1, D),
    ``pred_head.transforms.I.0`` (the norm) and ``pred_head.projections.I``.

    Source: Wei et al., Masked Feature Prediction for Self-Supervised Visual Pre-Training, CVPR 2022.
    """

    def __init__(
        self,
        encoder: nn.Module,
        target: Target | Sequence[Target],
        depths: Sequence[int] | None = None,
        weights: Sequence[float] | None = None,
    ):
        super().__init__()
        encoder = encoder if hasattr(encoder, "encode") else TimmEncoder(encoder)
        blocks = len(encoder.widths)
        self.depths = tuple(depths) if depths is not None else (blocks - 1,)
        if not self.depths or not all(0 <= depth < blocks for depth in self.depths):
            raise ValueError(f"depths must be blocks of the encoder, 0 to {blocks - 1}, got {self.depths}")
        targets = [target] * len(self.depths) if isinstance(target, Target) else list(target)
        self.weights = list(weights) if weights is not None else [1.0] * len(self.depths)
        if not len(targets) == len(self.weights) == len(self.depths):
            raise ValueError(f"{len(self.depths)} depths need as many targets and weights, got {targets}, {weights}")
        widths = [encoder.widths[depth] for depth in self.depths]
        encoder.truncate(max(self.depths) + 1)
        self.encoder = encoder
        self.targets = nn.ModuleList(targets)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.pred_head = PredictionHead(widths, [target.dim for target in targets])

    def forward(
        self,
        pixels: Tensor,  # [B, C, H, W] or [B, C, T, H, W], normalised float
        images: Tensor,  # the same crop as uint8
        masks: Masks,
        count: int | Tensor | None = None,
    ) -> Tensor:  # scalar
        """The loss: the mean over the masked tokens and the elements of their targets.

        count: divide by this number of masked cells instead of this batch's own. To weigh all masked tokens of a data-
            parallel step alike, pass the cells masked on all ranks, divided by the number of ranks (as the gradients
            are averaged); without it every rank weighs the same.

        A batch without any masked token has the loss 0. That warns if the masks have no ids; whether all ids are
        fillers is not looked at, which would wait for the device.
        """
        if masks.ids.shape[1] == 0:
            warnings.warn("no token is masked in the whole batch: the loss is 0", stacklevel=2)
        loss = 0.0
        predictions = self.predict(pixels, masks)
        for (prediction, masked), target, weight in zip(predictions, self.targets, self.weights, strict=True):
            per_token = target.loss(prediction, target(pixels, images, masked))  # [B, K]
            loss = loss + weight * self.mean(per_token, masks, masked, count)
        return loss

    def predict(
        self,
        pixels: Tensor,
        masks: Masks,
    ) -> list[tuple[Tensor, Masks]]:  # [B, K, dim] and its masks for each depth
        """Hide the masked tokens, encode, and predict at each depth what was hidden."""
        tokens, grid = self.encoder.embed(pixels)
        hidden = masks.on(grid).flatten(1)
        tokens = fused_mask_tokens(tokens, self.mask_token.flatten().to(tokens.dtype), hidden)
        prefix, predictions, some = self.encoder.num_prefix_tokens, [], {}
        if getattr(self.encoder, "encodes_some", False):
            some["ids"] = masks.resize(grid).ids + prefix
        for i, (features, feature_grid) in enumerate(self.encoder.encode(tokens, grid, self.depths, **some)):
            masked = masks.resize(feature_grid)
            chosen_already = some and self.depths[i] == max(self.depths)
            chosen = features if chosen_already else fused_masked_gather(features, masked.ids + prefix)
            predictions.append((self.pred_head(chosen, i), masked))
        return predictions

    @staticmethod
    def mean(per_token: Tensor, masks: Masks, masked: Masks, count: int | Tensor | None) -> Tensor:
        """The mean of ``per_token`` [B, K] over masked tokens, or its sum over ``count`` cells of the mask's grid."""
        if masked.weight is not None:
            per_token = per_token * masked.weight
        if count is not None:
            count = count * (masked.mask[0].numel() // masks.mask[0].numel())
        elif masked.weight is not None:
            count = masked.weight.sum()
        else:
            count = per_token.numel()
        return per_token.sum() / (count.clamp_min(1) if isinstance(count, Tensor) else max(count, 1))


class PredictionHead(nn.Module):
    """A norm and a linear map for each predicted depth, on masked tokens only."""

    def __init__(self, widths: Sequence[int], dims: Sequence[int]):
        super().__init__()
        self.transforms = nn.ModuleList(nn.Sequential(nn.LayerNorm(width, eps=1e-6)) for width in widths)
        self.projections = nn.ModuleList(nn.Linear(width, dim) for width, dim in zip(widths, dims, strict=True))
        for projection in self.projections:
            nn.init.trunc_normal_(projection.weight, std=0.02)
            nn.init.zeros_(projection.bias)

    def forward(self, features: Tensor, i: int) -> Tensor:  # [B, K, width] -> [B, K, dim]
        return self.projections[i](self.transforms[i](features))


class TimmEncoder(nn.Module):
    """A ViT with timm's attributes (``patch_embed``, ``_pos_embed``, ``norm_pre``, ``blocks``) as an encoder.

    Rotary positions (EVA, DINOv3) are those that ``_pos_embed`` returns beside the tokens. Truncating the ViT replaces
    its last norm and its classifier, which pre-training does not reach, by the identity.
    """

    def __init__(self, vit: nn.Module):
        super().__init__()
        missing = [name for name in ("patch_embed", "_pos_embed", "blocks", "embed_dim") if not hasattr(vit, name)]
        if missing:
            raise TypeError(f"{type(vit).__name__} is no timm-like ViT: it has no {', '.join(missing)}")
        self.vit = vit
        self.embed_dim = vit.embed_dim
        self.num_prefix_tokens = getattr(vit, "num_prefix_tokens", 1)
        self.patch_size = vit.patch_embed.patch_size

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.vit.blocks

    @property
    def widths(self) -> list[int]:
        return [self.embed_dim] * len(self.vit.blocks)

    def embed(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        tokens = self.vit.patch_embed(pixels)
        tokens = tokens.flatten(1, -2)  # with dynamic sizes timm gives [B, H, W, D]
        grid = tuple(size // patch for size, patch in zip(pixels.shape[-2:], self.patch_size, strict=True))
        if tokens.shape[1] != math.prod(grid):
            raise ValueError(
                f"the patch embedding of {type(self.vit).__name__} makes {tokens.shape[1]} tokens of an image of "
                f"{tuple(pixels.shape[-2:])} pixels, not the {math.prod(grid)} of its patch_size {self.patch_size}"
            )
        return tokens, grid

    def encode(self, tokens: Tensor, grid: tuple[int, int], depths: Sequence[int]) -> list[tuple[Tensor, tuple]]:
        if getattr(self.vit, "dynamic_img_size", False):
            tokens = tokens.unflatten(1, grid)
        x = self.vit._pos_embed(tokens)
        x, rope = x if isinstance(x, tuple) else (x, None)
        x = getattr(self.vit, "norm_pre", nn.Identity())(x)
        outputs = {}
        for depth, block in enumerate(self.vit.blocks[: max(depths) + 1]):
            options = {}
            if rope is not None:
                options["rope"] = rope[depth] if getattr(self.vit, "rope_mixed", False) else rope
            recompute = getattr(self.vit, "grad_checkpointing", False) and self.training
            x = checkpoint(block, x, use_reentrant=False, **options) if recompute else block(x, **options)
            outputs[depth] = x
        return [(outputs[depth], grid) for depth in depths]

    def forward(self, pixels: Tensor) -> Tensor:  # [B, D]
        """The mean patch token of the last block."""
        tokens, grid = self.embed(pixels)
        [(x, _)] = self.encode(tokens, grid, (len(self.vit.blocks) - 1,))
        return x[:, self.num_prefix_tokens :].mean(1)

    def truncate(self, depth: int) -> None:
        self.vit.blocks = self.vit.blocks[:depth]
        for name in ("norm", "fc_norm", "attn_pool", "head", "head_dist"):
            if hasattr(self.vit, name):
                setattr(self.vit, name, nn.Identity())
