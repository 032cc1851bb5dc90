"""What fine-tuning adds: augmented batches, averaged weights, and the accuracy of a classifier and of neighbours."""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .augment import erase, mix, smooth_labels
from .config import Finetune
from .data import Loader, normalise
from .distributed import World

log = logging.getLogger(__name__)


def train_step_inputs(
    batch: dict[str, Tensor],
    recipe: Finetune,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:  # [B, C, (T,) H, W] float32, [B, classes]
    """Pixels with erased windows and mixed samples, and the probabilities of the classes, on the device of the batch.

    generator: the only source of randomness, on any device.

    Raises ValueError for a batch without labels.
    """
    if "labels" not in batch:
        raise ValueError(f"fine-tuning needs labels, and {recipe.data!r} has none")
    images = batch["images"]
    rng = host_rng(generator)
    noise = torch.Generator(images.device).manual_seed(int(rng.integers(2**62)))
    pixels = erase(normalise(images, recipe.mean, recipe.std), recipe.erasing, rng, noise)
    labels = smooth_labels(batch["labels"], recipe.classes, recipe.label_smoothing)
    if rng.random() < recipe.mix_prob:
        return mix(pixels, labels, recipe.mixup, recipe.cutmix, recipe.mix_switch, rng)
    return pixels, labels


def host_rng(generator: torch.Generator) -> np.random.Generator:
    """Random numbers on the host that follow from the state of ``generator``, which moves on.

    The state of a generator is on the host, its numbers are not: nothing waits for the device.
    """
    digest = hashlib.sha256(generator.get_state().numpy().tobytes()).digest()
    torch.rand((), generator=generator, device=generator.device)
    return np.random.default_rng(int.from_bytes(digest, "little"))


class EMA:
    r"""Exponential moving average of the parameters: :math:`a \leftarrow d\,a + (1 - d)\,p` after every step."""

    def __init__(self, model: nn.Module, decay: float):
        self.average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.step = get_ema_multi_avg_fn(decay)

    def update(self, model: nn.Module) -> None:
        """Take the parameters of ``model`` into the average."""
        parameters = dict(model.named_parameters())
        self.step(list(self.average.values()), [parameters[name].detach() for name in self.average], None)

    def state_dict(self) -> dict[str, Tensor]:
        return self.average

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state.keys() != self.average.keys():
            differ = sorted(state.keys() ^ self.average.keys())
            raise ValueError(f"the averaged weights are of another model: {', '.join(differ[:5])} differ")
        for name, value in self.average.items():
            value.copy_(state[name])


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Loader,
    recipe: Finetune,
    world: World,
) -> dict[str, float]:
    """Cross-entropy and accuracy (0 to 1) on labelled samples, over all ranks.

    The class probabilities of a sample are the mean over its views; a "test" loader gives all of them at once.

    Returns ``val_loss``, ``top1``, ``top5`` and ``samples``. Raises ValueError if there is no labelled sample.
    """
    device, training = world.device, model.training
    model.eval()
    sums = torch.zeros(4, device=device)
    for batch in loader:
        if "labels" not in batch:
            raise ValueError(f"evaluation needs labels, and {recipe.val_data or recipe.data!r} has none")
        labels = batch["labels"].to(device, non_blocking=True)
        pixels = normalise(batch["images"].to(device, non_blocking=True), recipe.mean, recipe.std)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            scores = model(pixels).float()
        probabilities = scores.softmax(-1).unflatten(0, (len(labels), -1)).mean(1)
        right = probabilities.topk(min(5, probabilities.shape[1])).indices == labels.unsqueeze(1)
        losses = F.nll_loss(probabilities.clamp_min(torch.finfo(torch.float32).tiny).log(), labels, reduction="sum")
        sums += torch.stack([losses, right[:, 0].sum(), right.sum(), torch.full_like(losses, len(labels))])
    model.train(training)
    loss, first, fifth, samples = world.sum(sums).tolist()
    if not samples:
        raise ValueError(f"there is no labelled sample to evaluate in {recipe.val_data or recipe.data!r}")
    return {"val_loss": loss / samples, "top1": first / samples, "top5": fifth / samples, "samples": int(samples)}


@torch.no_grad()
def knn(
    encoder: nn.Module,
    loaders: tuple[Loader, Loader],
    k: int,
    device: "torch.device | str",
    temperature: float = 0.07,
) -> float:
    r"""Accuracy (0 to 1) of a vote of the k nearest samples of the first loader on those of the second.

    The features are what ``encoder(pixels)`` gives, compared by the cosine c; a neighbour's vote is
    :math:`e^{c / \mathrm{temperature}}`. Each rank compares what its own loaders hold.

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018.
    """
    bank, bank_labels = features(encoder, loaders[0], device)
    queries, labels = features(encoder, loaders[1], device)
    classes, right = int(bank_labels.max()) + 1, 0
    for query, label in zip(queries.split(1024), labels.split(1024), strict=True):
        cosines, neighbours = (query @ bank.T).topk(min(k, len(bank)))
        votes = torch.zeros(len(query), classes, device=query.device)
        votes.scatter_add_(1, bank_labels[neighbours], (cosines / temperature).exp())
        right += int((votes.argmax(1) == label).sum())
    return right / len(labels)


def features(
    encoder: nn.Module, loader: Loader, device: "torch.device | str"
) -> tuple[Tensor, Tensor]:  # [N, D] of unit length, [N]
    """Features and labels of the samples of a loader that have a label; the others are counted in a warning.

    Raises ValueError if there are none.
    """
    device, recipe, training = torch.device(device), loader.recipe, encoder.training
    encoder.eval()
    found, labels, unlabelled = [], [], 0
    for batch in loader:
        known = batch.get("labels", batch["indices"].new_full(batch["indices"].shape, -1)) >= 0
        unlabelled += int((~known).sum())
        if not known.any():
            continue
        pixels = normalise(batch["images"][known].to(device, non_blocking=True), recipe.mean, recipe.std)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            found.append(F.normalize(encoder(pixels).float(), dim=-1))
        labels.append(batch["labels"][known].to(device))
    encoder.train(training)
    if not found:
        raise ValueError(
            f"the kNN accuracy needs labels, and no sample of {loader.batches.data!r} that can be read has one"
        )
    if unlabelled:
        log.warning("the kNN accuracy leaves out %d samples of %s that have no label", unlabelled, loader.batches.data)
    return torch.cat(found), torch.cat(labels)


def feature_maps(
    encoder: nn.Module,
    pixels: Tensor,  # [B, C, (T,) H, W], normalised
) -> Tensor:  # [B, D, (T',) rows, columns]
    """Outputs of the last block on its grid: what a detector, as for AVA, crops the features of its boxes from.

    Gradients flow, so that a detector can train the encoder as well.
    """
    tokens, grid = encoder.embed(pixels)
    [(x, grid)] = encoder.encode(tokens, grid, (len(encoder.widths) - 1,))
    return x[:, encoder.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid)


@torch.no_grad()
def export_features(encoder: nn.Module, loader: Loader, folder: "str | Path", device: "torch.device | str") -> None:
    """Write ``features`` (float16, :func:`feature_maps`), ``labels`` and ``indices`` of a batch to a safetensors file.

    A row of each is one view of a sample: its number in the data is in ``indices``, its file or key in the JSON list
    ``names`` of the metadata. Samples that cannot be read have no row.
    """
    device, recipe, training = torch.device(device), loader.recipe, encoder.training
    Path(folder).mkdir(parents=True, exist_ok=True)
    encoder.eval()
    for i, batch in enumerate(loader, start=loader.start):
        pixels = normalise(batch["images"].to(device, non_blocking=True), recipe.mean, recipe.std)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            maps = feature_maps(encoder, pixels).half().cpu().contiguous()
        views = len(maps) // len(batch["indices"])
        rows = {name: batch[name].repeat_interleave(views) for name in ("labels", "indices") if name in batch}
        metadata = {"names": json.dumps(loader.names(rows["indices"]))}
        save_file({"features": maps, **rows}, Path(folder) / f"batch_{i:06}.safetensors", metadata)
    encoder.train(training)
