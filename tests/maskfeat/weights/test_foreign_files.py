"""Files as people have them: wrapped names, decoders, arguments and histories beside the weights, parts of a cfg."""

import argparse
import sys
import types

import numpy as np
import pytest
import torch
from test_convert import VIT_CFG, other_file, pretrained, slowfast_file, vit_for_masks

from maskfeat.weights.convert import load_slowfast, read
from maskfeat.weights.torch_files import Inert, read_file


def of_timm(tmp_path):
    model, _ = vit_for_masks()
    other_file(tmp_path / "timm.safetensors", model, "timm")
    return model, dict(read_file(tmp_path / "timm.safetensors"))


def same_encoder(model, other):
    own = model.encoder.state_dict()
    assert own.keys() == other.encoder.state_dict().keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in other.encoder.state_dict().items())


@pytest.mark.parametrize(
    "prefix, key",
    [
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("module.", "model"), ("_orig_mod.", None), ("model.", "state_dict"))
        ),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("backbone.", "state_dict"), ("encoder.", None))),
        ("_orig_mod.module.backbone.", "model"),
    ],
)
def test_names_that_are_wrapped(tmp_path, prefix, key):
    model, tensors = of_timm(tmp_path)
    wrapped = {prefix + name: tensor for name, tensor in tensors.items()}
    torch.save({key: wrapped, "epoch": 3} if key else wrapped, tmp_path / "wrapped.pth")
    same_encoder(model, read(tmp_path / "wrapped.pth")[0])


def test_a_file_of_mae_has_a_decoder(tmp_path):
    model, tensors = of_timm(tmp_path)
    tensors |= {"mask_token": torch.zeros(1, 1, 512), "decoder_pos_embed": torch.zeros(1, 5, 512)}
    tensors |= {"decoder_embed.weight": torch.zeros(512, 192), "decoder_blocks.0.norm1.weight": torch.zeros(512)}
    torch.save({"model": tensors, "optimizer": {"lr": 0.1}, "args": argparse.Namespace(lr=0.1)}, tmp_path / "mae.pth")
    same_encoder(model, read(tmp_path / "mae.pth")[0])


def test_architectures_that_are_not_ours_are_named(tmp_path):
    _, tensors = of_timm(tmp_path)
    simmim = {f"encoder.{name}": tensor for name, tensor in tensors.items() if name != "pos_embed"}
    simmim |= {
        "encoder.rel_pos_bias.relative_position_bias_table": torch.zeros(9, 3),
        "decoder.0.weight": torch.zeros(3),
    }
    torch.save({"model": simmim}, tmp_path / "simmim.pth")
    with pytest.raises(ValueError, match=r"simmim\.pth is a ViT with relative positions, as of SimMIM or BEiT"):
        read(tmp_path / "simmim.pth")
    video = {f"encoder.{name}": tensor for name, tensor in tensors.items() if name != "cls_token"}
    video["encoder.patch_embed.proj.weight"] = torch.zeros(192, 3, 2, 16, 16)
    video["decoder.blocks.0.norm1.weight"] = torch.zeros(3)
    torch.save({"model": video}, tmp_path / "videomae.pth")
    with pytest.raises(ValueError, match=r"videomae\.pth is a ViT for video, as of VideoMAE; .* video is read by MViT"):
        read(tmp_path / "videomae.pth")


def test_objects_beside_the_weights_are_not_made(tmp_path, monkeypatch):
    """A history as of mmengine, of a package that is not there when the file is read; arguments; numbers of NumPy."""
    made = []

    class HistoryBuffer:
        def __init__(self):
            self._log_history, self.max_length = np.arange(3.0), 100

        def __setstate__(self, state):
            made.append(state)

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = "mmengine_of_tests", "HistoryBuffer"
    module = types.ModuleType("mmengine_of_tests")
    module.HistoryBuffer = HistoryBuffer
    monkeypatch.setitem(sys.modules, "mmengine_of_tests", module)
    model, tensors = of_timm(tmp_path)
    extra = {"message_hub": {"loss": HistoryBuffer()}, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)}
    torch.save({"state_dict": tensors, **extra}, tmp_path / "file.pth")
    for there in (True, False):
        if not there:
            monkeypatch.delitem(sys.modules, "mmengine_of_tests")
        file = read_file(tmp_path / "file.pth")
        assert isinstance(file["message_hub"]["loss"], Inert) and isinstance(file["args"], Inert) and made == []
        same_encoder(model, read(tmp_path / "file.pth")[0])


def test_an_object_in_the_place_of_a_tensor_is_refused(tmp_path):
    _, tensors = of_timm(tmp_path)
    torch.save({"model": tensors | {"norm.bias": argparse.Namespace()}}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"holds a Namespace in the place of the tensor 'norm\.bias'"):
        read(tmp_path / "file.pth")


@pytest.mark.slow
def test_tensors_that_are_no_weights_are_refused(tmp_path):
    _, tensors = of_timm(tmp_path)
    bias, patch = tensors["norm.bias"], "patch_embed.proj.weight"
    cases = [
        ("norm.bias", bias.to_sparse(), "sparse"),
        ("norm.bias", torch.nested.as_nested_tensor([bias, bias[:2]], layout=torch.jagged), "nested"),
        ("norm.bias", bias.to("meta"), "empty"),
        ("norm.bias", bias.to(torch.complex64), "complex"),
        ("norm.bias", bias.to(torch.float8_e4m3fn), "float8"),
        ("norm.bias", torch.zeros(()).expand(10**12), "larger than its data"),
        (patch, torch.zeros(()).expand(192, 3, 1, 10**9), "larger than its data"),
        (patch, torch.zeros(()), "make no model"),
        ("pos_embed", torch.zeros(5), "make no model"),
    ]
    for name, tensor, message in cases:
        torch.save({"model": tensors | {name: tensor}}, tmp_path / "file.pth")
        with pytest.raises(ValueError, match=f"file.pth .*{message}"):
            read(tmp_path / "file.pth")


@pytest.mark.parametrize("size", ["TRAIN_CROP_SIZE: 32", "NUM_CLASSES: 400"])
def test_a_cfg_of_an_impossible_size_is_refused(tmp_path, size):
    cfg = VIT_CFG.replace("MaskMViT", "MViT").replace(size, f"{size.split(':')[0]}: 16000000000000")
    torch.save({"model_state": {"a": torch.zeros(2)}, "cfg": cfg}, tmp_path / "file.pyth")
    with pytest.raises(ValueError, match=r"file\.pyth has tensors or settings that make no model"):
        load_slowfast(tmp_path / "file.pyth")


def test_a_cfg_that_says_less_means_the_defaults_of_slowfast(tmp_path):
    model, _ = pretrained("mask_stride=16", "image_size=224")
    cfg = VIT_CFG.replace("DATA: {TRAIN_CROP_SIZE: 32, NUM_FRAMES: 1}\n", "").replace(", NUM_CLASSES: 400", "")
    slowfast_file(tmp_path / "file.pyth", model, cfg)
    same_encoder(model, read(tmp_path / "file.pyth")[0])
    small, _ = pretrained("mask_stride=16")
    slowfast_file(tmp_path / "name.pyth", small, cfg.replace("MODEL_NAME: MaskMViT", ""))
    with pytest.raises(ValueError, match="is no MaskFeat model: SlowFast"):
        read(tmp_path / "name.pyth")
