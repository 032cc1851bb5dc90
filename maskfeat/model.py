"""MaskFeat: hide some tokens, encode the rest with them, and predict a feature of what was hidden."""

import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from maskfeat_kernels import fused_mask_tokens, fused_masked_gather

from .encoders.timm import TimmEncoder
from .mask import Masks
from .target import Target


class MaskFeat(nn.Module):
    """Masked feature prediction.

    encoder: :class:`~maskfeat.VisionTransformer`, :class:`~maskfeat.MViT`, or any timm-like ViT, which is wrapped in a
        :class:`~maskfeat.TimmEncoder`. What lies beyond the deepest predicted block is removed from it.
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
        encoder: Any,  # see above: a module, of no class of its own
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
        self.encoder: Any = encoder
        self.targets = cast("Sequence[Target]", nn.ModuleList(targets))
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

        count: divide by this number of masked cells instead of this batch's own. Without it every rank weighs the same.
            To weigh all masked tokens of a step alike, pass the cells masked on all ranks, divided by the number of
            ranks, as gradients are averaged over them.

        A batch without any masked token has the loss 0. That warns if the masks have no ids; whether all ids are
        fillers is not looked at, which would wait for the device.
        """
        if masks.ids.shape[1] == 0:
            warnings.warn("no token is masked in the whole batch: the loss is 0", stacklevel=2)
        losses = []
        predictions = self.predict(pixels, masks)
        for (prediction, masked), target, weight in zip(predictions, self.targets, self.weights, strict=True):
            per_token = target.loss(prediction, target(pixels, images, masked))  # [B, K]
            losses.append(weight * self.mean(per_token, masks, masked, count))
        return sum(losses[1:], losses[0])

    def predict(
        self,
        pixels: Tensor,
        masks: Masks,
    ) -> list[tuple[Tensor, Masks]]:  # [B, K, dim] and its masks for each depth
        """Hide the masked tokens, encode, and predict at each depth what was hidden."""
        tokens, grid = self.encoder.embed(pixels)
        hidden = masks.on(grid).flatten(1)
        tokens = fused_mask_tokens(tokens, self.mask_token.flatten().to(tokens.dtype), hidden)
        prefix = self.encoder.num_prefix_tokens
        predictions: list[tuple[Tensor, Masks]] = []
        some: dict[str, Tensor] = {}
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


def trunk(model: nn.Module) -> Any:
    """The encoder of a model that pre-trains. A classifier is its own: it has the same parts, and a head."""
    return getattr(model, "encoder", model)


class PredictionHead(nn.Module):
    """A norm and a linear map for each predicted depth, on masked tokens only."""

    def __init__(self, widths: Sequence[int], dims: Sequence[int]):
        super().__init__()
        self.transforms = nn.ModuleList(nn.Sequential(nn.LayerNorm(width, eps=1e-6)) for width in widths)
        projections = [nn.Linear(width, dim) for width, dim in zip(widths, dims, strict=True)]
        for projection in projections:
            nn.init.trunc_normal_(projection.weight, std=0.02)
            nn.init.zeros_(projection.bias)
        self.projections = nn.ModuleList(projections)

    def forward(self, features: Tensor, i: int) -> Tensor:  # [B, K, width] -> [B, K, dim]
        return self.projections[i](self.transforms[i](features))
