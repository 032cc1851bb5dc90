"""How projects name the parts of a ViT or MViT, and how tensors get from the names of one to those of another."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import Finetune, Pretrain


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


PREDICTION: dict[str, Any] = dict(norm="pred_head.transforms.0.0", head="pred_head.projections.0")
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


WRAPPERS = ("module.", "_orig_mod.", "model.", "student.", "backbone.", "encoder.")
"""What is put before all names by DDP, torch.compile, and classes that hold an encoder."""


def unwrap(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what a wrapper has put before the names of all of an encoder; decoders have names besides."""
    found = dict(tensors)
    known = {f"{LAYOUTS[project][Pretrain].patch}.weight" for project in ("mmpretrain", "huggingface", "timm")}
    while not known & found.keys():
        inside = [name for name in found if not name.startswith(("decoder", "mask_token", "head", "fc_norm"))]
        prefix = next((p for p in WRAPPERS if inside and all(name.startswith(p) for name in inside)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def rename(tensors: Mapping[str, Tensor], source: Layout, target: Layout) -> dict[str, Tensor]:
    """The tensors of a ViT that ``source`` names, as ``target`` names them; queries, keys, values split or joined."""
    found: dict[str, Tensor] = {}

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
    found: dict[str, Tensor] = {}
    for part in ("cls", "mask", "patch", "block", "norm", "head"):
        old, new = (getattr(layout, part).partition("{")[0] for layout in (source, target))
        inside = old if part == "block" else f"{old}."
        found |= {new + name[len(old) :]: t for name, t in tensors.items() if name == old or name.startswith(inside)}
    return found


def depth_of(tensors: Mapping[str, Tensor], layout: Layout) -> int:
    """The number of blocks."""
    depth = 0
    while f"{layout.block.format(depth)}{layout.norm1}.weight" in tensors:
        depth += 1
    return depth
