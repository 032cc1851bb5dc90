"""fused_hog with a mask of the pixels that vote."""

import numpy as np
import pytest
import torch

from maskfeat_kernels import MASKFEAT, OPENCV, SKIMAGE, HogSpec, fused_hog
from maskfeat_kernels.nn import HOG
from maskfeat_kernels.testing import byte_images

ONE_CELL = HogSpec(cell=4, gradient="central", norm="none")
SPECS = {
    "maskfeat": MASKFEAT,
    "skimage": SKIMAGE.replace(cell=4),
    "bilinear": SKIMAGE.replace(cell=4, cells="bilinear", votes="linear", channels="each"),
}


def test_a_pixel_outside_casts_no_vote_and_is_read_by_its_neighbours():
    x = torch.zeros(4, 4, dtype=torch.uint8)
    x[:, 2:] = 10  # columns 1 and 2 have the gradient 10, from left to right: bin 4
    mask = torch.ones(4, 4, dtype=torch.bool)

    def votes(mask):
        return fused_hog(x, ONE_CELL, mask=mask)[:, 0, 0].tolist()

    assert votes(mask) == [0, 0, 0, 0, 80, 0, 0, 0, 0]
    mask[:, 3] = False  # the gradient of column 2 reads it
    assert votes(mask) == [0, 0, 0, 0, 80, 0, 0, 0, 0]
    mask[1:, 2] = False
    assert votes(mask) == [0, 0, 0, 0, 50, 0, 0, 0, 0]
    x[0, 2] = 200  # the one pixel of column 2 that votes now has a gradient down as well; those below read it, too
    mask[0] = False
    assert votes(mask)[4] == 30


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", [(2, 3, 25, 32), (24, 32)], ids=str)
def test_votes_inside_and_outside_add_up(spec, shape):
    x = byte_images(*shape, seed=1)
    mask = byte_images(*shape[:-3], *shape[-2:], seed=2) > 100
    spec = SPECS[spec].replace(norm="none", eps=0.0)
    whole, inside, outside = (fused_hog(x.double(), spec, mask=m) for m in (torch.ones_like(mask), mask, ~mask))
    assert torch.equal(whole, fused_hog(x.double(), spec, backend="reference"))
    torch.testing.assert_close(inside + outside, whole)
    assert inside.any() and outside.any()


@pytest.mark.parametrize("spec", [*SPECS.values(), OPENCV], ids=[*SPECS, "opencv"])
def test_one_mask_or_one_for_each_image(spec):
    x = byte_images(2, 3, 32, 32, seed=3)
    mask = byte_images(2, 32, 32, seed=4) > 100
    got = fused_hog(x, spec, mask=mask)
    for i in range(2):
        assert torch.equal(got[i], fused_hog(x[i], spec, mask=mask[i]))
    assert torch.equal(HOG(spec)(x, mask), got)
    assert torch.equal(fused_hog(x, spec, mask=mask[0]), fused_hog(x, spec, mask=mask[:1].expand(2, 32, 32)))
    assert not fused_hog(x, spec, mask=torch.zeros_like(mask)).any()


def test_gradients_come_from_votes_inside():
    x = byte_images(1, 16, 16, seed=5).double().requires_grad_()
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:8] = True
    (grad,) = torch.autograd.grad(fused_hog(x, ONE_CELL, mask=mask).sum(), x)
    assert grad[0, :9].any(1).all() and not grad[0, 9:].any()  # row 8 is read by row 7


def test_arrays_and_whole_numbers():
    x, mask = byte_images(3, 16, 16, seed=6), byte_images(16, 16, seed=7) > 100
    want = fused_hog(x, mask=mask)
    assert np.array_equal(fused_hog(x.numpy(), mask=mask.numpy()), want)
    assert torch.equal(fused_hog(x.short(), mask=mask), fused_hog(x.double(), mask=mask).float())


@pytest.mark.parametrize("change, error, message", [
    ({"mask": [[True]]}, TypeError, "mask must be a torch.Tensor"),
    ({"mask": torch.ones(16, 16)}, TypeError, "mask must be bool, got torch.float32"),
    ({"mask": torch.ones(16, 8).bool()}, ValueError, r"mask must be \[H, W\]"),
    ({"mask": torch.ones(3, 16, 16).bool()}, ValueError, r"got shape \(3, 16, 16\)"),
    ({"mask": torch.ones(16, 16, device="meta").bool()}, ValueError, "mask must be on the device of x"),
    ({"backend": "cpu"}, ValueError, "a mask needs backend 'reference', got 'cpu'"),
])  # fmt: skip
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        fused_hog(**({"x": torch.zeros(2, 3, 16, 16), "mask": torch.ones(16, 16).bool()} | change))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_without_graph_break():
    def masked(x, mask):
        return 2 * fused_hog(x, SKIMAGE, cell=4, mask=mask)

    x, mask = byte_images(2, 3, 24, 32, seed=8), byte_images(2, 24, 32, seed=9) > 100
    torch.testing.assert_close(torch.compile(masked, fullgraph=True, backend="aot_eager")(x, mask), masked(x, mask))
