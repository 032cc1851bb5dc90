"""compat.fhog against loops in float64 that follow the papers and sources, and against numbers of dlib itself."""

import math

import numpy as np
import pytest
import torch
from conftest import BACKENDS, moved

from maskfeat_kernels.compat import fhog as fhog_module
from maskfeat_kernels.compat.fhog import fhog
from maskfeat_kernels.hog.plan import cell_axes

OF_DLIB = """
0.3823299 0.0495296 0.0000000 0.3722529 0.0017616 0.0674618 0.1031829 0.1442811
0.1702594 0.2821898 0.3941501 0.0784567 0.0000000 0.0607275 0.0026207 0.1105113
0.3455110 0.1879811 0.4000000 0.4000000 0.0784567 0.3722529 0.0624891 0.0700824
0.2136943 0.4000000 0.3582405 0.3505937 0.3345650 0.3276312 0.2850719
"""
"""dlib's 31 features of the one inner cell of ``waves(26, 22)``, by the bindings pyfhog 0.1.5."""


def waves(height, width):
    """A gray image of bytes in which every orientation occurs."""
    y, x = np.mgrid[:height, :width]
    return ((x * x + 3 * y * y + 5 * x * y) % 251).astype(np.uint8)


def oracle(image, cell, variant):  # [C, H, W] -> [31, rows, columns], float64
    dlib = variant == "dlib"
    channels, height, width = image.shape
    image = image.astype(np.float64)
    rows, columns = (math.floor(side / cell + 0.5) for side in (height, width))
    h = np.zeros((18, rows, columns))
    last_y = min(rows * cell, height) - 1 if dlib else height - 1
    last_x = min(columns * cell, width) - 1 if dlib else width - 1
    for y in range(1, last_y):
        for x in range(1, last_x):
            squared, dx, dy = 0.0, 0.0, 0.0
            for c in range(channels):
                sx, sy = image[c, y, x + 1] - image[c, y, x - 1], image[c, y + 1, x] - image[c, y - 1, x]
                if sx * sx + sy * sy > squared:
                    squared, dx, dy = sx * sx + sy * sy, sx, sy
            best, direction = 0.0, 0
            for o in range(9):
                # Directions 4 and 5 are equally near to a vertical gradient. Rounded, they are equal: the first.
                dot = round(math.cos(math.pi * o / 9), 12) * dx + round(math.sin(math.pi * o / 9), 12) * dy
                if abs(dot) > best:
                    best, direction = abs(dot), o if dot > 0 else o + 9
            at_y, at_x = (y + 0.5) / cell - 0.5, (x + 0.5) / cell - 0.5
            for r in (math.floor(at_y), math.floor(at_y) + 1):
                for k in (math.floor(at_x), math.floor(at_x) + 1):
                    if 0 <= r < rows and 0 <= k < columns:
                        h[direction, r, k] += math.sqrt(squared) * (1 - abs(at_y - r)) * (1 - abs(at_x - k))
    energy = ((h[:9] + h[9:]) ** 2).sum(0)
    inset = 1 if dlib else 0
    out = np.zeros((31, rows - 2 * inset, columns - 2 * inset))
    corners = [(1, 1), (-1, 1), (1, -1), (-1, -1)] if dlib else [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    for r in range(inset, rows - inset):
        for k in range(inset, columns - inset):
            for b, (down, across) in enumerate(corners):
                below, beside = min(max(r + down, 0), rows - 1), min(max(k + across, 0), columns - 1)
                total = energy[r, k] + energy[below, k] + energy[r, beside] + energy[below, beside]
                signed = np.minimum(h[:, r, k] / math.sqrt(total + 1e-4), 0.2)
                unsigned = np.minimum((h[:9, r, k] + h[9:, r, k]) / math.sqrt(total + 1e-4), 0.2)
                cell_out = out[:, r - inset, k - inset]
                cell_out[:18] += 0.5 * signed
                cell_out[18:27] += 0.5 * unsigned
                cell_out[27 + b] = 0.2357 * signed.sum() if dlib else unsigned.sum() / math.sqrt(18)
    return out


CASES = [  # channels, height, width, cell, values
    (1, 24, 24, 8, 256),
    (3, 26, 29, 8, 256),  # pixels beyond the last cell
    (3, 22, 31, 8, 256),  # a last cell that is not full
    (3, 31, 22, 5, 3),  # equal channels, of which the first wins, and many vertical gradients
    (2, 14, 41, 3, 7),
    (3, 9, 7, 1, 256),
    (1, 19, 33, 2, 2),
    (3, 60, 44, 4, 20),
]


@pytest.mark.sampled(lambda **case: False)  # Triton has a test of its own
@pytest.mark.parametrize("variant", fhog_module.VARIANTS)
@pytest.mark.parametrize("channels, height, width, cell, values", CASES)
def test_is_the_oracle(backend, channels, height, width, cell, values, variant):
    image = np.random.default_rng(height).integers(0, values, (channels, height, width), dtype=np.uint8)
    out = fhog(moved(torch.from_numpy(image), backend), cell, variant, backend=backend)
    expected = oracle(image, cell, variant)
    assert out.dtype == torch.float32 and out.shape == expected.shape
    np.testing.assert_allclose(out.cpu().numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", fhog_module.VARIANTS)
def test_of_floats(dtype, variant):
    image = torch.randn(2, 1, 3, 27, 38, dtype=dtype, generator=torch.Generator().manual_seed(1)) * 50
    out = fhog(image, 6, variant)
    assert out.dtype == dtype
    expected = np.stack([oracle(frame[0].numpy(), 6, variant)[None] for frame in image])
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif("triton" not in BACKENDS, reason="needs Triton")
def test_is_the_oracle_on_triton():
    """In blocks that overlap, as on all GPUs."""
    image = np.random.default_rng(3).integers(0, 256, (2, 14, 41), dtype=np.uint8)
    out = fhog(moved(torch.from_numpy(image), "triton"), 3, backend="triton")
    np.testing.assert_allclose(out.cpu().numpy(), oracle(image, 3, "dlib"), rtol=0, atol=1e-5)


def test_is_dlib():
    image = waves(26, 22)
    expected = np.array(OF_DLIB.split(), dtype=np.float64)
    np.testing.assert_allclose(fhog(image)[:, 0, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("height, width, cell", [(40, 64, 4), (72, 24, 8), (33, 50, 3), (3, 21, 1)])
def test_overlapping_blocks_are_the_whole(height, width, cell):
    """What GPUs compute: the grids have blocks of 3 to 8 cells a side, and of fewer where there are no more."""
    x = torch.from_numpy(waves(height, width)[None])
    grid = [-(-height // cell), -(-width // cell)]
    x = torch.nn.functional.pad(x, (0, grid[1] * cell - width, 0, grid[0] * cell - height))
    whole = fhog_module._bilinear(x, cell, grid, "cpu", most=max(grid))
    cut = fhog_module._bilinear(x, cell, grid, "cpu", most=6)
    assert whole.shape == cut.shape == (36, *grid)
    torch.testing.assert_close(whole, cut, rtol=1e-6, atol=1e-3)  # sums of up to 1e4 in another order


@pytest.mark.parametrize("cell", [1, 8, 9, 16, 22, 23, 44])
def test_blocks_fit_a_launch_of_cuda(cell, monkeypatch):
    """Its weights and edges are 300 numbers at most, and the weights of two equal axes are there once."""

    def look(x, spec, backend, **changes):
        raise LookupError(spec.replace(**changes))

    monkeypatch.setattr(fhog_module, "fused_hog", look)
    monkeypatch.setattr(fhog_module, "choose_backend", lambda device, name: "cuda")
    for sides in ((7, 8), (5, 9), (3, 31)):
        with pytest.raises(LookupError) as caught:
            fhog(torch.zeros(1, *(side * cell for side in sides)), cell)
        weights = {axis.weights for axis in cell_axes(caught.value.args[0])}
        assert sum(len(w) * len(w[0]) for w in weights) + 36 <= 300


@pytest.mark.parametrize("variant", fhog_module.VARIANTS)
def test_gradient(compiled_backend, variant):
    """Along a random direction, against central differences."""
    generator = torch.Generator().manual_seed(2)
    x, along = torch.randn(2, 2, 3, 25, 30, dtype=torch.float64, generator=generator).mul(50).unbind()
    weights = torch.randn(1, 31, 1, 1, dtype=torch.float64, generator=generator)

    def loss(x):
        return (fhog(moved(x, compiled_backend), 4, variant, backend=compiled_backend).cpu() * weights).sum()

    x.requires_grad_()
    loss(x).backward()
    with torch.no_grad():
        numeric = (loss(x + 1e-6 * along) - loss(x - 1e-6 * along)) / 2e-6
    torch.testing.assert_close((x.grad * along).sum(), numeric, rtol=1e-6, atol=0)


def test_is_zero_of_flat_images_and_has_no_gradient_there():
    x = torch.full((1, 32, 32), 7.0, requires_grad=True)
    fhog(x).sum().backward()
    assert not fhog(x).any() and not x.grad.any()


@pytest.mark.parametrize(
    "x, options, message",
    [
        (torch.zeros(1, 19, 24), {}, "3 x 3 cells of 8 pixels"),
        (torch.zeros(1, 3, 24), {"cell": 1, "variant": "vlfeat"}, "4 x 4 pixels"),
        (torch.zeros(24), {}, "got shape"),
        (torch.zeros(0, 24, 24), {}, "channel"),
        (torch.zeros(1, 24, 24), {"variant": "voc"}, "dlib, vlfeat, got 'voc'"),
        (torch.zeros(1, 24, 24), {"cell": 0}, "cell must be at least 1"),
    ],
)
def test_refuses(x, options, message):
    with pytest.raises(ValueError, match=message):
        fhog(x, **options)


def test_refuses_other_dtypes():
    with pytest.raises(TypeError, match="complex64"):
        fhog(torch.zeros(1, 24, 24, dtype=torch.complex64))


def test_takes_arrays_and_images_without_channels():
    image = waves(33, 40)
    out = fhog(image, variant="vlfeat")
    assert isinstance(out, np.ndarray) and out.shape == (31, 4, 5)
    assert np.array_equal(out, fhog(torch.from_numpy(image)[None], variant="vlfeat").numpy())


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("variant", ["dlib", "vlfeat"])
def test_under_transforms(compiled_backend, variant):
    """torch.compile without a graph break, torch.export, and vmap give what a plain call does."""
    x = moved(torch.from_numpy(np.stack([waves(33, 40), waves(40, 33).T])[:, None].repeat(3, 1)), compiled_backend)

    def features(x):
        return 2 * fhog(x, 4, variant, backend=compiled_backend)

    class Features(torch.nn.Module):
        def forward(self, x):
            return features(x)

    want = features(x)
    compiled = torch.compile(features, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), want, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.export.export(Features(), (x,)).module()(x), want, rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.func.vmap(features)(x), want, rtol=0, atol=1e-6)
