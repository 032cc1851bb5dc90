"""What the protocol fixes: arms, seeds, model, schedules and rates, as recipes of ``maskfeat``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskfeat.config import Finetune, Pretrain, get_recipe, override

ARMS = ("none", "pixel", "hog", "hog+pixel")
PILOT_SEED = 100


@dataclass(frozen=True)
class Settings:
    """Numbers of the protocol. An epoch is a pass over the photographs to train on; a rate is tried by every arm."""

    seeds: tuple[int, ...] = (1, 2, 3, 4)
    pretrain_epochs: int = 60
    finetune_epochs: int = 30
    few: int = 10  # one label of so many ...
    few_epochs: int = 60  # ... and passes over these
    pilot_epochs: int = 5
    pretrain_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    finetune_rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    evaluations: int = 8  # of a training, the last at its end
    model: dict[str, Any] = field(default_factory=lambda: dict(size="micro", image_size=64, patch_size=16))
    target: dict[str, Any] = field(default_factory=lambda: dict(mask_stride=16, hog_cell=8, target_weights=(20.0, 1.0)))
    run: dict[str, Any] = field(
        default_factory=lambda: dict(batch_size=128, device="cpu", precision="fp32", workers=0, cache_mb=512)
    )


GPU = Settings(
    seeds=(1, 2, 3),
    pretrain_epochs=100,
    finetune_epochs=50,
    few_epochs=100,
    model=dict(size="tiny", image_size=64, patch_size=8),
    target=dict(mask_stride=8, hog_cell=4, target_weights=(20.0, 1.0)),
    run=dict(batch_size=256, device="auto", precision="auto", workers=4),
)
"""For a GPU: a larger model and four times as many tokens. By estimate an H200 takes four minutes a run."""


def pretraining(settings: Settings, arm: str, data: str, out: Path, seed: int, rate: float, epochs: int) -> Pretrain:
    values = {**_common(settings, data, out, seed, rate, epochs), **settings.target}
    return override(get_recipe("vit_tiny"), {**values, "target": arm, "knn_samples": 0})


def finetuning(
    settings: Settings, data: str, out: Path, seed: int, rate: float, epochs: int, init: Path | None, samples: int = 0
) -> Finetune:
    """Training of all weights with labels, of ``samples`` photographs or of all; the same for every arm."""
    values = _common(settings, data, out, seed, rate, epochs)
    augmented = dict(crop_scale=(0.25, 1.0), cutmix=1.0, mix_prob=0.5, layer_decay=1.0)
    return override(get_recipe("vit_tiny_ft"), {**values, **augmented, "init": str(init or ""), "samples": samples})


def _common(settings: Settings, data: str, out: Path, seed: int, rate: float, epochs: int) -> dict[str, Any]:
    schedule = dict(lr=rate, warmup_lr=1e-6, end_lr=1e-6, epochs=epochs, warmup_epochs=epochs / 10)
    evaluated = dict(eval_every=max(epochs // settings.evaluations, 1), keep=1, samples=0)
    return {**settings.model, **settings.run, **schedule, **evaluated, "data": data, "out": str(out), "seed": seed}
