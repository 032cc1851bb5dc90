"""HOG of the masked patches only is compared with HOG of whole images."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import rivals as r
from benchmarks import timing
from benchmarks.cases.hog import LAYER, our_backends, ours, photographs, short, truth_of
from benchmarks.timing import Case, Rival, Settings
from maskfeat_kernels import fused_hog, fused_hog_tokens

KEPT, PATCHES = 78, 196
"""Masked patches of a 224x224 image, in patches of 16x16: two fifths."""


def tokens(settings: Settings) -> list[Case]:
    batch = settings.batch(2, 8, 256)
    where = f"batch {batch}, from memory"
    return [
        Case(f"Targets of {KEPT} of {PATCHES} patches, {where}", partial(targets, settings, batch)),
        Case(f"Time and mask ratio, {where}", partial(mask_ratios, settings, batch), axis="share of the patches"),
    ]


def targets(settings: Settings, batch: int) -> list[Rival]:
    """Targets of the masked patches come from our tokens, or are gathered from the HOG of the whole image."""
    planes, ids = photographs(batch, settings.device), chosen_patches(batch, KEPT, settings.device)
    expected = take(to_tokens(truth_of(batch, settings.device)), ids)
    bytes_, floats = (timing.rotating(x, settings.device) for x in (planes, planes.float()))
    run = partial(fused_hog_tokens, token_ids=ids)
    rows = ours(our_backends(settings, "tokens"), [bytes_, floats], expected, run, to="fused_hog uint8", items=batch)
    for row in rows:
        row.name, row.reads = of_tokens(row.name), pixels_read(ids) * row.inputs[0].element_size()
        row.versus = row.versus and of_tokens(row.versus)
    for name, hog, x in (
        ("fused_hog uint8", fused_hog, bytes_),
        ("fused_hog float32", fused_hog, floats),
        (LAYER, r.hog_layer, floats),
    ):
        versus = f"fused_hog_tokens {name.split()[-1]}"
        run = partial(lambda hog, x: take(to_tokens(hog(x)), ids), hog)
        rows.append(Rival(f"gather after {name}", run, x, expected, versus, items=batch))
    return rows


def of_tokens(name: str) -> str:
    return name.replace("fused_hog", "fused_hog_tokens")


def mask_ratios(settings: Settings, batch: int) -> list[Rival]:
    """A tenth of the patches to all of them are compared with the whole image in one go."""
    planes, truth = photographs(batch, settings.device), truth_of(batch, settings.device)
    rows = []
    for x in (planes, planes.float()):
        dtype, inputs = short(x.dtype), timing.rotating(x, settings.device)
        whole = f"fused_hog of the whole image, {dtype}"
        rows.append(Rival(whole, fused_hog, inputs, truth, at=1.0, series=whole))
        for tenths in (2, 10) if settings.quick else range(1, 11):
            ids = chosen_patches(batch, round(PATCHES * tenths / 10), settings.device)
            run, expected = partial(fused_hog_tokens, token_ids=ids), take(to_tokens(truth), ids)
            place = {"at": tenths / 10, "series": f"fused_hog_tokens {dtype}"}
            place["reads"] = pixels_read(ids) * x.element_size()
            name = f"fused_hog_tokens of {10 * tenths} % of the patches, {dtype}"
            rows.append(Rival(name, run, inputs, expected, whole, **place))
    return rows


def chosen_patches(batch: int, count: int, device: str) -> Tensor:  # [batch, count], int64, ascending
    order = torch.rand(batch, PATCHES, generator=torch.Generator().manual_seed(0)).argsort(1)
    return order[:, :count].sort(1).values.to(device)


def pixels_read(
    ids: Tensor,  # [B, K]
) -> int:
    """The values that these patches of 16x16 need: three channels, with a border of one pixel around each patch."""
    mask = torch.zeros(len(ids), PATCHES).scatter(1, ids.cpu(), 1.0).view(-1, 1, 14, 14)
    return 3 * int(F.max_pool2d(F.interpolate(mask, scale_factor=16), 3, 1, 1).sum())


def to_tokens(
    histograms: Tensor,  # [B, 3, 9, 28, 28]
) -> Tensor:  # [B, 196, 108]
    """Patches of 2x2 cells, in the order of SlowFast's labels."""
    cells = histograms.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # [B, 3, 9, 14, 2, 14, 2]
    return cells.permute(0, 3, 5, 1, 2, 4, 6).flatten(3).flatten(1, 2)


def take(tokens: Tensor, ids: Tensor) -> Tensor:  # [B, N, D], [B, K] -> [B, K, D]
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
