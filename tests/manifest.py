"""A list of calls of the public functions, and the bits of their results: what a change of shape may not change.

    python -m tests.manifest          # prints a hash a call
    python -m tests.manifest --write  # writes tests/manifest.txt, after a change of the numbers that was meant

The calls are drawn at random from fixed seeds: dialects, dtypes, sizes, strides, with and without a gradient. Every
compiled backend returns these bits at every vector width and number of threads. Only public names are used here, and
images that are made here, so that the list stays as it is when the package is rearranged.
"""

import hashlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskfeat_kernels import (
    DALAL_TRIGGS,
    MASKFEAT,
    OPENCV,
    SKIMAGE,
    HogSpec,
    fused_hog,
    fused_hog_tokens,
    fused_mask_tokens,
    fused_masked_gather,
)
from maskfeat_kernels.compat import opencv, skimage

FILE = Path(__file__).with_suffix(".txt")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPES = (torch.uint8, *FLOATS)
WORDS = {
    "gradient": ("sobel", "central"),
    "channels": ("each", "strongest"),
    "angle_from": ("vertical", "horizontal"),
    "votes": ("hard", "linear"),
    "cells": ("box", "bilinear"),
    "reduction": ("sum", "mean"),
    "norm": ("unit", "none", "l1", "l1-sqrt", "l2", "l2-hys"),
    "arithmetic": ("exact", "exact", "opencv"),
    "layout": ("planes", "rows", "columns"),
}


class HogCall(NamedTuple):
    """``fused_hog(x, spec)``, or its gradient where ``gradient`` is set: that of a fixed combination of the result."""

    x: Tensor  # [..., C, H, W]
    spec: HogSpec
    gradient: bool

    def run(self, backend: str = "auto") -> Tensor:
        return hog_or_gradient(self.x, self.spec, self.gradient, backend)


def hog_or_gradient(x: Tensor, spec: HogSpec, gradient: bool, backend: str) -> Tensor:
    if not gradient:
        return fused_hog(x, spec, backend=backend)
    leaf = x.detach().requires_grad_()
    result = fused_hog(leaf, spec, backend=backend)
    return torch.autograd.grad(result, leaf, combination(result))[0]


def combination(result: Tensor) -> Tensor:
    """Weights of both signs, which no two neighbours share."""
    steps = torch.tensor([step * 7 % 13 - 6 for step in range(13)], dtype=result.dtype, device=result.device) / 8
    return steps.repeat(result.numel() // 13 + 1)[: result.numel()].reshape(result.shape)


def calls() -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """(name, call) of every call, in the order of the file."""
    for name, call in hog_calls():
        yield name, call.run
    yield from token_calls()
    yield from move_calls()
    yield from array_calls()


def hog_calls() -> Iterator[tuple[str, HogCall]]:
    for seed in range(330):
        chance = random.Random(seed)
        spec = any_spec(chance)
        lead = chance.choice([(), (3,), (2, 3), (2, 1, 3), (1, 2)])
        whole = pixels(*lead, *size_for(spec, chance), seed=seed)
        whole = (whole // 16) ** 2 if spec.sqrt else whole  # so that roots are whole numbers too
        for dtype, gradient in dtypes(chance):
            x = strided((whole + between(whole) if gradient else whole).to(dtype), chance)
            yield f"{seed} {describe(x)} {'gradient of ' * gradient}{spec}", HogCall(x, spec, gradient)


def dtypes(chance: random.Random) -> list[tuple[torch.dtype, bool]]:
    """Three results and two gradients."""
    results = [torch.uint8, torch.float32, chance.choice([torch.float16, torch.bfloat16, torch.float64])]
    return [(d, False) for d in results] + [(torch.float32, True), (chance.choice(FLOATS), True)]


def any_spec(chance: random.Random) -> HogSpec:
    """One of MASKFEAT's family, a preset, or a combination of anything."""
    choice = chance.choice
    bins = choice([1, 2, 3, 4, 6, 8, 9, 9, 9, 12, 16, 18, 20, 37, 70])
    cell = choice([1, 2, 3, 4, 8, 8, 8, 16, (6, 5), (4, 16), (1, 8), 20, 33])
    kind = chance.randrange(6)
    if kind < 2:
        return MASKFEAT.replace(bins=bins, cell=cell, gaussian_window=choice([0, 0, 0, 6, 16]))
    if kind == 2:
        preset = choice([SKIMAGE, OPENCV, DALAL_TRIGGS])
        return preset.replace(cell=choice([4, 6, 8]), bins=choice([9, 9, 12]))
    while True:
        try:
            return HogSpec(
                bins=bins,
                cell=cell,
                gaussian_window=choice([0, 0, 6, 16]),
                sqrt=choice([False, True]),
                signed=choice([False, True]),
                block=choice([1, 1, 2, 3, (1, 2), (2, 3)]),
                block_stride=choice([None, None, 3, (4, 8), 16, (5, 2), 64]),
                block_sigma=choice([0, 0, 2.5, 8]),
                eps=choice([1e-12, 1e-5, 0.1]),
                clip=choice([0.2, 0.5]),
                **{name: choice(words) for name, words in WORDS.items()},
            )
        except ValueError:  # some combinations make no sense
            continue


def size_for(spec: HogSpec, chance: random.Random) -> tuple[int, int]:
    """Of an image that holds a few blocks and is tiled by the window; now and then one of several tiles."""
    window, most = spec.gaussian_window or 1, chance.choice([2, 20, 20, 20, 20, 30, 300])
    return tuple(-(-(side + chance.randrange(most)) // window) * window for side in spec.block_size)


def pixels(
    *shape: int,  # [..., H, W]
    seed: int,
) -> Tensor:  # uint8
    """Slopes, an edge, a flat corner and noise, clipped at black and white."""
    height, width = shape[-2:]
    y, x = torch.arange(height, dtype=torch.int32)[:, None], torch.arange(width, dtype=torch.int32)
    noise = torch.randint(-40, 41, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    edge = (seed % 7 - 3) * y + (seed % 5 - 2) * x + 60 * (x > width // 2) + 120
    values = (edge + noise * (x + y > (height + width) // 3)).clamp(0, 255).to(torch.uint8)
    values[..., : height // 4, : width // 4] = 77
    return values


def between(whole: Tensor) -> Tensor:  # float64, in 1 .. 20
    """What keeps two pixels from being equal, and so their gradients from the kinks between bins."""
    numbers = torch.Generator().manual_seed(whole.numel())
    return torch.rand(whole.shape, generator=numbers, dtype=torch.float64) * 19 + 1


def strided(x: Tensor, chance: random.Random) -> Tensor:
    """The same values as they are, channels last, from a wider image, or transposed."""
    kind = chance.randrange(6)
    if kind == 3 and x.ndim > 2:
        return x.movedim(-3, -1).contiguous().movedim(-1, -3)
    if kind == 4:
        wide = x.new_zeros((*x.shape[:-1], x.shape[-1] + 3))
        wide[..., 2:-1] = x
        return wide[..., 2:-1]
    return x.mT.contiguous().mT if kind == 5 else x


def token_calls() -> Iterator[tuple[str, Callable[[], Tensor]]]:
    for seed in range(300):
        chance = random.Random(1000 + seed)
        cell, patch = chance.choice(
            [(8, 8), (8, 16), (8, 16), (4, 16), (4, 8), (16, 16), ((2, 6), 12), (8, 32), (7, 14)]
        )
        spec = MASKFEAT.replace(cell=cell, bins=chance.choice([9, 9, 4, 12, 20]))
        batch, frames, down, across = (chance.randint(1, most) for most in (3, 2, 3, 9))
        dtype = DTYPES[seed % 5]
        shape = (batch, *((frames,) if seed % 3 == 0 else ()), 3, down * patch, across * patch)
        x = strided(pixels(*shape, seed=seed).to(dtype), chance)
        patches = down * across * (frames if seed % 3 == 0 else 1)
        ids = torch.tensor([[chance.randrange(patches) for _ in range(1 + patches // 2)] for _ in range(batch)])
        yield (
            f"tokens {seed} {describe(x)} patch {patch} {spec}",
            lambda x=x, ids=ids, patch=patch, spec=spec: fused_hog_tokens(x, ids, patch, spec),
        )


def move_calls() -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """fused_masked_gather and fused_mask_tokens, and their gradients."""
    for seed in range(60):
        chance, random_numbers = random.Random(2000 + seed), torch.Generator().manual_seed(seed)
        shape = (chance.randint(1, 5), chance.randint(1, 40), chance.choice([1, 5, 33, 64, 96, 200]))
        if seed == 0:
            shape = (33, 128, 1024)  # its results exceed what is kept in the cache
        dtype = FLOATS[seed % 4]
        x = (torch.randint(-128, 128, shape, generator=random_numbers) / 32).to(dtype)
        token = (torch.randint(-128, 128, shape[2:], generator=random_numbers) / 32).to(dtype)
        ids = torch.randint(0, shape[1], (shape[0], 1 + 4 * shape[1] // 5), generator=random_numbers)
        mask = torch.randint(0, 5, shape[:2], generator=random_numbers) < 2
        moves = {
            "gather": lambda x, token, ids=ids: fused_masked_gather(x, ids),
            "mask": lambda x, token, mask=mask: fused_mask_tokens(x, token, mask),
        }
        for name, move in moves.items():
            yield f"{name} {seed} {describe(x)}", lambda move=move, x=x, token=token: move(x, token)
            for of in range(2 if name == "mask" else 1):
                yield (
                    f"gradient {of} of {name} {seed} {describe(x)}",
                    lambda move=move, leaves=(x, token), of=of: gradient_of(move, leaves, of),
                )


def gradient_of(move: Callable, leaves: tuple[Tensor, ...], of: int) -> Tensor:
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    result = move(*leaves)
    return torch.autograd.grad(result, leaves[of], combination(result))[0]


def array_calls() -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """The names of other libraries, on arrays of whole numbers: no bin hangs on the rounding of an arc tangent."""
    for seed in range(150):
        chance = random.Random(3000 + seed)
        dtype = DTYPES[(0, 3, 4)[seed % 3]]
        height, width = 64 + chance.randrange(40), 64 + chance.randrange(40)
        image = pixels(3, height, width, seed=seed).to(dtype).movedim(0, -1).contiguous().numpy()
        options = dict(
            orientations=chance.choice([9, 8, 12]),
            pixels_per_cell=chance.choice([(8, 8), (6, 8), (16, 16)]),
            cells_per_block=chance.choice([(3, 3), (1, 1), (2, 2)]),
            block_norm=chance.choice(["L1", "L1-sqrt", "L2", "L2-Hys"]),
            channel_axis=-1,
        )
        yield f"skimage {seed} {dtype} {options}", lambda image=image, options=options: skimage.hog(image, **options)
        if dtype == torch.uint8:
            stride = chance.choice([(8, 8), (16, 8)])
            call = HogOfOpenCV(image, stride)
            yield f"opencv {seed} {stride}", call


class HogOfOpenCV(NamedTuple):
    image: np.ndarray  # [H, W, 3]
    stride: tuple[int, int]

    def __call__(self) -> np.ndarray:
        padded = np.pad(self.image, ((0, 64), (0, 0), (0, 0)), mode="reflect")
        return opencv.HOGDescriptor(_gammaCorrection=True).compute(padded, winStride=self.stride)


def describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} {list(x.stride())}"


def digest(result: "Tensor | np.ndarray") -> str:
    """Of the dtype, the shape and the bits; all NaN are one."""
    result = torch.as_tensor(result).contiguous()
    if result.isnan().any():
        result = torch.where(result.isnan(), torch.nan, result)
    bits = result.view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(describe(result).encode() + bits).hexdigest()[:16]


if __name__ == "__main__":
    text = "".join(f"{digest(call())}\n" for _, call in calls())
    if sys.argv[1:] == ["--write"]:
        FILE.write_text(text)
    else:
        sys.stdout.write(text)
