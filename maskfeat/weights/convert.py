"""Weights of other projects: read from SlowFast, mmpretrain, timm and Hugging Face, written for timm and Hugging Face.

A tensor that has no place in the model is an error, and so is one that is missing. What is written is read again and
compared tensor by tensor. That a converted model computes what its project computes is tested for every layout of
:mod:`maskfeat.weights.layout`.
"""

import json
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..build import build
from ..config import IMAGENET, KINETICS, Finetune, Pretrain, Recipe, normalisation, override
from ..encoders.mvit import SIZES as MVIT_SIZES
from ..encoders.vit import SIZES as VIT_SIZES
from ..encoders.vit import VisionTransformer
from ..keys import Size, parse
from ..model import trunk
from .card import model_card
from .files import grid_of, load_strictly, put, read_weights, save_weights
from .layout import LAYOUTS, MVIT_LAYOUTS, depth_of, rename, rename_mvit, unwrap
from .storage import one_line, read_tensors, save_tensors, write_atomically
from .torch_files import read_file

SLOWFAST_DEFAULTS: dict[str, dict[str, Any]] = {
    "MODEL": dict(MODEL_NAME="SlowFast", NUM_CLASSES=400),
    "DATA": dict(TRAIN_CROP_SIZE=224, NUM_FRAMES=8, INPUT_CHANNEL_NUM=[3, 3]),
    "MASK": dict(PRETRAIN_DEPTH=[15]),
    "MVIT": dict(EMBED_DIM=96, DEPTH=16, NUM_HEADS=1, DIM_MUL=[], PATCH_KERNEL=[3, 7, 7]),
}
"""What a cfg that does not say it means, as in SlowFast's ``config/defaults.py``."""

LEFT_OUT = {
    "mmpretrain": ("target_generator.", "data_preprocessor."),
    "huggingface": ("pooler.", "decoder."),
    "timm": ("decoder",),  # MAE's
}
"""Tensors of a file that are left out: target generators, preprocessing, poolers and decoders."""


def convert(
    source: Path,
    output: Path,
    to: str = "maskfeat",
    settings: Sequence[str] = (),
) -> str:
    """Read the weights at ``source``, of whatever project, and write them for "maskfeat", "timm" or "huggingface".

    settings: ``key=value`` texts, as image_size=224x112 or patch_size=8, to which the weights are brought. Where the
        positions of a file are no square and it does not say their shape, image_size says their rows and columns.

    Returns a report of what was checked. Raises FileNotFoundError or ValueError for files that are not there, not
    understood or do not fit the other project, or if a check fails.
    """
    if to != "huggingface" and output.suffix != ".safetensors":
        raise ValueError(f"weights are written to a file such as {output.with_suffix('.safetensors')}, not to {output}")
    model, recipe, report = read(source, settings)
    if to == "maskfeat":
        save_weights(output, model.state_dict(), recipe, 0)
        return f"{report}\n{output}: {recipe.model}; {_read_back(output, model.state_dict())}"
    if recipe.encoder != "vit":
        raise ValueError(f"only our own ViTs can be written for {to}, got a model of encoder={recipe.encoder}")
    if type(recipe) not in LAYOUTS[to]:
        raise ValueError(f"the ViT of {to} classifies the class token, ours the mean: convert the pre-trained model")
    layout = LAYOUTS[to][type(recipe)]
    tensors = rename(model.state_dict(), LAYOUTS["maskfeat"][type(recipe)], layout)
    if isinstance(recipe, Pretrain):  # others have no place for what predicts
        tensors = {name: t for name, t in tensors.items() if not name.startswith((f"{layout.head}.", layout.mask))}
    if to == "huggingface":
        assert isinstance(recipe, Pretrain)
        parameters = sum(tensor.numel() for tensor in tensors.values())
        write_atomically(output / "README.md", model_card(recipe, source, parameters).encode())
        write_atomically(output / "config.json", json.dumps(huggingface_config(trunk(model)), indent=2).encode())
    file = output / "model.safetensors" if to == "huggingface" else output
    save_tensors(file, tensors, {"format": "pt", "image_size": str(Size(*_sides(trunk(model))))})
    return f"{report}\n{output}: ViT of {to}; {_read_back(file, tensors)}"


@contextmanager
def _understood(source: Path) -> Iterator[None]:
    """Turns the errors of building a model from foreign tensors into ValueError."""
    try:
        yield
    except (LookupError, TypeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"{source} has tensors or settings that make no model ({reason})") from error


def load_slowfast(file: "str | Path") -> nn.Module:
    """The model of a SlowFast checkpoint, built as the ``cfg`` text in it says, with its weights.

    A pre-training file gives a :class:`~maskfeat.model.MaskFeat`, a fine-tuned one a classifier. The file is read with
    ``weights_only=True``. Raises ValueError for files and models that are not understood.
    """
    with _understood(Path(file)):
        return _read_slowfast(read_file(Path(file)), Path(file))[0]


def read(source: Path, settings: Sequence[str] = ()) -> tuple[nn.Module, Recipe, str]:
    """The model at ``source``, its recipe, and a line on what was read; all as in :func:`convert`."""
    if not source.exists():
        raise FileNotFoundError(f"there is no file {source}")
    if is_foreign(source):
        source = source / "model.safetensors" if source.is_dir() else source
        with _understood(source):
            model, recipe, report = _read_foreign(read_file(source), source, settings)
        if not settings:
            return model, recipe, report
        weights = model.state_dict()
    else:
        weights, recipe = read_weights(source)
        report = f"{source}: {recipe.model} of maskfeat"
    wanted = override(recipe, settings)
    model = build(wanted)
    note = put(model, weights, recipe, source, predicts=False)
    return model.eval(), wanted, report + (f"; {note}" if note else "")


def _read_foreign(file: dict[str, Any], source: Path, settings: Sequence[str]) -> tuple[nn.Module, Recipe, str]:
    if "model_state" in file:
        return _read_slowfast(file, source)
    tensors = tensors_of(file.get("state_dict", file.get("model", file)), source)
    tensors = fold_batch_norm(unwrap({name.removeprefix("vit."): tensor for name, tensor in tensors.items()}))
    if tensors.get(f"{LAYOUTS['timm'][Pretrain].patch}.weight", torch.empty(0)).ndim == 5:
        raise ValueError(
            f"{source} is a ViT for video, as of VideoMAE; here ViTs read images, and video is read by MViT"
        )
    if "backbone.blocks.0.attn.pool_q.weight" in tensors:
        return _read_mmpretrain_mvit(tensors, source)
    for project in ("mmpretrain", "huggingface", "timm"):
        if LAYOUTS[project][Pretrain].cls in tensors:
            return _read_vit(tensors, project, source, settings)
    raise ValueError(f"{source} is of no known project; its names begin with {', '.join(list(tensors)[:3])}")


def _read_vit(
    tensors: dict[str, Tensor], project: str, source: Path, settings: Sequence[str]
) -> tuple[nn.Module, Recipe, str]:
    layouts = LAYOUTS[project]
    classifies = Finetune in layouts and all(
        f"{getattr(layouts[Finetune], part)}.weight" in tensors for part in ("norm", "head")
    )
    kind = Finetune if classifies else Pretrain
    layout, own = layouts[kind], LAYOUTS["maskfeat"][kind]
    missing = [name for name in (layout.pos, f"{layout.patch}.weight") if name not in tensors]
    if layout.pos in missing and any("rel_pos" in name or "relative_position" in name for name in tensors):
        raise ValueError(f"{source} is a ViT with relative positions, as of SimMIM or BEiT; here they are absolute")
    if missing:
        raise ValueError(f"{source} is no ViT as {project} has them: there is no {', '.join(missing)}")
    weights = rename(tensors, layout, own)
    unknown = left_over(tensors, rename(weights, own, layout), project)
    patch = weights[f"{own.patch}.weight"].shape
    width, channels, patch_size = patch[0], patch[1], patch[-1]
    image_size = _image_size(weights[own.pos].shape[1] - 1, patch_size, source, settings)
    size = _size(VIT_SIZES, embed_dim=width, depth=depth_of(tensors, layout))
    shape: dict[str, Any] = dict(name=source.stem, size=size, image_size=image_size, patch_size=patch_size)
    shape |= dict(channels=channels, **normalisation(IMAGENET, channels))
    recipe: Recipe
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
    load_strictly(model, weights | unknown, source, tuple(fresh))
    report = f"{source}: ViT {size} of {project}, {len(weights)} tensors"
    return model, recipe, report + (f"; new: {', '.join(fresh)}" if fresh else "")


def _read_mmpretrain_mvit(tensors: dict[str, Tensor], source: Path) -> tuple[nn.Module, Recipe, str]:
    """A MaskFeat model of mmpretrain's project maskfeat_video, whose MViT is that of mmaction2."""
    if "neck.fc.weight" not in tensors:
        raise ValueError(
            f"{source} holds an MViT of mmaction2 that MaskFeat did not pre-train: there is no neck.fc. Those that "
            "classify do so by the class token, ours by the mean of the others"
        )
    layout, own = MVIT_LAYOUTS["mmpretrain"][Pretrain], MVIT_LAYOUTS["maskfeat"][Pretrain]
    weights = rename_mvit(tensors, layout, own)
    unknown = left_over(tensors, rename_mvit(weights, own, layout), "mmpretrain")
    attention = layout.block.format(0) + "attn."
    width = tensors[f"{attention}proj.weight"].shape[0]
    heads, depth = width // len(tensors[f"{attention}pool_q.weight"]), depth_of(tensors, layout)
    size = _size(MVIT_SIZES, embed_dim=width, depth=depth, num_heads=heads)
    # A table has a row for each distance between two places: 2 n - 1 for n places.
    frames, *sides = (len(tensors[f"{attention}rel_pos_{axis}"]) + 1 for axis in "thw")
    image_size = Size(*(2 * side for side in sides))
    shape: dict[str, Any] = dict(name=source.stem, encoder="mvit", size=size, image_size=image_size, frames=frames)
    channels = tensors[f"{layout.patch}.weight"].shape[1]
    shape |= dict(channels=channels, **normalisation(KINETICS, channels))
    recipe = Pretrain(**shape, mask="cube", mask_stride=math.gcd(32, *image_size), interpolation="bilinear")
    model = build(recipe).eval()
    load_strictly(model, weights | unknown, source)
    return model, recipe, f"{source}: MViT {size} of mmpretrain, {len(weights)} tensors"


def _image_size(patches: int, side: int, source: Path, settings: Sequence[str]) -> Size:
    """The size for which a ViT with so many patches of ``side`` pixels was made.

    The header of a file of :func:`convert` says it, or Hugging Face's ``config.json`` beside it. Else it is a square,
    or as the settings say.
    """
    own, beside, settled = None, None, None
    with suppress(OSError, ValueError, LookupError):
        own = parse("image_size", read_tensors(source)[1]["image_size"], Size)
    with suppress(OSError, ValueError, TypeError, LookupError, RecursionError):
        beside = Size.of("image_size", json.loads(source.with_name("config.json").read_bytes())["image_size"])
    for text in settings:
        name, _, value = text.partition("=")
        settled = parse(name, value, Size) if name == "image_size" else settled
    found = (grid_of(patches, size and (size.height // side, size.width // side)) for size in (own or beside, settled))
    grid = next(filter(None, found), None)
    if grid is None:
        columns = next(n for n in range(math.isqrt(max(patches, 1)), 0, -1) if patches % n == 0)
        example = Size(patches // columns * side, columns * side)
        raise ValueError(
            f"{source} has positions of {patches} patches, which are no square, and does not say their rows and "
            f"columns; add image_size=HEIGHTxWIDTH, such as image_size={example} or {Size(*example[::-1])}"
        )
    return Size(grid[0] * side, grid[1] * side)


def left_over(tensors: dict[str, Tensor], known: Mapping[str, Tensor], project: str) -> dict[str, Tensor]:
    """The tensors that are not known, and are none of those that a file of the project may also hold."""
    return {name: tensors[name] for name in sorted(tensors.keys() - known) if not name.startswith(LEFT_OUT[project])}


def fold_batch_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Folds mmpretrain's batch norm after the last linear map into that map, as it acts in evaluation."""
    if "neck.norm.running_var" not in tensors:
        return tensors
    weight, bias, mean, variance = (
        tensors[f"neck.norm.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / (variance + 1e-5).sqrt()
    head = {
        "neck.fc.weight": tensors["neck.fc.weight"] * scale.unsqueeze(1),
        "neck.fc.bias": (tensors["neck.fc.bias"] - mean) * scale + bias,
    }
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("neck.norm.")} | head


def _read_slowfast(file: dict[str, Any], source: Path) -> tuple[nn.Module, Recipe, str]:
    if not {"model_state", "cfg"} <= file.keys():
        raise ValueError(f"{source} is no SlowFast checkpoint: it needs model_state and cfg, and has {', '.join(file)}")
    state = tensors_of(file["model_state"], source)
    state = {name: tensor.float() for name, tensor in state.items() if not name.startswith("hogs.")}
    recipe = slowfast_recipe(file["cfg"], source.stem)
    model = build(recipe).eval()
    if isinstance(recipe, Pretrain):
        outside = ("pred_head.", "mask_token")
        weights = {name if name.startswith(outside) else f"encoder.{name}": t for name, t in state.items()}
    elif recipe.encoder == "vit":
        weights = rename(state, LAYOUTS["slowfast"][Finetune], LAYOUTS["maskfeat"][Finetune])
    else:
        weights = state
    put(model, weights, recipe, source)
    kind = "ViT" if recipe.encoder == "vit" else "MViT"
    return model, recipe, f"{source}: {kind} {recipe.size} of SlowFast, {len(weights)} tensors"


def slowfast_recipe(cfg: str, name: str) -> Recipe:
    """The recipe of the model that SlowFast's configuration, a YAML text, describes; ValueError for other models."""
    import yaml  # needed for this only

    try:
        return _slowfast_recipe(yaml.safe_load(cfg), name)
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(f"the cfg of {name} is none that SlowFast writes ({reason})") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _slowfast_recipe(cfg: dict[str, Any], name: str) -> Recipe:
    cfg = {part: {**values, **cfg.get(part, {})} for part, values in SLOWFAST_DEFAULTS.items()}
    model, data = cfg["MVIT"], cfg["DATA"]
    channels, image_size = data["INPUT_CHANNEL_NUM"][0], operator.index(data["TRAIN_CROP_SIZE"])
    drop_path = float(model.get("DROPPATH_RATE", 0))
    shape: dict[str, Any] = dict(name=name, channels=channels, image_size=image_size, drop_path=drop_path)
    parts = dict(embed_dim=model["EMBED_DIM"], depth=model["DEPTH"], num_heads=model["NUM_HEADS"])
    if model.get("PATCH_2D"):
        patch_size = model["PATCH_KERNEL"][0]
        shape |= dict(size=_size(VIT_SIZES, **parts), patch_size=patch_size, **normalisation(IMAGENET, channels))
        mask = dict(mask="block", mask_stride=patch_size)
    else:
        if model.get("DIM_MUL_IN_ATT") or model.get("USE_ABS_POS"):
            raise ValueError("this MViT widens in its attention or has absolute positions, unlike those of MaskFeat")
        parts["stages"] = tuple(int(stage) for stage, _ in model["DIM_MUL"])
        shape |= dict(
            size=_size(MVIT_SIZES, **parts),
            encoder="mvit",
            frames=data["NUM_FRAMES"],
            **normalisation(KINETICS, channels),
        )
        mask = dict(mask="cube", mask_stride=32)
    if cfg["MODEL"]["MODEL_NAME"] == "MViT":
        return Finetune(**shape, classes=cfg["MODEL"]["NUM_CLASSES"])
    if cfg["MODEL"]["MODEL_NAME"] != "MaskMViT" or not cfg["MASK"].get("PRED_HOG"):
        raise ValueError(f"this is no MaskFeat model: {cfg['MODEL']['MODEL_NAME']} that does not predict HOG")
    if cfg["MASK"].get("HEAD_TYPE", "separate") != "separate":
        raise ValueError(f"only linear heads (separate) can be read, not {cfg['MASK']['HEAD_TYPE']}")
    return Pretrain(**shape, **mask, depths=tuple(cfg["MASK"]["PRETRAIN_DEPTH"]))


def huggingface_config(encoder: VisionTransformer) -> dict[str, Any]:
    """``config.json`` of a ViTModel."""
    block, sides = encoder.blocks[0], _sides(encoder)
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "num_channels": encoder.patch_embed.proj.in_channels,
        "image_size": sides[0] if len({*sides}) == 1 else sides,
        "patch_size": encoder.patch_size,
        "qkv_bias": True,
    }


def _sides(encoder: VisionTransformer) -> list[int]:
    """Height and width in pixels for which positions are learned."""
    return [side * encoder.patch_size for side in encoder.grid]


def _size(sizes: Mapping[str, dict[str, Any]], **parts: Any) -> str:
    """The name of the size that has these parts."""
    for name, size in sizes.items():
        if all(size[part] == value for part, value in parts.items()):
            return name
    wanted = ", ".join(f"{part} {value}" for part, value in parts.items())
    raise ValueError(f"there is no encoder with {wanted}; the sizes are {', '.join(sizes)}")


def _read_back(file: Path, tensors: Mapping[str, Tensor]) -> str:
    """That the file holds these tensors, for the report; ValueError if it does not."""
    copy = read_tensors(file)[0]
    same = {name for name in tensors.keys() & copy.keys() if torch.equal(tensors[name], copy[name])}
    differ = sorted((tensors.keys() | copy.keys()) - same)
    if differ:
        raise ValueError(f"{file} does not hold what was written: {', '.join(differ[:4])} differ")
    return f"read back, all {len(copy)} tensors are equal"


def is_foreign(path: Path) -> bool:
    """Whether ``path`` has weights of another project: a folder with model.safetensors, or a file with no recipe."""
    if path.is_dir():
        return (path / "model.safetensors").exists()
    try:
        return path.is_file() and "recipe" not in read_tensors(path)[1]
    except ValueError:  # no safetensors file, or a damaged one, of which its reader says more
        return path.suffix != ".safetensors"


def _kind(tensor: Tensor) -> str:
    """What a tensor is that no weights are; "" for one of plain numbers that are all in the file."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return "nested" if tensor.is_nested else "sparse"
    if tensor.is_meta or tensor.is_quantized or tensor.is_complex():
        return "empty" if tensor.is_meta else "quantised" if tensor.is_quantized else "complex"
    if tensor.is_floating_point() and tensor.itemsize < 2:
        return str(tensor.dtype)
    return "larger than its data" if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes() else ""


def tensors_of(values: Any, source: Path) -> dict[str, Tensor]:
    """``values``; ValueError unless they are tensors by name."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{source} holds a {type(values).__name__} in the place of tensors")
    others = [name for name, tensor in values.items() if not (isinstance(name, str) and isinstance(tensor, Tensor))]
    if others:
        raise ValueError(
            f"{source} holds a {type(values[others[0]]).__name__} in the place of the tensor {others[0]!r}"
        )
    for name, tensor in values.items():
        if kind := _kind(tensor):
            raise ValueError(f"{source} holds a tensor that is {kind} in {name!r}, not one of plain numbers")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{source} holds numbers that are not finite in {name!r}")
    return dict(values)
