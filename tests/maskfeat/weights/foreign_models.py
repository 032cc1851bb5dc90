"""ViT and MViT written out on the tensors of a project, under the names they have there: the oracle of conversions.

They share as little as they can with the models of the package.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskfeat import MaskFeat, VisionTransformer
from maskfeat.encoders.mvit import distance_table, max_pool
from maskfeat.model import trunk
from maskfeat.weights.layout import Layout, depth_of


def check(model: nn.Module, tensors: Mapping[str, Tensor], layout: Layout) -> float:
    """The largest difference of the features of a model and of the tensors; ValueError if they do not agree."""
    blocks, pixels = trunk(model).blocks, random_input(model)
    if pixels.ndim == 4:
        expected = vit_features(tensors, layout, pixels, blocks[0].attn.num_heads)
    else:
        expected = mvit_features(tensors, layout, pixels, [block.q_stride for block in blocks])
    return compare(features(model), expected)


def compare(first: Tensor, second: Tensor) -> float:
    """The largest difference; ValueError if it is more than rounding."""
    difference, largest = (first - second).abs().max().item(), first.abs().max().item()
    if not difference <= 1e-4 * largest:
        raise ValueError(f"the outputs do not agree: they differ by {difference:.2e}, the largest is {largest:.2e}")
    return difference


@torch.no_grad()
def features(model: nn.Module) -> Tensor:  # [1, 1 + N, D]
    """Output of the last block, normalised by what follows it, on a random input."""
    encoder = trunk(model)
    if isinstance(model, MaskFeat):
        norm = model.pred_head.transforms[0]
    else:
        norm = model.fc_norm if hasattr(model, "fc_norm") else model.norm
    tokens, grid = encoder.embed(random_input(model))
    return norm(encoder.encode(tokens, grid, (len(encoder.blocks) - 1,))[0][0])


def random_input(model: nn.Module) -> Tensor:  # [1, 3, (T,) H, W]
    encoder = trunk(model)
    if isinstance(encoder, VisionTransformer):
        shape = [side * encoder.patch_size for side in encoder.grid]
    else:
        shape = [4, 64, 64]
    return torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def vit_features(
    tensors: Mapping[str, Tensor],
    layout: Layout,
    pixels: Tensor,  # [B, 3, H, W]
    heads: int,
) -> Tensor:  # [B, 1 + N, D]
    """The normalised output of the last block, of a ViT written out on the tensors of a project."""
    weight, bias = (tensors[f"{layout.patch}.{kind}"].float() for kind in ("weight", "bias"))
    x = F.conv2d(pixels, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([tensors[layout.cls].float().expand(len(x), -1, -1), x], 1) + tensors[layout.pos].float()
    for i in range(depth_of(tensors, layout)):
        block = layout.block.format(i)
        y = norm(x, tensors, block + layout.norm1)
        q, k, v = attention(y, tensors, tuple(block + name for name in layout.qkv), heads)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), tensors, block + layout.proj)
        hidden = F.gelu(linear(norm(x, tensors, block + layout.norm2), tensors, block + layout.fc1))
        x = x + linear(hidden, tensors, block + layout.fc2)
    return norm(x, tensors, layout.norm)


@torch.no_grad()
def mvit_features(
    tensors: Mapping[str, Tensor],
    layout: Layout,
    video: Tensor,  # [B, 3, T, H, W]
    strides: Sequence[int],  # of the queries of each block
) -> Tensor:  # [B, 1 + N, D]
    """The normalised output of the last block, of an MViT written out on the tensors of a project."""
    weight, bias = (tensors[f"{layout.patch}.{kind}"].float() for kind in ("weight", "bias"))
    x = F.conv3d(video, weight, bias, stride=(2, 4, 4), padding=(1, 3, 3))
    grid, kv_stride = tuple(x.shape[2:]), 8
    x = torch.cat([tensors[layout.cls].float().expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
    for i, stride in enumerate(strides):
        block, kv_stride = layout.block.format(i), max(kv_stride // stride, 1)
        kernels = {letter: tensors[f"{block}attn.pool_{letter}.weight"].float() for letter in "qkv"}
        heads = tensors[f"{block}attn.proj.weight"].shape[1] // len(kernels["q"])
        parts = attention(norm(x, tensors, f"{block}norm1"), tensors, (f"{block}attn.qkv",), heads)
        pooled, grids = {}, {}
        for letter, t, step in zip("qkv", parts, (stride, kv_stride, kv_stride), strict=True):
            picture = t[:, :, 1:].transpose(2, 3).flatten(0, 1).unflatten(2, grid)  # [B * heads, d, T, H, W]
            picture = F.conv3d(picture, kernels[letter], None, (1, step, step), 1, groups=len(kernels[letter]))
            tokens = picture.flatten(2).transpose(1, 2).unflatten(0, t.shape[:2])
            pooled[letter] = norm(torch.cat([t[:, :, :1], tokens], 2), tensors, f"{block}attn.norm_{letter}")
            grids[letter] = tuple(picture.shape[2:])
        q, k, v = pooled.values()
        places = q[:, :, 1:].unflatten(2, grids["q"])
        terms = 0.0
        for axis, letter in enumerate("thw"):
            table = tensors[f"{block}attn.rel_pos_{letter}"].float()
            rows = distance_table(table, grids["q"][axis], grids["k"][axis])  # [q places, k places, d]
            term = torch.einsum(f"bnthwd,{letter}kd->bnthwk", places, rows)
            terms = terms + term.view(*term.shape[:-1], *(-1 if other == axis else 1 for other in range(3)))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores[:, :, 1:, 1:] += terms.flatten(5, 7).flatten(2, 4)
        attended = scores.softmax(-1) @ v
        attended[:, :, 1:] += q[:, :, 1:]
        attended = linear(attended.transpose(1, 2).flatten(2), tensors, f"{block}attn.proj")
        x, grid = max_pool(x, grid, stride) + attended, grids["q"]
        y = norm(x, tensors, f"{block}norm2")
        skip = linear(y, tensors, f"{block}proj") if f"{block}proj.weight" in tensors else x
        x = skip + linear(F.gelu(linear(y, tensors, f"{block}mlp.fc1")), tensors, f"{block}mlp.fc2")
    return norm(x, tensors, layout.norm)


def linear(x: Tensor, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    return F.linear(x, tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float())


def norm(x: Tensor, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float(), eps=1e-6)


def attention(x: Tensor, tensors: Mapping[str, Tensor], names: tuple[str, ...], heads: int) -> tuple[Tensor, ...]:
    """Queries, keys and values ``[B, heads, N, D / heads]``."""
    joined = torch.cat([linear(x, tensors, name) for name in names], -1)
    return tuple(t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in joined.chunk(3, -1))
