"""The runs of the protocol: one arm and seed after another, each a small JSON file when it is done.

A training that was ended goes on from its last checkpoint in ``out``; a run whose file is there is not made again. Two
processes may share the work: a run is locked while one of them makes it.
"""

import fcntl
import hashlib
import json
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import cpu_name
from maskfeat.build import build
from maskfeat.config import Recipe
from maskfeat.data.loader import make_loader
from maskfeat.run.distributed import join
from maskfeat.run.evaluate import knn_accuracy
from maskfeat.run.step import normalise
from maskfeat.run.train import train
from maskfeat.weights.files import read_weights
from maskfeat.weights.initialise import initialise
from maskfeat.weights.storage import write_atomically

from .settings import ARMS, PILOT_SEED, Settings, finetuning, pretraining

CURVE = 40  # points of a learning curve, about


class Runs:
    """The runs on the photographs ``data``: trainings go into ``out``, files of what was found into ``results``."""

    def __init__(self, settings: Settings, data: str, out: Path, results: Path, say: Callable[[str], None] = print):
        self.settings, self.data, self.out, self.results, self.say = settings, data, out, results, say
        self.photographs = len(make_loader(self.features_recipe(0), "train", seed=0).batches.source)
        self.begun, self.done = time.time(), 0  # images trained on since then

    def plan(self) -> list[tuple[str, int]]:
        """Arm and seed of every run, in order: three arms, seed by seed, and then the fourth."""
        seeds = self.settings.seeds
        return [(arm, seed) for seed in seeds for arm in ARMS[:3]] + [(ARMS[3], seed) for seed in seeds]

    def missing(self) -> list[tuple[str, int]]:
        return [(arm, seed) for arm, seed in self.plan() if not self.file(arm, seed).exists()]

    def file(self, arm: str, seed: int | str) -> Path:
        return self.results / f"{arm}_{seed}.json"

    def make_all(self) -> None:
        """Make every run that is missing and that no other process makes."""
        for arm, seed in self.missing():
            with self.locked(f"{arm}_{seed}") as free:
                if free and not self.file(arm, seed).exists():
                    self.say(self.outlook(arm, seed))
                    self.write(self.file(arm, seed), self.run(arm, seed))
        self.say(f"{len(self.missing())} of {len(self.plan())} runs are left")

    def outlook(self, arm: str, seed: int) -> str:
        """What is left, and for how long."""
        left, speed = self.missing(), self.done / (time.time() - self.begun)
        hours = f"{sum(self.images(arm) for arm, _ in left) / speed / 3600:.1f} h" if speed else "not known yet"
        return f"{arm}, seed {seed}: {len(left)} of {len(self.plan())} runs are left; {hours}, {speed:.0f} images/s"

    def images(self, arm: str) -> float:
        """How many images a run trains on."""
        settings = self.settings
        passes = settings.finetune_epochs + settings.few_epochs / settings.few
        return self.photographs * (passes + (settings.pretrain_epochs if arm != "none" else 0))

    def run(self, arm: str, seed: int, folder: Path | None = None) -> dict:
        """Pre-train, fine-tune with all labels and with few, and look at the frozen features."""
        settings, chosen, found, init = self.settings, self.rates(arm), {}, None
        folder = folder or self.out / f"{arm}_{seed}"
        if arm != "none":
            init = folder / "pretrain"
            options = dict(seed=seed, rate=chosen["pretrain"], epochs=settings.pretrain_epochs)
            found["pretrain"] = self.train(pretraining(settings, arm, self.data, init, **options))
        options = dict(seed=seed, rate=chosen["finetune"], init=init)
        few = dict(epochs=settings.few_epochs, samples=self.photographs // settings.few)
        for name, labels in {"finetune": dict(epochs=settings.finetune_epochs), "few": few}.items():
            recipe = finetuning(settings, self.data, folder / name, **labels, **options)
            found[name] = self.train(recipe) | self.answers(recipe)
        return {"arm": arm, "seed": seed, "rates": chosen, **found, "frozen": self.frozen(init, seed), **machine()}

    def rates(self, arm: str) -> dict[str, float]:
        """The learning rates of an arm, from its pilot, which is made if it has not been."""
        file = self.file(arm, "pilot")
        with self.locked(f"{arm}_pilot", wait=True):
            if not file.exists():
                self.write(file, self.pilot(arm))
        return json.loads(file.read_text())["chosen"]

    def pilot(self, arm: str) -> dict:
        """Short trainings with every rate; the lowest held-out loss of the arm's own target, then the best accuracy."""
        settings, folder, init, tries, chosen = self.settings, self.out / f"{arm}_pilot", None, {}, {}
        options = dict(seed=PILOT_SEED, epochs=settings.pilot_epochs)
        if arm != "none":
            tried = tries["pretrain"] = {}
            for rate in settings.pretrain_rates:
                recipe = pretraining(settings, arm, self.data, folder / f"pretrain_{rate:g}", rate=rate, **options)
                tried[rate] = self.attempt(recipe, "val_loss", math.inf)
            chosen["pretrain"] = min(tried, key=tried.get)
            init = folder / f"pretrain_{chosen['pretrain']:g}"
        tried = tries["finetune"] = {}
        for rate in settings.finetune_rates:
            recipe = finetuning(settings, self.data, folder / f"finetune_{rate:g}", rate=rate, init=init, **options)
            tried[rate] = self.attempt(recipe, "top1", 0.0)
        chosen["finetune"] = max(tried, key=tried.get)
        return {"arm": arm, "seed": PILOT_SEED, "chosen": chosen, "tries": tries, **machine()}

    def attempt(self, recipe: Recipe, measure: str, diverged: float) -> float:
        """The last value of a measure, or ``diverged`` where the rate is so high that the training fails."""
        try:
            return self.train(recipe)[measure]
        except FloatingPointError as failure:
            self.say(f"  {recipe.out}: {failure}")
            return diverged

    def train(self, recipe: Recipe) -> dict:
        """Train to the end, from where it was; the last evaluation, curves, time, and a digest of the weights."""
        before = max((line["step"] for line in log(recipe)), default=0)
        results = train(recipe)
        lines = log(recipe)
        losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        speeds = [line["images_per_s"] for line in lines if "loss" in line]
        steps = [0, *(step for step, _ in losses)]
        seconds = sum((steps[i + 1] - steps[i]) * recipe.batch_size / speed for i, speed in enumerate(speeds))
        self.done += (steps[-1] - before) * recipe.batch_size
        self.say(f"  {recipe.out}: {json.dumps(results)}, {seconds:.0f} s")
        return {
            **{name: value for name, value in results.items() if name != "samples"},
            "steps": steps[-1],
            "hours": round(seconds / 3600, 4),
            "losses": losses[:: max(len(losses) // CURVE, 1)] + losses[-1:],
            "tests": [line for line in lines if "val_loss" in line],
            "weights": digest(read_weights(Path(recipe.out))[0]),
        }

    @torch.no_grad()
    def answers(self, recipe: Recipe) -> dict:
        """For which held-out photographs the label is the most probable one: a bit each, in hexadecimal."""
        model = build(recipe)
        initialise(model, Path(recipe.out))
        right = [model.eval()(pixels).argmax(1) == labels for pixels, labels in crops(recipe, "val")]
        bits = torch.cat(right).numpy()
        return {"right": np.packbits(bits).tobytes().hex(), "photographs": len(bits)}

    @torch.no_grad()
    def frozen(self, init: Path | None, seed: int) -> dict:
        """Accuracies in the features of an encoder that has not seen a label.

        linear: logistic regression on all patch tokens of the last block; knn: 20 neighbours by their mean.
        """
        recipe = self.features_recipe(seed)
        torch.manual_seed(seed)  # as training does, so that without pre-training these are the weights it begins with
        model = build(recipe)
        if init:
            weights, _ = read_weights(init)
            model.encoder.load_state_dict({k[8:]: v for k, v in weights.items() if k.startswith("encoder.")})
        encoder, found = model.eval().encoder, []
        for split in ("train", "val"):
            tokens, labels = [], []
            for pixels, batch_labels in crops(recipe, split):
                [(features, _)] = encoder.encode(*encoder.embed(pixels), (len(encoder.widths) - 1,))
                tokens.append(features[:, 1:].flatten(1))
                labels.append(batch_labels)
            found.append((torch.cat(tokens), torch.cat(labels)))
        with join(recipe.device, recipe.precision) as world:
            neighbours = knn_accuracy(model, recipe, world)
        return {"linear": linear_accuracy(*found), "knn": neighbours}

    def features_recipe(self, seed: int) -> Recipe:
        return pretraining(self.settings, "hog", self.data, self.out / "features", seed, 1e-3, 10)

    def write(self, file: Path, found: dict) -> None:
        write_atomically(file, (json.dumps(found) + "\n").encode())
        self.say(f"  wrote {file}")

    @contextmanager
    def locked(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Whether no other process has what is called so; the system gives it free when a process ends."""
        self.out.mkdir(parents=True, exist_ok=True)
        with open(self.out / f"{name}.lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True


def crops(recipe: Recipe, split: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The central crop of every photograph, normalised, and its label, in order."""
    for batch in make_loader(recipe, split, seed=0, augment=False):
        yield normalise(batch["images"], recipe.mean, recipe.std), batch["labels"]


@torch.enable_grad()
def linear_accuracy(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Accuracy (0 to 1) of logistic regression with an L2 penalty on standardised features ``[N, D]``."""
    (x, labels), (y, wanted) = train, test
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, y, linear = (x - mean) / std, (y - mean) / std, nn.Linear(x.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(linear(x), labels) + 0.005 * linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return (linear(y).argmax(1) == wanted).double().mean().item()


def log(recipe: Recipe) -> list[dict]:
    """The lines of the log of a training, none if it has not begun."""
    file = Path(recipe.out) / "log.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def digest(weights: dict[str, Tensor]) -> str:
    """SHA-256 of all weights, in order of their names."""
    sums = hashlib.sha256()
    for name in sorted(weights):
        sums.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return sums.hexdigest()


def machine() -> dict:
    """Where and with what a run was made: its bits follow from these."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    return {
        "commit": commit,
        "cpu": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }
