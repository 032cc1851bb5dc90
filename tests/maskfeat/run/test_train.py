"""The loop: what it optimizes and when, what it logs, and that it learns."""

import dataclasses
import importlib.util
import json
import math

import pytest
import torch
from test_model import TimmLike
from torch import nn

from maskfeat import FeatureTarget, MaskFeat
from maskfeat.build import build
from maskfeat.config import get_recipe, override
from maskfeat.data.loader import part_masks
from maskfeat.run.evaluate import feature_maps
from maskfeat.run.progress import _show
from maskfeat.run.step import seed_everything
from maskfeat.run.train import Trainer, layer_of, parameter_groups, train
from maskfeat.weights.files import read_weights

torch.set_num_threads(1)  # sums have the order of one thread in this process and in those that tests start

SMALL = [
    "image_size=32",
    "batch_size=8",
    "samples=32",
    "steps=4",
    "log_every=1",
    "eval_every=1",
    "lr=1e-3",
    "device=cpu",
]
SMALL_VIT = ["size=micro", "patch_size=8", "mask_stride=8"]


def small(out, *changes, name="vit_tiny"):
    """The recipe on small images, with the smallest ViT; pre-training with two blocks and without neighbours."""
    settings = {"vit_tiny": SMALL_VIT, "vit_tiny_ft": SMALL_VIT[:2]}.get(name, ["patch_size=8"])
    shallow = [] if name.endswith("_ft") else ["depths=1", "knn=0"]
    settings = [*SMALL, *settings, *shallow, f"out={out}", *changes]
    settings = dict(text.split("=", 1) for text in settings)  # the last counts
    return override(get_recipe(name), settings)


def train_small(out, *changes, name="vit_tiny"):
    return train(small(out, *changes, name=name))


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    return [line["loss"] for line in read_log(folder) if "loss" in line]


@pytest.fixture
def trainer(request, tmp_path):
    def make(*changes, name="vit_tiny"):
        world = request.getfixturevalue("world")
        return Trainer(small(tmp_path, *changes, name=name), world)

    return make


def test_pretraining_learns_and_logs(tmp_path):
    results = train_small(tmp_path, "steps=12", "warmup_epochs=0", "clip_grad=0", "knn=5")
    log = read_log(tmp_path)
    steps = [line for line in log if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert steps[-1]["loss"] < 0.7 * steps[0]["loss"]
    assert all(line["images_per_s"] > 0 and 0 < line["hog_share"] < 1 and 0 < line["data_share"] < 1 for line in steps)
    assert steps[-1]["eta_s"] == 0 and steps[0]["skipped"] == 0
    assert [line["step"] for line in log if "val_loss" in line] == [4, 8, 12]
    assert log[-1] == {"step": 12, **results} and 0 <= results["knn_accuracy"] <= 1
    weights, recipe = read_weights(tmp_path)
    build(recipe).load_state_dict(weights)


def test_shares_are_shown_with_two_digits():
    shown = {0.00123: "0.12%", 0.0345: "3.5%", 0.5: "50%", 0.999: "100%", 1.0: "100%", 0.0: "0%"}
    assert {value: _show("hog_share", value) for value in shown} == {v: f"hog_share {t}" for v, t in shown.items()}
    assert _show("loss", 0.123456) == "loss 0.1235"


@pytest.mark.parametrize(
    "name, change", [("mvit_tiny", "depths=4"), pytest.param("mvit_tiny_ft", "repeats=2", marks=pytest.mark.slow)]
)
def test_video_trains(tmp_path, name, change):
    results = train_small(tmp_path, "batch_size=2", "samples=4", "steps=1", change, name=name)
    assert math.isfinite(results["val_loss"])


def test_finetuning_starts_from_pretrained_weights_and_averages_its_own(tmp_path):
    train_small(tmp_path / "pt", "steps=1", "depths=")
    results = train_small(tmp_path / "ft", f"init={tmp_path / 'pt'}", "ema=0.5", "mixup=0.8", name="vit_tiny_ft")
    assert results.keys() == {
        f"{kind}{name}" for kind in ("", "ema_") for name in ("val_loss", "top1", "top5", "samples")
    }
    own, average = (read_weights(tmp_path / "ft" / f"weights{kind}.safetensors")[0] for kind in ("", "_ema"))
    assert own.keys() == average.keys() and not torch.equal(own["head.weight"], average["head.weight"])


@pytest.mark.parametrize("name, shape", [("vit_tiny", (192, 2, 2)), ("mvit_tiny_ft", (768, 2, 1, 1))])
def test_feature_maps_for_detectors(name, shape):
    model = build(override(get_recipe(name), ["image_size=32"])).eval()
    pixels = torch.randn(2, 3, *(() if name == "vit_tiny" else (4,)), 32, 32)
    picture = feature_maps(getattr(model, "encoder", model), pixels)
    assert picture.shape == (2, *shape)
    if name == "mvit_tiny_ft":
        torch.testing.assert_close(model.head(model.norm(picture.flatten(2).mean(2))), model(pixels))


def test_learning_rate_of_every_step(trainer):
    run = trainer("steps=100", "epochs=10", "warmup_epochs=2", "lr=1", "warmup_lr=0.1", "end_lr=0.01")
    rates = [run.learning_rate(step) for step in range(100)]
    assert rates[0] == 0.1 and rates[20] == 1.0 and rates[10] == pytest.approx(0.55)
    assert rates[60] == pytest.approx(0.01 + 0.99 / 2)
    assert rates[99] == pytest.approx(0.01 + 0.99 / 2 * (1 + math.cos(math.pi * 79 / 80)))
    assert sorted(rates[:21]) == rates[:21] and sorted(rates[20:], reverse=True) == rates[20:]


@pytest.mark.parametrize("name", ["vit_tiny_ft", "mvit_tiny_ft"])
def test_dropout_comes_before_the_classifier(name):
    recipe = override(get_recipe(name), ["image_size=32", "dropout=0.5", "head_init=1"])
    model = build(recipe)
    pixels = torch.randn(2, 3, *([recipe.frames] if recipe.frames else []), 32, 32)
    seen = []
    getattr(model.head, "projection", model.head).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.train()(pixels)
    model.eval()(pixels)
    dropped, kept = seen
    share = (dropped == 0).float().mean().item()
    assert abs(share - 0.5) < 5 * (0.25 / dropped.numel()) ** 0.5  # five standard deviations
    torch.testing.assert_close(dropped[dropped != 0], 2 * kept[dropped != 0])
    assert (kept != 0).all()


def test_groups_by_layer_and_decay():
    recipe = override(get_recipe("vit_tiny_ft"), ["layer_decay=0.5", "weight_decay=0.1"])
    model = build(recipe)
    groups = parameter_groups(model, recipe)
    found = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == len(list(model.parameters())) == sum(len(g["params"]) for g in groups)
    expected = {
        "cls_token": (0.5**13, 0.1),
        "pos_embed": (0.5**13, 0.1),
        "patch_embed.proj.bias": (0.5**13, 0.0),
        "blocks.0.attn.qkv.weight": (0.5**12, 0.1),
        "blocks.11.norm1.weight": (0.5, 0.0),
        "fc_norm.weight": (1.0, 0.0),
        "head.weight": (1.0, 0.1),
    }
    parameters = dict(model.named_parameters())
    assert {name: found[id(parameters[name])] for name in expected} == expected
    assert layer_of("mask_token", 12) == 0 and layer_of("encoder.vit.blocks.3.mlp.fc1.weight", 12) == 4
    assert layer_of("pred_head.projections.0.weight", 12) == 13


def test_accumulated_parts_are_one_batch(tmp_path):
    """With the same masks: everything is hidden."""
    options = ["mask_ratio=1", "clip_grad=0", "steps=3"]
    train_small(tmp_path / "one", *options)
    train_small(tmp_path / "two", *options, "accumulate=2")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_sgd_has_nesterov_momentum(trainer):
    """After two steps with the gradients g and h a weight has moved by -lr ((1 + m) g) - lr (h + m (m g + h))."""
    run = trainer("optimizer=sgd", "betas=0.9,0", "weight_decay=0", "clip_grad=0", "warmup_lr=0.1", "lr=0.1", "steps=4")
    token, gradients, batches = run.module.mask_token, [], iter(run.data.at(0))
    before = token.detach().clone()
    token.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.clone()))
    run.learning_rate = lambda step: 0.1
    run.train_step(batches)
    run.train_step(batches)
    g, h = gradients
    moved = -0.1 * (1.9 * g) - 0.1 * (h + 0.9 * (0.9 * g + h))
    torch.testing.assert_close(token.detach() - before, moved, rtol=1e-4, atol=1e-7)


def test_clipping_bounds_the_gradient(trainer):
    run = trainer("clip_grad=1e-3")
    seen = []
    step = run.optimizer.step
    run.optimizer.step = lambda: (
        seen.append(torch.cat([p.grad.flatten() for p in run.module.parameters()]).norm()),
        step(),
    )
    run.train_step(iter(run.data.at(0)))
    assert seen[0] == pytest.approx(1e-3, rel=1e-3)


def test_masks_of_a_part_depend_on_seed_step_and_part_alone(trainer):
    recipe = trainer().recipe

    def masks(seed, *place):
        generator = seed_everything(seed, *place)
        mask = part_masks(dataclasses.replace(recipe, seed=seed), 4, *place).mask
        return mask, torch.cat([torch.rand(3), torch.rand(3, generator=generator)])

    first, drawn = masks(0, 0, 5, 1)
    again, redrawn = masks(0, 0, 5, 1)
    assert torch.equal(first, again) and torch.equal(drawn, redrawn)
    others = [masks(*place) for place in [(1, 0, 5, 1), (0, 1, 5, 1), (0, 0, 6, 1), (0, 0, 5, 2)]]
    assert not any(torch.equal(first, mask) or torch.equal(drawn, numbers) for mask, numbers in others)


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(trainer):
    run = trainer("save_every=1")
    with torch.no_grad():
        run.module.mask_token.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"the loss is nan in the steps 1 to 1.*Try a lower lr"):
        run.fit()
    assert not list(run.out.glob("checkpoints/step_*"))


@pytest.mark.parametrize("saved", [False, True])
def test_weights_that_are_not_finite_are_not_saved(trainer, saved):
    """The loss of the step was finite; its gradient is not, and clipping turns that into NaN."""
    run = trainer("save_every=1", "eval_every=0", "clip_grad=0.02")
    begins = []
    run.module.mask_token.register_hook(
        lambda gradient: begins.append(1) or (gradient / 0 if len(begins) > saved else gradient)
    )
    kept = "the newest checkpoint, .*step_00000001, is" if saved else "there is no checkpoint"
    message = rf"weights are not finite after step {1 + saved}; {kept} from before\. Try a lower lr"
    with pytest.raises(FloatingPointError, match=message):
        run.fit()
    assert len(list(run.out.glob("checkpoints/step_*"))) == saved


class Shrunk(nn.Module):
    """A teacher: the mean colour of every patch."""

    def forward(self, pixels):
        return nn.functional.avg_pool2d(pixels, 8).flatten(2).transpose(1, 2).repeat(1, 1, 2)


def test_a_model_of_ones_own_trains_and_goes_on(tmp_path):
    """A ViT with a part that is frozen, and a teacher's features: learnt, evaluated, saved, resumed."""
    built = []

    def own(recipe):
        vit = TimmLike()
        vit.prefix.requires_grad_(False)
        built.append(MaskFeat(vit, FeatureTarget(Shrunk(), 6), depths=(1,)))
        return built[-1]

    recipe = small(tmp_path / "whole", "steps=8", "save_every=2", "keep=9", "lr=1e-2", "warmup_epochs=0", "knn=3")
    results = train(recipe, build=own)
    found = losses(tmp_path / "whole")
    assert found[-1] < 0.7 * found[0] and 0 <= results["knn_accuracy"] <= 1
    weights = read_weights(tmp_path / "whole")[0]
    assert weights.keys() == built[0].state_dict().keys() and "encoder.vit.prefix" in weights
    middle = tmp_path / "whole" / "checkpoints" / "step_00000002"
    assert train(override(recipe, {"out": str(tmp_path / "on"), "resume": str(middle)}), own) == results
    assert losses(tmp_path / "on") == found[2:]


@pytest.mark.slow  # the compiler takes half a minute
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # by inductor itself
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo itself
def test_a_compiled_model_learns_the_same(tmp_path):
    options = ["steps=2", "eval_every=0", "lr=1e-2", "warmup_epochs=0"]
    train_small(tmp_path / "plain", *options)
    train_small(tmp_path / "compiled", *options, "compile=true")
    first, second = losses(tmp_path / "plain")
    assert losses(tmp_path / "compiled") == pytest.approx([first, second], rel=1e-5)
    assert first != pytest.approx(second, rel=0.01)


@pytest.mark.parametrize("change", ["recompute=true", "precision=bf16"])
def test_switches_compute_the_same(tmp_path, change):
    train_small(tmp_path / "plain", "steps=2")
    train_small(tmp_path / "other", "steps=2", change)
    rel = {"recompute=true": 1e-6, "precision=bf16": 0.05}[change]
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "plain"), rel=rel)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_tensorboard_is_an_extra(tmp_path):
    with pytest.raises(ValueError, match="pip install tensorboard"):
        train_small(tmp_path, "tensorboard=true")


@pytest.mark.parametrize(
    "change, message",
    [
        ("batch_size=64", "fewer"),
        ("device=cuda", "device=cuda, but this machine has no accelerator"),
        ("device=gpu", "device must be 'auto', 'cpu', 'cuda'"),
        ("data=/nowhere", "/nowhere"),
        ("init=/nowhere", "no weights /nowhere"),
        ("depths=4", "0 to 3"),
    ],
)
def test_mistakes_are_found_before_training(tmp_path, change, message):
    if change == "device=cuda" and torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_small(tmp_path, change)


@pytest.mark.parametrize("native, wanted", [(False, "fp32"), (True, "bf16")])
def test_the_machine_chooses_the_precision_and_the_run_remembers(tmp_path, monkeypatch, caplog, native, wanted):
    monkeypatch.setattr("maskfeat.run.device.has_bf16", lambda kind: native)
    train_small(tmp_path / "auto", "steps=1", "precision=auto")
    train_small(tmp_path / "said", "steps=1", f"precision={wanted}")
    assert losses(tmp_path / "auto") == losses(tmp_path / "said")
    assert read_weights(tmp_path / "auto")[1].precision == wanted
    assert ("precision=auto: fp32, as this CPU has no bf16 arithmetic" in caplog.text) == (not native)
