"""The training loop of pre-training and fine-tuning.

The batch of a step is cut into ``ranks * accumulate`` parts. Masks, augmentation and dropped paths of a part depend on
the seed, the step and the number of the part only. So a run goes on from a checkpoint bit for bit. Two ranks compute
what one process computes that accumulates two parts.
"""

import dataclasses
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from .. import config
from ..build import build
from ..config import Finetune, Pretrain, Recipe
from ..data.fingerprint import fingerprint
from ..data.loader import TRAINING, make_loader
from ..model import MaskFeat, trunk
from ..sigterm import watch_sigterm
from ..weights.files import BEST_WEIGHTS, EMA_WEIGHTS, WEIGHTS, forget_best, save_if_best, save_weights
from ..weights.initialise import initialise
from .checkpoint import Checkpoints, differences, find_checkpoint, whole_checkpoints
from .device import arithmetic
from .distributed import Terminated, World, finite, join, share, synchronise, whole
from .evaluate import evaluate_model, has_labels, held_out
from .finetune import EMA
from .lock import RunLock
from .progress import Progress, Stopwatch
from .step import part_loss, seed_everything

log = logging.getLogger(__name__)


def train(recipe: Recipe, build: Callable[[Recipe], nn.Module] = build) -> dict[str, float]:
    """Train as the recipe says, on the ranks that torchrun started or in this process; the last evaluation.

    build: gives the model of a recipe, by default the recipe's own. To pre-train a ViT of yours on the features of a
        teacher, with everything else as the recipe says::

            def build(recipe):
                return MaskFeat(my_vit(img_size=recipe.image_size), FeatureTarget(my_teacher(), dim=768))

            train(override(get_recipe("vit_b_in1k"), ["data=/data/imagenet", "out=runs/mine"]), build)

        A classifier of yours takes pixels; its layers are told apart by the names that timm gives to those of a ViT.

    Raises Terminated after SIGTERM, when the step is done and its checkpoint is on disk.
    """
    with join(recipe.device, recipe.precision) as world, RunLock(run_folder(recipe), world) as lock:
        with watch_sigterm() as sigterm:
            trainer = Trainer(recipe, world, build)
            results = trainer.fit(sigterm, lock.check)
        if world.any(bool(sigterm)):  # in the last evaluation: a caller who trains again has to know
            raise trainer.terminated()
    return results


def run_folder(recipe: Recipe) -> Path:
    return Path(recipe.out or f"runs/{recipe.name}")


class Trainer:
    """One run: the model, its optimizer, and the step that it has reached; ``build`` as in :func:`train`."""

    def __init__(self, recipe: Recipe, world: World, build: Callable[[Recipe], nn.Module] = build):
        if recipe.precision == "auto":  # as a run goes on with the arithmetic with which it began
            recipe = dataclasses.replace(recipe, precision=arithmetic(world.device, "auto"))
            if world.rank == 0 and recipe.precision == "fp32":
                faster = "; precision=fp16 may be faster" if world.device.type == "cuda" else ""
                log.warning(
                    "precision=auto: fp32, as this %s has no bf16 arithmetic%s", world.device.type.upper(), faster
                )
        self.recipe, self.world, self.build = recipe, world, build
        self.out = run_folder(recipe)
        place: dict[str, Any] = dict(rank=world.rank, world=world.size)
        self.data = make_loader(recipe, "train", seed=recipe.seed, workers=recipe.workers, **place)
        self.epoch_steps = len(self.data) // recipe.accumulate
        if self.epoch_steps == 0:
            raise ValueError(f"the data do not fill a batch of {recipe.batch_size}; choose a smaller batch_size")
        if recipe.eval_every:
            self.held_out = len(held_out(recipe, world).source)  # missing data are an error now, not after an epoch
            if recipe.keep_best == "knn_accuracy" and not has_labels(recipe):
                raise ValueError(f"keep_best=knn_accuracy needs labels, and {recipe.data!r} has none")
        self.total = recipe.steps or recipe.epochs * self.epoch_steps
        self.step, self.skipped, self.data_seconds = 0, 0, 0.0
        self.changed: dict[str, tuple[Any, Any]] = {}  # of the recipe, since the checkpoint
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=recipe.precision == "fp16")

        torch.manual_seed(recipe.seed)
        self.module = build(recipe)
        source = self.data.source
        name = world.first(fingerprint(source) if world.rank == 0 else "")
        self.checkpoints = Checkpoints(self.out, recipe, world, len(source), name)
        self.resumed = self.checkpoint_to_resume()
        self.init = ""  # a run that goes on needs no `init`, which may be gone
        if recipe.init and not self.resumed:
            self.init = f"{recipe.init}; {initialise(self.module, Path(recipe.init))}".removesuffix("; ")
        self.model = share(self.module, recipe, world)
        self.ema = EMA(self.module, recipe.ema) if isinstance(recipe, Finetune) and recipe.ema else None
        groups = parameter_groups(self.module, recipe)
        self.optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.betas[0], nesterov=True)
        else:
            self.optimizer = torch.optim.AdamW(
                groups, lr=recipe.lr, betas=(recipe.betas[0], recipe.betas[1]), fused=True
            )

    def fit(self, sigterm: Sequence[Any] = (), check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Train to the end, from the newest checkpoint if there is one; the values of the last evaluation.

        sigterm: not empty as soon as a rank has to end early.
        check: raises if the folder of the run is no longer ours.
        """
        recipe, results = self.recipe, {}
        if self.resumed:
            self.resume(self.resumed)
        if recipe.keep_best and self.world.rank == 0:
            others = self.changed.keys() & {"data", "samples"}  # what was best on these is none of the same measure
            forget_best(self.out / BEST_WEIGHTS, -1 if others else self.step)
        progress = Progress(self.out, recipe, self.step, self.total, silent=self.world.rank > 0)
        progress.say(self.outline())
        if self.changed:
            progress.log(self.step, lr=self.learning_rate(self.step), total_steps=self.total)
        # Clocks in the targets would break a compiled graph.
        targets = self.module.targets if isinstance(self.module, MaskFeat) and not recipe.compile else ()
        watch = Stopwatch(targets, self.world.device) if targets else None
        # A process may have died while it evaluated what it had saved.
        missed = self.world.any(progress.last.get("step") == self.step and "loss" in progress.last)
        if self.step == self.total or (missed and self.is_due(recipe.eval_every * self.epoch_steps)):
            results = self.evaluate()
            if missed:
                progress.log(self.step, **results)
        losses, begun = [], time.perf_counter()
        try:
            for loss in self.steps():
                losses.append(loss)
                progress.advance()
                ends = self.world.any(bool(sigterm))
                evaluates = self.is_due(recipe.eval_every * self.epoch_steps)
                saves = ends or evaluates or self.is_due(self.save_every)
                if evaluates or saves or self.is_due(recipe.log_every):
                    check()
                    mean = self.mean_loss(losses)
                    seconds = time.perf_counter() - begun
                    progress.log(
                        self.step,
                        loss=mean,
                        lr=self.learning_rate(self.step - 1),
                        images_per_s=len(losses) * recipe.batch_size / seconds,
                        data_share=self.data_seconds / seconds,
                        hog_share=watch.read() / seconds if watch else None,
                        eta_s=seconds / len(losses) * (self.total - self.step),
                        skipped=self.skipped,
                    )
                    if saves:  # first, so that an evaluation that fails costs no training
                        self.check_weights()
                        self.checkpoints.save(self.step, self.state())
                    if ends:
                        self.checkpoints.wait()
                        self.world.wait()  # as torchrun ends the other ranks when one is gone
                        raise self.terminated()
                    if evaluates:
                        results = self.evaluate()
                        progress.log(self.step, **results)
                    losses, self.data_seconds, begun = [], 0.0, time.perf_counter()
        finally:
            progress.close()
            self.checkpoints.wait()
        return results

    def terminated(self) -> Terminated:
        return Terminated(f"ended by SIGTERM after step {self.step} of {self.total}, which is saved")

    def outline(self) -> str:
        """What the run is, before it begins: a line each for data, input, model, arithmetic, steps and files."""
        recipe, source = self.recipe, self.data.source
        used = len(self.data.batches.chosen)
        of_all = f" of {len(source):,}" if used < len(source) else ""
        classes = f", {source.classes} classes" if source.classes else ""
        tested = f", {self.held_out:,} held out" if recipe.eval_every else ""
        shape = " x ".join(map(str, [recipe.channels, *([recipe.frames] if recipe.frames else []), *recipe.image_size]))
        hidden = f", {recipe.mask_ratio:.0%} hidden by {recipe.mask} masks" if isinstance(recipe, Pretrain) else ""
        if isinstance(recipe, Finetune) and recipe.rand_augment and recipe.channels != 3:
            hidden = "; rand_augment changes each channel by itself, without 'color', which is of three"
        parameters = sum(parameter.numel() for parameter in self.module.parameters())
        epochs = f"{self.total / self.epoch_steps:g} epochs of {self.epoch_steps:,}"
        begins = f"goes on after step {self.step:,}" if self.step else "begins"
        lines = {
            "data": f"{recipe.data}: {used:,}{of_all} samples to train on{classes}{tested}",
            "input": f"{shape} pixels{hidden}",
            "model": f"{recipe.model}, {parameters / 1e6:.1f} million parameters",
            "init": self.init,
            "device": f"{self.world.device}, {recipe.precision}, processes: {self.world.size}",
            "steps": f"{self.total:,}, {epochs}, {recipe.batch_size} samples each",
            "changed": ", ".join(f"{key} {before} -> {now}" for key, (before, now) in self.changed.items()),
            "out": f"{self.out}, with log.jsonl, weights.safetensors and checkpoints; {begins}",
        }
        return "\n".join(
            [f"{config.task(recipe)} {recipe.name}", *(f"  {key:7} {text}" for key, text in lines.items() if text)]
        )

    def steps(self) -> Iterator[Tensor]:
        """Make the steps that are left, epoch by epoch; the loss of each, over this rank's parts."""
        while self.step < self.total:
            epoch, done = divmod(self.step, self.epoch_steps)
            loader, skipped = self.data.at(epoch, done * self.recipe.accumulate), self.skipped
            parts = iter(loader)
            for _ in range(min(self.epoch_steps - done, self.total - self.step)):
                loss = self.train_step(parts)
                self.skipped = skipped + loader.skipped
                yield loss

    def train_step(self, source: Iterator[dict[str, Any]]) -> Tensor:
        """One step of the optimizer, on the next ``accumulate`` parts of ``source``."""
        recipe, world = self.recipe, self.world
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step) * group["lr_scale"]
        parts = [i * world.size + world.rank for i in range(recipe.accumulate)]
        count = None
        if isinstance(recipe, Pretrain) and recipe.global_loss and recipe.mask_compat:  # else all have the same number
            batches = [self.next_batch(source) for _ in parts]
            count, source = self.masked_cells(batches), iter(batches)
        total = torch.zeros((), device=world.device)
        for part in parts:
            batch = self.next_batch(source)
            generator = seed_everything(recipe.seed, TRAINING, self.step, part)
            with synchronise(self.model, last=part == parts[-1]):
                loss = part_loss(self.model, batch, recipe, generator, world.device, count) / len(parts)
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        if recipe.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.module)
        self.step += 1
        return total

    def next_batch(self, source: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """The next batch; the time that it is waited for is added up."""
        begun = time.perf_counter()
        batch = next(source)
        self.data_seconds += time.perf_counter() - begun
        return batch

    def masked_cells(self, batches: list[dict[str, Any]]) -> Tensor:
        """Masked cells of a part, averaged over all parts of all ranks: what the loss of each is divided by."""
        cells = torch.stack([batch["masks"].mask.sum() for batch in batches]).sum()
        cells = cells.to(self.world.device, torch.float32)
        return self.world.sum(cells) / (len(batches) * self.world.size)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up to the cosine, which falls from ``lr`` to ``end_lr``: set anew at every step."""
        recipe = self.recipe
        warmup = recipe.warmup_epochs / recipe.epochs * self.total
        if step < warmup:
            return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * step / warmup
        done = (step - warmup) / max(self.total - warmup, 1)
        return recipe.end_lr + (recipe.lr - recipe.end_lr) * 0.5 * (1 + math.cos(math.pi * done))

    def is_due(self, every: int) -> bool:
        """Whether this step is the last or a multiple of ``every``."""
        return self.step == self.total or (every > 0 and self.step % every == 0)

    @property
    def save_every(self) -> int:
        return self.recipe.save_every or self.epoch_steps

    def mean_loss(self, losses: list[Tensor]) -> float:
        """The mean over steps and ranks; FloatingPointError if it is not finite."""
        mean = (self.world.sum(torch.stack(losses).mean()) / self.world.size).item()
        if not math.isfinite(mean):
            raise self.diverged(f"the loss is {mean} in the steps {self.step - len(losses) + 1} to {self.step}")
        return mean

    def check_weights(self) -> None:
        """FloatingPointError if weights are not finite: the losses before a gradient that is infinite may all be."""
        if self.world.any(not finite(self.module)):
            raise self.diverged(f"weights are not finite after step {self.step}")

    def diverged(self, what: str) -> FloatingPointError:
        self.checkpoints.wait()
        whole = whole_checkpoints(self.checkpoints.folder)
        kept = f"the newest checkpoint, {whole[-1]}, is from before" if whole else "there is no checkpoint from before"
        return FloatingPointError(f"{what}; {kept}. Try a lower lr, a longer warm-up or precision=fp32")

    def state(self) -> dict[str, Any]:
        """What changes while training, by parameter name."""
        model, optimizer = get_state_dict(self.model, self.optimizer)
        state = {"model": model, "optimizer": optimizer} | ({"ema": self.ema.state_dict()} if self.ema else {})
        if self.scaler.is_enabled():
            scale = self.scaler.state_dict()
            state["scaler"] = torch.tensor([scale["scale"], scale["_growth_tracker"]], dtype=torch.float64)
        return state

    def checkpoint_to_resume(self) -> Path | None:
        """The checkpoint that the recipe's ``resume`` names, if there is one.

        Raises FileExistsError rather than to write over a run that is not to be resumed.
        """
        choice, exists = self.recipe.resume, any(self.checkpoints.folder.glob("step_*"))
        elsewhere = choice not in ("auto", "no") and self.out.resolve() not in (Path(choice) / "_").resolve().parents
        if exists and (choice == "no" or elsewhere):
            raise FileExistsError(f"{self.out} holds the checkpoints of a run; choose another out, or resume=auto")
        if choice == "no" or (choice == "auto" and not exists):
            return None
        return find_checkpoint(self.out if choice == "auto" else Path(choice))

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = self.state()
        self.step, saved = self.checkpoints.load(path, state)
        self.changed = differences(saved, self.recipe)
        if "data" not in self.recipe.change:
            self.changed.pop("data", None)  # the same data have moved
        if self.step > self.total:
            raise ValueError(
                f"{path} has made {self.step} steps, and this recipe ends after {self.total}; "
                f"extend it to steps={self.step} or epochs={-(-self.step // self.epoch_steps)} at least"
            )
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        if self.scaler.is_enabled():
            scale, tracker = state["scaler"].tolist()
            self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": scale, "_growth_tracker": int(tracker)})

    def evaluate(self) -> dict[str, float]:
        """Write the weights, and their average if there is one, as safetensors, and evaluate them if wanted."""
        weights: dict[str, Any] = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True))
        results = self._evaluate(weights, WEIGHTS)
        if self.recipe.keep_best and self.world.rank == 0:
            save_if_best(self.out / BEST_WEIGHTS, weights, self.recipe, self.step, results)
        if self.ema:
            average = {name: whole(tensor) for name, tensor in self.ema.state_dict().items()}
            results |= {f"ema_{name}": value for name, value in self._evaluate(average, EMA_WEIGHTS).items()}
        return results

    def _evaluate(self, weights: dict[str, Tensor], file: str) -> dict[str, float]:
        if self.world.rank == 0:
            save_weights(self.out / file, weights, self.recipe, self.step)
        if not self.recipe.eval_every:
            return {}
        model = self.build(self.recipe)
        model.load_state_dict(weights)
        return evaluate_model(model.to(self.world.device).eval(), self.recipe, self.world)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters by learning rate and weight decay.

    A block learns ``layer_decay`` times as fast as the next deeper one. The embedding counts as a block before them.
    What comes after the blocks learns at the full rate. Biases and other parameters with one axis do not decay.
    """
    encoder = trunk(model)
    depth = len(getattr(encoder, "widths", getattr(encoder, "blocks", ())))
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        decay = 0.0 if parameter.ndim <= 1 or name.endswith(".bias") else recipe.weight_decay
        scale = recipe.layer_decay ** (depth + 1 - layer_of(name, depth))
        groups.setdefault((scale, decay), []).append(parameter)
    return [{"params": members, "lr_scale": scale, "weight_decay": decay} for (scale, decay), members in groups.items()]


def layer_of(name: str, depth: int) -> int:
    """0 for the embedding, i + 1 for block i, depth + 1 for what comes after the blocks."""
    block = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if re.search(r"(?:^|\.)(cls_token|pos_embed|mask_token|patch_embed)(?:\.|$)", name) else depth + 1
