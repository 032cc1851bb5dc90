"""What the runs gave, as the protocol says: accuracies, differences with their intervals, verdicts, and a plot.

``python -m examples.photographs.report`` writes them into ``docs/evidence.md``.
"""

import argparse
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import t as student

from .settings import ARMS, GPU, PILOT_SEED, Settings

HERE = Path(__file__).parent
DOCUMENT, PLOT = HERE.parent.parent / "docs" / "evidence.md", "pictures/evidence.png"
BEGIN, END = "<!-- photographs: begin (python -m examples.photographs.report) -->", "<!-- photographs: end -->"
NAMES = {"none": "none", "pixel": "pixels", "hog": "HOG", "hog+pixel": "HOG + pixels"}
WINS = {"none": "no pre-training wins", "pixel": "pixels win", "hog": "HOG wins"}
PAIRS = (("hog", "pixel"), ("hog", "none"), ("pixel", "none"))
MEASURES = {
    "fine-tuned": lambda run: run["finetune"]["top1"],
    "fine-tuned, 10 % of the labels": lambda run: run["few"]["top1"],
    "linear classifier": lambda run: run["frozen"]["linear"],
    "20 nearest neighbours": lambda run: run["frozen"]["knn"],
}
BASELINES = {
    "constant": "a constant",
    "placed": "the mean at the place",
    "beside": "linear, from 1 true neighbour",
    "around": "linear, from 4 true neighbours",
}
Results = dict[str, list[dict]]  # the runs of an arm, in the order of their seeds


@dataclass(frozen=True)
class Difference:
    """Of the accuracies of two arms in points: the mean, half of its 95 % interval, and the smallest detectable one."""

    mean: float
    half: float
    detectable: float

    def verdict(self, first: str, second: str) -> str:
        if abs(self.mean) <= self.half:
            return "no difference that this design can see"
        return WINS[first if self.mean > 0 else second]


def read(results: Path, settings: Settings) -> Results:
    """The runs of every arm whose seeds have all been run."""
    files = {arm: [results / f"{arm}_{seed}.json" for seed in settings.seeds] for arm in ARMS}
    whole = {arm: of_arm for arm, of_arm in files.items() if all(file.exists() for file in of_arm)}
    if missing := [arm for arm in ARMS[:3] if arm not in whole]:
        raise SystemExit(f"{results} has not every seed of {', '.join(missing)}; make photographs makes the runs")
    return {arm: [json.loads(file.read_text()) for file in of_arm] for arm, of_arm in whole.items()}


def right(run: dict) -> np.ndarray:  # [photographs], 0 or 1
    """For which held-out photographs the fine-tuned model was right."""
    bits = np.frombuffer(bytes.fromhex(run["finetune"]["right"]), np.uint8)
    return np.unpackbits(bits)[: run["finetune"]["photographs"]].astype(float)


def difference(first: list[dict], second: list[dict]) -> Difference:
    """Paired by seed and by photograph. The variances of both means are added, with freedom after Satterthwaite."""
    gains = 100 * np.stack([right(a) - right(b) for a, b in zip(first, second, strict=True)])  # [seeds, photographs]
    means = [gains.mean(1), gains.mean(0)]
    variances = [values.var(ddof=1) / len(values) for values in means]
    total = sum(variances)
    if total == 0:
        return Difference(gains.mean(), 0.0, 0.0)
    freedom = total**2 / sum(part**2 / (len(values) - 1) for part, values in zip(variances, means, strict=True))
    error, quantile = math.sqrt(total), student.ppf(0.975, freedom)
    return Difference(gains.mean(), quantile * error, (quantile + student.ppf(0.8, freedom)) * error)


def accuracies(results: Results) -> str:
    """Mean and standard deviation over the seeds, in percent."""
    lines = [["pre-training", *MEASURES], ["---"] * (len(MEASURES) + 1)]
    for arm, runs in results.items():
        values = [[100 * measure(run) for run in runs] for measure in MEASURES.values()]
        lines.append([NAMES[arm], *(f"{statistics.mean(of):.1f} ± {statistics.stdev(of):.1f}" for of in values)])
    return rows(lines)


def verdicts(results: Results) -> str:
    heads = ["difference", "points", "95 % interval", "each seed", "smallest found in 4 of 5 repeats", "verdict"]
    lines = [heads, ["---"] * len(heads)]
    for pair in PAIRS:
        first, second = (results[arm] for arm in pair)
        found = difference(first, second)
        each = ", ".join(
            f"{100 * (right(a).mean() - right(b).mean()):+.1f}" for a, b in zip(first, second, strict=True)
        )
        interval = f"{found.mean - found.half:+.1f} to {found.mean + found.half:+.1f}"
        numbers = [f"{found.mean:+.1f}", interval, each, f"{found.detectable:.1f}"]
        lines.append([" - ".join(NAMES[arm] for arm in pair), *numbers, found.verdict(*pair)])
    return rows(lines)


def rows(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tries(results: Path) -> str:
    """What the pilots found, rate by rate."""
    parts = []
    for arm in ARMS:
        if (file := results / f"{arm}_pilot.json").exists():
            pilot = json.loads(file.read_text())
            told = []
            for what, unit in {"pretrain": "{:.4g}", "finetune": "{:.1%}"}.items():
                if what in pilot["tries"]:
                    found = ", ".join(f"{rate}: {unit.format(value)}" for rate, value in pilot["tries"][what].items())
                    told.append(f"{what} {found}, so {pilot['chosen'][what]:g}")
            parts.append(f"* {NAMES[arm]}: {'; '.join(told)}")
    return "\n".join(parts)


def reached(results: Results, folder: Path) -> str:
    """The held-out losses of pre-training, beside those of predictors without a network."""
    if not (file := folder / "baselines.json").exists():
        return ""
    known = json.loads(file.read_text())
    lines = [["target", *BASELINES.values(), "the models, each seed"], ["---"] * (len(BASELINES) + 2)]
    for arm in ("hog", "pixel"):
        losses = ", ".join(f"{run['pretrain']['val_loss']:.4f}" for run in results[arm])
        lines.append([NAMES[arm], *(f"{known[arm][name]:.4f}" for name in BASELINES), losses])
    note = "Held-out losses on masked patches; those of predictors without a network on all that have such neighbours:"
    return f"{note}\n\n{rows(lines)}"


def machines(results: Results) -> str:
    """Hours, processors and commits."""
    runs = [run for of_arm in results.values() for run in of_arm]
    hours = sum(run[part]["hours"] for run in runs for part in ("pretrain", "finetune", "few") if part in run)
    told = {f"{run['cpu']} ({run['instructions']}), torch {run['torch']}, commit {run['commit']}" for run in runs}
    clock = f"{len(runs)} runs, {hours:.0f} hours by the clock, one core each, with pauses and without pilots"
    return f"{clock}. {'; '.join(sorted(told))}."


def block(folder: Path, settings: Settings) -> str:
    """What the document has between its marks."""
    results = read(folder, settings)
    seeds = f"Accuracy on {results['none'][0]['finetune']['photographs']:,} held-out photographs in %, mean ± standard"
    seeds += f" deviation of {len(settings.seeds)} seeds. Chance is 10 %."
    rates = f"Rates that the pilots tried, on seed {PILOT_SEED}, with held-out loss or accuracy after five epochs:"
    plot = f"![accuracies, differences and learning curves]({PLOT})"
    parts = [seeds, accuracies(results), verdicts(results), plot, reached(results, folder), machines(results)]
    return "\n\n".join(part for part in (*parts, rates, tries(folder)) if part)


def plot(results: Results, path: Path) -> None:
    """Accuracies by seed; differences with their intervals; held-out curves of pre-training and of fine-tuning."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    (dots, gains), (losses, curves) = figure.subplots(2, 2)
    colours = {arm: f"C{i}" for i, arm in enumerate(ARMS)}
    for at, (arm, runs) in enumerate(results.items()):
        values = [100 * run["finetune"]["top1"] for run in runs]
        dots.hlines(statistics.mean(values), at - 0.3, at + 0.3, color=colours[arm])
        dots.plot([at] * len(values), values, ".", color=colours[arm])
        for i, run in enumerate(runs):
            label = dict(color=colours[arm], label=None if i else NAMES[arm], alpha=0.8)
            tests = run["finetune"]["tests"]
            curves.plot([test["step"] for test in tests], [100 * test["top1"] for test in tests], **label)
            if tests := run.get("pretrain", {}).get("tests"):
                values = [test["val_loss"] / tests[0]["val_loss"] for test in tests]
                losses.plot([test["step"] for test in tests], values, **label)
    dots.set_xticks(range(len(results)), [NAMES[arm] for arm in results])
    dots.margins(x=0.2)
    dots.set(title="fine-tuned accuracy, %: a dot a seed, a line their mean")
    for at, pair in enumerate(reversed(PAIRS)):
        found = difference(*(results[arm] for arm in pair))
        gains.errorbar(found.mean, at, xerr=found.half, fmt="ko", capsize=4)
    gains.axvline(0, color="grey", linestyle=":")
    gains.set_yticks(range(len(PAIRS)), [" - ".join(NAMES[arm] for arm in pair) for pair in reversed(PAIRS)])
    gains.set(title="differences with 95 % intervals", xlabel="points", ylim=(-0.5, len(PAIRS) - 0.5))
    losses.set(title="pre-training: held-out loss, first evaluation = 1", xlabel="step")
    curves.set(title="fine-tuning: held-out accuracy, %", xlabel="step")
    for axes in (losses, curves):
        axes.legend()
    figure.savefig(path, dpi=100)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.photographs.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="(%(default)s)")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="where the tables stand (%(default)s)")
    parser.add_argument("--gpu", action="store_true", help="the runs of --gpu, with their own --results and --document")
    options = parser.parse_args(words)
    settings = GPU if options.gpu else Settings()
    text = options.document.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    if not after:
        parser.error(f"{options.document} has no place for the tables: {BEGIN} ... {END}")
    picture = options.document.parent / PLOT
    picture.parent.mkdir(exist_ok=True)
    plot(read(options.results, settings), picture)
    options.document.write_text(f"{before}{BEGIN}\n\n{block(options.results, settings)}\n\n{END}{after}")
    print(f"wrote {options.document} and {PLOT} beside it")


if __name__ == "__main__":
    main()
