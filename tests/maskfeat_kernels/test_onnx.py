"""ONNX: a model with our ops is exported by ``torch.onnx.export`` alone, and agrees in onnxruntime.

Without it: that each op has a meaning in plain torch, which an export puts in its place.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch._decomp import decomposition_table
from torch.fx.experimental.proxy_tensor import make_fx

from maskfeat_kernels import (
    DALAL_TRIGGS,
    MASKFEAT,
    OPENCV,
    SKIMAGE,
    fused_hog,
    fused_hog_tokens,
    fused_mask_tokens,
    fused_masked_gather,
)
from maskfeat_kernels.compat.skimage import hog as skimage_hog
from maskfeat_kernels.compat.slowfast import HOGGenerator, HOGLayerC
from maskfeat_kernels.hog import plan, reference
from maskfeat_kernels.nn import HOG

BYTES = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[0, 11, 5], [3, 3, 7]])
DIALECTS = {
    "maskfeat": MASKFEAT,
    "window": MASKFEAT.replace(gaussian_window=16, bins=12),
    "skimage": SKIMAGE,
    "opencv": OPENCV,
    "dalal_triggs": DALAL_TRIGGS,
    "oblong": DALAL_TRIGGS.replace(cell=(4, 8), block=(3, 2), block_stride=(8, 4)),
    "signed": SKIMAGE.replace(signed=True, votes="linear", norm="l1-sqrt", channels="each", layout="planes"),
}


class Everything(nn.Module):
    """A result of each dialect, of each layer, and of the ops of tokens."""

    def __init__(self):
        super().__init__()
        self.hog = nn.ModuleDict({name: HOG(spec) for name, spec in DIALECTS.items()})
        self.layer, self.generator = HOGLayerC(pool=8), HOGGenerator(pool=2, gaussian_window=0)

    def forward(self, x, token_ids):
        found = {name: hog(x) for name, hog in self.hog.items()}
        found |= {"layer": self.layer(x), "generator": self.generator(x)}
        found["skimage_hog"] = skimage_hog(x[0], channel_axis=0)
        found["targets"] = fused_hog_tokens(x, token_ids)
        tokens = found["maskfeat"].flatten(1, 3).mT  # [B, 8, 162]
        found["gathered"] = fused_masked_gather(tokens, token_ids % 8)
        mask = tokens.new_zeros(tokens.shape[:2]).scatter(1, token_ids % 8, 1) > 0
        found["masked"] = fused_mask_tokens(tokens, tokens[0, 0], mask)
        return found


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_has_its_meaning_in_what_the_op_is_given(name):
    spec, x = DIALECTS[name], BYTES[0, :, :24, :40].double()
    read, axes = plan.unpack(*plan.pack(spec))
    region = plan.Region(-3, 5, 44, 40, 30)
    assert axes == plan.cell_axes(spec) and plan.epsilons(read) == plan.epsilons(spec)
    assert torch.equal(reference.hog(x, read, region, axes), reference.hog(x, spec, region))


@pytest.mark.slow  # loads the tracer
def test_the_meaning_holds_no_op_of_ours():
    """Also of scikit-image's arithmetic, which is taken as exact."""

    def f(x, ids):
        tokens = fused_hog_tokens(x, ids)
        masked = fused_mask_tokens(tokens, tokens[0, 0], ids > 3)
        return fused_hog(x), fused_hog(x, SKIMAGE, arithmetic="skimage"), masked, fused_masked_gather(masked, ids % 3)

    ours = {op: f for op, f in decomposition_table.items() if op.namespace == "maskfeat_kernels"}
    graph = make_fx(f, decomposition_table=ours)(BYTES, IDS)
    assert "maskfeat_kernels" not in graph.code and "maskfeat_kernels" in make_fx(f)(BYTES, IDS).code
    for of_graph, want in zip(graph(BYTES, IDS), f(BYTES, IDS), strict=True):
        torch.testing.assert_close(of_graph, want, rtol=0, atol=1e-6)


def test_an_op_is_itself_where_only_its_shape_is_asked_for(monkeypatch):
    """As of fake tensors with symbolic sizes, which would get guards from the meaning."""
    monkeypatch.setattr(reference, "hog", None)
    hog = torch.ops.maskfeat_kernels.hog.default
    shape = decomposition_table[hog](torch.empty(2, 3, 48, 64, device="meta"), 9, 8, 8, 0)
    assert shape.device.type == "meta" and shape.shape == (2, 3, 9, 6, 8)


@pytest.mark.slow  # exports for half a minute
@pytest.mark.filterwarnings("ignore")  # of torch about itself
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_onnxruntime_agrees(dtype, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    x = BYTES if dtype == torch.uint8 else BYTES / 255
    model, file = Everything(), str(tmp_path / "model.onnx")
    batch = {"x": {0: "batch"}, "token_ids": {0: "batch"}}
    torch.onnx.export(model, (x, IDS), file, dynamic_shapes=batch, verbose=False)
    x, ids = torch.cat([x, x.flip(-1)])[:3], torch.cat([IDS, IDS])[:3]
    want = model(x, ids)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    got = session.run(None, {"x": x.numpy(), "token_ids": ids.numpy()})
    for (name, of_torch), of_onnx in zip(want.items(), got, strict=True):
        assert np.abs(of_onnx - of_torch.numpy()).max() <= 1e-6, name


@pytest.mark.slow  # exports for ten seconds
@pytest.mark.filterwarnings("ignore")  # of torch about itself
@pytest.mark.parametrize("name", ["maskfeat", "opencv"])
def test_onnxruntime_takes_images_of_any_size(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, file = HOG(DIALECTS[name]), str(tmp_path / "model.onnx")
    torch.onnx.export(model, (BYTES,), file, dynamic_shapes=({0: "b", 2: "h", 3: "w"},), verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    other = BYTES[:1, :, 5:42, :59]
    (got,) = session.run(None, {"x": other.numpy()})
    np.testing.assert_allclose(got, model(other).numpy(), rtol=0, atol=1e-6)
