"""Vision Transformer for images, with timm's parameter names.

The same class serves pre-training (``num_classes=0``: a trunk without a last norm) and fine-tuning (the mean of the
patch tokens, ``fc_norm``, ``head``), which is timm's ``VisionTransformer(global_pool="avg")``.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskfeat_kernels import fused_masked_gather

SIZES = {
    "micro": dict(embed_dim=128, depth=4, num_heads=4),  # of no paper: what a CPU trains within the hour
    "tiny": dict(embed_dim=192, depth=12, num_heads=3),
    "small": dict(embed_dim=384, depth=12, num_heads=6),
    "base": dict(embed_dim=768, depth=12, num_heads=12),
    "large": dict(embed_dim=1024, depth=24, num_heads=16),
}


def vit(size: str = "base", **options: Any) -> "VisionTransformer":
    """A ViT of a size named in SIZES; ``options`` go to :class:`VisionTransformer`."""
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    return VisionTransformer(**{**SIZES[size], **options})


class VisionTransformer(nn.Module):
    """Pre-norm transformer on the patches of an image, with a class token and learned absolute positions.

    img_size: pixels, an int or (height, width), for which positions are learned; other sizes interpolate them.
    num_classes: 0 for a trunk, whose ``forward`` gives the mean patch token.
    drop_path_rate: probability of skipping a residual branch, rising linearly from 0 to this value over the blocks.
    dropout: probability of dropping a feature before the classifier, in training.
    head_init_scale: factor on the initial weight and bias of the classifier.
    init_bias: initial bias of linear layers and norms: 0.02 in SlowFast, 0 in mmpretrain.

    Source: Dosovitskiy et al., ICLR 2021.
    """

    encodes_some = True  # encode() takes ``ids``

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 0,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        dropout: float = 0.0,
        head_init_scale: float = 0.001,
        init_bias: float = 0.02,
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.embed_dim, self.patch_size, self.num_prefix_tokens = embed_dim, patch_size, 1
        self.dropout, self.grad_checkpointing = dropout, False
        self.grid = self.patch_grid(*image_size(img_size))
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], embed_dim))
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        blocks = [Block(embed_dim, num_heads, mlp_ratio, rate) for rate in rates]
        self.blocks = cast("Sequence[Block]", nn.ModuleList(blocks))
        self.fc_norm = nn.LayerNorm(embed_dim, eps=1e-6) if num_classes else nn.Identity()
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(lambda module: init_weights(module, init_bias))
        if num_classes:
            scale_parameters(self.head, head_init_scale)

    @property
    def widths(self) -> list[int]:
        """Channels after each block."""
        return [self.embed_dim] * len(self.blocks)

    def patch_grid(self, height: int, width: int) -> tuple[int, int]:
        if height % self.patch_size or width % self.patch_size or min(height, width) < self.patch_size:
            raise ValueError(
                f"an image of {height} x {width} pixels is not a whole number of {self.patch_size}-pixel patches; "
                f"crop or resize it to multiples of {self.patch_size}"
            )
        return height // self.patch_size, width // self.patch_size

    def embed(
        self,
        pixels: Tensor,  # [B, C, H, W]
    ) -> tuple[Tensor, tuple[int, int]]:  # [B, N, D], (rows, columns)
        """Patch tokens, without class token or positions."""
        return self.patch_embed(pixels), self.patch_grid(*pixels.shape[-2:])

    def encode(
        self,
        tokens: Tensor,  # [B, N, D]
        grid: tuple[int, int],
        depths: tuple[int, ...],
        ids: Tensor | None = None,  # [B, K] int64
    ) -> list[tuple[Tensor, tuple[int, int]]]:  # [B, 1 + N, D] and its grid for each depth
        """Outputs of the blocks ``depths``, in that order; deeper blocks are not run.

        ids: positions among the 1 + N tokens; the deepest output is then of these alone, ``[B, K, D]``, and the last
            block computes no other query. Of 40 % that saves half of the block.
        """
        x = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        x = x + resize_positions(self.pos_embed, self.grid, grid)
        outputs = {}
        for depth, block in enumerate(self.blocks[: max(depths) + 1]):
            some = (ids,) if ids is not None and depth == max(depths) else ()
            recompute = self.grad_checkpointing and self.training
            x = checkpoint(block, x, *some, use_reentrant=False) if recompute else block(x, *some)
            outputs[depth] = x
        return [(outputs[depth], grid) for depth in depths]

    def forward(
        self,
        pixels: Tensor,  # [B, C, H, W]
    ) -> Tensor:  # [B, num_classes], or [B, D] of a trunk
        """Class scores from the mean of the patch tokens."""
        tokens, grid = self.embed(pixels)
        [(x, _)] = self.encode(tokens, grid, (len(self.blocks) - 1,))
        return self.head(F.dropout(self.fc_norm(x[:, self.num_prefix_tokens :].mean(1)), self.dropout, self.training))

    def truncate(self, depth: int) -> None:
        """Drop the blocks from ``depth`` on, and the classifier: what pre-training to that depth does not train."""
        self.blocks = self.blocks[:depth]
        self.fc_norm, self.head = nn.Identity(), nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable


class PatchEmbed(nn.Module):
    """A linear map of every patch."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)

    def forward(self, pixels: Tensor) -> Tensor:  # [B, C, H, W] -> [B, N, D]
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,  # [B, 1 + N, D]
        ids: Tensor | None = None,  # [B, K]
    ) -> Tensor:  # [B, 1 + N, D], or [B, K, D] of the tokens ``ids``
        y = self.norm1(x)
        if ids is None:
            x = x + self.drop_path(self.attn(y))
        else:
            x = fused_masked_gather(x, ids) + self.drop_path(self.attn(y, fused_masked_gather(y, ids)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,  # [B, N, D]
        queries: Tensor | None = None,  # [B, K, D]: those of the tokens that are wanted
    ) -> Tensor:  # [B, N, D], or [B, K, D]
        if queries is None:
            q, k, v = self.heads(self.qkv(x), 3)
        else:
            width = x.shape[-1]
            [q] = self.heads(F.linear(queries, self.qkv.weight[:width], self.qkv.bias[:width]), 1)
            k, v = self.heads(F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:]), 2)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def heads(self, x: Tensor, parts: int) -> Tensor:  # [B, N, parts * D] -> [parts, B, heads, N, D / heads]
        return x.unflatten(-1, (parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, dim_out: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DropPath(nn.Module):
    """Skip a residual branch of a sample with probability ``rate`` in training, and scale up the others."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (keep / (1 - self.rate)).to(x.dtype)


def resize_positions(
    pos_embed: Tensor,  # [1, P + rows * columns, D]
    old: tuple[int, int],
    new: tuple[int, int],
) -> Tensor:  # [1, P + new rows * new columns, D]
    """Learned positions on another grid: bicubic with anti-aliasing, those of the P tokens before the patches kept."""
    if tuple(old) == tuple(new):
        return pos_embed
    prefix = pos_embed.shape[1] - old[0] * old[1]
    picture = pos_embed[:, prefix:].unflatten(1, old).permute(0, 3, 1, 2).float()
    picture = F.interpolate(picture, size=new, mode="bicubic", antialias=True).to(pos_embed.dtype)
    return torch.cat([pos_embed[:, :prefix], picture.flatten(2).transpose(1, 2)], dim=1)


def resize_patches(
    weight: Tensor,  # [D, C, p, q]
    size: tuple[int, int],
) -> Tensor:  # [D, C, *size]
    r"""A patch embedding for patches of another size: the :math:`w'` with :math:`w' R x = w x` for patches x.

    R resizes a patch (bicubic, anti-aliased). Where R loses something, w' is the best in the sense of least squares.

    Source: Beyer et al., FlexiViT, CVPR 2023.
    """
    pixels = torch.eye(weight[0, 0].numel(), dtype=torch.float64).unflatten(1, (1, *weight.shape[2:]))
    resize = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).flatten(1)  # R, transposed
    return (weight.flatten(2).double() @ torch.linalg.pinv(resize).T).to(weight.dtype).unflatten(2, size)


def image_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size in pixels: two integers, of Python or NumPy, or one for both; TypeError for others."""
    sides: Iterable[int] = size if isinstance(size, Iterable) else (size, size)
    try:
        height, width = (operator.index(side) for side in sides if not isinstance(side, bool))
    except (TypeError, ValueError):
        raise TypeError(f"img_size must be an int or (height, width), got {size!r}") from None
    return height, width


def init_weights(module: nn.Module, bias: float = 0.02) -> None:
    """SlowFast's initialisation: truncated normal weights, and ``bias`` in linear layers and norms.

    The bias of a convolution keeps PyTorch's default.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    if isinstance(module, (nn.Linear, nn.LayerNorm)):
        nn.init.constant_(module.bias, bias)


def scale_parameters(module: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(factor)
