"""The token moves of masked pre-training, and the loss after them, beside what they replace in plain torch."""

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import timing
from benchmarks.cases.tokens import KEPT, PATCHES, chosen_patches, take
from benchmarks.timing import Case, Rival, Settings
from maskfeat_kernels import fused_mask_tokens, fused_masked_gather

N, K, D, TARGET = PATCHES, KEPT, 768, 108
"""The tokens of a 224x224 image, two fifths of them masked, in the width of a ViT-B; the width of a target."""

MOVED = {"Gather": K, "Gather and its gradient": 3 * K, "Mask": N - K, "Mask and its gradients": 3 * N - K}
"""Rows of tokens that any implementation of a case has to move, but for its result.

A gather reads K rows, and its gradient moves 2K more. Masking reads the N - K rows that stay. Its gradients, to the
tokens (which is checked) and to the mask token, read N rows and write N.
"""


@dataclasses.dataclass
class Batch:
    """Tokens, the masked ones among them twice over (as ids and as a mask), and what a gradient starts from."""

    tokens: Tensor  # [B, N, D]
    token_ids: Tensor  # [B, K], ascending
    mask: Tensor  # [B, N]
    mask_token: Tensor  # [D]
    grad: Tensor  # [B, N, D] or [B, K, D], or the targets


def gather(settings: Settings) -> list[Case]:
    loss = Case(f"Loss on the masked tokens, batch {settings.batch(2, 16, 256)}", partial(losses, settings))
    return [*cases_of(settings, "Gather", "Gather and its gradient"), loss]


def mask(settings: Settings) -> list[Case]:
    overheads = Case("One call on one token", partial(overhead, settings))
    return [*cases_of(settings, "Mask", "Mask and its gradients"), overheads]


def cases_of(settings: Settings, *names: str) -> list[Case]:
    """Each move in float32 and bfloat16, and on a CPU with several threads."""
    choices = [(torch.float32, 1, "float32"), (torch.bfloat16, 1, "bfloat16")]
    if settings.threads > 1 and settings.device == "cpu":
        choices.append((torch.float32, settings.threads, f"float32, {settings.threads} threads"))
    start = f"{K} of {N} tokens, width {D}, batch {settings.batch(2, 16, 256)}"
    return [
        Case(f"{name}: {start}, {end}", partial(moves, settings, name, dtype, threads))
        for dtype, threads, end in choices
        for name in names
    ]


def batches(settings: Settings, dtype: torch.dtype, rows: int, width: int = D) -> list[Batch]:
    """Batches that together exceed the cache. A gradient has ``rows`` rows."""
    batch = settings.batch(2, 16, 256)
    token_ids = chosen_patches(batch, K, settings.device)
    mask = torch.zeros(batch, N, dtype=torch.bool, device=settings.device).scatter_(1, token_ids, True)

    def whole_numbers(*shape: int) -> Tensor:  # small ones, which all dtypes hold and add exactly
        x = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(1))
        return x.to(settings.device, dtype)

    tokens, grad, mask_token = whole_numbers(batch, N, width), whole_numbers(batch, rows, width), whole_numbers(width)
    rest = token_ids, mask, mask_token.requires_grad_(), grad
    return [Batch(x.requires_grad_(), *rest) for x in timing.rotating(tokens, settings.device)]


def moves(settings: Settings, name: str, dtype: torch.dtype, threads: int = 1) -> list[Rival]:
    """The rivals of the case ``name``."""
    runs, rows = (gathers(settings.device), K) if name.startswith("Gather") else (mixes(settings.device), N)
    with_gradient = "gradient" in name
    if with_gradient:
        runs = {row: partial(gradient, run) for row, run in runs.items()}
    return rivals(runs, with_gradient, batches(settings, dtype, rows), MOVED[name], threads)


def gradient(run: Callable[[Batch], Tensor], b: Batch) -> Tensor:
    """The gradient to the tokens. That to the mask token is computed too where there is one."""
    return torch.autograd.grad(run(b), (b.tokens, b.mask_token), b.grad, allow_unused=True)[0]


def losses(settings: Settings) -> list[Rival]:
    """The gradient of the mean squared error of masked predictions: of K targets, or of N of which K count."""
    inputs = batches(settings, torch.float32, rows=K, width=TARGET)
    b = inputs[0]
    all_targets = torch.zeros_like(b.tokens).scatter(1, b.token_ids.unsqueeze(-1).expand_as(b.grad), b.grad).detach()

    def of_chosen(take, b):
        return torch.autograd.grad(F.mse_loss(take(b), b.grad), b.tokens)[0]

    def of_all(b):
        loss = ((b.tokens - all_targets).square().mean(-1) * b.mask).sum() / b.mask.sum()
        return torch.autograd.grad(loss, b.tokens)[0]

    runs = {f"{name}, mse_loss": partial(of_chosen, take) for name, take in gathers(settings.device).items()}
    return rivals(runs | {"mean over a mask, mse_loss": of_all}, True, inputs, 2 * K)


def gathers(device: str) -> dict[str, Callable[[Batch], Tensor]]:
    rows = torch.arange(4096, device=device).unsqueeze(1)

    def rows_of_all(b):  # [B, K] -> of [B * N]
        return b.token_ids + rows[: len(b.tokens)] * b.tokens.shape[1]

    runs = {
        "fused_masked_gather": lambda b: fused_masked_gather(b.tokens, b.token_ids),
        "index_select": lambda b: (
            b.tokens.flatten(0, 1).index_select(0, rows_of_all(b).flatten()).unflatten(0, (-1, K))
        ),
        "F.embedding": lambda b: F.embedding(rows_of_all(b), b.tokens.flatten(0, 1)),
        "torch.gather": lambda b: take(b.tokens, b.token_ids),
        "tokens[rows, ids]": lambda b: b.tokens[rows[: len(b.tokens)], b.token_ids],
    }
    if device == "cpu":  # on a GPU it waits for the number of masked tokens, which no graph can hold
        runs["tokens[mask]"] = lambda b: b.tokens[b.mask].view(len(b.tokens), K, -1)
    return runs


def mixes(device: str) -> dict[str, Callable[[Batch], Tensor]]:
    def weights(b):
        return b.mask.unsqueeze(-1).type_as(b.tokens)

    def arithmetic(b):
        m = weights(b)
        return b.tokens * (1 - m) + b.mask_token * m

    def copied(b):
        x = b.tokens.clone()
        x[b.mask] = b.mask_token
        return x

    runs = {
        "fused_mask_tokens": lambda b: fused_mask_tokens(b.tokens, b.mask_token, b.mask),
        "x * (1 - m) + token * m": arithmetic,
        "torch.lerp": lambda b: torch.lerp(b.tokens, b.mask_token, weights(b)),
        "torch.where": lambda b: torch.where(b.mask.unsqueeze(-1), b.mask_token, b.tokens),
    }
    return runs | ({"clone, x[mask] = token": copied} if device == "cpu" else {})  # waits, as tokens[mask] does


def rivals(runs: dict, grad_mode: bool, inputs: list[Batch], moved: int, threads: int = 1) -> list[Rival]:
    """The first is ours, with which the others are compared. The result of the last, in float64, is the truth."""

    def in_mode(run, b):
        with torch.set_grad_enabled(grad_mode):
            return run(b).detach()

    ours, *_, last = runs
    doubled = {name: getattr(inputs[0], name).detach().double() for name in ("tokens", "mask_token", "grad")}
    exact = dataclasses.replace(inputs[0], **doubled)
    exact.tokens.requires_grad_(), exact.mask_token.requires_grad_()
    truth, reads = in_mode(runs[last], exact), moved * inputs[0].tokens[:, 0].nbytes
    job = {"threads": threads, "items": len(exact.tokens), "reads": reads}
    return [
        Rival(name, partial(in_mode, run), inputs, truth, None if name == ours else ours, **job)
        for name, run in runs.items()
    ]


def overhead(settings: Settings) -> list[Rival]:
    """One element shows what a call costs before it moves anything, beside the cheapest of torch's own ops."""
    x = torch.ones(1, 1, 1, device=settings.device)
    ids = torch.zeros(1, 1, dtype=torch.int64, device=settings.device)
    mask, mask_token, job = ids.bool(), x.flatten(), {"on_host": True}
    gather, mix = (lambda x: fused_masked_gather(x, ids)), (lambda x: fused_mask_tokens(x, mask_token, mask))
    return [
        Rival("torch.mul", lambda x: torch.mul(x, x), [x], **job),
        Rival("fused_masked_gather", gather, [x], x.double(), "torch.mul", **job),
        Rival("fused_mask_tokens", mix, [x], x.double(), "torch.mul", **job),
    ]
