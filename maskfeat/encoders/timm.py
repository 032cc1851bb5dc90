"""Vision transformers of timm, and others with their attributes."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class TimmEncoder(nn.Module):
    """A ViT with timm's attributes (``patch_embed``, ``_pos_embed``, ``norm_pre``, ``blocks``) as an encoder.

    Rotary positions (EVA, DINOv3) are those that ``_pos_embed`` returns beside the tokens. Truncating the ViT replaces
    its last norm and its classifier, which pre-training does not reach, by the identity.
    """

    def __init__(self, vit: Any):
        super().__init__()
        missing = [name for name in ("patch_embed", "_pos_embed", "blocks", "embed_dim") if not hasattr(vit, name)]
        if missing:
            raise TypeError(f"{type(vit).__name__} is no timm-like ViT: it has no {', '.join(missing)}")
        self.vit: Any = vit
        self.embed_dim = vit.embed_dim
        self.num_prefix_tokens = getattr(vit, "num_prefix_tokens", 1)
        self.patch_size = vit.patch_embed.patch_size

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.vit.blocks

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patches for which positions are learned, where the ViT says it."""
        return getattr(self.vit.patch_embed, "grid_size", None)

    @property
    def widths(self) -> list[int]:
        return [self.embed_dim] * len(self.vit.blocks)

    def embed(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        tokens = self.vit.patch_embed(pixels)
        tokens = tokens.flatten(1, -2)  # with dynamic sizes timm gives [B, H, W, D]
        grid = pixels.shape[-2] // self.patch_size[0], pixels.shape[-1] // self.patch_size[1]
        if tokens.shape[1] != math.prod(grid):
            raise ValueError(
                f"the patch embedding of {type(self.vit).__name__} makes {tokens.shape[1]} tokens of an image of "
                f"{tuple(pixels.shape[-2:])} pixels, not the {math.prod(grid)} of its patch_size {self.patch_size}"
            )
        return tokens, grid

    def encode(
        self, tokens: Tensor, grid: tuple[int, int], depths: Sequence[int]
    ) -> list[tuple[Tensor, tuple[int, int]]]:
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
