"""Weights of other projects: read from SlowFast, mmpretrain, timm and Hugging Face, written for timm and Hugging Face.

Every conversion of a ViT from or to another project is checked: its features on a random input are also computed from
the tensors of that project, under the names they have there (:func:`vit_features`). Of SlowFast's MViT only the names
and shapes of the parameters are checked. Files of our own are read again and compared tensor by tensor.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .build import build
from .checkpoint import load_strictly, read_weights, resize_weights, save_weights, write_atomically
from .config import IMAGENET, KINETICS, Finetune, Pretrain, Recipe
from .model import MaskFeat
from .mvit import SIZES as MVIT_SIZES
from .vit import SIZES as VIT_SIZES
from .vit import VisionTransformer

TOLERANCE = 1e-4
"""Of features, relative to the largest; they are computed in another order."""


@dataclass(frozen=True)
class Layout:
    """Names of the parts of a ViT."""

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
# For each project the layouts of a pre-trained model and of one that classifies the mean of the patch tokens.
LAYOUTS: dict[str, dict[type, Layout]] = {
    "maskfeat": {
        Pretrain: Layout(
            cls="encoder.cls_token",
            pos="encoder.pos_embed",
            patch="encoder.patch_embed.proj",
            block="encoder.blocks.{}.",
            **PREDICTION,
        ),
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


def convert(source: Path, output: Path, to: str = "maskfeat") -> str:
    """Read the weights at ``source``, of whatever project, and write them for "maskfeat", "timm" or "huggingface".

    Returns a report of what was checked. Raises FileNotFoundError or ValueError for files that are not there, not
    understood or do not fit the other project, or if a check fails.
    """
    model, recipe, report = read(source)
    if to == "maskfeat":
        save_weights(output, model.state_dict(), recipe, 0)
        copy, tensors = read_weights(output)[0], model.state_dict()
        differ = [name for name in tensors.keys() | copy.keys() if not _same(tensors.get(name), copy.get(name))]
        if differ:
            raise ValueError(f"{output} does not hold what was written: {', '.join(sorted(differ)[:4])} differ")
        return f"{report}\n{output}: {recipe.encoder} {recipe.size}; read back, all {len(copy)} tensors are equal"
    if recipe.encoder != "vit":
        raise ValueError(f"{to} has no MViT of this form; only ViTs can be written for it")
    if type(recipe) not in LAYOUTS[to]:
        raise ValueError(f"the ViT of {to} classifies the class token, ours the mean: convert the pre-trained model")
    layout = LAYOUTS[to][type(recipe)]
    tensors = rename(model.state_dict(), LAYOUTS["maskfeat"][type(recipe)], layout)
    if isinstance(recipe, Pretrain):  # others have no place for what predicts
        tensors = {name: t for name, t in tensors.items() if not name.startswith((f"{layout.head}.", layout.mask))}
    if to == "huggingface":
        write_atomically(output / "config.json", json.dumps(huggingface_config(model.encoder), indent=2).encode())
        write_atomically(output / "model.safetensors", save(tensors, {"format": "pt"}))
    else:
        write_atomically(output, save(tensors, {"format": "pt"}))
    difference = check(model, tensors, layout)
    return f"{report}\n{output}: ViT of {to}; outputs agree, largest difference {difference:.1e}"


def load_slowfast(file: "str | Path") -> nn.Module:
    """The model of a SlowFast checkpoint, built as the ``cfg`` text in it says, with its weights.

    A pre-training file gives a :class:`~maskfeat.model.MaskFeat`, a fine-tuned one a classifier. The file is read with
    ``weights_only=True``. Raises ValueError for files and models that are not understood.
    """
    return _read_slowfast(_read_file(Path(file)), Path(file))[0]


def read(source: Path) -> tuple[nn.Module, Recipe, str]:
    """The model at ``source``, its recipe, and a line on what was read."""
    if source.is_dir() and (source / "model.safetensors").exists():
        source = source / "model.safetensors"
    if source.is_dir() or _has_recipe(source):
        weights, recipe = read_weights(source)
        model = build(recipe)
        load_strictly(model, weights, source)
        return model.eval(), recipe, f"{source}: {recipe.encoder} {recipe.size} of maskfeat"
    file = _read_file(source)
    if "model_state" in file:
        return _read_slowfast(file, source)
    tensors = {name.removeprefix("vit."): tensor for name, tensor in file.get("state_dict", file).items()}
    for project in ("mmpretrain", "huggingface", "timm"):
        if LAYOUTS[project][Pretrain].cls in tensors:
            return _read_vit(tensors, project, source)
    raise ValueError(f"{source} is of no known project; its names begin with {', '.join(list(tensors)[:3])}")


def _read_vit(tensors: dict[str, Tensor], project: str, source: Path) -> tuple[nn.Module, Recipe, str]:
    layouts = LAYOUTS[project]
    classifies = Finetune in layouts and all(
        f"{getattr(layouts[Finetune], part)}.weight" in tensors for part in ("norm", "head")
    )
    kind = Finetune if classifies else Pretrain
    layout, own = layouts[kind], LAYOUTS["maskfeat"][kind]
    weights = rename(tensors, layout, own)
    width, patch_size = weights[f"{own.patch}.weight"].shape[0], weights[f"{own.patch}.weight"].shape[-1]
    side = math.isqrt(weights[own.pos].shape[1] - 1)
    depth = sum(name.startswith(own.block.split("{")[0]) and name.endswith("norm1.bias") for name in weights)
    size = _size(VIT_SIZES, embed_dim=width, depth=depth)
    shape = dict(name=source.stem, size=size, image_size=side * patch_size, patch_size=patch_size)
    if kind is Finetune:
        recipe = Finetune(**shape, classes=len(weights[f"{own.head}.bias"]))
    else:
        recipe = Pretrain(**shape, mask_stride=patch_size)
    torch.manual_seed(0)
    model = build(recipe).eval()
    fresh = [name for name in model.state_dict() if name not in weights] if kind is Pretrain else []
    if kind is Pretrain and project != "mmpretrain":  # a head of theirs does not predict HOG
        fresh = [name for name in model.state_dict() if name.startswith((own.mask, own.head))]
        weights = {name: tensor for name, tensor in weights.items() if name not in fresh}
    load_strictly(model, weights, source, tuple(fresh))
    difference = check(model, tensors, layout)
    report = f"{source}: ViT {size} of {project}; outputs agree, largest difference {difference:.1e}"
    return model, recipe, report + (f"; new: {', '.join(fresh)}" if fresh else "")


def _read_slowfast(file: dict[str, Any], source: Path) -> tuple[nn.Module, Recipe, str]:
    if not {"model_state", "cfg"} <= file.keys():
        raise ValueError(f"{source} is no SlowFast checkpoint: it needs model_state and cfg, and has {', '.join(file)}")
    state = {name: tensor.float() for name, tensor in file["model_state"].items() if not name.startswith("hogs.")}
    recipe = slowfast_recipe(file["cfg"], source.stem)
    model = build(recipe).eval()
    if isinstance(recipe, Pretrain):
        outside = ("pred_head.", "mask_token")
        weights = {name if name.startswith(outside) else f"encoder.{name}": t for name, t in state.items()}
    elif recipe.encoder == "vit":
        weights = rename(state, LAYOUTS["slowfast"][Finetune], LAYOUTS["maskfeat"][Finetune])
    else:
        weights = state
    load_strictly(model, resize_weights(model, weights), source)
    report = f"{source}: {recipe.encoder} {recipe.size} of SlowFast, {len(state)} tensors"
    if recipe.encoder == "vit":
        difference = check(model, state, LAYOUTS["slowfast"][type(recipe)])
        report += f"; outputs agree, largest difference {difference:.1e}"
    else:
        report += "; names and shapes agree, outputs were not compared"
    return model, recipe, report


def slowfast_recipe(cfg: str, name: str) -> Recipe:
    """The recipe of the model that SlowFast's configuration, a YAML text, describes; ValueError for other models."""
    import yaml  # needed for this only

    cfg = yaml.safe_load(cfg)
    model, data = cfg["MVIT"], cfg["DATA"]
    shape = dict(name=name, image_size=data["TRAIN_CROP_SIZE"], drop_path=float(model.get("DROPPATH_RATE", 0)))
    parts = dict(embed_dim=model["EMBED_DIM"], depth=model["DEPTH"], num_heads=model["NUM_HEADS"])
    if model.get("PATCH_2D"):
        patch_size = model["PATCH_KERNEL"][0]
        shape |= dict(size=_size(VIT_SIZES, **parts), patch_size=patch_size, **IMAGENET)
        mask = dict(mask="block", mask_stride=patch_size)
    else:
        if model.get("DIM_MUL_IN_ATT") or model.get("USE_ABS_POS"):
            raise ValueError("this MViT widens in its attention or has absolute positions, unlike those of MaskFeat")
        parts["stages"] = tuple(int(stage) for stage, _ in model["DIM_MUL"])
        shape |= dict(size=_size(MVIT_SIZES, **parts), encoder="mvit", frames=data["NUM_FRAMES"], **KINETICS)
        mask = dict(mask="cube", mask_stride=32)
    if cfg["MODEL"]["MODEL_NAME"] == "MViT":
        return Finetune(**shape, classes=cfg["MODEL"]["NUM_CLASSES"])
    if cfg["MODEL"]["MODEL_NAME"] != "MaskMViT" or not cfg["MASK"].get("PRED_HOG"):
        raise ValueError(f"{name} is no MaskFeat model: {cfg['MODEL']['MODEL_NAME']} that does not predict HOG")
    if cfg["MASK"].get("HEAD_TYPE", "separate") != "separate":
        raise ValueError(f"only linear heads (separate) can be read, not {cfg['MASK']['HEAD_TYPE']}")
    return Pretrain(**shape, **mask, depths=tuple(cfg["MASK"]["PRETRAIN_DEPTH"]))


def rename(tensors: Mapping[str, Tensor], source: Layout, target: Layout) -> dict[str, Tensor]:
    """The tensors that ``source`` names, under the names of ``target``; queries, keys and values split or joined."""
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
    for i in range(_depth(tensors, source)):
        old, new = source.block.format(i), target.block.format(i)
        for part in ("norm1", "proj", "norm2", "fc1", "fc2"):
            move((old + getattr(source, part),), (new + getattr(target, part),))
        move(tuple(old + name for name in source.qkv), tuple(new + name for name in target.qkv))
    return found


def huggingface_config(encoder: VisionTransformer) -> dict[str, Any]:
    """``config.json`` of a ViTModel."""
    block = encoder.blocks[0]
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": encoder.grid[0] * encoder.patch_size,
        "patch_size": encoder.patch_size,
        "qkv_bias": True,
    }


def check(model: nn.Module, tensors: Mapping[str, Tensor], layout: Layout) -> float:
    """The largest difference of the features of a ViT and of the tensors; ValueError if they do not agree."""
    heads = getattr(model, "encoder", model).blocks[0].attn.num_heads
    return compare(features(model), vit_features(tensors, layout, random_input(model), heads))


def compare(first: Tensor, second: Tensor) -> float:
    """The largest difference; ValueError if it is more than rounding."""
    difference, largest = (first - second).abs().max().item(), first.abs().max().item()
    if not difference <= TOLERANCE * largest:
        raise ValueError(f"the outputs do not agree: they differ by {difference:.2e}, the largest is {largest:.2e}")
    return difference


@torch.no_grad()
def features(model: nn.Module) -> Tensor:  # [1, 1 + N, D]
    """Output of the last block, normalised by what follows it, on a random input."""
    encoder = getattr(model, "encoder", model)
    if isinstance(model, MaskFeat):
        norm = model.pred_head.transforms[0]
    else:
        norm = model.fc_norm if hasattr(model, "fc_norm") else model.norm
    tokens, grid = encoder.embed(random_input(model))
    return norm(encoder.encode(tokens, grid, (len(encoder.blocks) - 1,))[0][0])


def random_input(model: nn.Module) -> Tensor:  # [1, 3, (T,) H, W]
    encoder = getattr(model, "encoder", model)
    if isinstance(encoder, VisionTransformer):
        shape = [side * encoder.patch_size for side in encoder.grid]
    else:
        shape = [4, 4 * encoder.stride, 4 * encoder.stride]
    return torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def vit_features(
    tensors: Mapping[str, Tensor],
    layout: Layout,
    pixels: Tensor,  # [B, 3, H, W]
    heads: int,
) -> Tensor:  # [B, 1 + N, D]
    """The normalised output of the last block, of a ViT written out on the tensors of a project."""

    def affine(name: str) -> tuple[Tensor, Tensor]:
        return tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float()

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *affine(name), eps=1e-6)

    weight, bias = affine(layout.patch)
    x = F.conv2d(pixels, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([tensors[layout.cls].float().expand(len(x), -1, -1), x], 1) + tensors[layout.pos].float()
    for i in range(_depth(tensors, layout)):
        block = layout.block.format(i)
        y = norm(x, block + layout.norm1)
        q, k, v = torch.cat([F.linear(y, *affine(block + name)) for name in layout.qkv], -1).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + F.linear((weights @ v).transpose(1, 2).flatten(2), *affine(block + layout.proj))
        hidden = F.gelu(F.linear(norm(x, block + layout.norm2), *affine(block + layout.fc1)))
        x = x + F.linear(hidden, *affine(block + layout.fc2))
    return norm(x, layout.norm)


def _depth(tensors: Mapping[str, Tensor], layout: Layout) -> int:
    depth = 0
    while f"{layout.block.format(depth)}{layout.norm1}.weight" in tensors:
        depth += 1
    return depth


def _size(sizes: Mapping[str, dict[str, Any]], **parts: Any) -> str:
    """The name of the size that has these parts."""
    for name, size in sizes.items():
        if all(size[part] == value for part, value in parts.items()):
            return name
    wanted = ", ".join(f"{part} {value}" for part, value in parts.items())
    raise ValueError(f"there is no encoder with {wanted}; the sizes are {', '.join(sizes)}")


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    return first is not None and second is not None and torch.equal(first, second)


def _has_recipe(path: Path) -> bool:
    if path.suffix != ".safetensors" or not path.exists():
        return False
    with safe_open(path, framework="pt") as file:
        return "recipe" in (file.metadata() or {})


def _read_file(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    try:
        file = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # loading may fail in any way on a damaged or unsafe file
        raise ValueError(f"{path} cannot be read as tensors alone: {error}") from error
    if not isinstance(file, dict):
        raise ValueError(f"{path} holds a {type(file).__name__}, not a dictionary of tensors")
    return file
