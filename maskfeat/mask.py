"""Which tokens to hide: seeded generators that mask an exact number of tokens, on the device or in the loader.

Every generator returns the same count K for every sample, so all shapes are static and nothing waits for the device.
``compat`` switches to the generators of SlowFast or mmpretrain, whose counts vary; these run on the CPU.
"""

import math
import random
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

Grid = tuple[int, ...]
"""(rows, columns) or (time, rows, columns)."""
Draws = torch.Generator | None
"""What random numbers come from; None for torch's own."""

ASPECT = (0.3, 1 / 0.3)
"""Smallest and largest height / width of a box."""

MOST_FAILURES = 10_000
"""After so many boxes in a row that do not fit, none will: grids are small."""


class Masks(NamedTuple):
    """The masked tokens of a batch, as a picture and as a list.

    mask: ``[B, *grid]`` bool, True where a token is hidden; the grid is (rows, columns) or (time, rows, columns).
    ids: ``[B, K]`` int64, positions on the flattened grid, ascending; where a sample has fewer than K masked tokens,
        visible ones fill the rest.
    weight: ``[B, K]`` float32, 1 for a masked id and 0 for a filler; None when all K are masked in every sample.
    """

    mask: Tensor
    ids: Tensor
    weight: Tensor | None = None

    @classmethod
    def from_bool(
        cls,
        mask: Tensor,  # [B, *grid] bool
        count: int | None = None,
    ) -> "Masks":
        """Masks of any number of tokens, padded to ``count`` (by default the most that a sample has).

        Looks at the values, so it waits for the device. An empty mask is allowed, with a warning: its loss is 0.
        """
        flat = mask.flatten(1).bool()
        most = int(flat.sum(1).max()) if flat.shape[0] else 0
        count = most if count is None else count
        if most > count:
            raise ValueError(f"a sample has {most} masked tokens, more than count={count}")
        if most == 0:
            warnings.warn("no token is masked in the whole batch: the loss will be 0", stacklevel=2)
        ids = _masked_first(flat, count)
        return cls(mask.bool(), ids, flat.gather(1, ids).float())

    def on(self, grid: Grid) -> Tensor:  # [B, *grid] bool
        """The picture on a finer grid, every cell repeated; ValueError if ``grid`` is no multiple of this one."""
        own, mask = tuple(self.mask.shape[1:]), self.mask
        if len(own) != len(grid) or any(fine % coarse for fine, coarse in zip(grid, own, strict=True)):
            raise ValueError(f"a mask on the grid {own} does not fit tokens on the grid {tuple(grid)}")
        for axis, (fine, coarse) in enumerate(zip(grid, own, strict=True), start=1):
            if fine > coarse:
                mask = mask.repeat_interleave(fine // coarse, dim=axis, output_size=fine)
        return mask

    def resize(self, grid: Grid) -> "Masks":
        """The same masks on a finer grid, as :meth:`on`, with their list."""
        own, mask = tuple(self.mask.shape[1:]), self.on(grid)
        if own == tuple(grid):
            return self
        flat = mask.flatten(1)
        ids = _masked_first(flat, self.ids.shape[1] * (math.prod(grid) // math.prod(own)))
        return Masks(mask, ids, None if self.weight is None else flat.gather(1, ids).float())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Masks":
        mask, ids = (t.to(device, non_blocking=non_blocking) for t in (self.mask, self.ids))
        return Masks(mask, ids, None if self.weight is None else self.weight.to(device, non_blocking=non_blocking))


def make_masks(
    kind: str,
    batch: int,
    grid: tuple[int, ...],  # (rows, columns) or (time, rows, columns)
    ratio: float = 0.4,
    *,
    generator: torch.Generator | None = None,
    device: "torch.device | str" = "cpu",
    compat: str | None = None,
) -> Masks:
    """Masks for ``batch`` samples: a fraction ``ratio`` of the tokens of each, rounded to a whole number.

    kind: "block" (overlapping rectangles, BEiT), "cube" (boxes in space and time), "tube" (a block mask held through
        time), "frame" (whole time slots), "random" (uniform).
    ratio: above 0, at most 1. :func:`count_hidden` says how it is rounded.
    generator: the only source of randomness; it must live on ``device``, or on the CPU with ``compat``.
    compat: None for an exact count, or "slowfast" or "mmpretrain" for the statistics of their generators.

    Raises ValueError for an unknown kind or compat, a grid that the kind cannot use, or a ratio that hides nothing.

    Source: Bao et al., BEiT, ICLR 2022 (block); Wei et al., MaskFeat, CVPR 2022 (cube, tube, frame).
    """
    grid = tuple(grid)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if compat not in (None, "slowfast", "mmpretrain"):
        raise ValueError(f"compat must be None, 'slowfast' or 'mmpretrain', got {compat!r}")
    if len(grid) not in (2, 3) or min(grid) < 1:
        raise ValueError(f"grid must be (rows, columns) or (time, rows, columns), got {grid}")
    if len(grid) != (2 if kind == "block" else 3) and kind != "random":
        raise ValueError(f"a {kind} mask needs {'two' if kind == 'block' else 'three'} axes, got the grid {grid}")
    count = count_hidden(kind, grid, ratio, compat)
    if compat and kind in ("block", "cube", "tube"):
        return _compat_masks(kind, batch, grid, count, generator, compat).to(device)
    return KINDS[kind](batch, grid, count, generator, torch.device(device))


def count_hidden(kind: str, grid: Grid, ratio: float, compat: str | None = None) -> int:
    """How many cells a mask hides: of "tube" in one time slot, of "frame" how many slots, else in the whole grid.

    The share ``ratio`` of them is rounded to the nearest whole number, half to even. With ``compat`` and "random" what
    stays visible is rounded down.

    Raises ValueError if the ratio is not from 0 to 1, if it hides nothing, or if one below 1 leaves nothing visible.
    """
    if not 0 <= ratio <= 1:  # nor is NaN
        raise ValueError(f"ratio must be above 0 and at most 1, got {ratio!r}")
    cells = {"tube": math.prod(grid[1:]), "frame": grid[0]}.get(kind, math.prod(grid))
    down = compat is not None and kind == "random"
    count = cells - int(cells * (1 - ratio)) if down else round(cells * ratio)
    what = f"the {cells} {'time slots' if kind == 'frame' else 'cells'} of a {kind} mask on the grid {grid}"
    if count == 0:
        least = "any above 0" if down else _limit(0.5 / cells, 1)
        raise ValueError(f"ratio={ratio:g} hides none of {what}; the smallest that hides one is {least}")
    if count == cells and ratio < 1:
        most = "none below 1" if cells == 1 else _limit(1 - (1 if down else 0.5) / cells, -1)
        raise ValueError(f"ratio={ratio:g} hides all of {what}; the largest that leaves one is {most}")
    return count


def _limit(value: float, side: int) -> str:
    """The number of four decimal places, or four digits if it is small, next above ``value`` (side 1) or below (-1)."""
    unit = 10.0 ** min(-4, math.floor(math.log10(value)) - 3)
    units = round(value / unit, 6)  # 0.0625 / 0.00001 is 6249.999...
    return f"{(math.floor(units) + 1 if side > 0 else math.ceil(units) - 1) * unit:.4g}"


def check_masks(kind: str, grid: Grid, ratio: float, compat: str | None = None) -> None:
    """ValueError where :func:`make_masks` raises it, or where ``compat`` hides nothing in 16 trials.

    The boxes of "slowfast" may all be too large for a small ratio or too high for a flat grid.
    """

    def hides(ratio: float) -> bool:
        generator = torch.Generator().manual_seed(0)
        return bool(make_masks(kind, 16, grid, ratio, generator=generator, compat=compat).mask.any())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if compat is None or hides(ratio):
            count_hidden(kind, grid, ratio, compat)
            return
        larger = [share / 100 for share in range(math.floor(100 * ratio) + 1, 100)]
        enough = next((f"; ratio={share:g} hides some" for share in larger if hides(share)), "")
    raise ValueError(f"ratio={ratio:g} hides nothing in 16 masks as {compat} makes them on the grid {grid}{enough}")


def block_masks(batch: int, grid: Grid, count: int, generator: Draws, device: torch.device) -> Masks:
    """Overlapping rectangles of random size and aspect until ``count`` tokens are covered."""
    order = _laying_order(batch, (1, grid[0], grid[1]), count, count // 5, None, generator, device, candidates=4)
    return _first(order, grid, count)


def cube_masks(batch: int, grid: Grid, count: int, generator: Draws, device: torch.device) -> Masks:
    """Overlapping boxes, from one time slot to all of them long, until ``count`` tokens are covered."""
    frame = grid[1] * grid[2]
    order = _laying_order(
        batch, (grid[0], grid[1], grid[2]), count, frame // 5, frame, generator, device, candidates=16
    )
    return _first(order, grid, count)


def tube_masks(batch: int, grid: Grid, count: int, generator: Draws, device: torch.device) -> Masks:
    """One block mask of ``count`` tokens for all time slots."""
    still = block_masks(batch, grid[1:], count, generator, device)
    frame = torch.arange(grid[0], device=device).view(1, -1, 1) * (grid[1] * grid[2])
    mask = still.mask.unsqueeze(1).expand(-1, grid[0], -1, -1).contiguous()
    return Masks(mask, (frame + still.ids.unsqueeze(1)).flatten(1))


def frame_masks(batch: int, grid: Grid, count: int, generator: Draws, device: torch.device) -> Masks:
    """``count`` whole time slots."""
    order = torch.rand(batch, grid[0], generator=generator, device=device)
    slots = _first(order, grid[:1], count)
    mask = slots.mask[:, :, None, None].expand(-1, *grid).contiguous()
    frame = torch.arange(grid[1] * grid[2], device=device)
    return Masks(mask, (slots.ids.unsqueeze(2) * len(frame) + frame).flatten(1))


def random_masks(batch: int, grid: Grid, count: int, generator: Draws, device: torch.device) -> Masks:
    """Every token alike."""
    order = torch.rand(batch, math.prod(grid), generator=generator, device=device)
    return _first(order, grid, count)


KINDS = {"block": block_masks, "cube": cube_masks, "tube": tube_masks, "frame": frame_masks, "random": random_masks}


def _laying_order(
    batch: int,
    grid: tuple[int, int, int],  # (T, H, W)
    count: int,
    least: int,
    most: int | None,
    generator: Draws,
    device: torch.device,
    candidates: int,
    rounds: int = 10,
) -> Tensor:  # [B, T * H * W]
    """When each token gets covered if boxes are laid one after another; the first ``count`` are the mask.

    In each round every sample draws ``candidates`` boxes. Their area is uniform from ``least`` to ``most``, or to what
    is still missing; their aspect is log-uniform, their length and place are uniform. The sample lays the first box
    that covers something new and not more than is missing.

    If there is none it lays the box that adds least, and taking the first ``count`` tokens trims it. A box is swept row
    by row, column by column or slot by slot, from either end. So what remains of it is compact.

    Ten rounds fill 40 % of a grid. What they leave of a larger share is drawn from the uncovered tokens.
    """
    tokens = math.prod(grid)
    place = _places(grid, device)  # [3, N]
    last = place.amax(1).view(3, 1, 1)
    random_order = torch.rand(batch, tokens, generator=generator, device=device)
    draws = torch.rand(6, rounds, batch, candidates, generator=generator, device=device)
    areas, lengths, starts = draws[0], 1 + (draws[1] * grid[0]).floor(), draws[3:]
    roots = torch.exp(0.5 * (math.log(ASPECT[0]) + draws[2] * (math.log(ASPECT[1]) - math.log(ASPECT[0]))))
    sweep = _sweep(batch, place, generator)
    order = (rounds + random_order) * tokens  # after every box that is laid
    first_come = torch.arange(candidates, device=device)
    for step in range(rounds):
        covered = order < rounds * tokens
        missing = (count - covered.sum(1, keepdim=True)).clamp_min(0)  # [B, 1]
        side = (least + areas[step] * ((missing if most is None else most) - least)).sqrt()
        sides = torch.stack([lengths[step], (side * roots[step]).round(), (side / roots[step]).round()])  # [3, B, P]
        small = (sides[1:] <= last[1:]).all(0)
        sides = sides.clamp_min(1).minimum(last + 1)
        start = (starts[:, step] * (last - sides + 2)).floor().unsqueeze(-1)  # 0 to the last place at which it fits
        offset = place[:, None, None] - start  # [3, B, P, N]
        new = ((offset >= 0) & (offset < sides.unsqueeze(-1))).all(0) & ~covered.unsqueeze(1)  # [B, P, N]
        gain = new.sum(2)
        good = small & (gain > 0) & (gain <= missing)
        cost = torch.where(good, first_come, torch.where(gain > 0, candidates + gain, candidates + tokens + 1))
        new = new.gather(1, cost.argmin(1)[:, None, None].expand(-1, 1, tokens)).squeeze(1)
        order = torch.where(new, step * tokens + sweep, order)
    return order


def _places(grid: tuple[int, int, int], device: torch.device) -> Tensor:  # [3, T * H * W] float32
    """Time slot, row and column of every token."""
    axes = torch.meshgrid(*(torch.arange(float(size), device=device) for size in grid), indexing="ij")
    return torch.stack(axes).flatten(1)


def _sweep(
    batch: int,
    place: Tensor,  # [3, N]
    generator: Draws,
) -> Tensor:  # [B, N]
    """For each sample the ranks of the tokens in a random walk of the grid: axis inside axis, forwards or backwards."""
    last = place.amax(1)
    backwards = torch.rand(batch, 3, 1, generator=generator, device=place.device) < 0.5
    axes = torch.rand(batch, 3, generator=generator, device=place.device).argsort(1)
    place = torch.where(backwards, last.unsqueeze(1) - place, place)  # [B, 3, N]
    outer, middle, inner = place.gather(1, axes.unsqueeze(2).expand_as(place)).unbind(1)
    size = (last + 1)[axes].unsqueeze(2)  # [B, 3, 1], of the axes in walking order
    return (outer * size[:, 1] + middle) * size[:, 2] + inner


def _first(order: Tensor, grid: Grid, count: int) -> Masks:
    """Masks that hide the ``count`` tokens of each sample with the lowest numbers in ``order`` [B, N]."""
    ids = order.topk(count, dim=1, largest=False, sorted=False).indices.sort(dim=1).values
    mask = torch.zeros_like(order, dtype=torch.bool).scatter_(1, ids, True)
    return Masks(mask.unflatten(1, grid), ids)


def _masked_first(flat: Tensor, count: int) -> Tensor:
    """``count`` positions of each row of ``flat`` [B, N]: the masked ones, ascending, then visible ones."""
    return (~flat).byte().argsort(dim=1, stable=True)[:, :count]


def _compat_masks(kind: str, batch: int, grid: Grid, count: int, generator: Draws, compat: str) -> Masks:
    """Masks by rejection, one sample at a time, with the parameters of the two code bases."""
    rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
    window = (1 if kind == "tube" else (1, *grid)[-3], grid[-2], grid[-1])
    if kind == "cube":
        frame = grid[1] * grid[2]
        rules: dict[str, Any] = {"least": frame // 5, "most": frame, "tries": 100}
    elif compat == "slowfast":
        rules = {"least": count // 5, "most": None, "tries": 10}
    else:
        rules = {"least": count // 5, "most": None, "tries": 10, "until_full": True, "skip_last": True}
        if count > (window[1] - 1) * (window[2] - 1):
            raise ValueError(f"mmpretrain never masks the last row and column: it cannot mask {count} tokens of {grid}")
    samples = torch.tensor([_reject(window, count, rng, **rules) for _ in range(batch)]).view(batch, *window)
    repeats = (grid[0] if kind == "tube" else 1, 1, 1)
    return Masks.from_bool(samples.repeat(1, *repeats).view(batch, *grid), count * repeats[0])


def _reject(
    window: tuple[int, int, int],
    count: int,
    rng: random.Random,
    least: int,
    most: int | None,
    tries: int,
    until_full: bool = False,
    skip_last: bool = False,
) -> list[list[list[bool]]]:
    """Boxes drawn until one fits what is missing; after ``tries`` failures stop, or go on if ``until_full``.

    ``skip_last`` leaves out the last possible place on each axis, so the last row and column are never masked.
    """
    mask = [[bytearray(window[2]) for _ in range(window[1])] for _ in range(window[0])]
    missing, failures = count, 0
    while missing > 0 and (until_full or failures < tries):
        failures += 1
        if failures > MOST_FAILURES:
            raise ValueError(f"no box that mmpretrain draws fills the last {missing} of {count} tokens of {window[1:]}")
        area = rng.uniform(least, missing if most is None else most)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        t = rng.randint(1, window[0])
        if h >= window[1] or w >= window[2]:
            continue
        top, left = rng.randint(0, window[1] - h - skip_last), rng.randint(0, window[2] - w - skip_last)
        front = rng.randint(0, window[0] - t)
        rows = [row for slot in mask[front : front + t] for row in slot[top : top + h]]
        gain = h * w * t - sum(sum(row[left : left + w]) for row in rows)
        if 0 < gain <= missing:
            for row in rows:
                row[left : left + w] = b"\1" * w
            missing, failures = missing - gain, 0
    return [[[bool(cell) for cell in row] for row in slot] for slot in mask]
