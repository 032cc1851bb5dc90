"""HOG, pixels, or no pre-training at all: an experiment that one CPU core finishes within half an hour.

A small ViT is pre-trained by masked feature prediction on the handwritten digits that scikit-learn ships, shown in a
light and contrast that change from sample to sample, without their labels. Then it learns to read from a few hundred
labelled ones, by a linear probe of its frozen features and by fine-tuning. All three arms have the same architecture,
data, crops, steps and learning rates. Light, size, rates and initial scales were chosen on a single seed, so that a
classifier learns at all within minutes. What decided was the loss of HOG, the accuracy without pre-training and that of
the probe. Some of the digits that it was measured on are held-out ones here. Nothing was tuned for pixels. It was first
run with 1200 steps of pre-training (``results/experiment_1200_steps.json``), too few for HOG to help, and then with
5000. A seed stands for the choice of the labelled and the held-out digits, the initial weights, the order of the data,
the light and the masks.
Run ``python -m examples.experiment [--quick] [--flat] [--out DIRECTORY]``.

``--flat`` is an ablation. Sloped light fills blank patches with one orientation, which the normalisation of HOG brings
to unit length. A third of the patches are blank, so much of the target is the light. With flat light, and cells of 4
pixels, the target is the digits.
"""

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.timing import cpu_name
from maskfeat import HogTarget, MaskFeat, PixelTarget, VisionTransformer, make_masks
from maskfeat.config import IMAGENET
from maskfeat.run.step import normalise
from maskfeat_kernels import MASKFEAT

RESULTS, FIRST, FLAT_LIGHT = Path(__file__).parent / "results", "experiment_1200_steps.json", "experiment_flat.json"
CLASSES, SIZE, PATCH = 10, 32, 8
SPARE = 8  # pixels by which samples are larger than their random crops
ENCODER = dict(img_size=SIZE, patch_size=PATCH, embed_dim=64, depth=3, num_heads=2, init_bias=0.0)
ARMS = ("HOG", "pixels", "none")
Samples = tuple[Tensor, Tensor]  # pictures or ink, and labels


@dataclass(frozen=True)
class Settings:
    """Numbers of digits, of optimizer steps and of seeds; the rest of the 1797 digits are pre-trained on as well."""

    labelled: int = 500
    test: int = 700
    pretrain_steps: int = 5000
    finetune_steps: int = 500
    seeds: int = 3
    batch: int = 32
    mask_ratio: float = 0.4
    lr: float = 2e-3
    weight_decay: float = 0.05
    slope: float = 0.8  # the largest change of the logarithm of light from the middle of a sample to its side
    hog_cell: int = PATCH


FLAT = dict(slope=0.0, hog_cell=4)
QUICK = Settings(labelled=50, test=50, pretrain_steps=4, finetune_steps=4, seeds=2, batch=16)


def handwriting() -> Samples:  # [N, SIZE + SPARE, SIZE + SPARE] ink from 0 to 1, [N]
    """The digits that scikit-learn ships, enlarged from 8 x 8 pixels."""
    found = load_digits()
    ink = torch.from_numpy(found.images).float().unsqueeze(1) / 16
    ink = F.interpolate(ink, size=SIZE - SPARE, mode="bicubic").clamp_(0, 1)
    return F.pad(ink, [SPARE] * 4).squeeze(1), torch.from_numpy(found.target)


def photograph(ink: Tensor, generator: torch.Generator, slope: float) -> Tensor:  # [B, H, W] -> [B, 3, H, W] uint8
    """Dark ink on bright paper in a random light (colour, direction, slope) at a random contrast, with little noise."""
    batch, height, width = ink.shape

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(batch, channels, 1, 1, generator=generator)

    surface = 0.9 - 0.8 * ink.unsqueeze(1)
    direction, y, x = uniform(0, 2 * math.pi), torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    light = uniform(0.8, 1.2, 3) * (uniform(0, slope) * (direction.cos() * x + direction.sin() * y)).exp()
    picture = uniform(0.4, 0.6) + uniform(math.log(0.3), 0).exp() * (surface * light - 0.5)
    picture += 0.002 * torch.randn(picture.shape, generator=generator)
    return (255 * picture).round().clamp(0, 255).byte()


def batches(digits: Samples, steps: int, size: int, seed: int, slope: float) -> Iterator[Samples]:
    """Random crops in a new light of all digits in turn, shuffled anew in each pass."""
    ink, labels = digits
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < size:
            order = torch.cat([order, torch.randperm(len(ink), generator=generator)])
        chosen, order = order[:size], order[size:]
        y, x = torch.randint(SPARE + 1, (2, size), generator=generator).tolist()
        crops = [ink[i, a : a + SIZE, b : b + SIZE] for i, a, b in zip(chosen.tolist(), y, x, strict=True)]
        yield photograph(torch.stack(crops), generator, slope), labels[chosen]


def minimise(model: nn.Module, losses: Iterator[Tensor], steps: int, settings: Settings) -> None:
    """AdamW with a linear warm-up over a tenth of the steps and a cosine to zero."""
    options = dict(lr=settings.lr, betas=(0.9, 0.95), weight_decay=settings.weight_decay)
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, steps, pct_start=0.1, anneal_strategy="cos", cycle_momentum=False
    )
    for loss in losses:
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def pretrain(arm: str, ink: Tensor, settings: Settings, seed: int) -> VisionTransformer:
    """An encoder that has learnt to predict HOG or pixels at masked patches, or only its initial weights."""
    torch.manual_seed(seed)
    encoder = VisionTransformer(**ENCODER)
    nn.init.normal_(encoder.pos_embed, std=0.2)  # the usual 0.02 is for wide models and long schedules
    for parameter in encoder.blocks.parameters():
        if parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)
    if arm == "none":
        return encoder
    hog = MASKFEAT.replace(cell=(settings.hog_cell, settings.hog_cell))
    target = HogTarget(PATCH, spec=hog) if arm == "HOG" else PixelTarget(PATCH)
    model, generator = MaskFeat(encoder, target), torch.Generator().manual_seed(seed)
    grid, unlabelled = (SIZE // PATCH, SIZE // PATCH), (ink, torch.zeros(len(ink)))

    def losses() -> Iterator[Tensor]:
        for images, _ in batches(unlabelled, settings.pretrain_steps, settings.batch, seed, settings.slope):
            masks = make_masks("block", len(images), grid, settings.mask_ratio, generator=generator)
            yield model(normalise(images, **IMAGENET), images, masks)

    minimise(model, losses(), settings.pretrain_steps, settings)
    return encoder


def probe(encoder: VisionTransformer, train: Samples, test: Samples) -> float:
    """Accuracy of logistic regression with an L2 penalty on the standardised patch tokens of the last block."""

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:  # [N, 16 * D]
        [(tokens, _)] = encoder.eval().encode(*encoder.embed(normalise(images, **IMAGENET)), (ENCODER["depth"] - 1,))
        return tokens[:, 1:].flatten(1)

    x, y = features(train[0]), features(test[0])
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, y, linear = (x - mean) / std, (y - mean) / std, nn.Linear(x.shape[1], CLASSES)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(linear(x), train[1]) + 0.005 * linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return accuracy(linear(y), test[1])


def finetune(encoder: VisionTransformer, train: Samples, test: Samples, settings: Settings, seed: int) -> float:
    """Accuracy after training all weights, from those of ``encoder``, on labelled digits."""
    torch.manual_seed(seed)
    model = VisionTransformer(**ENCODER, num_classes=CLASSES, head_init_scale=1.0)
    model.load_state_dict(encoder.state_dict(), strict=False)  # all but the new norm and head

    def losses() -> Iterator[Tensor]:
        for images, labels in batches(train, settings.finetune_steps, settings.batch, seed, settings.slope):
            yield F.cross_entropy(model(normalise(images, **IMAGENET)), labels)

    minimise(model, losses(), settings.finetune_steps, settings)
    with torch.no_grad():
        return accuracy(model.eval()(normalise(test[0], **IMAGENET)), test[1])


def accuracy(scores: Tensor, labels: Tensor) -> float:  # percent
    return 100 * (scores.argmax(1) == labels).double().mean().item()


def run(settings: Settings) -> dict:
    """Accuracies in percent of every arm and seed."""
    begun, (ink, labels) = time.perf_counter(), handwriting()
    found = {arm: {"probe": [], "fine-tune": []} for arm in ARMS}
    for seed in range(settings.seeds):
        order = torch.randperm(len(ink), generator=torch.Generator().manual_seed(seed))
        held_out, rest = order[: settings.test], order[settings.test :]
        few = rest[: settings.labelled]
        train = (ink[few], labels[few])
        seen = next(batches(train, 1, len(few), seed, settings.slope))
        test = next(batches((ink[held_out], labels[held_out]), 1, len(held_out), seed, settings.slope))
        for arm in ARMS:
            encoder = pretrain(arm, ink[rest], settings, seed)
            found[arm]["probe"].append(probe(encoder, seen, test))
            found[arm]["fine-tune"].append(finetune(encoder, train, test, settings, seed))
            latest = ", ".join(f"{kind} {values[-1]:.1f} %" for kind, values in found[arm].items())
            print(f"{(time.perf_counter() - begun) / 60:5.1f} min  seed {seed}, {arm}: {latest}", flush=True)
    return {
        "settings": dataclasses.asdict(settings),
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "minutes": round((time.perf_counter() - begun) / 60, 1),
        "accuracy": found,
    }


def table(report: dict) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    lines = ["| pre-training | linear probe, % | fine-tuned, % |", "|---|---|---|"]
    for arm, kinds in report["accuracy"].items():
        cells = [f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}" for values in kinds.values()]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown(report: dict) -> str:
    settings = report["settings"]
    text = (
        f"Accuracy on {settings['test']} held-out digits in random light, mean ± standard deviation of "
        f"{settings['seeds']} seeds; chance is 10 %. {settings['pretrain_steps']} steps of pre-training and "
        f"{settings['finetune_steps']} of fine-tuning on {settings['labelled']} labelled digits, "
        f"{settings['batch']} to a batch. {report['minutes']} minutes on one core of {report['cpu']}, "
        f"torch {report['torch']}."
    )
    parts = ["# HOG, pixels, or no pre-training", text, table(report), "![plot](experiment.png)"]
    if Settings(**settings) == Settings():  # the numbers of steps that were chosen after this
        earlier = json.loads((RESULTS / FIRST).read_text())
        steps = earlier["settings"]["pretrain_steps"]
        reason = (
            f"The experiment was first run with {steps} steps of pre-training ([{FIRST}]({FIRST}), below). With so few "
            f"HOG did not help, so it was run again with {settings['pretrain_steps']}; all else is the same."
        )
        parts += [f"## First run, with {steps} steps", reason, table(earlier)]
        if (RESULTS / FLAT_LIGHT).exists():
            flat = json.loads((RESULTS / FLAT_LIGHT).read_text())
            reason = (
                "Sloped light fills blank patches with one orientation, and the normalisation of HOG brings it to unit "
                "length. A third of the patches are blank, so much of the target is the light. This ablation has flat "
                f"light and cells of {flat['settings']['hog_cell']} pixels; all else is the same. It was chosen after "
                f"the first results were known ([{FLAT_LIGHT}]({FLAT_LIGHT}))."
            )
            parts += ["## Ablation: flat light, smaller cells", reason, table(flat)]
    return "\n\n".join(parts) + "\n"


def plot(report: dict, path: Path) -> None:
    """A point for each seed, a bar at their mean, above samples as the models see them."""
    mpl.use("Agg")
    figure, (strip, axis) = plt.subplots(2, 1, figsize=(7, 5.5), height_ratios=(1, 4), layout="constrained")
    images, _ = next(batches(handwriting(), 1, 12, 0, Settings.slope))
    strip.imshow(torch.cat(list(images), dim=-1).permute(1, 2, 0).numpy())
    strip.set_axis_off()
    for i, (arm, kinds) in enumerate(report["accuracy"].items()):
        for group, values in enumerate(kinds.values()):
            place = group + 0.25 * (i - 1)
            axis.bar(place, statistics.mean(values), 0.22, color=f"C{i}", alpha=0.5, label=None if group else arm)
            axis.plot([place] * len(values), values, "k.")
    axis.set_xticks(range(2), ["linear probe", "fine-tuned"])
    axis.axhline(100 / CLASSES, color="grey", linestyle=":")
    axis.set_ylabel("accuracy on held-out digits, %")
    axis.legend(title="pre-training")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, which show only that it runs")
    parser.add_argument("--flat", action="store_true", help="the ablation, in flat light and with cells of 4")
    parser.add_argument("--out", type=Path, metavar="DIRECTORY", help="where to write (default results/ here)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = QUICK if options.quick else Settings()
    report = run(dataclasses.replace(settings, **FLAT) if options.flat else settings)
    print(table(report))
    if options.out or not options.quick:
        out = options.out or RESULTS
        out.mkdir(parents=True, exist_ok=True)
        name = FLAT_LIGHT if options.flat else "experiment.json"
        (out / name).write_text(json.dumps(report, indent=1) + "\n")
        print(f"wrote {out}/{name}")
        if (out / "experiment.json").exists():
            shown = json.loads((out / "experiment.json").read_text())
            (out / "experiment.md").write_text(markdown(shown))
            plot(shown, out / "experiment.png")
            print(f"wrote {out}/experiment.md and .png")


if __name__ == "__main__":
    main()
