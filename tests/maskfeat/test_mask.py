"""Masks: exact counts, reach and statistics of the generators, and those of the two reference code bases."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from maskfeat import Masks, make_masks
from maskfeat.mask import check_masks

CASES = [
    ("block", (14, 14), 0.4, 78),
    ("block", (16, 10), 0.4, 64),
    ("block", (14, 14), 0.75, 147),
    ("cube", (8, 7, 7), 0.4, 157),
    ("cube", (8, 14, 14), 0.6, 941),
    ("tube", (8, 7, 7), 0.4, 160),
    ("frame", (8, 7, 7), 0.4, 147),
    ("random", (14, 14), 0.4, 78),
    ("random", (8, 7, 7), 0.9, 353),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def counts(masks):
    return masks.mask.flatten(1).sum(1)


@functools.cache
def references(kind, grid, compat):
    return make_masks(kind, 2000, grid, generator=generator(), compat=compat)


@functools.cache
def marginals(kind, grid, compat=None):
    """How often each token is masked, of 4000 masks or of 2000 as the references make them."""
    if compat:
        return references(kind, grid, compat).mask.float().mean(0)
    draws = generator()
    return torch.stack([make_masks(kind, 200, grid, generator=draws).mask.float().mean(0) for _ in range(20)]).mean(0)


@pytest.mark.parametrize("kind, grid, ratio, count", CASES)
def test_every_sample_has_exactly_the_count(kind, grid, ratio, count):
    masks = make_masks(kind, 50, grid, ratio, generator=generator())
    assert masks.mask.shape == (50, *grid) and masks.mask.dtype == torch.bool
    assert masks.ids.shape == (50, count) and masks.ids.dtype == torch.int64 and masks.weight is None
    assert (masks.ids.diff(dim=1) > 0).all()
    listed = torch.zeros(50, masks.mask[0].numel(), dtype=torch.bool).scatter_(1, masks.ids, True)
    assert torch.equal(listed.view_as(masks.mask), masks.mask)


@pytest.mark.parametrize("kind, grid, ratio, count", CASES)
def test_masks_depend_on_the_generator_alone(kind, grid, ratio, count):
    first, same, other = (make_masks(kind, 4, grid, ratio, generator=generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.mask, same.mask) and not torch.equal(first.mask, other.mask)


@pytest.mark.parametrize(
    "kind, grid",
    [("block", (14, 14)), *(pytest.param(kind, (8, 7, 7), marks=pytest.mark.slow) for kind in ("cube", "tube"))],
)
def test_every_token_can_be_masked_and_both_ends_are_alike(kind, grid):
    often = marginals(kind, grid)
    assert often.min() > 0.02
    for axis in range(often.ndim):
        profile = often.movedim(axis, 0).flatten(1).mean(1)
        assert (profile - profile.flip(0)).abs().max() < 0.03  # 4 standard deviations


def test_marginals_of_block_masks():
    """Blocks lie inside the image, so the middle is hidden more often than the rim."""
    often = marginals("block", (14, 14))
    assert often.mean().item() == pytest.approx(78 / 196)
    assert often[6:8, 6:8].mean().item() == pytest.approx(0.74, abs=0.03)
    assert often[[0, -1]].mean().item() == pytest.approx(0.14, abs=0.02)
    assert often[[0, 0, -1, -1], [0, -1, 0, -1]].mean().item() == pytest.approx(0.045, abs=0.015)


@pytest.mark.slow
def test_marginals_of_cube_masks_over_time():
    often = marginals("cube", (8, 7, 7)).mean((1, 2))
    assert often[[0, 7]].mean().item() == pytest.approx(0.24, abs=0.02)
    assert often[[3, 4]].mean().item() == pytest.approx(0.51, abs=0.02)


def test_block_masks_are_made_of_blocks():
    """Neighbours differ at a third of the places at which those of scattered masks do."""
    rims = []
    for kind in ("block", "random"):
        mask = make_masks(kind, 500, (14, 14), generator=generator()).mask
        rims.append((mask[:, 1:] != mask[:, :-1]).float().mean() + (mask[:, :, 1:] != mask[:, :, :-1]).float().mean())
    assert rims[0] < 0.4 * rims[1]


def test_tube_and_frame_masks_in_time():
    tube = make_masks("tube", 20, (8, 7, 7), generator=generator()).mask
    assert torch.equal(tube, tube[:, :1].expand_as(tube))
    frame = make_masks("frame", 20, (8, 7, 7), generator=generator()).mask.flatten(2)
    assert torch.equal(frame.all(2), frame.any(2)) and (frame.all(2).sum(1) == 3).all()


def test_random_masks_are_uniform():
    assert (marginals("random", (14, 14)) - 78 / 196).abs().max() < 0.05


@pytest.mark.parametrize(
    "compat, kind, grid, mean, least, full",
    [
        ("slowfast", "block", (14, 14), 77.57, 69, 0.71),
        pytest.param("slowfast", "cube", (8, 7, 7), 155.7, 143, 0.36, marks=pytest.mark.slow),
        ("mmpretrain", "block", (14, 14), 78, 78, 1.0),
    ],
)
def test_counts_of_the_reference_generators(compat, kind, grid, mean, least, full):
    masks = references(kind, grid, compat)
    number = counts(masks).float()
    assert number.mean().item() == pytest.approx(mean, abs=0.15)
    assert least - 3 <= number.min().item() <= least + 3
    assert number.max().item() == masks.ids.shape[1]
    assert (number == number.max()).float().mean().item() == pytest.approx(full, abs=0.04)


@pytest.mark.slow
def test_marginals_of_the_reference_generators():
    often = marginals("block", (14, 14), compat="slowfast")
    assert often[6:8, 6:8].mean().item() == pytest.approx(0.73, abs=0.03)
    assert often[[0, -1]].mean().item() == pytest.approx(0.14, abs=0.02)
    assert often[[0, 0, -1, -1], [0, -1, 0, -1]].mean().item() == pytest.approx(0.045, abs=0.015)
    often = marginals("cube", (8, 7, 7), compat="slowfast").mean((1, 2))
    assert often[[0, 7]].mean().item() == pytest.approx(0.24, abs=0.02)
    assert often[[3, 4]].mean().item() == pytest.approx(0.51, abs=0.02)
    often = marginals("block", (14, 14), compat="mmpretrain")
    assert often[-1].max() == 0 and often[:, -1].max() == 0 and often[:-1, :-1].min() > 0


@pytest.mark.slow
def test_exact_masks_have_the_marginals_of_slowfast():
    for kind, grid in (("block", (14, 14)), ("cube", (8, 7, 7))):
        difference = (marginals(kind, grid) - marginals(kind, grid, compat="slowfast")).abs()
        assert difference.mean() < 0.02 and difference.max() < 0.085  # of 2000 samples: sigma is 0.014


def test_varying_counts_are_padded_with_weight_zero():
    masks = make_masks("block", 200, (14, 14), generator=generator(), compat="slowfast")
    assert torch.equal(masks.weight.sum(1).long(), counts(masks)) and counts(masks).min() < 78
    assert torch.equal(masks.mask.flatten(1).gather(1, masks.ids).float(), masks.weight)
    assert all(len(set(row.tolist())) == 78 for row in masks.ids)


def test_compat_counts_of_tube_and_random_masks():
    assert make_masks("random", 2, (14, 14), compat="slowfast").ids.shape[1] == 79  # int(196 * 0.6) are kept
    tube = make_masks("tube", 50, (8, 7, 7), generator=generator(), compat="slowfast")
    assert torch.equal(tube.mask, tube.mask[:, :1].expand_as(tube.mask)) and tube.ids.shape[1] == 160


@pytest.mark.parametrize("compat", [None, "slowfast"])
def test_finer_grids_repeat_every_cell(compat):
    masks = make_masks("cube", 10, (8, 7, 7), generator=generator(), compat=compat)
    fine = masks.resize((8, 14, 14))
    expected = F.interpolate(masks.mask.float(), size=(14, 14)).bool()  # nearest, time as channels
    assert torch.equal(fine.mask, expected)
    assert fine.ids.shape[1] == 4 * masks.ids.shape[1]
    assert torch.equal(fine.mask.flatten(1).gather(1, fine.ids).sum(1), 4 * counts(masks))
    if compat is None:
        assert fine.weight is None and (fine.ids.diff(dim=1) > 0).all()
    else:
        assert torch.equal(fine.weight.sum(1), 4.0 * counts(masks))
    assert masks.resize((8, 7, 7)) is masks
    with pytest.raises(ValueError, match=r"\(8, 7, 7\) does not fit tokens on the grid \(8, 10, 14\)"):
        masks.resize((8, 10, 14))


def test_masks_from_pictures():
    picture = torch.zeros(2, 3, 4, dtype=torch.bool)
    picture[0, 1, 2] = picture[0, 2, 3] = picture[1, 0, 1] = True
    masks = Masks.from_bool(picture)
    assert masks.ids.tolist() == [[6, 11], [1, 0]] and masks.weight.tolist() == [[1, 1], [1, 0]]
    with pytest.raises(ValueError, match="2 masked tokens, more than count=1"):
        Masks.from_bool(picture, count=1)
    with pytest.warns(UserWarning, match="no token is masked"):
        assert Masks.from_bool(torch.zeros(2, 3, 4)).ids.shape == (2, 0)


@pytest.mark.parametrize("kind, grid, ratio, count", CASES)
def test_nothing_waits_for_the_device(kind, grid, ratio, count):
    """With fake tensors every look at a value raises."""
    with FakeTensorMode():
        masks = make_masks(kind, 2, grid, ratio)
        assert masks.resize(tuple(2 * side for side in grid)).ids.shape == (2, count * 2 ** len(grid))


@pytest.mark.parametrize(
    "kind, grid, compat, least, most",
    [
        ("block", (2, 2), None, 0.1251, 0.8749),
        ("block", (14, 14), None, 0.002552, 0.9974),
        ("cube", (8, 7, 7), None, 0.001276, 0.9987),
        ("tube", (8, 7, 7), None, 0.01021, 0.9897),
        ("frame", (2, 7, 7), None, 0.2501, 0.7499),
        ("random", (3, 5, 5), None, 0.006667, 0.9933),
        ("random", (14, 14), "slowfast", None, 0.9948),
        ("block", (14, 14), "slowfast", 0.002552, 0.9974),
    ],
)
def test_a_ratio_that_hides_nothing_or_all_is_refused_with_the_nearest_that_does(kind, grid, compat, least, most):
    """Half a cell rounds to none; that many digits later it is one, and a digit less is refused as well."""
    none = f"hides none of .*grid .*; the smallest that hides one is {least or 'any above 0'}$"
    for ratio in [0, *([least - 1e-4 if least > 0.01 else least - 1e-6] if least else [])]:
        with pytest.raises(ValueError, match=f"ratio={ratio:g} {none}"):
            make_masks(kind, 2, grid, ratio, compat=compat)
    with pytest.raises(ValueError, match=f"hides all of .*; the largest that leaves one is {most}$"):
        make_masks(kind, 2, grid, most + 1e-4, compat=compat)
    if compat is None:
        few, many = (counts(make_masks(kind, 2, grid, ratio, generator=generator())) for ratio in (least, most))
        unit = {"tube": grid[0], "frame": grid[-1] ** 2}.get(kind, 1)
        assert few.tolist() == [unit] * 2 and many.tolist() == [math.prod(grid) - unit] * 2


def test_generators_that_hide_nothing_are_found_out():
    """The least box of slowfast is a fifth of a frame; in two rows every box of it, and of mmpretrain, is too high."""
    with pytest.raises(ValueError, match=r"hides nothing in 16 masks as slowfast makes .*; ratio=0\.02 hides some"):
        check_masks("cube", (8, 7, 7), 0.01, "slowfast")
    with pytest.raises(ValueError, match=r"hides nothing in 16 masks .* grid \(2, 100\)"):
        check_masks("block", (2, 100), 0.25, "slowfast")
    for call in (check_masks, lambda *a: make_masks(a[0], 1, *a[1:3], compat=a[3])):
        with pytest.raises(ValueError, match="no box that mmpretrain draws fills the last 49 of 49 tokens"):
            call("block", (2, 100), 0.245, "mmpretrain")


def test_extreme_ratios():
    assert make_masks("block", 2, (4, 4), 1.0).mask.all()
    assert make_masks("cube", 2, (1, 1, 1), 1.0).mask.all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("blok", 1, (4, 4)), "'blok'"),
        (("block", 1, (2, 4, 4)), "block mask needs two axes"),
        (("cube", 1, (4, 4)), "cube mask needs three axes"),
        (("block", 1, (4, 4), 1.4), "1.4"),
        (("block", 1, (4, 4), -0.1), "ratio must be above 0 and at most 1, got -0.1"),
        (("block", 1, (4, 4), math.nan), "ratio must be above 0 and at most 1, got nan"),
        (("random", 1, (1, 1), 0.4), "none of the 1 cells .* smallest that hides one is 0.5001"),
        (("random", 1, (1, 1), 0.6), "all of the 1 cells .* largest that leaves one is none below 1"),
        (("random", 1, (0, 4)), r"\(0, 4\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_masks(*arguments)
    with pytest.raises(ValueError, match="'timm'"):
        make_masks("block", 1, (4, 4), compat="timm")
    with pytest.raises(ValueError, match="never masks the last row and column"):
        make_masks("block", 1, (2, 2), 0.5, compat="mmpretrain")
