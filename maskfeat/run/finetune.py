"""What fine-tuning adds to a step: augmented batches, and averaged weights."""

import hashlib

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..config import Finetune
from ..data.augment import erase, mix, smooth_labels


def train_step_inputs(
    pixels: Tensor,  # [B, C, (T,) H, W] float32, normalised; changed in place
    labels: Tensor | None,  # [B] int64
    recipe: Finetune,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:  # [B, C, (T,) H, W] float32, [B, classes]
    """Pixels with erased windows and mixed samples, and the probabilities of the classes, on the device of the pixels.

    generator: the only source of randomness, on any device.

    Raises ValueError if there are no labels.
    """
    if labels is None:
        raise ValueError(f"fine-tuning needs labels, and {recipe.data!r} has none")
    rng = host_rng(generator)
    noise = torch.Generator(pixels.device).manual_seed(int(rng.integers(2**62)))
    pixels = erase(pixels, recipe.erasing, rng, noise)
    probabilities = smooth_labels(labels, recipe.classes, recipe.label_smoothing)
    if rng.random() < recipe.mix_prob:
        return mix(pixels, probabilities, recipe.mixup, recipe.cutmix, recipe.mix_switch, rng)
    return pixels, probabilities


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
