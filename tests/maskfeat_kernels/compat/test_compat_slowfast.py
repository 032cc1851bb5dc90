"""compat.slowfast against the operations of SlowFast's layer and mmpretrain's layout, written out again here."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import device_of

from maskfeat_kernels import fused_hog_tokens
from maskfeat_kernels.compat.slowfast import HOGGenerator, HOGLayerC
from maskfeat_kernels.hog import api as hog_module


class ReferenceLayer(torch.nn.Module):
    """What SlowFast's layer does, step by step; in float64 its ties at 45 degrees are those of exact arithmetic."""

    def __init__(self, nbins=9, pool=7, gaussian_window=0):
        super().__init__()
        self.nbins, self.pool, self.gaussian_window = nbins, pool, gaussian_window
        weight = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).view(1, 1, 3, 3).repeat(3, 1, 1, 1)
        self.register_buffer("weight_x", weight)
        self.register_buffer("weight_y", weight.transpose(2, 3))
        if gaussian_window:
            at = np.linspace(-(gaussian_window - 1) / 2, (gaussian_window - 1) / 2, gaussian_window)
            e = np.exp(-0.5 * (at / (gaussian_window // 2)) ** 2)
            self.register_buffer("gkern", torch.tensor(np.outer(e, e) / np.outer(e, e).sum()).float())

    def forward(self, x):
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        gx, gy = (F.conv2d(x, w.to(x.dtype), groups=3) for w in (self.weight_x, self.weight_y))
        norm = torch.stack([gx, gy], dim=-1).norm(dim=-1)
        phase = torch.atan2(gx, gy) / math.pi * self.nbins
        b, c, h, w = norm.shape
        out = torch.zeros((b, c, self.nbins, h, w), dtype=x.dtype)
        phase, norm = phase.view(b, c, 1, h, w), norm.view(b, c, 1, h, w)
        if self.gaussian_window:
            n = h // self.gaussian_window
            norm = norm * (self.gkern.to(x.dtype).repeat(n, n) if h != self.gaussian_window else self.gkern.to(x.dtype))
        out.scatter_add_(2, phase.floor().long() % self.nbins, norm)
        out = out.unfold(3, self.pool, self.pool).unfold(4, self.pool, self.pool).sum(dim=[-1, -2])
        return F.normalize(out, p=2, dim=2)


def random_case(seed):
    rng = np.random.default_rng(seed)
    window = int(rng.choice([0, 0, 4, 9, 16]))
    pool = int(rng.integers(1, 12))
    sides = [window * int(rng.integers(1, 5))] * 2 if window else rng.integers(2, 60, 2).tolist()
    pool = min(pool, *sides)
    options = {"nbins": int(rng.integers(1, 20)), "pool": pool, "gaussian_window": window}
    image = rng.integers(0, rng.choice([2, 8, 256]), (int(rng.integers(0, 3)), 3, *sides))
    return torch.from_numpy(image), options


@pytest.fixture
def device(backend, monkeypatch):
    """Modules use the backend under test, whose device this is."""
    monkeypatch.setattr(hog_module, "choose_backend", lambda device, name: backend)
    return device_of(backend)


@pytest.mark.sampled(lambda first: first == 0)
@pytest.mark.parametrize("first", [n if n < 80 else pytest.param(n, marks=pytest.mark.slow) for n in range(0, 220, 4)])
def test_random_parameters(first, device):
    """Whole numbers of 0 .. 255, as bytes and as floats."""
    for seed in range(first, first + 4):
        image, options = random_case(seed)
        expected = ReferenceLayer(**options)(image.double())
        layer = HOGLayerC(**options).to(device)
        for dtype in (torch.uint8, torch.float32):
            result = layer(image.to(device, dtype)).cpu()
            assert result.dtype == torch.float32 and result.is_contiguous()
            torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6, msg=f"{seed}, {options}")


@pytest.mark.parametrize("nbins", [5, 9, 18])
def test_float32_of_slowfast_itself(nbins):
    """Where no edge lies at 45 degrees, also its own arithmetic in float32 agrees."""
    image = torch.randint(0, 256, (2, 3, 60, 53), generator=torch.Generator().manual_seed(0)).float()
    torch.testing.assert_close(HOGLayerC(nbins, 8)(image), ReferenceLayer(nbins, 8)(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"nbins": 5, "pool": 8, "gaussian_window": 16}])
def test_state_dicts_are_slowfasts(options):
    ours, theirs = HOGLayerC(**options), ReferenceLayer(**options)
    assert (ours.nbins, ours.pool, ours.gaussian_window) == (theirs.nbins, theirs.pool, theirs.gaussian_window)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


def test_no_gradient():
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    assert not HOGLayerC(pool=8)(image).requires_grad


@pytest.mark.parametrize("side, pool, window", [(224, 8, 16), (112, 8, 0), (240, 8, 16), (56, 4, 0)])
def test_layout_of_mmpretrain(side, pool, window):
    image = torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(0)).float()
    layer = HOGGenerator(pool=pool, gaussian_window=window)
    result, cells = layer(image), ReferenceLayer(9, pool, window)(image.double())
    u = cells.shape[-1] // 14
    flat = cells.flatten(1, 2).permute(0, 2, 3, 1)
    expected = flat.unfold(1, u, u).unfold(2, u, u).flatten(1, 2).flatten(2)
    assert result.shape == expected.shape
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(layer.out.double(), cells, rtol=0, atol=1e-6)
    assert (layer.h, layer.w) == (side, side)


def test_the_layout_is_that_of_all_tokens():
    image = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    everything = torch.arange(196).expand(2, 196)
    assert torch.equal(HOGGenerator(gaussian_window=0)(image), fused_hog_tokens(image, everything))


def test_defaults():
    assert repr(HOGLayerC()) == "HOGLayerC(nbins=9, pool=7, gaussian_window=0)"
    assert repr(HOGGenerator()) == "HOGGenerator(nbins=9, pool=8, gaussian_window=16)"


@pytest.mark.parametrize(
    "layer, shape, names",
    [
        (HOGLayerC(), (1, 3, 6, 9), "smaller than a cell"),
        (HOGLayerC(gaussian_window=16), (1, 3, 24, 24), "gaussian_window 16"),
        (HOGGenerator(), (1, 3, 96, 96), "at least 112 pixels wide"),
    ],
)
def test_bad_input_is_named(layer, shape, names):
    with pytest.raises(ValueError, match=names):
        layer(torch.zeros(shape))
