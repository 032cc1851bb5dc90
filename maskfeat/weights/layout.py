"""How projects name the parts of a ViT or MViT, and the models written out on the tensors under these names.

What is written out shares as little as it can with our models: it is what a conversion is checked against.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Finetune, Pretrain
from ..encoders.mvit import distance_table, max_pool


@dataclass(frozen=True)
class Layout:
    """Names of the parts of a ViT; of an MViT those of the parts of a block are the same everywhere."""

    cls: str = "cls_token"
    pos: str = "pos_embed"
    mask: str = "mask_token"
    patch: str = "patch_embed.proj"
    block: str = "blocks.{}."
    norm1: str = "norm1"
    qkv: tuple[str, ...] = ("attn.qkv",)
    proj: str = "attn.proj"
    norm2: str = "norm2"
    fc1: str = "mlp.fc1"
    fc2: str = "mlp.fc2"
    norm: str = "norm"  # after the blocks
    head: str = "head"


PREDICTION = dict(norm="pred_head.transforms.0.0", head="pred_head.projections.0")
OWN = Layout(
    cls="encoder.cls_token",
    pos="encoder.pos_embed",
    patch="encoder.patch_embed.proj",
    block="encoder.blocks.{}.",
    **PREDICTION,
)
MMPRETRAIN = Layout(
    cls="backbone.cls_token",
    pos="backbone.pos_embed",
    mask="backbone.mask_token",
    patch="backbone.patch_embed.projection",
    block="backbone.layers.{}.",
    norm1="ln1",
    norm2="ln2",
    fc1="ffn.layers.0.0",
    fc2="ffn.layers.1",
    norm="backbone.ln1",
    head="neck.fc",
)
# The names under which files are published; newer versions of the library rename them as they load.
HUGGINGFACE = Layout(
    cls="embeddings.cls_token",
    pos="embeddings.position_embeddings",
    mask="embeddings.mask_token",
    patch="embeddings.patch_embeddings.projection",
    block="encoder.layer.{}.",
    norm1="layernorm_before",
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    proj="attention.output.dense",
    norm2="layernorm_after",
    fc1="intermediate.dense",
    fc2="output.dense",
    norm="layernorm",
    head="classifier",
)
# For each project the ViTs that are pre-trained and those that classify the mean of the patch tokens.
LAYOUTS: dict[str, dict[type, Layout]] = {
    "maskfeat": {
        Pretrain: OWN,
        Finetune: Layout(norm="fc_norm"),
    },
    "slowfast": {Pretrain: Layout(**PREDICTION), Finetune: Layout(head="head.projection")},
    "mmpretrain": {
        Pretrain: MMPRETRAIN,
        Finetune: dataclasses.replace(MMPRETRAIN, norm="backbone.ln2", head="head.fc"),
    },
    "timm": {Pretrain: Layout(), Finetune: Layout(norm="fc_norm")},
    "huggingface": {Pretrain: HUGGINGFACE},
}
# MViTs, which classify the mean as well.
MVIT_LAYOUTS: dict[str, dict[type, Layout]] = {
    "maskfeat": {Pretrain: OWN, Finetune: Layout(head="head.projection")},
    "slowfast": {Pretrain: Layout(**PREDICTION), Finetune: Layout(head="head.projection")},
    "mmpretrain": {
        Pretrain: Layout(
            cls="backbone.cls_token",
            mask="backbone.mask_token",
            patch="backbone.patch_embed.projection",
            block="backbone.blocks.{}.",
            norm="backbone.norm2",
            head="neck.fc",
        ),
    },
}


def rename(tensors: Mapping[str, Tensor], source: Layout, target: Layout) -> dict[str, Tensor]:
    """The tensors of a ViT that ``source`` names, as ``target`` names them; queries, keys, values split or joined."""
    found = {}

    def move(old: tuple[str, ...], new: tuple[str, ...]) -> None:
        for kind in (".weight", ".bias"):
            if old[0] + kind in tensors:
                whole = torch.cat([tensors[name + kind] for name in old])
                found.update((name + kind, part.clone()) for name, part in zip(new, whole.chunk(len(new)), strict=True))

    for part in ("cls", "pos", "mask"):
        if getattr(source, part) in tensors:
            found[getattr(target, part)] = tensors[getattr(source, part)].clone()
    for part in ("patch", "norm", "head"):
        move((getattr(source, part),), (getattr(target, part),))
    for i in range(depth_of(tensors, source)):
        old, new = source.block.format(i), target.block.format(i)
        for part in ("norm1", "proj", "norm2", "fc1", "fc2"):
            move((old + getattr(source, part),), (new + getattr(target, part),))
        move(tuple(old + name for name in source.qkv), tuple(new + name for name in target.qkv))
    return found


def rename_mvit(tensors: Mapping[str, Tensor], source: Layout, target: Layout) -> dict[str, Tensor]:
    """The tensors of an MViT that ``source`` names, under the names of ``target``."""
    found = {}
    for part in ("cls", "mask", "patch", "block", "norm", "head"):
        old, new = (getattr(layout, part).partition("{")[0] for layout in (source, target))
        inside = old if part == "block" else f"{old}."
        found |= {new + name[len(old) :]: t for name, t in tensors.items() if name == old or name.startswith(inside)}
    return found


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


def depth_of(tensors: Mapping[str, Tensor], layout: Layout) -> int:
    """The number of blocks."""
    depth = 0
    while f"{layout.block.format(depth)}{layout.norm1}.weight" in tensors:
        depth += 1
    return depth
