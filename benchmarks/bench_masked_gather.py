"""The token moves of masked pre-training against what they replace in plain torch.

As a script it takes all rivals in turn and writes the tables; under pytest-benchmark it times each of them alone::

    python -m benchmarks.bench_masked_gather [--quick] [--threads N] [--device cuda] [--out DIRECTORY]
    pytest benchmarks --benchmark-only
"""

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.timing import Rival
from maskfeat_kernels import fused_mask_tokens, fused_masked_gather

RESULTS = Path(__file__).parent / "results"
N, K, D = 196, 78, 768
"""The tokens of a 224x224 image in patches of 16x16, two fifths of them masked, in the width of a ViT-B."""


@dataclasses.dataclass
class Batch:
    """Tokens, the masked ones among them twice over (as ids and as a mask), and what a gradient starts from.

    nbytes: what any implementation has to move, except for the result that it returns.
    """

    tokens: Tensor  # [B, N, D]
    token_ids: Tensor  # [B, K], ascending
    mask: Tensor  # [B, N]
    mask_token: Tensor  # [D]
    grad: Tensor  # [B, N, D] or [B, K, D]
    nbytes: int


def batches(batch: int, dtype: torch.dtype, device: str, rows: int, moved: int) -> list[Batch]:
    """Batches that together exceed the cache; ``rows`` of a gradient, ``moved`` rows of memory a row of the batch."""
    order = torch.rand(batch, N, generator=torch.Generator().manual_seed(0)).argsort(1)
    token_ids = order[:, :K].sort(1).values
    mask = torch.zeros(batch, N, dtype=torch.bool).scatter_(1, token_ids, True)
    tokens, grad = (_whole_numbers(batch, n, D).to(device, dtype) for n in (N, rows))
    nbytes = moved * batch * D * tokens.element_size()
    rest = token_ids.to(device), mask.to(device), _whole_numbers(D).to(device, dtype).requires_grad_(), grad, nbytes
    return [Batch(x.requires_grad_(), *rest) for x in timing.rotating(tokens, device)]


def gather(batch: int, dtype: torch.dtype, device: str, threads: int = 1) -> list[Rival]:
    """Reads K rows and writes K."""
    inputs = batches(batch, dtype, device, rows=K, moved=K)
    return _rivals(_gathers(device), torch.no_grad(), inputs, threads)


def gather_and_back(batch: int, dtype: torch.dtype, device: str, threads: int = 1) -> list[Rival]:
    """The same and its gradient, which reads K rows and writes N."""
    inputs = batches(batch, dtype, device, rows=K, moved=3 * K)
    gradients = {name: partial(_gradient, run) for name, run in _gathers(device).items()}
    return _rivals(gradients, torch.enable_grad(), inputs, threads)


def mix(batch: int, dtype: torch.dtype, device: str, threads: int = 1) -> list[Rival]:
    """Reads the N - K rows that stay and writes N."""
    inputs = batches(batch, dtype, device, rows=N, moved=N - K)
    return _rivals(_mixes(), torch.no_grad(), inputs, threads)


def mix_and_back(batch: int, dtype: torch.dtype, device: str, threads: int = 1) -> list[Rival]:
    """The same and its gradients, to the tokens (checked) and to the mask token, which read N rows and write N."""
    inputs = batches(batch, dtype, device, rows=N, moved=N - K + 2 * N)
    gradients = {name: partial(_gradient, run) for name, run in _mixes().items()}
    return _rivals(gradients, torch.enable_grad(), inputs, threads)


def _gathers(device: str) -> dict[str, Callable[[Batch], Tensor]]:
    rows = torch.arange(4096, device=device).unsqueeze(1)
    runs = {
        "fused_masked_gather": lambda b: fused_masked_gather(b.tokens, b.token_ids),
        "torch.gather": lambda b: b.tokens.gather(1, b.token_ids.unsqueeze(-1).expand(-1, -1, D)),
        "tokens[rows, ids]": lambda b: b.tokens[rows[: len(b.tokens)], b.token_ids],
    }
    if device == "cpu":  # on a GPU it waits for the number of masked tokens, which no graph can hold
        runs["tokens[mask]"] = lambda b: b.tokens[b.mask].view(-1, K, D)
    return runs


def _mixes() -> dict[str, Callable[[Batch], Tensor]]:
    def arithmetic(b):
        m = b.mask.unsqueeze(-1).type_as(b.tokens)
        return b.tokens * (1 - m) + b.mask_token * m

    return {
        "fused_mask_tokens": lambda b: fused_mask_tokens(b.tokens, b.mask_token, b.mask),
        "x * (1 - m) + token * m": arithmetic,
        "torch.where": lambda b: torch.where(b.mask.unsqueeze(-1), b.mask_token, b.tokens),
    }


def _gradient(run: Callable[[Batch], Tensor], b: Batch) -> Tensor:
    """The gradient to the tokens; that to the mask token is computed too where there is one."""
    return torch.autograd.grad(run(b), (b.tokens, b.mask_token), b.grad, allow_unused=True)[0]


def _rivals(runs: dict, grad_mode, inputs: list[Batch], threads: int) -> list[Rival]:
    """The first is ours, to which the others are compared; the result of the second, in float64, is the truth."""

    def in_mode(run):
        def call(b):
            with grad_mode:
                return run(b).detach()

        return call

    ours, replaced, *_ = runs
    doubled = {
        name: x.detach().double() for name, x in vars(inputs[0]).items() if name in ("tokens", "mask_token", "grad")
    }
    exact = dataclasses.replace(inputs[0], **doubled)
    exact.tokens.requires_grad_(), exact.mask_token.requires_grad_()
    truth = in_mode(runs[replaced])(exact)
    return [
        Rival(name, in_mode(run), inputs, truth, versus=None if name == ours else ours, threads=threads)
        for name, run in runs.items()
    ]


def overhead(device: str) -> list[Rival]:
    """One element: what a call costs before it moves anything, beside the cheapest of torch's own ops."""
    x, ids, mask = torch.ones(1, 1, 1, device=device), torch.zeros(1, 1, dtype=torch.int64, device=device), None
    mask, mask_token = ids.bool(), x.flatten()
    return [
        Rival("torch.mul", lambda x: torch.mul(x, x), [x]),
        Rival("fused_masked_gather", lambda x: fused_masked_gather(x, ids), [x], x.double(), "torch.mul"),
        Rival("fused_mask_tokens", lambda x: fused_mask_tokens(x, mask_token, mask), [x], x.double(), "torch.mul"),
    ]


def _whole_numbers(*shape: int) -> Tensor:
    """Small ones, which all dtypes hold and add exactly."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(1)).float()


def cases(batch: int, device: str, count: int) -> dict:
    """Title of each case, and the function that prepares its rivals."""
    moves = {
        "Gather": gather,
        "Gather and its gradient": gather_and_back,
        "Mask": mix,
        "Mask and its gradients": mix_and_back,
    }
    at = f"batch {batch}, {K} of {N} tokens, width {D}"
    prepared = {}
    for dtype in (torch.float32, torch.bfloat16):
        for name, prepare in moves.items():
            title = f"{name}: {at}, {str(dtype).removeprefix('torch.')}"
            prepared[title] = partial(prepare, batch, dtype, device)
    if device == "cpu":
        prepared |= {
            f"{name}: {at}, float32, {count} threads": partial(prepare, batch, torch.float32, device, count)
            for name, prepare in moves.items()
        }
        prepared["One call on one element"] = partial(overhead, device)
    return prepared


def pytest_generate_tests(metafunc):
    """Every rival of every case is a test, grouped by case."""
    prepared = [(title, rival) for title, prepare in cases(8, "cpu", 2).items() for rival in prepare()]
    metafunc.parametrize(("title", "rival"), prepared, ids=[f"{title}: {rival.name}" for title, rival in prepared])


def test_token_moves(benchmark, title: str, rival: Rival):
    benchmark.group = title
    benchmark.extra_info.update(timing.check(rival), threads=rival.threads)
    benchmark(rival.run, rival.inputs[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds; written only where --out says")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="several threads are N of them (default 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default cpu)")
    parser.add_argument("--out", type=Path, metavar="DIRECTORY", help=f"where to write (default {RESULTS.name}/ here)")
    options = parser.parse_args()
    if options.threads < 2:
        parser.error(f"--threads must be at least 2, got {options.threads}")

    environment = timing.environment(options.device)
    rounds = 3 if options.quick else 30
    report = {"title": "Moves of masked tokens", "environment": environment, "rounds": rounds, "cases": []}
    print(timing.markdown(report))
    batch = 16 if options.device == "cpu" else 256
    for title, prepare in cases(batch, options.device, options.threads).items():
        print(f"## {title}\n", flush=True)
        rows = timing.measure(prepare(), rounds=rounds, device=options.device)
        print(*timing.table(rows), "", sep="\n", flush=True)
        report["cases"].append({"title": title, "rows": rows})

    if options.out or not options.quick:
        hardware = timing.slug(environment.get("gpu", environment["cpu"]))
        path = (options.out or RESULTS) / f"masked_gather_{options.device}_{hardware}.json"
        timing.write_report(report, path)
        print(f"wrote {path} and {path.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
