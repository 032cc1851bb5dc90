"""The model card (README.md) of a folder for Hugging Face, from a recipe and the log of its run."""

import json
import re
from pathlib import Path
from typing import Any

from maskfeat_kernels import __version__

from ..config import RECIPES, Pretrain, to_dict
from ..keys import text_of

OF_THE_MACHINE = {
    *("name", "task", "out", "init", "resume", "data", "val_data", "device", "workers", "cache_mb", "log_every"),
    *("eval_every", "save_every", "keep", "keep_best", "tensorboard", "wandb", "extend", "change", "compile"),
}
"""Keys of a recipe that say where and how a run was made, not what was trained."""

MEASURES = {
    "loss": "loss in training",
    "val_loss": "loss on held-out data",
    "knn_accuracy": "accuracy of the nearest neighbours, held-out",
}

CARD = """\
---
library_name: transformers
pipeline_tag: image-feature-extraction
tags: [maskfeat, vit, self-supervised, hog]
# license: yours to choose, as that of the data may bind it
---

# {title}

{model} of {millions:.1f} million parameters, pre-trained to predict {target} of hidden patches, by maskfeat {version}.
Inputs are {shape} pixels in patches of {patch_size}, on a scale of 0 to 1, less the mean {mean}, over the std {std}.

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER", add_pooling_layer=False)
```

## Training

{training}
"""


def model_card(recipe: Pretrain, source: Path, parameters: int) -> str:
    """Markdown, without a path of this machine. ``source`` is the run, or a checkpoint or file of weights in it."""
    return CARD.format(
        title=_plain(recipe.name),
        model=recipe.model,
        millions=parameters / 1e6,
        target={"hog": "the HOG", "pixel": "the pixels"}.get(recipe.target, "HOG and pixels"),
        version=__version__,
        shape=f"{recipe.channels} x {recipe.image_size}",
        patch_size=recipe.patch_size,
        mean=text_of(recipe.mean),
        std=text_of(recipe.std),
        training=_training(recipe, source),
    )


def _training(recipe: Pretrain, source: Path) -> str:
    if recipe.name not in RECIPES:
        return f"Elsewhere; converted from `{_name(str(source))}`."
    usual = to_dict(RECIPES[recipe.name])
    changed = {name: getattr(recipe, name) for name, value in to_dict(recipe).items() if value != usual[name]}
    settings = [f"    {name}={_plain(text_of(v))}" for name, v in changed.items() if name not in OF_THE_MACHINE]
    start = f", from the weights `{_name(recipe.init)}`" if recipe.init else ""
    lines = [f"Recipe `maskfeat pretrain {recipe.name}`, on `{_name(recipe.data)}`{start}.", ""]
    if numbers := _numbers(source):
        lines += ["| | |", "|---|---|", *(f"| {name} | {value:g} |" for name, value in numbers.items()), ""]
    return "\n".join([*lines, *(["Settings other than the recipe's:", "", *settings] if settings else [])]).rstrip()


def _numbers(source: Path) -> dict[str, float]:
    """Steps, and the last of each measure, by the log of a run up to the step of ``source``; none without a log."""
    step = re.fullmatch(r"step_(\d+)", source.name)
    folders = [source, source.parent.parent] if step else [source, source.parent]
    file = next((folder / "log.jsonl" for folder in folders if (folder / "log.jsonl").is_file()), None)
    found: dict[str, float] = {}
    for text in file.read_text(errors="replace").splitlines() if file else ():
        line = _object(text)
        if not isinstance(line.get("step"), int) or (step and line["step"] > int(step[1])):
            continue  # a run that was killed leaves a line that is cut short
        found["steps"] = line["step"]
        found |= {said: line[name] for name, said in MEASURES.items() if isinstance(line.get(name), (int, float))}
    return found


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _name(path: str) -> str:
    """The last part of a path. The rest would say where it lies on this machine."""
    return _plain(Path(path).name)


def _plain(text: str) -> str:
    """Text that ends neither its line nor its code span."""
    return re.sub(r"[\x00-\x1f`|]", " ", text)
