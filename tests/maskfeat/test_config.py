"""Recipes and the changes to them that a command line makes."""

import json

import pytest
import torch

from maskfeat.build import build
from maskfeat.config import RECIPES, Finetune, Pretrain, describe, from_dict, get_recipe, override, to_dict


def test_values_are_parsed_by_type():
    recipe = override(
        get_recipe("vit_tiny"),
        ["epochs=3", "lr=1e-4", "flip=no", "mask=random", "depths=1,11", "crop_scale=0.2,1", "data=a=b"],
    )
    assert (recipe.epochs, recipe.lr, recipe.flip, recipe.mask) == (3, 1e-4, False, "random")
    assert recipe.depths == (1, 11) and recipe.crop_scale == (0.2, 1.0) and recipe.data == "a=b"
    assert override(recipe, ["depths="]).depths == ()
    assert override(recipe, {"epochs": 7}).epochs == 7


@pytest.mark.parametrize(
    "change, message",
    [
        ("epoch=3", "vit_tiny has no key 'epoch'; did you mean 'epochs'"),
        ("maskratio=0.5", "did you mean 'mask_ratio'"),
        ("name=x", "no key 'name'"),
        ("mixup=0.8", "vit_tiny has no key 'mixup'"),
        ("epochs", "'epochs' is not of the form key=value; did you mean 'epochs=...'"),
        ("epochs=2.5", "epochs must be a whole number, as epochs=2, got '2.5'"),
        ("lr=fast", "lr must be a number, as lr=0.1, got 'fast'"),
        ("lr=nan", "lr must be finite"),
        ("flip=maybe", "flip must be true or false, got 'maybe'"),
        ("mask=blok", "got 'blok'; did you mean 'block'"),
        ("crop_scale=0.5", "crop_scale needs 2 numbers, got '0.5'"),
        ("crop_scale=2,3", "crop_scale must be above 0 and at most 1, got 2.0,3.0"),
        ("crop_scale=0.9,0.5", "crop_scale must be the smallest and the largest, got 0.9,0.5"),
        ("mean=0.5,0.5", "mean needs 3 numbers, got '0.5,0.5'"),
        ("std=0,0,0", "std must be above 0, got 0.0,0.0,0.0"),
        ("mask_ratio=1.5", "mask_ratio must be at least 0 and at most 1, got 1.5"),
        ("mask_ratio=nan", "mask_ratio must be finite, got 'nan'"),
        ("mask_ratio=-0.1", "mask_ratio must be at least 0 and at most 1, got -0.1"),
        ("mask_ratio=0", "mask_ratio=0 hides none of the 36 cells .* smallest that hides one is 0.01389"),
        ("mask_ratio=0.99", "mask_ratio=0.99 hides all of the 36 cells .* largest that leaves one is 0.9861"),
        ("mask_stride=96", "mask_ratio=0.4 hides none of the 1 cells .* smallest that hides one is 0.5001"),
        ("mask_stride=0", "mask_stride must be at least 1, got 0"),
        ("epochs=0", "epochs must be at least 1, got 0"),
        ("steps=-5", "steps must be at least 0, got -5"),
        ("samples=-5", "samples must be at least 0, got -5"),
        ("seed=-1", "seed must be at least 0 and below 18446744073709551616, got -1"),
        ("workers=-1", "workers must be at least 0 and at most 1024, got -1"),
        ("workers=1025", "workers must be at least 0 and at most 1024, got 1025"),
        ("warmup_epochs=-1", "warmup_epochs must be at least 0, got -1.0"),
        ("save_every=-1", "save_every must be at least 0, got -1"),
        ("eval_every=-1", "eval_every must be at least 0, got -1"),
        ("knn_samples=-1", "knn_samples must be at least 0, got -1"),
        ("drop_path=2", "drop_path must be at least 0 and below 1, got 2.0"),
        ("clip_grad=-1", "clip_grad must be at least 0, got -1.0"),
        ("layer_decay=0", "layer_decay must be above 0, got 0.0"),
        ("mask=cube", "mask must be one of block, random for vit, got 'cube'"),
        ("image_size=60", "multiples of mask_stride=16, got image_size=60; the nearest are 48 or 64$"),
        ("patch_size=14", "mask_stride=16 is not a multiple of patch_size=14; set mask_stride=14"),
        ("epochs=1", "warmup_epochs=1 is not below epochs=1, .* lr; add warmup_epochs=0.1"),
        ("frames=4", "vit reads images"),
    ],
)
def test_wrong_changes_are_refused_with_what_is_right(change, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?").replace("...", r"\.\.\.")):
        override(get_recipe("vit_tiny"), [change])


@pytest.mark.parametrize(
    "change, message",
    [
        ("test_crops=2", "test_crops must be 1 or 3, got 2"),
        ("test_size=90", "test_size=90 is below image_size=96; set test_size=0"),
        ("rand_augment=foo", "rand_augment must look like 'm9-mstd0.5-inc1', got 'foo'"),
    ],
)
def test_what_only_evaluations_or_workers_would_find(change, message):
    with pytest.raises(ValueError, match=message):
        override(get_recipe("vit_tiny_ft"), [change])


def test_masks_of_clips_are_as_coarse_as_what_predicts():
    build(override(get_recipe("mvit_tiny"), ["mask_stride=4", "depths=0"]))
    with pytest.raises(ValueError, match="mask_stride=8 is not a multiple of the 16 pixels of a token; set mask_str"):
        build(override(get_recipe("mvit_tiny"), ["mask_stride=8"]))


def test_clips_have_no_block_masks():
    with pytest.raises(ValueError, match="mask must be one of cube, tube, frame, random for mvit, got 'block'"):
        override(get_recipe("mvit_tiny"), ["mask=block"])


@pytest.mark.parametrize(
    "recipe, changes, least",
    [
        ("vit_tiny", ["image_size=32", "mask_ratio=0.1"], "0.1251"),
        ("vit_tiny", ["image_size=32", "mask_ratio=0.1", "target=pixel", "mask=random"], "0.1251"),
        ("vit_tiny", ["image_size=32", "mask_ratio=0.1", "target=hog+pixel", "data=skimage"], "0.1251"),
        ("mvit_tiny", ["mask_ratio=0.05"], "0.06251"),
        ("mvit_tiny", ["mask_ratio=0.1", "mask=tube"], "0.1251"),
        ("mvit_tiny", ["mask_ratio=0.2", "mask=frame"], "0.2501"),
        ("mvit_tiny", ["mask_ratio=0.05", "mask=random", "frame_step=1"], "0.06251"),
    ],
)
def test_masks_that_hide_no_cell_are_refused(recipe, changes, least):
    """Their loss is 0 from the first step to the last."""
    with pytest.raises(ValueError, match=f"^mask_ratio=.* hides none .*; the smallest that hides one is {least}$"):
        override(get_recipe(recipe), changes)
    override(get_recipe(recipe), [f"mask_ratio={least}" if "ratio" in change else change for change in changes])


def test_generators_of_other_code_that_hide_nothing_are_refused():
    with pytest.raises(ValueError, match=r"mask_ratio=0\.01 hides nothing .* slowfast .*; mask_ratio=0\.02 hides"):
        override(get_recipe("mvit_s_k400"), ["mask_ratio=0.01", "mask_compat=slowfast"])


def test_of_a_key_that_is_given_twice_the_last_counts(caplog):
    assert override(get_recipe("vit_tiny"), ["lr=1", "epochs=3", "lr=2"]).lr == 2
    assert "lr is given twice: lr=2 counts, and not 1" in caplog.text


def test_gradients_are_not_scaled_over_shards():
    with pytest.raises(ValueError, match=r"precision=fp16 .* parallel must be 'ddp', got 'fsdp'"):
        override(get_recipe("vit_tiny"), ["precision=fp16", "parallel=fsdp"])


def test_a_recipe_takes_all_of_the_data():
    """What is rendered has no end; there are 2,048 scenes where nothing is said."""
    assert {recipe.samples for recipe in RECIPES.values()} == {0}


def test_a_choice_that_is_not_text_is_checked_too():
    with pytest.raises(ValueError, match="did you mean 'cube'"):
        override(get_recipe("vit_tiny"), {"mask": "cub"})


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="no recipe 'vit_base_in1k'; did you mean 'vit_b_in1k'"):
        get_recipe("vit_base_in1k")


def test_rates_follow_the_batch_unless_given():
    recipe = override(get_recipe("vit_b_in1k"), ["batch_size=512"])
    assert (recipe.lr, recipe.warmup_lr, recipe.end_lr) == pytest.approx((4e-4, 2e-6, 2e-6))
    assert override(get_recipe("vit_b_in1k"), ["lr=1e-3", "batch_size=512"]).lr == 1e-3
    assert override(get_recipe("vit_b_in1k"), ["end_lr=0", "batch_size=512"]).end_lr == 0


def test_a_batch_divides_into_ranks_and_parts():
    recipe = override(get_recipe("vit_tiny"), ["batch_size=24", "accumulate=2"])
    assert recipe.rank_batch() == 12 and recipe.rank_batch(4) == 3
    with pytest.raises(ValueError, match="24 does not divide into 5 ranks x 2 parts; the nearest that does is 20"):
        recipe.rank_batch(5)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_build_and_are_printed_whole_and_come_back(name):
    recipe = get_recipe(name)
    with torch.device("meta"):
        build(recipe)
    assert recipe.name == name and isinstance(recipe, Finetune if name.endswith("_ft") else Pretrain)
    values = json.loads(json.dumps(to_dict(recipe)))
    assert from_dict(values) == recipe
    assert values.pop("autorotate") is True  # which recipes of earlier versions have not
    assert from_dict(values) == recipe
    title, *lines = describe(recipe).splitlines()
    assert title == f"maskfeat {'finetune' if name.endswith('_ft') else 'pretrain'} {name}"
    assert override(recipe, [line.split("#")[0].strip() for line in lines]) == recipe


def test_published_values():
    """Those of the configurations of the paper's code, at the usual total batch."""
    image, video = get_recipe("vit_b_in1k"), get_recipe("mvit_s_k400")
    assert (image.batch_size, image.lr, image.clip_grad, image.mask_grid) == (2048, 1.6e-3, 0.02, (14, 14))
    assert (video.batch_size, video.lr, video.mask_grid, video.mask) == (512, 1.6e-3, (8, 7, 7), "cube")
    rates = {name: (RECIPES[name].layer_decay, RECIPES[name].drop_path) for name in RECIPES if name.endswith("_ft")}
    assert rates["vit_b_in1k_ft"] == (0.65, 0.1) and rates["vit_l_in1k_ft"] == (0.75, 0.1)
    assert rates["mvit_s_k400_ft"] == (0.75, 0.1) and rates["mvit_l_k400_ft"] == (0.875, 0.2)
    assert [RECIPES[f"mvit_l_{data}_ft"].classes for data in ("k400", "k600", "k700", "ssv2")] == [400, 600, 700, 174]
    assert get_recipe("mvit_s_k400_ft").test_clips == 10
    small, large = get_recipe("mvit_s_ssv2_ft"), get_recipe("mvit_l_ssv2_ft")
    assert (small.lr / small.batch_size, large.lr / large.batch_size) == (2.5e-3 / 16, 1.25e-3 / 8)
    assert (small.epochs, small.drop_path) == (100, 0.4) and (large.epochs, large.drop_path) == (40, 0.75)
    for recipe in (small, large):
        assert (recipe.optimizer, recipe.weight_decay, recipe.dropout, recipe.layer_decay) == ("sgd", 1e-4, 0.5, 1.0)
        assert (recipe.sampling, recipe.flip, recipe.test_clips, recipe.test_crops) == ("uniform", False, 1, 3)


@pytest.mark.parametrize(
    "settings, cell, dim",
    [
        ([], (8, 8), 108),
        (["patch_size=8", "mask_stride=8"], (8, 8), 27),
        (["patch_size=8", "mask_stride=8", "hog_cell=4"], (4, 4), 108),
        (["hog_bins=6", "hog_gray=yes"], (8, 8), 24),
        (["hog_cell=4", "hog_gray=yes", "target=hog+pixel"], (4, 4), 144 + 768),
    ],
)
def test_the_histogram_is_said_in_keys(settings, cell, dim):
    model = build(override(get_recipe("vit_tiny"), ["size=micro", "image_size=32", *settings]))
    [target] = model.targets
    assert getattr(target, "targets", [target])[0].spec.cell == cell and target.dim == dim


def test_a_cell_that_does_not_divide_the_patch_is_refused():
    with pytest.raises(ValueError, match="hog_cell=5 does not divide the 16 pixels of a predicted token"):
        build(override(get_recipe("vit_tiny"), ["hog_cell=5"]))
