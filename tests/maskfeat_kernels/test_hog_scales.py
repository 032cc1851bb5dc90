"""fused_hog_scales: each cell size against its definition and a call of its own, and under PyTorch's transforms."""

import os
import subprocess
import sys

import numpy as np
import oracle
import pytest
import torch
from conftest import BACKENDS, device_of

from maskfeat_kernels import SKIMAGE, HogSpec, fused_hog, fused_hog_scales
from maskfeat_kernels.testing import ATOL, DTYPES, byte_images, check_hog, images

CASES = {  # shape, cells, changes; nine coarser cells in a row are more than a vector
    "8 and 16": ((2, 32, 152), (8, 16), {}),
    "4, 8 and 16, which drop other rows": ((39, 77), (4, 8, 16), {}),
    "one": ((33, 20), (8,), {}),
    "oblong, to the full width": ((1, 2, 16, 48), ((4, 2), (4, 6), (8, 48)), {"bins": 12}),
    "twice the same, and a window": ((2, 32, 32), (8, 8, 32), {"gaussian_window": 16}),
    "pixels": ((1, 9, 200), (1, 3), {"bins": 4}),
}
needs_cpu = pytest.mark.skipif("cpu" not in BACKENDS, reason="the extension is not built")


def test_the_definition_pixel_by_pixel(backend):
    x, cells = byte_images(7, 13, seed=1), (3, (3, 6))
    for cell, got in zip(cells, fused_hog_scales(x.to(device_of(backend)), cells, backend=backend), strict=True):
        want = oracle.hog(x, cell=(cell, cell) if isinstance(cell, int) else cell)
        torch.testing.assert_close(got.cpu().double(), torch.from_numpy(want), rtol=0, atol=ATOL[torch.float32])


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("case, dtype", [
    (case, dtype) if i % len(DTYPES) == j else pytest.param(case, dtype, marks=pytest.mark.slow)
    for i, case in enumerate(CASES) for j, dtype in enumerate(DTYPES)
])  # fmt: skip
def test_each_is_fused_hog_of_its_cell(compiled_backend, case, dtype):
    shape, cells, changes = CASES[case]
    x = images(*shape, dtype=dtype, seed=2)
    results = fused_hog_scales(x.to(device_of(compiled_backend)), cells, backend=compiled_backend, **changes)
    assert isinstance(results, tuple) and len(results) == len(cells)
    for cell, got in zip(cells, results, strict=True):
        want = fused_hog(x.to(got.device), cell=cell, backend=compiled_backend, **changes)
        assert (got.shape, got.dtype, got.is_contiguous()) == (want.shape, want.dtype, True)
        check_hog(got.cpu(), x, HogSpec(cell=cell, **changes))
        assert got is not results[0] or torch.equal(got, want)


@needs_cpu
@pytest.mark.slow
@pytest.mark.parametrize("cells", [(1, 512), (1, 2, 4, 512)])
def test_many_cells_are_added_without_loss(cells):
    """262144 cells one after the other would lose 1e-4 in float32."""
    x = images(512, 512, dtype=torch.float32, seed=3)
    check_hog(fused_hog_scales(x, cells, backend="cpu")[-1], x, HogSpec(cell=512))


@pytest.mark.sampled(lambda dtype: False)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint16], ids=str)
def test_whole_numbers(backend, dtype):
    x = byte_images(2, 32, 32, seed=4).to(dtype).to(device_of(backend))
    for cell, got in zip((8, 16), fused_hog_scales(x, (8, 16), backend=backend), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, fused_hog(x, cell=cell, backend=backend), rtol=0, atol=2e-6)


def test_strides_empty_batches_and_arrays(compiled_backend):
    x = byte_images(2, 40, 52, 3, seed=5).to(device_of(compiled_backend))
    for view in (x.permute(0, 3, 1, 2), x[..., 0].mT, x[:, ::2, 3:, 1], x[:1].expand(3, 40, 52, 3)[..., 2]):
        want = fused_hog_scales(view.contiguous(), (4, 8), backend=compiled_backend)
        assert all(map(torch.equal, fused_hog_scales(view, (4, 8), backend=compiled_backend), want))
    assert [result.shape[1:] for result in fused_hog_scales(view, range(4, 9, 4))] == [(9, 10, 13), (9, 5, 6)]
    empty = fused_hog_scales(x[:0, ..., 0], backend=compiled_backend)
    assert [result.shape for result in empty] == [(0, 9, 10, 13), (0, 9, 5, 6), (0, 9, 2, 3)]
    if compiled_backend == "cpu":
        array = x[0].numpy()[..., 1][::-1]
        results, want = fused_hog_scales(array, [4, (8, 8)]), fused_hog_scales(torch.tensor(array.copy()), (4, 8))
        assert all(isinstance(r, np.ndarray) and np.array_equal(r, w) for r, w in zip(results, want, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e20])
def test_what_is_not_finite_marks_its_cells_alone(compiled_backend, value):
    x = images(64, 64, dtype=torch.float32, seed=6).to(device_of(compiled_backend))
    clean = fused_hog_scales(x, backend=compiled_backend)
    x[18, 33] = value
    for cell, got, before in zip((4, 8, 16), fused_hog_scales(x, backend=compiled_backend), clean, strict=True):
        near = torch.zeros(got.shape[1:], dtype=torch.bool)
        near[17 // cell : 19 // cell + 1, 32 // cell : 34 // cell + 1] = True
        assert torch.equal(got.isnan().any(0).cpu(), near) and torch.equal(got.isnan().all(0).cpu(), near)
        assert torch.equal(got[:, ~near], before[:, ~near])


BITS = """
import hashlib, sys, torch
from maskfeat_kernels import fused_hog_scales
from maskfeat_kernels.testing import DTYPES, images
torch.set_num_threads(int(sys.argv[1]))
bits = hashlib.sha256()
for dtype in DTYPES:
    for cells in ((4, 8, 16), (8, 16), (1, 3, (6, 9)), (8, 224)):
        for result in fused_hog_scales(images(2, 3, 224, 229, dtype=dtype), cells):
            bits.update(result.numpy().tobytes())
print(bits.hexdigest())
"""


@needs_cpu
@pytest.mark.slow
def test_bits_are_those_of_every_vector_width_and_number_of_threads():
    printed = set()
    for instruction_set, threads in (("baseline", 1), ("", 1), ("", 2), ("", 3)):
        command = [sys.executable, "-c", BITS, str(threads)]
        environment = {**os.environ, "MASKFEAT_CPU": instruction_set}
        printed.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(printed) == 1


def loss_of(results):
    return sum((r * torch.linspace(-1, 1, r.numel(), dtype=r.dtype, device=r.device).view_as(r)).sum() for r in results)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_gradient_is_the_sum_of_those_of_each_cell(compiled_backend, dtype):
    x = images(2, 3, 39, 41, dtype=dtype, seed=7).to(device_of(compiled_backend)).requires_grad_()
    (got,) = torch.autograd.grad(loss_of(fused_hog_scales(x, backend=compiled_backend)), x)
    apart = [fused_hog(x, cell=cell, backend="reference") for cell in (4, 8, 16)]
    want = sum(torch.autograd.grad(loss_of([result]), x, retain_graph=True)[0] for result in apart)
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 4e-3, "atol": 4e-2}
    torch.testing.assert_close(got, want, **tolerance)
    results = fused_hog_scales(x, backend=compiled_backend)
    (got,) = torch.autograd.grad(loss_of(results[1:2]), x, create_graph=True)  # the others are not used
    torch.testing.assert_close(got, torch.autograd.grad(loss_of(apart[1:2]), x)[0], **tolerance)
    with pytest.raises(RuntimeError, match=r"^kernels of HOG are differentiable once"):
        got.sum().backward()


@pytest.mark.parametrize("unused", [0, 1], ids=["finest", "coarser"])
def test_a_result_that_is_not_used_has_no_part_in_the_gradient(compiled_backend, unused):
    """A NaN in a coarse cell reaches all its pixels, also with zero times its gradient."""
    x = images(2, 32, 32, dtype=torch.float32, seed=11).to(device_of(compiled_backend))
    x[:, 9, 9] = torch.nan
    x.requires_grad_()
    cell = (4, 16)[1 - unused]
    (want,) = torch.autograd.grad(loss_of([fused_hog(x, cell=cell, backend=compiled_backend)]), x)

    def loss(x):
        return loss_of([fused_hog_scales(x, (4, 16), backend=compiled_backend)[1 - unused]])

    assert want.isfinite().any()
    for got in (torch.autograd.grad(loss(x), x)[0], torch.func.grad(loss)(x.detach())):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    many = torch.vmap(torch.func.grad(loss))(torch.stack([x.detach(), 2 * x.detach()]))
    torch.testing.assert_close(many[0], want, rtol=0, atol=0, equal_nan=True)


def around(x):
    return [1 + result for result in fused_hog_scales(2 * x, (4, 8), backend=BACKENDS[0])]


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_without_graph_break_for_all_sizes_at_once():
    compiled = torch.compile(around, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 3, 24, 33), (3, 5, 40, 17)):
        x = byte_images(*shape, seed=8).float().to(device_of(BACKENDS[0]))
        assert all(map(torch.equal, compiled(x), around(x)))


def test_vmap():
    x = byte_images(4, 2, 3, 24, 33, seed=9).float().to(device_of(BACKENDS[0]))
    assert all(map(torch.equal, torch.vmap(around, in_dims=2)(x), around(x.movedim(2, 0))))
    grads = torch.vmap(torch.func.grad(lambda x: loss_of(around(x))))(x)
    torch.testing.assert_close(grads[1], torch.func.grad(lambda x: loss_of(around(x)))(x[1]))


class Scales(torch.nn.Module):
    def forward(self, x):
        return fused_hog_scales(x, (4, (8, 16)), bins=6, backend="cpu")


@needs_cpu
@pytest.mark.slow
def test_export_and_opcheck():
    dim = torch.export.Dim
    sides = {1: dim("height", min=32, max=512), 2: dim("width", min=32, max=512)}  # no axis of one cell
    x = images(2, 40, 48, dtype=torch.float32)
    program = torch.export.export(Scales(), (x,), dynamic_shapes={"x": {0: dim("batch"), **sides}})
    x = images(5, 33, 50, dtype=torch.float32)
    assert all(map(torch.equal, program.module()(x), Scales()(x)))
    for dtype in DTYPES:
        arguments = images(2, 24, 32, dtype=dtype), 9, [4, 4, 8, 16], 0
        torch.library.opcheck(torch.ops.maskfeat_kernels.hog_scales.default, arguments)


@pytest.mark.parametrize("change, error, message", [
    ({"cells": (4, 6)}, ValueError, r"a multiple of the one before, got \(6, 6\) after \(4, 4\)"),
    ({"cells": (8, 4)}, ValueError, r"got \(4, 4\) after \(8, 8\)"),
    ({"cells": ((4, 8), 8, (16, 12))}, ValueError, r"got \(16, 12\) after \(8, 8\)"),
    ({"cells": ()}, ValueError, r"at least one cell size, got \(\)"),
    ({"cells": 8}, TypeError, "a sequence of cell sizes, got 8"),
    ({"cells": "48"}, TypeError, "a sequence of cell sizes, got '48'"),
    ({"cells": b"\x04\x08"}, TypeError, "a sequence of cell sizes, got b"),
    ({"cells": {4, 8}}, TypeError, "a sequence of cell sizes, got {"),
    ({"cells": (4, 8.0)}, TypeError, "a cell of cells must be an int, got 8.0"),
    ({"cells": (0, 8)}, ValueError, "a cell of cells must be at least 1, got 0"),
    ({"cells": ((4, 4, 4),)}, ValueError, "must be an int or"),
    ({"cell": 8}, TypeError, "takes its cells from cells, and no cell, got cell=8"),
    ({"spec": SKIMAGE}, ValueError, "fused_hog_scales takes the dialect of MASKFEAT, got gradient 'central'"),
    ({"spec": "maskfeat"}, TypeError, "spec must be a HogSpec"),
    ({"bin": 9}, TypeError, "did you mean 'bins'"),
    ({"x": torch.zeros(1, 40, 15)}, ValueError, "smaller than a cell of 16 x 16"),
    ({"x": torch.zeros(32, 32, dtype=torch.int64)}, TypeError, "int64"),
    ({"gaussian_window": 5}, ValueError, "gaussian_window 5 does not tile"),
    ({"backend": "gpu"}, ValueError, "gpu"),
])  # fmt: skip
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        fused_hog_scales(**{"x": torch.zeros(1, 32, 32)} | change)


@pytest.mark.parametrize("cells, message", [
    ([], "cells must be"),
    ([4, 4, 8], "cells must be"),
    ([4, 4, 8, 6], "a multiple of the one before"),
    ([4, 4, 0, 0], "a multiple of the one before"),
    ([4, 4, 8, 1 << 62], "below 2\\^62"),
    ([0, 4], "out of range"),
])  # fmt: skip
def test_the_op_called_by_itself_refuses_what_it_cannot_read(compiled_backend, cells, message):
    x = byte_images(16, 16, seed=10).to(device_of(compiled_backend))
    with pytest.raises(RuntimeError, match=message):
        torch.ops.maskfeat_kernels.hog_scales.default(x, 9, cells, 0)
    large = torch.ops.maskfeat_kernels.hog_scales.default(x, 9, [8, 8, 1 << 60, 8], 0)
    assert torch.equal(large[0], fused_hog(x, backend=compiled_backend)) and large[1].shape == (9, 0, 2)
