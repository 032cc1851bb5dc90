"""The ``maskfeat`` command."""

import argparse
import dataclasses
import errno
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import config
from .config import RECIPES, Finetune, Pretrain, Recipe, describe, get_recipe, override
from .extraction.options import OWN, help_text

if TYPE_CHECKING:
    from torch import nn

EXAMPLES = """\
examples:
  maskfeat recipes                                    all recipes
  maskfeat recipes vit_b_in1k                         one, whole
  maskfeat pretrain vit_tiny out=runs/first           on rendered images
  maskfeat pretrain vit_b_in1k data=/data/imagenet out=runs/vit_b
  torchrun --nproc-per-node 8 -m maskfeat pretrain vit_b_in1k data=/data/imagenet out=runs/vit_b
  maskfeat finetune vit_b_in1k_ft init=runs/vit_b data=/data/imagenet out=runs/vit_b_ft
  maskfeat eval runs/vit_b_ft
  maskfeat probe runs/vit_b data=/data/imagenet
  maskfeat stats /data/bands channels=13 data_range=0,10000       mean=... and std=... of each channel
  maskfeat plot runs/vit_b runs/other --output curves.png
  maskfeat show runs/vit_b --output panel.png
  maskfeat extract runs/vit_b data=/data/imagenet out=features        one vector an image, in Parquet files
  maskfeat extract hog data=/data/photos out=hog bins=12              HOG without any model; engine=ray: on a cluster
  maskfeat convert in1k_VIT_B_MaskFeat_PT_epoch_01600.pyth vit_b.safetensors
  maskfeat convert runs/vit_b vit_b_timm.safetensors --to timm
  maskfeat knn runs/vit_b image_size=224x112          on images of another shape: 224 high, 112 wide

A run that was killed goes on when its command is given again. data= takes folders, lists (.csv, .txt, .json), tar
shards, 'skimage' and 'synthetic'; docs/data.md has an example of each, and the formats of pictures and videos.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status. Mistakes of the user's are one line on stderr."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)  # which takes no settings after an option
    if not all("=" in word and not word.startswith("-") and hasattr(options, "settings") for word in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.settings += rest
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # the recipe says how many workers
    try:
        options.run(options)
    except (ValueError, OSError, FloatingPointError) as error:
        if options.traceback:
            raise
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "; make room and give the same command again, what was saved before is whole" if full else ""
        print(f"maskfeat: {error}{advice}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        failure = _of_the_machine(error)
        if failure is None or options.traceback:
            raise
        print(f"maskfeat: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("maskfeat: interrupted; give the same command again to go on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _of_the_machine(error: MemoryError | RuntimeError) -> str | None:
    """What a user reads if the memory or the network failed; None for an error of another kind."""
    from torch.distributed import DistError

    reason = str(error).strip().partition("\n")[0]
    if isinstance(error, MemoryError) or "out of memory" in reason.lower() or "can't allocate memory" in reason:
        asked = re.search(r"(?:tried|Unable) to allocate [\d.]+ \w+", reason)
        return f"out of memory ({asked[0] if asked else reason}); use a smaller batch_size, image_size or model"
    if isinstance(error, DistError):
        where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        return f"the ranks did not meet at {where} ({reason[:300]}); start them with torchrun --nproc-per-node"
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="maskfeat",
        description="Masked feature prediction on images and video.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], object], summary: str, source: tuple[str, str] | None = None
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(run=run)
        if source:
            sub.add_argument(source[0], help=source[1])
            sub.add_argument("settings", nargs="*", metavar="key=value", help="`maskfeat recipes NAME` lists the keys")
        return sub

    recipe = ("recipe", "name of a recipe")
    weights = ("weights", "a run folder, one of its checkpoints, or a file of weights")
    what = ("what", "hog, or a run folder, one of its checkpoints, or a file of weights")
    command("pretrain", _pretrain, "pre-train an encoder by masked feature prediction", recipe)
    command("finetune", _finetune, "train a classifier, as a rule from pre-trained weights (init=...)", recipe)
    evaluate = command(
        "eval", _eval, "accuracy of a classifier with the recipe's test views, or held-out loss", weights
    )
    evaluate.add_argument("--confusion", metavar="PNG", help="also draw which classes are taken for which")
    probe = command("probe", _probe, "accuracy of linear classifiers on frozen features of several blocks", weights)
    probe.add_argument("--depths", type=_depths, default=(), help="blocks, from 0, as 3,7,11; by default four")
    probe.add_argument("--rates", type=_rates, default=(), help="learning rates that are tried, as 0.1,0.3")
    probe.add_argument("--epochs", type=int, default=30, help="passes over the training samples (%(default)s)")
    stats = command("stats", _stats, "mean and std of each channel, as settings", ("data", "as data= of a recipe"))
    stats.add_argument("--recipe", default="vit_b_in1k", help="whose images or clips are read (%(default)s)")
    plot = command("plot", _plot, "learning curves of one or more runs, as a picture")
    plot.add_argument("runs", nargs="+", help="run folders")
    plot.add_argument("--output", default="curves.png", help="the PNG to write (%(default)s)")
    command("knn", _knn, "accuracy of the nearest neighbours in the features of an encoder", weights)
    show = command("show", _show, "picture of masked input, prediction, target and original", weights)
    show.add_argument("--output", default="panel.png", help="the PNG to write (%(default)s)")
    show.add_argument("--number", type=int, default=8, help="samples in the picture (%(default)s)")
    extract = command("extract", _extract, "HOG, or features of an encoder, of all samples, in Parquet files", what)
    extract.formatter_class, extract.epilog = argparse.RawDescriptionHelpFormatter, help_text()
    export = command(
        "export", _export, "feature maps in safetensors files; `extract` writes Parquet, and goes on", weights
    )
    export.add_argument("--output", default="features", help="the folder to write into (%(default)s)")
    export.add_argument("--split", choices=("train", "val", "test"), default="val", help="(%(default)s)")
    convert = command("convert", _convert, "weights between maskfeat and other projects")
    convert.add_argument("source", help="a run folder or file of maskfeat, SlowFast, mmpretrain, timm or Hugging Face")
    convert.add_argument("output", help="the file to write; a folder for Hugging Face")
    convert.add_argument("--to", choices=("maskfeat", "timm", "huggingface"), default="maskfeat")
    convert.add_argument("settings", nargs="*", metavar="key=value", help="such as image_size=224x112 or patch_size=8")
    recipes = command("recipes", _recipes, "list the recipes, or print one whole")
    recipes.add_argument("name", nargs="?", help="name of a recipe")
    return parser


def _pretrain(options: argparse.Namespace) -> None:
    _train(options, Pretrain)


def _finetune(options: argparse.Namespace) -> None:
    _train(options, Finetune)


def _train(options: argparse.Namespace, kind: type[Recipe]) -> None:
    recipe = get_recipe(options.recipe)
    if not isinstance(recipe, kind):
        raise ValueError(f"{recipe.name} is a recipe of `maskfeat {config.task(recipe)}`")
    recipe = override(recipe, options.settings)
    from tqdm.contrib.logging import logging_redirect_tqdm

    from .run.distributed import Terminated
    from .run.train import train

    try:
        with logging_redirect_tqdm():  # messages about samples do not break the progress line
            _print(train(recipe))
    except Terminated as reason:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends one as soon as another rank is gone
        if _speaks():
            print(f"maskfeat: {reason}; give the same command again to go on", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)


def _eval(options: argparse.Namespace) -> None:
    from .run.distributed import join
    from .run.evaluate import evaluate_model

    model, recipe = _load(options)
    if options.confusion:
        from .run.plots import check_picture

        if not isinstance(recipe, Finetune):
            raise ValueError(f"--confusion needs a classifier; {recipe.name} was pre-trained")
        check_picture(Path(options.confusion))
    with join(recipe.device, recipe.precision) as world:
        _print(evaluate_model(model.to(world.device), recipe, world, split="test"))
        if options.confusion and isinstance(recipe, Finetune):
            from .run.evaluate import confusion_matrix, held_out
            from .run.plots import confusion

            matrix = confusion_matrix(model, held_out(recipe, world, "test"), recipe, world)
            if world.rank == 0:
                confusion(matrix, Path(options.confusion))


def _knn(options: argparse.Namespace) -> None:
    from .run.distributed import join
    from .run.evaluate import knn_accuracy

    model, recipe = _load(options, predicts=False)
    with join(recipe.device, recipe.precision) as world:
        _print({"knn_accuracy": knn_accuracy(model.to(world.device), recipe, world)})


def _probe(options: argparse.Namespace) -> None:
    from .run.distributed import join
    from .run.probe import RATES, probe

    model, recipe = _load(options, predicts=False)
    if options.epochs < 1:
        raise ValueError(f"--epochs must be at least 1, got {options.epochs}")
    with join(recipe.device, recipe.precision) as world:
        found = probe(model.to(world.device), recipe, world, options.depths, options.rates or RATES, options.epochs)
        for entry in found:
            _print(entry)


def _depths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers of blocks, as 3,7,11, got {text!r}") from None


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise argparse.ArgumentTypeError(f"must be rates above 0, as 0.1,0.3, got {text!r}")
    return rates


def _stats(options: argparse.Namespace) -> None:
    from .run.stats import measure

    recipe = override(get_recipe(options.recipe), [*options.settings, f"data={options.data}"], silent=True)
    measured = measure(recipe)
    print(f"channels={recipe.channels}")
    if recipe.data_range:  # with all digits: what was measured holds for this range alone
        print(f"data_range={','.join(str(number).removesuffix('.0') for number in recipe.data_range)}")
    for name, value in measured.items():
        print(f"{name}={','.join(f'{number:.5g}' for number in value)}")


def _plot(options: argparse.Namespace) -> None:
    from .run.plots import curves

    curves([Path(run) for run in options.runs], Path(options.output))
    print(options.output)


def _show(options: argparse.Namespace) -> None:
    from .run.evaluate import show_panel
    from .weights.storage import check_writable

    check_writable(Path(options.output))
    model, recipe = _load(options)
    show_panel(model, recipe, Path(options.output), options.number)
    if recipe.channels not in (1, 3):
        seen = "band 1" if recipe.channels == 2 else "bands 1, 2 and 3"
        print(f"maskfeat: the pictures are {seen} of {recipe.channels}; HOG is the mean of all", file=sys.stderr)
    print(options.output)


def _extract(options: argparse.Namespace) -> None:
    from .extraction.api import run

    known = [*OWN, *(item.name for item in dataclasses.fields(Recipe))]
    asked: list[int] = []

    def end() -> None:
        """Ends as the signal asked, which frees the folder. Python drops what a handler raises in a finaliser."""
        if asked:
            sys.exit(128 + signal.SIGTERM)

    def handler(number: int, _: object) -> None:
        asked.append(number)
        end()

    before = signal.signal(signal.SIGTERM, handler)
    try:
        result, note = run(options.what, config.settings_of(options.settings, known), end)
    finally:
        signal.signal(signal.SIGTERM, before)
    if note:
        print(f"maskfeat: {options.what}: {note}", file=sys.stderr)
    _print(result)


def _export(options: argparse.Namespace) -> None:
    from .data.loader import make_loader
    from .model import trunk
    from .run.device import device_named
    from .run.evaluate import export_features

    note = "`maskfeat extract RUN data=... out=... features=maps` writes Parquet, and goes on where it was killed"
    print(f"maskfeat: {note}", file=sys.stderr)
    model, recipe = _load(options, predicts=False)
    loader = make_loader(recipe, options.split, seed=recipe.seed, workers=recipe.workers, augment=False)
    device = device_named(recipe.device, recipe.precision)
    export_features(trunk(model).to(device), loader, options.output, device)
    print(options.output)


def _convert(options: argparse.Namespace) -> None:
    from .weights.convert import convert

    print(convert(Path(options.source), Path(options.output), options.to, options.settings))


def _recipes(options: argparse.Namespace) -> None:
    if options.name:
        print(describe(get_recipe(options.name)))
        return
    width = max(map(len, RECIPES))
    for name, recipe in RECIPES.items():
        shape = f"{recipe.frames} x {recipe.image_size}" if recipe.frames else str(recipe.image_size)
        print(
            f"{name:{width}}  {config.task(recipe):8}  {recipe.encoder} {recipe.size:5}  {shape:>8} pixels  "
            f"{recipe.epochs:4} epochs  batch {recipe.batch_size}"
        )


def _load(options: argparse.Namespace, predicts: bool = True) -> "tuple[nn.Module, Recipe]":
    """The model of a run and its recipe, with the settings of the command line; ``predicts`` as in put()."""
    from .weights.files import load_model

    model, recipe, note = load_model(Path(options.weights), partial(override, changes=options.settings), predicts)
    if note and _speaks():
        print(f"maskfeat: {options.weights}: {note}", file=sys.stderr)
    return model, recipe


def _print(results: Mapping[str, float]) -> None:
    if results and _speaks():
        print(json.dumps(results))


def _speaks() -> bool:
    """Whether this process prints results: of the ranks that torchrun started, only the first does."""
    return int(os.environ.get("RANK", "0")) == 0
