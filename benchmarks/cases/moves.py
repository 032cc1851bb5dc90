"""The token moves of masked pre-training, and the loss after them, beside what they replace in plain torch."""

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import timing
from benchmarks.cases.hog import short
from benchmarks.timing import Case, Rival, Settings
from maskfeat_kernels import fused_mask_tokens, fused_masked_gather

N, K, D, TARGET = 196, 78, 768, 108
"""The tokens of a 224x224 image in patches of 16x16, two fifths of them masked, in the width of a ViT-B; a target."""


@dataclasses.dataclass
class Batch:
    """Tokens, the masked ones among them twice over (as ids and as a mask), and what a gradient starts from.

    nbytes: what any implementation has to move, except for the result that it returns.
    """

    tokens: Tensor  # [B, N, D]
    token_ids: Tensor  # [B, K], ascending
    mask: Tensor  # [B, N]
    mask_token: Tensor  # [D]
    grad: Tensor  # [B, N, D] or [B, K, D], or the targets
    nbytes: int


def gather(settings: Settings) -> list[Case]:
    loss = Case(f"Loss on the masked tokens, batch {settings.batch(2, 16, 256)}", partial(losses, settings))
    return [*_cases(settings, "Gather", "Gather and its gradient"), loss]


def mask(settings: Settings) -> list[Case]:
    overheads = Case("One call on one token", partial(overhead, settings))
    return [*_cases(settings, "Mask", "Mask and its gradients"), overheads]


def _cases(settings: Settings, *names: str) -> list[Case]:
    """Each move in float32 and bfloat16, and on a CPU with several threads."""
    choices = [(torch.float32, 1), (torch.bfloat16, 1)]
    if settings.threads > 1 and settings.device == "cpu":
        choices.append((torch.float32, settings.threads))
    cases = []
    for dtype, threads in choices:
        end = f"{short(dtype)}, {threads} threads" if threads > 1 else short(dtype)
        for name in names:
            title = f"{name}: {K} of {N} tokens, width {D}, batch {settings.batch(2, 16, 256)}, {end}"
            cases.append(Case(title, partial(moves, settings, name, dtype, threads)))
    return cases


def batches(settings: Settings, dtype: torch.dtype, rows: int, moved: int, width: int = D) -> list[Batch]:
    """Batches that together exceed the cache. A gradient has ``rows`` rows, and a call moves ``moved`` rows."""
    batch = settings.batch(2, 16, 256)
    order = torch.rand(batch, N, generator=torch.Generator().manual_seed(0)).argsort(1)
    token_ids = order[:, :K].sort(1).values
    mask = torch.zeros(batch, N, dtype=torch.bool).scatter_(1, token_ids, True)
    tokens, grad = (_whole_numbers(batch, n, width).to(settings.device, dtype) for n in (N, rows))
    mask_token = _whole_numbers(width).to(settings.device, dtype).requires_grad_()
    nbytes = moved * batch * width * tokens.element_size()
    rest = token_ids.to(settings.device), mask.to(settings.device), mask_token, grad, nbytes
    return [Batch(x.requires_grad_(), *rest) for x in timing.rotating(tokens, settings.device)]


def moves(settings: Settings, name: str, dtype: torch.dtype, threads: int = 1) -> list[Rival]:
    """The rivals of the case ``name``. What they have to move, but for their result, is counted in rows of tokens.

    A gather reads K rows, and its gradient moves 2K more. Masking reads the N - K rows that stay. Its gradients, to the
    tokens (which is checked) and to the mask token, read N rows and write N.
    """
    runs, rows = (_gathers, K) if name.startswith("Gather") else (_mixes, N)
    moved = {"Gather": K, "Gather and its gradient": 3 * K, "Mask": N - K, "Mask and its gradients": 3 * N - K}[name]
    runs = runs(settings.device)
    if "gradient" in name:
        runs = {row: partial(_gradient, run) for row, run in runs.items()}
    return _rivals(runs, "gradient" in name, batches(settings, dtype, rows, moved), threads)


def losses(settings: Settings) -> list[Rival]:
    """The gradient of the mean squared error of masked predictions: of K targets, or of N of which K count."""
    inputs = batches(settings, torch.float32, rows=K, moved=2 * K, width=TARGET)
    b = inputs[0]
    all_targets = torch.zeros_like(b.tokens).scatter(1, _wide(b.token_ids, TARGET), b.grad).detach()

    def gradient(loss, b):
        return torch.autograd.grad(loss(b), b.tokens)[0]

    def of_chosen(take, b):
        return F.mse_loss(take(b), b.grad)

    def of_all(b):
        return ((b.tokens - all_targets).square().mean(-1) * b.mask).sum() / b.mask.sum()

    runs = {name: partial(of_chosen, take) for name, take in _gathers(settings.device).items()}
    runs = {f"{name}, mse_loss": partial(gradient, run) for name, run in (runs | {"mean over a mask": of_all}).items()}
    return _rivals(runs, True, inputs, 1)


def _gathers(device: str) -> dict[str, Callable[[Batch], Tensor]]:
    rows = torch.arange(4096, device=device).unsqueeze(1)

    def rows_of_all(b):  # [B, K] -> of [B * N]
        return b.token_ids + rows[: len(b.tokens)] * b.tokens.shape[1]

    runs = {
        "fused_masked_gather": lambda b: fused_masked_gather(b.tokens, b.token_ids),
        "index_select": lambda b: (
            b.tokens.flatten(0, 1).index_select(0, rows_of_all(b).flatten()).unflatten(0, (-1, K))
        ),
        "F.embedding": lambda b: F.embedding(rows_of_all(b), b.tokens.flatten(0, 1)),
        "torch.gather": lambda b: b.tokens.gather(1, _wide(b.token_ids, b.tokens.shape[-1])),
        "tokens[rows, ids]": lambda b: b.tokens[rows[: len(b.tokens)], b.token_ids],
    }
    if device == "cpu":  # on a GPU it waits for the number of masked tokens, which no graph can hold
        runs["tokens[mask]"] = lambda b: b.tokens[b.mask].view(len(b.tokens), K, -1)
    return runs


def _wide(ids: Tensor, width: int) -> Tensor:  # [B, K] -> [B, K, width]
    return ids.unsqueeze(-1).expand(-1, -1, width)


def _mixes(device: str) -> dict[str, Callable[[Batch], Tensor]]:
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


def _gradient(run: Callable[[Batch], Tensor], b: Batch) -> Tensor:
    """The gradient to the tokens. That to the mask token is computed too where there is one."""
    return torch.autograd.grad(run(b), (b.tokens, b.mask_token), b.grad, allow_unused=True)[0]


def _rivals(runs: dict, grad_mode: bool, inputs: list[Batch], threads: int) -> list[Rival]:
    """The first is ours, with which the others are compared. The result of the last, in float64, is the truth."""

    def in_mode(run, b):
        with torch.set_grad_enabled(grad_mode):
            return run(b).detach()

    ours, *_, last = runs
    doubled = {name: getattr(inputs[0], name).detach().double() for name in ("tokens", "mask_token", "grad")}
    exact = dataclasses.replace(inputs[0], **doubled)
    exact.tokens.requires_grad_(), exact.mask_token.requires_grad_()
    truth, job = in_mode(runs[last], exact), {"threads": threads, "items": len(exact.tokens)}
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


def _whole_numbers(*shape: int) -> Tensor:
    """Small whole numbers, which all dtypes hold and add exactly."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(1)).float()
