"""What is predicted at the masked tokens.

A target is a module with a width ``dim``, a call that gives the target of the masked tokens only, and a loss per token.
HOG comes from the uint8 crop, where it is exact; pixels and teachers see what the encoder sees.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskfeat_kernels import MASKFEAT, HogSpec, fused_hog_tokens, fused_masked_gather

from .mask import Masks


class Target(nn.Module):
    """The interface: subclasses set ``dim``, the length of a prediction, and define ``forward``; most keep ``loss``."""

    dim: int

    def forward(
        self,
        pixels: Tensor,  # [B, C, H, W] or [B, C, T, H, W], normalised float
        images: Tensor,  # the same crop as uint8
        masks: Masks,  # on the grid of the predicted features
    ) -> Tensor:  # [B, K, dim]
        raise NotImplementedError

    def loss(
        self,
        prediction: Tensor,  # [B, K, dim]
        target: Tensor,  # [B, K, dim]
    ) -> Tensor:  # [B, K]
        """Mean squared error of each token."""
        return (prediction.float() - target).square().mean(-1)


class HogTarget(Target):
    """Histograms of oriented gradients of the patch, each cell and colour channel of unit length.

    patch_size: pixels of a predicted token; the stride of the predicted features.
    temporal_stride: for video, the frames that a token advances. The target is the first of them: the centre of a patch
        embedding with kernel 3, stride 2 and padding 1.
    spec, channels: bins, cell and window of the histogram; the colour channels of the image. If the cell does not
        divide the patch it is replaced by :func:`cell_size`.
    gray: take the histogram of the brightness (:func:`brightness`), one channel, in place of that of each colour.

    ``dim`` is channels * bins * (patch_size / cell)^2 = 108 for patches of 16, in the order channel, bin, row, column.
    """

    def __init__(
        self,
        patch_size: int = 16,
        temporal_stride: int = 1,
        spec: HogSpec = MASKFEAT,
        channels: int = 3,
        backend: str = "auto",
        gray: bool = False,
    ):
        super().__init__()
        channels = 1 if gray else channels
        if any(patch_size % side for side in spec.cell):
            spec = spec.replace(cell=cell_size(patch_size))
        self.patch_size, self.temporal_stride, self.spec, self.backend = patch_size, temporal_stride, spec, backend
        self.gray = gray
        self.dim = channels * spec.bins * (patch_size // spec.cell[0]) * (patch_size // spec.cell[1])

    def forward(self, pixels: Tensor, images: Tensor, masks: Masks) -> Tensor:
        frames = frames_of(images, self.temporal_stride)
        check_grid(frames, self.patch_size, masks)
        frames = brightness(frames) if self.gray else frames
        return fused_hog_tokens(frames, masks.ids, self.patch_size, self.spec, backend=self.backend).float()


class PixelTarget(Target):
    """The pixels of the patch, by default with its own mean and variance removed: (x - mean) / sqrt(var + 1e-6).

    The order is channel, row, column for images and row, column, channel for video, as in SlowFast. The variance is
    the unbiased one. The pixels are those that the encoder sees, so the normalisation of the colours matters.
    """

    def __init__(self, patch_size: int = 16, temporal_stride: int = 1, channels: int = 3, normalise: bool = True):
        super().__init__()
        self.patch_size, self.temporal_stride, self.normalise = patch_size, temporal_stride, normalise
        self.dim = channels * patch_size**2

    def forward(self, pixels: Tensor, images: Tensor, masks: Masks) -> Tensor:
        frames = frames_of(pixels, self.temporal_stride)
        rows, columns = check_grid(frames, self.patch_size, masks)
        video = frames.ndim == 5
        frames = frames if video else frames.unsqueeze(1)  # [B, T, C, H, W]
        patches = frames.unflatten(4, (columns, -1)).unflatten(3, (rows, -1))  # [B, T, C, rows, p, columns, p], a view
        time, row, column = masks.ids // (rows * columns), masks.ids // columns % rows, masks.ids % columns
        sample = torch.arange(len(frames), device=frames.device).unsqueeze(1)
        patches = patches.permute(0, 1, 3, 5, 2, 4, 6)[sample, time, row, column]  # [B, K, C, p, p], masked ones only
        patches = (patches.permute(0, 1, 3, 4, 2) if video else patches).flatten(2).float()
        if not self.normalise:
            return patches
        patches = patches - patches.mean(-1, keepdim=True)
        variance = patches.square().sum(-1, keepdim=True) / (self.dim - 1)
        return patches / (variance + 1e-6).sqrt()


class MixTarget(Target):
    """Several targets at once: the prediction is split between them and the losses are added with weights."""

    def __init__(self, targets: list[Target], weights: list[float]):
        super().__init__()
        if len(targets) != len(weights):
            raise ValueError(f"{len(targets)} targets need as many weights, got {weights}")
        self.targets, self.weights = cast("Sequence[Target]", nn.ModuleList(targets)), list(weights)
        self.dim = sum(target.dim for target in targets)

    def forward(self, pixels: Tensor, images: Tensor, masks: Masks) -> Any:  # a list: of each target its own
        return [target(pixels, images, masks) for target in self.targets]

    def loss(self, prediction: Tensor, target: Any) -> Tensor:
        parts = prediction.split([part.dim for part in self.targets], dim=-1)
        losses = [
            weight * part.loss(predicted, wanted)
            for weight, part, predicted, wanted in zip(self.weights, self.targets, parts, target, strict=True)
        ]
        return sum(losses[1:], losses[0])


class FrozenTarget(Target):
    """Base of targets that another network gives: it moves with this module, but is neither trained nor saved."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self._network = (network.eval().requires_grad_(False),)  # in a tuple, as torch would register it as a submodule

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenTarget":
        self._network[0]._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # of torch, whose class this one is for mypy
        return self

    @torch.no_grad()
    def outputs(self, pixels: Tensor, masks: Masks) -> Tensor:  # [B, N, ...]
        outputs, tokens = self._network[0](pixels), masks.mask[0].numel()
        if outputs.shape[:2] != (pixels.shape[0], tokens):
            raise ValueError(
                f"the frozen network must return one output for each of the {tokens} tokens of the grid "
                f"{tuple(masks.mask.shape[1:])}, [B, {tokens}, ...] and no class token, got {tuple(outputs.shape)}"
            )
        return outputs


class FeatureTarget(FrozenTarget):
    """Features of a frozen teacher: ``teacher(pixels)`` gives ``[B, N, dim]``; by default brought to unit length."""

    def __init__(self, teacher: nn.Module, dim: int, normalise: bool = True):
        super().__init__(teacher)
        self.dim, self.normalise = dim, normalise

    def forward(self, pixels: Tensor, images: Tensor, masks: Masks) -> Tensor:
        features = fused_masked_gather(self.outputs(pixels, masks).contiguous(), masks.ids).float()
        return F.normalize(features, dim=-1) if self.normalise else features


class TokenTarget(FrozenTarget):
    """Discrete tokens of a frozen tokenizer, ``[B, N]`` int64 below ``vocabulary``; the loss is the cross-entropy."""

    def __init__(self, tokenizer: nn.Module, vocabulary: int):
        super().__init__(tokenizer)
        self.dim = vocabulary

    def forward(self, pixels: Tensor, images: Tensor, masks: Masks) -> Tensor:  # [B, K] int64
        return self.outputs(pixels, masks).gather(1, masks.ids)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(prediction.float().transpose(1, 2), target, reduction="none")


def cell_size(patch_size: int) -> int:
    """The cell nearest to 8 pixels that divides a patch: 8 for 8, 16 and 32, 7 for 14; of two as near, the smaller.

    A patch of 14 then has 2 x 2 cells as one of 16 has, and the target keeps its length of 108.
    """
    return min((side for side in range(1, patch_size + 1) if patch_size % side == 0), key=lambda side: abs(side - 8))


def brightness(
    images: Tensor,  # [..., 3, H, W] uint8
) -> Tensor:  # [..., 1, H, W] uint8
    """0.299 R + 0.587 G + 0.114 B, rounded as Pillow rounds it (``convert("L")``).

    Source: ITU-R BT.601.
    """
    red, green, blue = images.int().unbind(-3)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000).bitwise_right_shift(16).byte().unsqueeze(-3)


def frames_of(x: Tensor, temporal_stride: int) -> Tensor:
    """Images as they are; of a video [B, C, T, H, W] every ``temporal_stride``-th frame as a view [B, T', C, H, W]."""
    if x.ndim not in (4, 5):
        raise ValueError(f"images must be [B, C, H, W] or [B, C, T, H, W], got shape {tuple(x.shape)}")
    return x if x.ndim == 4 else x[:, :, ::temporal_stride].transpose(1, 2)


def check_grid(frames: Tensor, patch_size: int, masks: Masks) -> tuple[int, int]:
    """Rows and columns of patches; ValueError unless the masks are on that grid."""
    rows, columns = frames.shape[-2] // patch_size, frames.shape[-1] // patch_size
    grid = (rows, columns) if frames.ndim == 4 else (frames.shape[1], rows, columns)
    if tuple(masks.mask.shape[1:]) != grid or frames.shape[-2] % patch_size or frames.shape[-1] % patch_size:
        raise ValueError(
            f"patches of {patch_size} pixels of images {tuple(frames.shape)} make a grid {grid}, but the predicted "
            f"features have the grid {tuple(masks.mask.shape[1:])}"
        )
    return rows, columns
