"""Recipes: every hyper-parameter of a run, as frozen dataclasses, and ``key=value`` changes to them."""

import dataclasses
import logging
import math
import operator
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from .keys import Size, bad_choice, check_numbers, check_url, key, literals, nearest, parse, parse_policy, text_of
from .mask import check_masks

log = logging.getLogger(__name__)

IMAGENET: dict[str, Any] = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
KINETICS: dict[str, Any] = dict(mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225))
R = TypeVar("R", bound="Recipe")
CHANGES = ("lr", "data", "timm")
TIMM = "timm:"
"""Begins the ``encoder`` that is a model of timm."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What pre-training and fine-tuning share. Rates are peaks at the given ``batch_size``."""

    name: str = key("", "the recipe this one started from")
    # model
    encoder: str = key("vit", "'vit' for images, 'mvit' (MViTv2) for video, or timm:NAME, a ViT of timm")
    size: Literal["micro", "tiny", "small", "base", "large"] = key(
        "base", "size of the encoder; MViT has no micro and no base, a ViT of timm its own"
    )
    patch_size: int = key(16, "pixels of a patch of the ViT; one of timm has its own", least=1)
    image_size: Size = key(  # noqa: RUF009, a field
        Size(224, 224), "pixels of a crop: 224, or 224x112 for 224 high and 112 wide"
    )
    channels: int = key(3, "1 for brightness, 3 for colours, one more for opacity, any number of bands", least=1)
    frames: int = key(0, "frames of a clip; 0 for images", least=0)
    frame_step: int = key(4, "frames of the video from one of the clip to the next", least=1)
    drop_path: float = key(
        0.0, "probability of skipping a residual branch of the last block, rising from 0", least=0, below=1
    )
    # data
    data: str = key(
        "synthetic", "folder, list, tar shards or their URL, 'skimage'; 'synthetic' renders; see docs/data.md"
    )
    val_data: str = key("", "held-out data; by default what belongs to `data`")
    autorotate: bool = key(True, "turn pictures and videos upright, as their EXIF orientation or display matrix says")
    samples: int = key(0, "use so many samples, evenly spaced, or render so many; 0 for all", least=0)
    classes: int = key(1000, "number of classes of the labels", least=1)
    mean: tuple[float, ...] = key(IMAGENET["mean"], "of each channel, on a scale of 0 to 1", least=0, most=1)
    std: tuple[float, ...] = key(IMAGENET["std"], "of each channel, on a scale of 0 to 1", above=0)
    data_range: tuple[float, ...] = key(
        (), "black and white in files of more than 8 bits, once or for each channel; by default what the file says"
    )
    crop_scale: tuple[float, ...] = key(
        (0.5, 1.0), "area of a random crop, as a share of the image", above=0, most=1, numbers=2
    )
    crop_ratio: tuple[float, ...] = key(
        (0.75, 1.3333), "width / height of a random crop, over that of image_size", above=0, numbers=2
    )
    interpolation: Literal["bicubic", "bilinear"] = key("bicubic", "of resized crops")
    flip: bool = key(True, "mirror half of the samples")
    sampling: Literal["dense", "uniform"] = key("dense", "frames: `frame_step` apart, or spread over the video")
    # schedule
    epochs: int = key(300, "passes over the data", least=1)
    steps: int = key(0, "optimizer steps instead of epochs; the schedule shrinks with them; 0 for epochs", least=0)
    batch_size: int = key(2048, "samples of an optimizer step, over all ranks and accumulated parts", least=1)
    accumulate: int = key(1, "parts in which a rank computes its share of the batch", least=1)
    lr: float = key(1.6e-3, "peak learning rate", above=0)
    warmup_epochs: float = key(30.0, "epochs of linear warm-up", least=0)
    warmup_lr: float = key(8e-6, "learning rate at the start", least=0)
    end_lr: float = key(8e-6, "learning rate at the end of the cosine", least=0)
    optimizer: Literal["adamw", "sgd"] = key("adamw", "'sgd' has Nesterov momentum, the first of `betas`")
    weight_decay: float = key(0.05, "of the optimizer; not on biases and other parameters with one axis", least=0)
    betas: tuple[float, ...] = key((0.9, 0.999), "of the optimizer", least=0, below=1, numbers=2)
    layer_decay: float = key(1.0, "learning rate of a block, relative to the next deeper one", above=0)
    clip_grad: float = key(0.0, "largest L2 norm of the gradient; 0 for no limit", least=0)
    # run
    out: str = key("", "folder of the run; by default runs/NAME")
    init: str = key("", "weights to start from: a run, a checkpoint, a file of weights, or of timm or Hugging Face")
    resume: str = key("auto", "'auto' goes on from `out` if it holds a checkpoint, 'no' does not; or a folder")
    seed: int = key(0, "of weights, data, masks and augmentation", least=0, below=2**64)
    device: str = key("auto", "'cpu', 'cuda', ...; 'auto' takes an accelerator if there is one")
    workers: int = key(8, "loader processes of each rank; 0 loads in the training process", least=0, most=1024)
    cache_mb: int = key(
        0, "megabytes of decoded images that are kept where workers=0; the rest is decoded again", least=0
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = key(
        "auto", "arithmetic under autocast, weights are float32; 'auto' takes bf16 where the machine has it, else fp32"
    )
    parallel: Literal["ddp", "fsdp"] = key("ddp", "how several ranks share the model")
    compile: bool = key(False, "torch.compile the model")
    recompute: bool = key(False, "activation checkpointing: recompute blocks in the backward pass")
    log_every: int = key(20, "steps from one line of the log to the next", least=1)
    eval_every: int = key(
        10, "epochs from one evaluation to the next, which also writes the weights; 0 for none", least=0
    )
    knn: int = key(20, "neighbours of the kNN accuracy, at evaluations of pre-training; 0 for none there", least=0)
    knn_samples: int = key(20_000, "training samples among which neighbours are looked for; 0 for all", least=0)
    save_every: int = key(
        0, "steps from one checkpoint to the next, beside those of evaluations; 0 for once an epoch", least=0
    )
    keep: int = key(2, "checkpoints to keep", least=1)
    keep_best: Literal["", "val_loss", "knn_accuracy", "top1"] = key(
        "", "also keep, in best.safetensors, the weights of the evaluation that was best by this"
    )
    extend: bool = key(False, "go on for more epochs or steps than the run began with; the schedule is drawn anew")
    change: tuple[str, ...] = key((), "what else a run may go on with that it did not begin with: lr, data, timm")
    tensorboard: bool = key(False, "also write the log for TensorBoard")
    wandb: str = key("", "also send the log to this project of Weights & Biases")

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            if item.type is Size:
                object.__setattr__(self, item.name, Size.of(item.name, getattr(self, item.name)))
            check_numbers(item.name, getattr(self, item.name), item.metadata)
        for name in ("data", "val_data"):
            check_url(name, getattr(self, name))
        for name, choices in literals(type(self)).items():
            if getattr(self, name) not in choices:
                raise ValueError(bad_choice(name, getattr(self, name), choices))
        if self.encoder not in ("vit", "mvit") and not self.timm:
            raise ValueError(bad_choice("encoder", self.encoder, ("vit", "mvit", "timm:NAME")))
        for name in ("mean", "std"):
            if len(value := getattr(self, name)) != self.channels:
                raise ValueError(
                    f"{name} needs {self.channels} numbers, got {text_of(value)!r}: one for each channel, as "
                    f"`maskfeat stats DATA channels={self.channels}` measures them"
                )
        ends = self.data_range
        ordered = all(black < white for black, white in zip(ends[::2], ends[1::2], strict=False))
        if len(ends) not in (0, 2, 2 * self.channels) or not ordered:
            raise ValueError(
                f"data_range must be black and white, such as 0,4095, or a pair for each of {self.channels} channels, "
                f"got {text_of(ends)!r}"
            )
        for name in ("crop_scale", "crop_ratio"):
            smallest, largest = getattr(self, name)
            if smallest > largest:
                raise ValueError(f"{name} must be the smallest and the largest, got {smallest},{largest}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs:g} is not below epochs={self.epochs}, so that the rate would never "
                f"reach lr; add warmup_epochs={self.epochs / 10:g}"
            )
        if others := [name for name in self.change if name not in CHANGES]:
            raise ValueError(bad_choice("change", others[0], CHANGES))
        if self.keep_best and not self.eval_every:
            raise ValueError(f"keep_best={self.keep_best} needs evaluations; set eval_every=1 or more, got 0")
        if self.precision == "fp16" and self.parallel == "fsdp":
            raise ValueError("precision=fp16 scales its gradients on each rank; parallel must be 'ddp', got 'fsdp'")
        if self.encoder == "mvit" and self.frames < 2:
            raise ValueError(f"mvit needs clips of at least 2 frames, got frames={self.frames}")
        if self.encoder != "mvit" and self.frames:
            raise ValueError(f"{self.encoder} reads images, not clips: frames must be 0, got {self.frames}")

    @property
    def timm(self) -> str:
        """The name that the encoder has in timm; empty for ours."""
        return self.encoder.removeprefix(TIMM) if self.encoder.startswith(TIMM) else ""

    @property
    def model(self) -> str:
        """The encoder in words."""
        return self.encoder if self.timm else f"{self.encoder} {self.size}"

    def rank_batch(self, world: int = 1) -> int:
        """Samples that one of ``world`` ranks computes at once; ValueError unless they divide the batch."""
        parts = world * self.accumulate
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into {world} ranks x {self.accumulate} parts; "
                f"the nearest that does is {max(1, round(self.batch_size / parts)) * parts}"
            )
        return self.batch_size // parts


def with_default(name: str, default: Any) -> Any:
    """The field ``name`` of every recipe with another default."""
    return field(default=default, metadata=Recipe.__dataclass_fields__[name].metadata)


@dataclass(frozen=True, kw_only=True)
class Pretrain(Recipe):
    """Masked feature prediction."""

    mask: Literal["block", "cube", "tube", "frame", "random"] = key("block", "shape of what is hidden")
    mask_ratio: float = key(0.4, "share of the tokens that is hidden", least=0, most=1)
    mask_stride: int = key(16, "pixels of a cell of the mask", least=1)
    mask_compat: Literal["", "slowfast", "mmpretrain"] = key("", "statistics of another code base's masks")
    target: Literal["hog", "pixel", "hog+pixel"] = key("hog", "what is predicted")
    hog_cell: int = key(
        0, "pixels of a cell of the HOG; 0 for 8, or what is nearest to it and divides a patch", least=0
    )
    hog_bins: int = key(9, "orientations of the HOG", least=1)
    hog_gray: bool = key(False, "HOG of the brightness, a third as many numbers, instead of every colour")
    target_weights: tuple[float, ...] = key((1.0, 1.0), "of the losses of hog+pixel", least=0, numbers=2)
    depths: tuple[int, ...] = key((), "blocks, from 0, that predict; by default the last", least=0)
    global_loss: bool = key(False, "weigh all masked tokens of a step alike, whatever rank they are on")
    clip_grad: float = with_default("clip_grad", 0.02)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_measure(self.keep_best, ("val_loss", *(("knn_accuracy",) if self.knn else ())))
        if self.hog_gray and self.channels != 3:
            raise ValueError(
                f"hog_gray=true takes the brightness of 3 colours, got channels={self.channels}; set hog_gray=false"
            )
        shapes = ("cube", "tube", "frame", "random") if self.frames else ("block", "random")
        if self.mask not in shapes:
            raise ValueError(f"mask must be one of {', '.join(shapes)} for {self.encoder}, got {self.mask!r}")
        if self.encoder == "vit" and self.mask_stride % self.patch_size:
            raise ValueError(
                f"mask_stride={self.mask_stride} is not a multiple of patch_size={self.patch_size}; "
                f"set mask_stride={self.patch_size}"
            )
        finer, token = math.gcd(self.mask_stride, *self.image_size), self.patch_size if self.encoder == "vit" else 16
        advice = f", or set mask_stride={finer}" if finer % token == 0 else ""
        self.image_size.check_multiple("image_size", self.mask_stride, f"mask_stride={self.mask_stride}", advice)
        try:
            check_masks(self.mask, self.mask_grid, self.mask_ratio, self.mask_compat or None)
        except ValueError as error:
            raise ValueError(str(error).replace("ratio=", "mask_ratio=")) from None

    @property
    def mask_grid(self) -> tuple[int, ...]:
        """(rows, columns), or (time, rows, columns) for video, of a mask."""
        rows, columns = (side // self.mask_stride for side in self.image_size)
        return (self.frames // 2, rows, columns) if self.frames else (rows, columns)


@dataclass(frozen=True, kw_only=True)
class Finetune(Recipe):
    """Classification from pre-trained weights."""

    crop_scale: tuple[float, ...] = with_default("crop_scale", (0.08, 1.0))
    rand_augment: str = key("m9-mstd0.5-inc1", "magnitude, its spread, and `n` operations (2); '' for none")
    erasing: float = key(0.25, "probability of filling a random rectangle with noise", least=0, most=1)
    mixup: float = key(0.8, "alpha of mixup; 0 for none", least=0)
    cutmix: float = key(1.0, "alpha of cutmix; 0 for none", least=0)
    mix_prob: float = key(1.0, "share of batches that are mixed", least=0, most=1)
    mix_switch: float = key(0.5, "share of mixed batches that use cutmix, where both are on", least=0, most=1)
    label_smoothing: float = key(0.1, "share of the label spread over all classes", least=0, most=1)
    repeats: int = key(1, "crops of each clip that is read; all count towards batch_size", least=1)
    dropout: float = key(0.0, "probability of dropping a feature before the classifier", least=0, below=1)
    head_init: float = key(0.001, "factor on the initial weights of the classifier", least=0)
    ema: float = key(0.0, "decay of an average of the weights that is evaluated as well; 0 for none", least=0, below=1)
    test_size: Size = key(  # noqa: RUF009, a field
        Size(0, 0), "pixels that a test sample is resized to cover, as image_size; 0 for 8/7 of that"
    )
    test_clips: int = key(1, "clips of each test video", least=1)
    test_crops: int = key(1, "crops of each test clip: 1 in the centre, or 3 along the longer side")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_measure(self.keep_best, ("val_loss", "top1"))
        if self.rand_augment:
            parse_policy(self.rand_augment)
        if self.test_crops not in (1, 3):
            raise ValueError(f"test_crops must be 1 or 3, got {self.test_crops}")
        step, of = (self.patch_size, f"patch_size={self.patch_size}") if self.encoder == "vit" else (4, "4 pixels")
        self.image_size.check_multiple("image_size", step, of)
        check_test_size(self.test_size, self.image_size)


def check_test_size(test_size: Size, image_size: Size) -> None:
    """ValueError for pictures that are made smaller than what is cropped from them."""
    if any(test_size) and any(map(operator.lt, test_size, image_size)):
        raise ValueError(f"test_size={test_size} is below image_size={image_size}; set test_size=0 for 8/7 of that")


def get_recipe(name: str) -> Recipe:
    """A recipe by name; ValueError with the nearest one if there is none."""
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}{nearest(name, RECIPES)}")
    return RECIPES[name]


def override(recipe: R, changes: "Iterable[str] | dict[str, Any]", *, silent: bool = False) -> R:
    """The recipe with ``key=value`` texts, or a dict of values, put in.

    A new ``batch_size`` without a new ``lr`` scales ``lr``, ``warmup_lr`` and ``end_lr`` in proportion. New
    ``channels`` without ``mean`` and ``std`` have those of :func:`normalisation`, with a warning unless ``silent``.

    Of a key that is given twice the last value counts, with a warning, as scripts add their own after those of a user.

    Raises ValueError for an unknown key, with the nearest one, and for a value that does not fit the type or the range
    of its key.
    """
    types = typing.get_type_hints(type(recipe))
    values = dict(changes) if isinstance(changes, dict) else settings_of(changes, types)
    for name, value in values.items():
        if name not in types or name == "name":
            raise ValueError(f"{recipe.name} has no key {name!r}{nearest(name, [n for n in types if n != 'name'])}")
        values[name] = parse(name, value, types[name]) if isinstance(value, str) else value
    if values.get("encoder", recipe.encoder).startswith(TIMM) and (own := values.keys() & {"size", "patch_size"}):
        name = min(own)
        raise ValueError(f"a ViT of timm has its own {name}; leave out {name}={text_of(values[name])}")
    if "batch_size" in values and "lr" not in values:
        scale = values["batch_size"] / recipe.batch_size
        rates = {name: getattr(recipe, name) * scale for name in ("lr", "warmup_lr", "end_lr")}
        values = {**rates, **values}
    channels = values.get("channels", recipe.channels)
    if channels != recipe.channels and channels > 0:
        colours = {"mean": recipe.mean, "std": recipe.std}
        means = {name: value for name, value in normalisation(colours, channels).items() if name not in values}
        if means and not silent:
            said = ", ".join(f"{name}={value[0]:g} of each" for name, value in means.items())
            log.warning("channels=%d: %s; `maskfeat stats DATA channels=%d` measures them", channels, said, channels)
        values = {**means, **values}
    return dataclasses.replace(recipe, **values)


def settings_of(texts: Iterable[str], known: Iterable[str]) -> dict[str, Any]:
    """``key=value`` texts as a dict of texts. Of a key that is given twice the last value counts, with a warning."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r} is not of the form key=value{nearest(name, [f'{key}=...' for key in known])}")
        if name in values:
            log.warning("%s is given twice: %s=%s counts, and not %s", name, name, value, values[name])
        values[name] = value
    return values


def normalisation(colours: dict[str, tuple[float, ...]], channels: int) -> dict[str, Any]:
    """``mean`` and ``std`` of so many channels of which nothing is known: of other than there are, the mean of each."""
    return {
        name: value if len(value) == channels else (round(sum(value) / len(value), 6),) * channels
        for name, value in colours.items()
    }


def describe(recipe: Recipe) -> str:
    """The whole recipe, one ``key=value  # meaning`` a line."""
    settings = []
    for item in dataclasses.fields(recipe):
        if item.name != "name":
            settings.append((f"{item.name}={text_of(getattr(recipe, item.name))}", item.metadata["doc"]))
    width = max(len(setting) for setting, _ in settings)
    lines = [f"  {setting:{width}}  # {doc}" for setting, doc in settings]
    return "\n".join([f"maskfeat {task(recipe)} {recipe.name}", *lines])


def task(recipe: Recipe) -> str:
    """The command that runs the recipe: "pretrain" or "finetune"."""
    return type(recipe).__name__.lower()


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """For JSON; :func:`from_dict` reads it."""
    values = dataclasses.asdict(recipe)
    squares = {name: size.height for name, size in values.items() if isinstance(size, Size) and len({*size}) == 1}
    return {"task": task(recipe), **values, **squares}


def from_dict(values: dict[str, Any]) -> Recipe:
    """Keys that are missing have their defaults; ValueError for others than those of a recipe."""
    values = dict(values)
    cls: type[Recipe] = {"pretrain": Pretrain, "finetune": Finetune}[values.pop("task")]
    unknown = sorted(values.keys() - {item.name for item in dataclasses.fields(cls)})
    if unknown:
        raise ValueError(f"the recipe has keys that this version does not know: {', '.join(unknown)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return cls(**values)


def _check_measure(name: str, measures: tuple[str, ...]) -> None:
    if name and name not in measures:
        raise ValueError(f"keep_best must be one of {', '.join(map(repr, measures))} here, got {name!r}")


def _mvit(cls: type[R], name: str, **changes: Any) -> R:
    video: dict[str, Any] = dict(encoder="mvit", frames=16, interpolation="bilinear", classes=400, **KINETICS)
    return cls(name=name, **{**video, **changes})


# Rates are those of one shard (8 GPUs) of SlowFast times the number of shards that makes up the batch.
_MVIT: dict[str, Any] = dict(
    mask="cube", mask_stride=32, batch_size=512, lr=1.6e-3, warmup_epochs=10.0, warmup_lr=1.6e-5, end_lr=1.6e-5
)  # fmt: skip
_MVIT_FT: dict[str, Any] = dict(
    batch_size=512, repeats=2, lr=9.6e-3, clip_grad=5.0, rand_augment="m7-mstd0.5-inc1", test_clips=10
)
_MVIT_S_FT: dict[str, Any] = dict(
    _MVIT_FT, size="small", epochs=100, warmup_epochs=20.0, warmup_lr=1.6e-5, end_lr=1.6e-5, layer_decay=0.75,
    drop_path=0.1,
)  # fmt: skip
_MVIT_L_FT: dict[str, Any] = dict(
    _MVIT_FT, size="large", epochs=75, warmup_epochs=5.0, warmup_lr=1.6e-7, end_lr=1.6e-4, layer_decay=0.875,
    drop_path=0.2,
)  # fmt: skip
# MaskFeat published no recipe for SSv2. Optimizer, rates, dropped paths, sampling, augmentation and views are those of
# supervised MViTv2 on SSv2. What is not known of that is as on Kinetics, and so are the model and its clip.
# Left and right matter in SSv2, so nothing is mirrored.
_SSV2: dict[str, Any] = dict(
    encoder="mvit", frames=16, interpolation="bilinear", **KINETICS, classes=174, sampling="uniform", flip=False,
    optimizer="sgd", weight_decay=1e-4, warmup_epochs=3.0, warmup_lr=1e-6, end_lr=1e-6, dropout=0.5, clip_grad=5.0,
    rand_augment="m7-n4-mstd0.5-inc1", test_clips=1, test_crops=3,
)  # fmt: skip
_TINY: dict[str, Any] = dict(
    size="tiny", warmup_epochs=1.0, workers=0, cache_mb=512, precision="fp32", log_every=10, eval_every=5
)
_TINY_VIT: dict[str, Any] = dict(_TINY, image_size=96, batch_size=16, epochs=20)
_TINY_MVIT: dict[str, Any] = dict(_TINY, frames=4, image_size=64, batch_size=16, epochs=10)
_TINY_RATES: dict[str, Any] = dict(lr=5e-4, warmup_lr=1e-6, end_lr=1e-6)
_TINY_FT: dict[str, Any] = dict(
    classes=10, mixup=0.0, cutmix=0.0, erasing=0.0, rand_augment="", crop_scale=(0.5, 1.0), layer_decay=0.75
)  # fmt: skip

_ALL: list[Recipe] = [
    Pretrain(name="vit_b_in1k", epochs=1600),
    Pretrain(name="vit_l_in1k", size="large", epochs=1600),
    _mvit(Pretrain, "mvit_s_k400", size="small", epochs=300, **_MVIT),
    _mvit(Pretrain, "mvit_l_k400", size="large", epochs=800, **_MVIT),
    _mvit(Pretrain, "mvit_l_k600", size="large", epochs=800, classes=600, **_MVIT),
    _mvit(Pretrain, "mvit_l_k700", size="large", epochs=800, classes=700, **_MVIT),
    Finetune(name="vit_b_in1k_ft", epochs=100, lr=8e-3, warmup_epochs=20.0, warmup_lr=4e-8, end_lr=4e-6,
        layer_decay=0.65, drop_path=0.1,
    ),
    Finetune(name="vit_l_in1k_ft", size="large", epochs=50, batch_size=1024, lr=4e-3, warmup_epochs=5.0,
        warmup_lr=4e-8, end_lr=4e-6, layer_decay=0.75, drop_path=0.1,
    ),
    _mvit(Finetune, "mvit_s_k400_ft", **_MVIT_S_FT),
    _mvit(Finetune, "mvit_l_k400_ft", **_MVIT_L_FT),
    _mvit(Finetune, "mvit_l_k600_ft", **{**_MVIT_L_FT, "classes": 600}),
    _mvit(Finetune, "mvit_l_k700_ft", **{**_MVIT_L_FT, "classes": 700}),
    Finetune(
        name="mvit_s_ssv2_ft", size="small", epochs=100, batch_size=16, lr=2.5e-3, drop_path=0.4, **_SSV2,
    ),
    Finetune(
        name="mvit_l_ssv2_ft", size="large", epochs=40, batch_size=8, lr=1.25e-3, drop_path=0.75, **_SSV2,
    ),
    Pretrain(name="vit_tiny", **_TINY_VIT, **_TINY_RATES),
    Finetune(name="vit_tiny_ft", **_TINY_VIT, **_TINY_RATES, **_TINY_FT),
    _mvit(Pretrain, "mvit_tiny", mask="cube", mask_stride=32, **_TINY_MVIT, **_TINY_RATES),
    _mvit(Finetune, "mvit_tiny_ft", **{**_TINY_MVIT, **_TINY_RATES, **_TINY_FT}),
]  # fmt: skip
RECIPES = {recipe.name: recipe for recipe in _ALL}
