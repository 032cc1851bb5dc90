"""MViTv2 for video: a transformer that pools its tokens as it gets deeper, with SlowFast's parameter names.

Tokens are ``[B, 1 + T * H * W, D]``, class token first; ``grid`` is always (T, H, W).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .vit import DropPath, Mlp, image_size, init_weights, scale_parameters

Grid = tuple[int, int, int]

# Width and heads double at the blocks `stages`; height and width halve there too.
SIZES = {
    "tiny": dict(embed_dim=96, num_heads=1, depth=10, stages=(1, 3, 8)),
    "small": dict(embed_dim=96, num_heads=1, depth=16, stages=(1, 3, 14)),
    "large": dict(embed_dim=144, num_heads=2, depth=48, stages=(2, 8, 44)),
}


def mvit(size: str = "small", **options: Any) -> "MViT":
    """An MViTv2 of a named size, "tiny", "small" or "large"; ``options`` go to :class:`MViT`."""
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    return MViT(**{**SIZES[size], **options})


class MViT(nn.Module):
    """Multiscale transformer: pooling attention, residual pooling and decomposed relative positions.

    num_frames, img_size: the clip for which relative positions are learned; other sizes interpolate them.
    stages: the three blocks at which width and heads double and the queries are pooled 2 x 2 in space.
    last_stride: query stride of the last stage: 1 in pre-training (features at stride 16), 2 in fine-tuning. Where a
        stride does not divide the tokens of a side, it pools what is left to one more.
    kv_stride: stride of keys and values in the first block; it shrinks as the queries do.
    dim_mul_in_att: widen in the attention of the stage's first block (supervised MViTv2) instead of in the MLP
        before it (MaskFeat).
    num_classes: 0 for a trunk, whose ``forward`` gives the mean token.
    The other options are those of :class:`~maskfeat.encoders.vit.VisionTransformer`.

    Source: Li et al., MViTv2, CVPR 2022; the form of MaskFeat's video models in SlowFast.
    """

    def __init__(
        self,
        num_frames: int = 16,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 0,
        embed_dim: int = 96,
        num_heads: int = 1,
        depth: int = 16,
        stages: tuple[int, int, int] = (1, 3, 14),
        last_stride: int = 1,
        kv_stride: int = 8,
        dim_mul_in_att: bool = False,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        dropout: float = 0.0,
        head_init_scale: float = 0.001,
        init_bias: float = 0.02,
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.embed_dim, self.num_prefix_tokens = embed_dim, 1
        self.dropout, self.grad_checkpointing = dropout, False
        self.patch_embed = PatchEmbed(in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        grid = self.token_grid(num_frames, *image_size(img_size))
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        dim = embed_dim
        blocks: list[Block] = []
        for i, rate in enumerate(rates):
            q_stride = (last_stride if i == stages[-1] else 2) if i in stages else 1
            kv_stride = max(kv_stride // q_stride, 1)
            num_heads *= 2 if i in stages else 1
            dim_out = 2 * dim if (i if dim_mul_in_att else i + 1) in stages else dim
            blocks.append(Block(dim, dim_out, num_heads, grid, q_stride, kv_stride, mlp_ratio, rate, dim_mul_in_att))
            dim, grid = dim_out, (grid[0], -(-grid[1] // q_stride), -(-grid[2] // q_stride))
        self.blocks = cast("Sequence[Block]", nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(dim, eps=1e-6) if num_classes else nn.Identity()
        self.head = nn.Sequential()
        if num_classes:
            self.head.add_module("projection", nn.Linear(dim, num_classes))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(lambda module: init_weights(module, init_bias))
        scale_parameters(self.head, head_init_scale)

    @property
    def widths(self) -> list[int]:
        """Channels after each block."""
        return [block.dim_out for block in self.blocks]

    def token_grid(self, frames: int, height: int, width: int) -> Grid:
        if frames % 2 or height % 4 or width % 4 or min(frames, height, width) < 1:
            raise ValueError(
                f"a clip of {frames} frames of {height} x {width} pixels does not fit; it needs an even number of "
                "frames, and a height and width that are multiples of 4"
            )
        return frames // 2, height // 4, width // 4

    def embed(
        self,
        pixels: Tensor,  # [B, C, T, H, W]
    ) -> tuple[Tensor, Grid]:  # [B, N, D]
        """Tokens of 2 frames by 4 x 4 pixels, without class token."""
        return self.patch_embed(pixels), self.token_grid(*pixels.shape[-3:])

    def encode(
        self,
        tokens: Tensor,  # [B, N, D]
        grid: Grid,
        depths: tuple[int, ...],
    ) -> list[tuple[Tensor, Grid]]:  # [B, 1 + N', D'] and its grid for each depth
        """Outputs of the blocks ``depths``, in that order; deeper blocks are not run."""
        x = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        outputs = {}
        for depth, block in enumerate(self.blocks[: max(depths) + 1]):
            if self.grad_checkpointing and self.training:
                x, grid = checkpoint(block, x, grid, use_reentrant=False)
            else:
                x, grid = block(x, grid)
            outputs[depth] = x, grid
        return [outputs[depth] for depth in depths]

    def forward(
        self,
        pixels: Tensor,  # [B, C, T, H, W]
    ) -> Tensor:  # [B, num_classes], or [B, D] of a trunk
        """Class scores from the mean of all tokens but the class token."""
        tokens, grid = self.embed(pixels)
        [(x, _)] = self.encode(tokens, grid, (len(self.blocks) - 1,))
        return self.head(F.dropout(self.norm(x[:, 1:].mean(1)), self.dropout, self.training))

    def truncate(self, depth: int) -> None:
        """Drop the blocks from ``depth`` on, and the classifier: what pre-training to that depth does not train."""
        self.blocks = self.blocks[:depth]
        self.norm, self.head = nn.Identity(), nn.Sequential()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable


class PatchEmbed(nn.Module):
    """Overlapping 3 x 7 x 7 patches at stride 2 x 4 x 4: token t sees the frames 2t - 1, 2t and 2t + 1."""

    def __init__(self, in_chans: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv3d(in_chans, embed_dim, (3, 7, 7), stride=(2, 4, 4), padding=(1, 3, 3))

    def forward(self, pixels: Tensor) -> Tensor:  # [B, C, T, H, W] -> [B, N, D]
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Block(nn.Module):
    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        grid: Grid,
        q_stride: int,
        kv_stride: int,
        mlp_ratio: float,
        drop_path: float,
        dim_mul_in_att: bool,
    ):
        super().__init__()
        self.dim_out, self.q_stride, self.dim_mul_in_att = dim_out, q_stride, dim_mul_in_att
        inner = dim_out if dim_mul_in_att else dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = PoolingAttention(dim, inner, num_heads, grid, q_stride, kv_stride)
        self.norm2 = nn.LayerNorm(inner, eps=1e-6)
        self.mlp = Mlp(inner, int(inner * mlp_ratio), dim_out)
        self.proj = nn.Linear(dim, dim_out) if dim != dim_out else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        y = self.norm1(x)
        attended, new_grid = self.attn(y, grid)
        if self.proj is not None and self.dim_mul_in_att:
            x = self.proj(y)
        x = max_pool(x, grid, self.q_stride) + self.drop_path(attended)
        y = self.norm2(x)
        if self.proj is not None and not self.dim_mul_in_att:
            x = self.proj(y)
        return x + self.drop_path(self.mlp(y)), new_grid


class PoolingAttention(nn.Module):
    """Attention between pooled queries and pooled keys and values.

    The result is softmax(q k / sqrt(d) + q (R_h + R_w + R_t)) v + q. Each R is a row of a table, that of the distance
    between query and key on one axis. The term in R and the added q leave out the class token.
    """

    pool_q: nn.Conv3d
    pool_k: nn.Conv3d
    pool_v: nn.Conv3d
    norm_q: nn.LayerNorm
    norm_k: nn.LayerNorm
    norm_v: nn.LayerNorm
    rel_pos_t: nn.Parameter
    rel_pos_h: nn.Parameter
    rel_pos_w: nn.Parameter

    def __init__(self, dim: int, dim_out: int, num_heads: int, grid: Grid, q_stride: int, kv_stride: int):
        super().__init__()
        self.num_heads = num_heads
        channels = dim_out // num_heads
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)
        for name, stride in (("q", q_stride), ("k", kv_stride), ("v", kv_stride)):
            pool = nn.Conv3d(channels, channels, 3, (1, stride, stride), padding=1, groups=channels, bias=False)
            self.add_module(f"pool_{name}", pool)
            self.add_module(f"norm_{name}", nn.LayerNorm(channels, eps=1e-6))
        finest = min(q_stride, kv_stride)
        for name, size in zip("thw", (grid[0], -(-grid[1] // finest), -(-grid[2] // finest)), strict=True):
            table = nn.Parameter(torch.zeros(2 * size - 1, channels))
            nn.init.trunc_normal_(table, std=0.02)
            self.register_parameter(f"rel_pos_{name}", table)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, N, d]
        q, q_grid = conv_pool(q, grid, self.pool_q)
        k, k_grid = conv_pool(k, grid, self.pool_k)
        v, _ = conv_pool(v, grid, self.pool_v)
        q, k, v = self.norm_q(q), self.norm_k(k), self.norm_v(v)
        x = self.attend(q, k, v, q_grid, k_grid) + F.pad(q[:, :, 1:], (0, 0, 1, 0))
        return self.proj(x.transpose(1, 2).flatten(2)), q_grid

    def attend(self, q: Tensor, k: Tensor, v: Tensor, q_grid: Grid, k_grid: Grid) -> Tensor:  # [B, heads, Nq, d]
        """Attention with the positional term folded into the dot product.

        The query is lengthened by its term for every key row, column and time slot, the key by the one-hot codes of
        its own: their product is the sum of the three terms. So the Nq x Nk table of terms never exists.
        """
        channels = q.shape[-1]
        terms = self.position_terms(q[:, :, 1:], q_grid, k_grid)
        codes = axis_codes(k_grid, k.dtype, k.device)
        spare = -(channels + codes.shape[-1]) % 8  # fast kernels want multiples of 8
        q = torch.cat([q * channels**-0.5, F.pad(terms.to(q.dtype), (0, spare, 1, 0))], dim=-1)
        k = torch.cat([k, F.pad(codes, (0, spare, 1, 0)).expand(*k.shape[:2], -1, -1)], dim=-1)
        v = F.pad(v, (0, q.shape[-1] - channels))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :channels]

    def position_terms(
        self,
        q: Tensor,  # [B, heads, T * H * W, d]
        q_grid: Grid,
        k_grid: Grid,
    ) -> Tensor:  # [B, heads, T * H * W, Tk + Hk + Wk]
        q = q.unflatten(2, q_grid)
        tables = (self.rel_pos_t, self.rel_pos_h, self.rel_pos_w)
        equations = ("bnthwd,tkd->bnthwk", "bnthwd,hkd->bnthwk", "bnthwd,wkd->bnthwk")
        terms = [
            torch.einsum(equation, q, distance_table(table, q_size, k_size).to(q.dtype))
            for equation, table, q_size, k_size in zip(equations, tables, q_grid, k_grid, strict=True)
        ]
        return torch.cat(terms, dim=-1).flatten(2, 4)


def distance_table(
    table: Tensor,  # [L, d], one row for each distance, centre = 0
    q_size: int,
    k_size: int,
) -> Tensor:  # [q_size, k_size, d]
    """The row for every pair of positions on one axis; the coarser side is spread over the finer one."""
    table = resize_relative_positions(table, 2 * max(q_size, k_size) - 1)
    q_step, k_step = max(k_size / q_size, 1.0), max(q_size / k_size, 1.0)
    q_place = torch.arange(q_size, device=table.device)[:, None] * q_step
    k_place = torch.arange(k_size, device=table.device)[None, :] * k_step
    return table[(q_place - k_place + (k_size - 1) * k_step).long()]


def resize_relative_positions(
    table: Tensor,  # [L, d]
    length: int,
) -> Tensor:  # [length, d]
    """A table of relative positions for another size, linearly interpolated."""
    if len(table) == length:
        return table
    return F.interpolate(table.T.unsqueeze(0).float(), size=length, mode="linear").squeeze(0).T.to(table.dtype)


def axis_codes(grid: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:  # [T * H * W, T + H + W]
    """One-hot codes of the time slot, row and column of every token."""
    codes = [torch.eye(size, dtype=dtype, device=device) for size in grid]
    time = codes[0][:, None, None].expand(*grid, -1)
    row = codes[1][None, :, None].expand(*grid, -1)
    column = codes[2][None, None, :].expand(*grid, -1)
    return torch.cat([time, row, column], dim=-1).flatten(0, 2)


def conv_pool(
    x: Tensor,  # [B, heads, 1 + T * H * W, d]
    grid: Grid,
    pool: nn.Conv3d,
) -> tuple[Tensor, Grid]:  # [B, heads, 1 + T' * H' * W', d]
    """Pool all tokens but the class token by a depthwise convolution, the same for every head."""
    cls, tokens = x[:, :, :1], x[:, :, 1:]
    picture = tokens.flatten(0, 1).transpose(1, 2).unflatten(2, grid)
    if picture.device.type == "cpu" and picture.dtype != torch.float32:
        picture = picture.contiguous()  # of channels that come last, torch leaves gradients of weights partly unwritten
    picture = pool(picture)  # [B * heads, d, T', H', W']
    tokens = picture.flatten(2).transpose(1, 2).unflatten(0, x.shape[:2])
    return torch.cat([cls, tokens], dim=2), (picture.shape[2], picture.shape[3], picture.shape[4])


def max_pool(
    x: Tensor,  # [B, 1 + T * H * W, D]
    grid: Grid,
    stride: int,
) -> Tensor:  # [B, 1 + T * H' * W', D]
    """Pool all tokens but the class token, in space, over windows of ``stride + 1``."""
    if stride == 1:
        return x
    picture = x[:, 1:].transpose(1, 2).unflatten(2, grid)
    window, padding = stride + 1, (stride + 1) // 2
    picture = F.max_pool3d(picture, (1, window, window), (1, stride, stride), (0, padding, padding))
    return torch.cat([x[:, :1], picture.flatten(2).transpose(1, 2)], dim=1)
