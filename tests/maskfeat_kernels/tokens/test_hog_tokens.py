"""fused_hog_tokens: fused_hog of the whole images, cut into patches and gathered; ids, layouts and refusals."""

import math
import re

import pytest
import torch
from conftest import COMPILED, OPAQUE, device_of
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

from maskfeat_kernels import MASKFEAT, HogSpec, fused_hog, fused_hog_tokens
from maskfeat_kernels.testing import ATOL, DTYPES, byte_images, images

CASES = [
    ((2, 3, 32, 48), 16, {}),
    ((2, 2, 16, 24), 8, {}),
    ((1, 2, 28, 42), 14, dict(cell=7, bins=8)),
    ((1, 2, 28, 28), 14, dict(cell=(7, 2))),
    ((2, 1, 64, 32), 32, {}),
    ((1, 3, 48, 32), 16, dict(cell=(4, 8), bins=18)),
    ((2, 1, 24, 36), 12, dict(cell=(6, 3), bins=12)),
    ((1, 1, 96, 32), 32, dict(cell=(32, 16), bins=1)),
    ((3, 2, 32, 32), 16, dict(gaussian_window=16)),
    ((1, 2, 48, 48), 16, dict(gaussian_window=24, cell=4)),
    ((1, 2, 5, 7), 1, dict(cell=1, bins=4)),
    ((2, 3, 3, 32, 48), 16, {}),
    ((1, 4, 2, 16, 32), 16, dict(cell=16, bins=70)),
    ((2, 2, 2, 21, 14), 7, dict(cell=7)),
]  # shape of x, patch_size, changes to the spec


def count_of(
    shape: tuple[int, ...],  # of x: [B, C, H, W] or [B, T, C, H, W]
    patch_size: int,
) -> int:
    """The number of tokens of an image or video."""
    frames = shape[1] if len(shape) == 5 else 1
    return frames * (shape[-2] // patch_size) * (shape[-1] // patch_size)


def some_ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:  # [batch, length + 3]
    """Every id in a random order, and three of them again."""
    random = torch.Generator().manual_seed(seed)
    order = [torch.randperm(length, generator=random) for _ in range(batch)]
    return torch.cat([torch.stack(order), torch.randint(length, (batch, 3), generator=random)], dim=1)


def cut(
    histograms: torch.Tensor,  # [B, C, bins, rows, columns] or [B, T, C, bins, rows, columns]
    token_ids: torch.Tensor,  # [B, K]
    down: int,
    across: int,
) -> torch.Tensor:  # [B, K, C * bins * down * across]
    """The listed patches of ``down`` x ``across`` cells, one after the other."""
    videos = histograms.unsqueeze(1) if histograms.ndim == 5 else histograms
    grid_h, grid_w = videos.shape[-2] // down, videos.shape[-1] // across
    tokens = []
    for video, ids in zip(videos, token_ids.tolist(), strict=True):
        for id in ids:
            t, y, x = id // (grid_h * grid_w), id // grid_w % grid_h, id % grid_w
            patch = video[t, :, :, y * down : (y + 1) * down, x * across : (x + 1) * across]
            tokens.append(patch.flatten())
    return torch.stack(tokens).view(*token_ids.shape, -1)


def check_same(got: torch.Tensor, want: torch.Tensor, backend: str) -> None:
    """Bit by bit where the order of summation is one for whole images and patches."""
    if backend in COMPILED:
        assert torch.equal(got, want)
    else:
        torch.testing.assert_close(got, want, rtol=0, atol=ATOL[want.dtype])


@pytest.mark.sampled(
    lambda shape, patch_size, changes, dtype: (
        CASES.index((shape, patch_size, changes)) % len(DTYPES) == DTYPES.index(dtype)
        and changes.get("bins", 9) <= 18
        and patch_size <= 16
    )
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape, patch_size, changes", CASES, ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_tokens_are_patches_of_the_whole(hog, hog_tokens, backend, shape, patch_size, changes, dtype):
    x, spec = images(*shape, dtype=dtype, seed=40), MASKFEAT.replace(**changes)
    ids = some_ids(shape[0], count_of(shape, patch_size))
    got = hog_tokens(x, ids, patch_size, spec)
    want = cut(hog(x, spec), ids, patch_size // spec.cell[0], patch_size // spec.cell[1])
    assert got.is_contiguous()
    check_same(got, want, backend)


@pytest.mark.parametrize("video", [False, True], ids=["image", "video"])
def test_an_element_is_channel_then_bin_then_row_then_column(hog_tokens, video):
    # One bright pixel in frame 1, channel 1, patch (0, 1) of 1 x 2, cell (1, 0) of 2 x 2: four bins of that cell.
    frames = torch.zeros(2, 2, 16, 32)
    frames[1, 1, 8 + 3, 16 + 3] = 1
    side, corner = 4 / math.sqrt(48), 2 * math.sqrt(2) / math.sqrt(48)
    token = torch.zeros(72)
    for bin, value in ((0, side), (2, corner), (4, side), (6, corner)):
        token[((1 * 9 + bin) * 2 + 1) * 2 + 0] = value
    dark = torch.zeros(72)
    if video:
        got, want = hog_tokens(frames.unsqueeze(0), torch.tensor([[3, 1, 2, 3, 0]])), [[token, dark, dark, token, dark]]
    else:
        got, want = hog_tokens(frames, torch.tensor([[1, 0], [0, 1]])), [[dark, dark], [dark, token]]
    torch.testing.assert_close(got, torch.stack([torch.stack(row) for row in want]), rtol=0, atol=ATOL[torch.float32])


def test_an_element_of_a_rectangular_cell(hog_tokens):
    # Cells of 8 x 4 in a patch of 8: two, side by side. The edge between columns 5 and 6 is in the second.
    x = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    x[..., 6:] = 200
    want = torch.zeros(1, 1, 18)
    want[..., (4 * 1 + 0) * 2 + 1] = 1
    torch.testing.assert_close(
        hog_tokens(x, torch.zeros(1, 1, dtype=torch.int64), 8, cell=(8, 4)), want, rtol=0, atol=ATOL[torch.float32]
    )


def test_a_slope_over_the_border_of_patches_is_seen_from_both_sides(hog_tokens):
    x = torch.zeros(1, 1, 8, 16)
    x[..., 8:] = 1
    got = hog_tokens(x, torch.tensor([[0, 1]]), 8)
    assert got.nonzero().tolist() == [[0, 0, 4], [0, 1, 4]]


def test_every_second_frame_is_read_in_place(hog_tokens):
    video = byte_images(2, 6, 3, 32, 32, seed=41)
    ids = some_ids(2, 3 * 4)
    assert torch.equal(hog_tokens(video[:, ::2], ids), hog_tokens(video[:, ::2].contiguous(), ids))


LAYOUTS = {
    "channels last": lambda x: x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3),
    "channels before frames": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "transposed": lambda x: x.mT.contiguous().mT,
    "crop": lambda x: torch.nn.functional.pad(x, (3, 5, 2, 4), value=77)[..., 2:-4, 3:-5],
    "every second column": lambda x: torch.stack([x, 77 - x], -1).flatten(-2)[..., ::2],
    "every second image": lambda x: torch.stack([77 - x, x], 1).flatten(0, 1)[1::2],
}


@pytest.mark.sampled(lambda layout, dtype: dtype == torch.uint8)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_result_does_not_depend_on_the_memory_layout(hog_tokens, layout, dtype):
    x, ids = images(2, 2, 3, 16, 32, dtype=dtype, seed=42), some_ids(2, 2 * 2)
    view = LAYOUTS[layout](x)
    assert torch.equal(view, x)
    assert not view.is_contiguous()
    assert torch.equal(hog_tokens(view, ids), hog_tokens(x, ids))


def test_ids_of_any_strides(hog_tokens):
    x = byte_images(2, 3, 32, 32, seed=43)
    ids = some_ids(2, 4)
    wide = torch.full((4, 3 * ids.shape[1]), 99)
    wide[::2, ::3] = ids
    want = hog_tokens(x, ids)
    for same in (wide[::2, ::3], ids.mT.contiguous().mT):
        assert torch.equal(same, ids)
        assert torch.equal(hog_tokens(x, same), want)
    same_for_all = ids[:1].expand(2, -1)
    assert torch.equal(hog_tokens(x, same_for_all), hog_tokens(x, same_for_all.contiguous()))


@pytest.mark.parametrize("shape, count", [
    ((2, 3, 16, 16), 0),
    ((0, 3, 16, 16), 4),
    ((2, 0, 16, 16), 1),
    ((2, 0, 3, 16, 16), 0),
    ((0, 2, 3, 16, 16), 0),
], ids=str)  # fmt: skip
def test_nothing_asked_for_is_nothing_returned(hog_tokens, shape, count):
    for dtype in DTYPES:
        result = hog_tokens(torch.empty(shape, dtype=dtype), torch.zeros(shape[0], count, dtype=torch.int64))
        assert result.shape == (shape[0], count, shape[-3] * 36)
        assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.sampled(lambda dtype: dtype == torch.uint8)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(hog_tokens, two_threads, dtype):
    x, ids = images(8, 3, 64, 64, dtype=dtype, seed=44), some_ids(8, 16)
    with_two = hog_tokens(x, ids)
    torch.set_num_threads(1)
    assert torch.equal(hog_tokens(x, ids), with_two)


def test_nan_stays_in_the_tokens_that_touch_it(hog_tokens):
    x, ids = images(1, 2, 32, 48, dtype=torch.float32, seed=45), torch.arange(6).view(1, 6)
    clean = hog_tokens(x, ids).view(6, 2, 9, 2, 2)
    x[0, 1, 15, 16] = torch.nan  # the lower left corner of patch (0, 1), beside patches (0, 0), (1, 0) and (1, 1)
    stained = hog_tokens(x, ids).view(6, 2, 9, 2, 2)
    touched = torch.zeros(6, 2, 9, 2, 2, dtype=torch.bool)
    for id, y, column in ((1, 1, 0), (0, 1, 1), (4, 0, 0), (3, 0, 1)):
        touched[id, 1, :, y, column] = True
    assert stained[touched].isnan().all()
    assert torch.equal(stained[~touched], clean[~touched])


@pytest.mark.parametrize("wrong", [-1, 12, 2**40, -(2**63), 2**63 - 1])
def test_an_id_out_of_range_is_not_read(hog_tokens, backend, wrong):
    x = byte_images(4, 2, 1, 32, 48, seed=46)[1:3]  # has neighbours in memory on both sides
    ids = torch.tensor([[0, 11, 5], [2, wrong, 6]])
    message = re.escape(f"token_ids[1, 1] is {wrong}, outside 0 .. N - 1 with N = 12")
    if backend == "cpu":
        with pytest.raises(IndexError, match=message):
            hog_tokens(x, ids)
    else:
        got, want = hog_tokens(x, ids), hog_tokens(x, ids.where(ids != wrong, 0))
        assert got[1, 1].isnan().all()
        got[1, 1] = want[1, 1]
        assert torch.equal(got, want)
    with pytest.raises(IndexError, match=message):
        hog_tokens(x, ids, check_ids=True)


def test_no_id_is_in_range_of_no_frames(hog_tokens, backend):
    x, ids = torch.zeros(1, 0, 3, 16, 16), torch.zeros(1, 2, dtype=torch.int64)
    if backend == "cpu":
        with pytest.raises(IndexError, match="N = 0"):
            hog_tokens(x, ids)
    else:
        assert hog_tokens(x, ids).isnan().all()
    with pytest.raises(IndexError, match="N = 0"):
        hog_tokens(x, ids, check_ids=True)


def test_checked_ids_in_range_pass(hog_tokens):
    x, ids = byte_images(2, 3, 16, 32), some_ids(2, 2)
    assert torch.equal(hog_tokens(x, ids, check_ids=True), hog_tokens(x, ids))


def test_the_result_has_no_gradient_and_its_inputs_are_not_written_to(hog_tokens):
    x, ids = images(2, 3, 16, 32, dtype=torch.float32, seed=47), some_ids(2, 2)
    before = x.clone(), ids.clone()
    want = hog_tokens(x, ids)
    for leaf in (x.clone().requires_grad_(), torch.nn.Parameter(x.clone())):
        got = hog_tokens(leaf, ids)
        assert not got.requires_grad
        assert torch.equal(got, want)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(hog_tokens(x, ids), want)
    assert all(map(torch.equal, (x, ids), before))


IMAGE, IDS = torch.zeros(2, 3, 32, 48), torch.zeros(2, 4, dtype=torch.int64)
BAD_INPUT = [
    (3, IDS, {}, TypeError, "x must be a torch.Tensor, or an array with __dlpack__, got int"),
    (IMAGE.int(), IDS, {}, TypeError, "x must be uint8, float16, bfloat16, float32, float64, bool, int8, int16 or "),
    (IMAGE[0], IDS, {}, ValueError, "x must be [B, C, H, W] or [B, T, C, H, W], got shape (3, 32, 48)"),
    (IMAGE[None, None], IDS, {}, ValueError, "x must be [B, C, H, W] or [B, T, C, H, W], got shape (1, 1, 2, 3, 32,"),
    (IMAGE[..., :8, :7], IDS, {}, ValueError, "an image of 8 x 7 pixels is smaller than a cell of 8 x 8"),
    (IMAGE, IDS, dict(patch_size=12), ValueError, "patch_size must be a multiple of the cell of 8 x 8 pixels, got 12"),
    (IMAGE, IDS, dict(cell=(8, 5)), ValueError, "patch_size must be a multiple of the cell of 8 x 5 pixels, got 16"),
    (IMAGE, IDS, dict(patch_size=0), ValueError, "patch_size must be at least 1, got 0"),
    (IMAGE, IDS, dict(patch_size=-16), ValueError, "patch_size must be at least 1, got -16"),
    (IMAGE, IDS, dict(patch_size=16.0), TypeError, "patch_size must be an int, got 16.0"),
    (IMAGE, IDS, dict(patch_size=32), ValueError, "patch_size 32 does not divide an image of 32 x 48 pixels"),
    (IMAGE[..., :40], IDS, {}, ValueError, "patch_size 16 does not divide an image of 32 x 40 pixels"),
    (IMAGE, [[0, 1]], {}, TypeError, "token_ids must be a torch.Tensor, got list"),
    (IMAGE, IDS.int(), {}, TypeError, "token_ids must be int64, got torch.int32"),
    (IMAGE, IDS.bool(), {}, TypeError, "token_ids must be int64, got torch.bool"),
    (IMAGE, IDS[0], {}, ValueError, "token_ids must be [2, K] like x, got shape (4,)"),
    (IMAGE, IDS[:1], {}, ValueError, "token_ids must be [2, K] like x, got shape (1, 4)"),
    (IMAGE, IDS.to("meta"), {}, ValueError, "token_ids must be on the device of x, cpu, got meta"),
    (IMAGE, IDS, dict(gaussian_window=5), ValueError, "gaussian_window 5 does not tile an image of 32 x 48 pixels"),
    (IMAGE, IDS, dict(nbins=9), TypeError, "unknown HOG option 'nbins'; did you mean 'bins'?"),
    (IMAGE, IDS, dict(spec=9), TypeError, "spec must be a HogSpec, got 9"),
    (IMAGE, IDS, dict(backend="cuda"), ValueError, "backend 'cuda' is not available on device 'cpu'"),
]


@pytest.mark.parametrize("x, token_ids, options, error, message", BAD_INPUT, ids=[message for *_, message in BAD_INPUT])
def test_bad_input_is_refused_by_name(x, token_ids, options, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        fused_hog_tokens(x, token_ids, **options)


# Under PyTorch's transforms


def op_of(backend: str):
    """The op of a backend."""
    if backend != "triton":
        return torch.ops.maskfeat_kernels.hog_tokens.default
    from maskfeat_kernels.hog.triton import launch  # defines it

    return launch.hog_tokens_op


@pytest.mark.sampled(lambda shape, parameters, dtype: dtype == torch.float32)
@pytest.mark.parametrize("backend", OPAQUE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape, parameters", [
    ((2, 2, 3, 16, 32), (16, 9, 8, 8, 0)),
    ((1, 1, 2, 16, 16), (8, 12, 8, 4, 16)),
    ((0, 1, 3, 16, 16), (16, 9, 8, 8, 0)),
])  # fmt: skip
def test_opcheck(backend, shape, parameters, dtype):
    x, ids = images(*shape, dtype=dtype), torch.tensor([[3, 0, 3]]).expand(shape[0], -1)
    torch.library.opcheck(op_of(backend), (x.to(device_of(backend)), ids.to(device_of(backend)), *parameters))


def test_the_op_is_one_opaque_call_that_keeps_strides():
    assert str(torch.ops.maskfeat_kernels.hog_tokens.default._schema) == (
        "maskfeat_kernels::hog_tokens(Tensor x, Tensor token_ids, int patch_size, int bins, int cell_h, int cell_w, "
        "int gaussian_window) -> Tensor"
    )
    assert torch.Tag.needs_exact_strides in torch.ops.maskfeat_kernels.hog_tokens.default.tags


VIDEO = torch.zeros(2, 1, 3, 16, 16)


@pytest.mark.parametrize("x, token_ids, parameters, message", [
    (VIDEO[:, 0], IDS, (16, 9, 8, 8, 0), "axes"),
    (VIDEO.int(), IDS, (16, 9, 8, 8, 0), "the dtype must be uint8"),
    (VIDEO, IDS.int(), (16, 9, 8, 8, 0), "token_ids must be int64"),
    (VIDEO, IDS[0], (16, 9, 8, 8, 0), "token_ids must be"),
    (VIDEO, IDS[:1], (16, 9, 8, 8, 0), "token_ids must be"),
    (VIDEO, IDS, (12, 9, 8, 8, 0), "multiple of the cell"),
    (VIDEO, IDS, (0, 9, 8, 8, 0), "multiple of the cell"),
    (VIDEO, IDS, (16, 0, 8, 8, 0), "out of range"),
    (VIDEO, IDS, (16, 9, 8, 8, 5), "gaussian_window 5 does not tile"),
])  # fmt: skip
def test_the_op_called_by_itself_refuses_what_it_cannot_read(compiled_backend, x, token_ids, parameters, message):
    device = device_of(compiled_backend)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.maskfeat_kernels.hog_tokens.default(x.to(device), token_ids.to(device), *parameters)


SIZES = [(2, 3, 16, 48, 4), (3, 2, 32, 64, 7), (5, 4, 48, 32, 2)]
"""B, C, H, W, K; no axis of 1, which is compiled anew."""


@pytest.mark.parametrize("backend", OPAQUE)
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_without_graph_break_for_all_sizes_at_once(hog_tokens, backend):
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def around(x, token_ids):
        return 1 + 2 * fused_hog_tokens(x * 2, token_ids, bins=12, backend=backend)

    frames = set()
    for *shape, count in SIZES:
        x, ids = byte_images(*shape, seed=48).float(), some_ids(shape[0], count_of(shape, 16))[:, :count]
        got = around(x.to(device_of(backend)), ids.to(device_of(backend)))
        assert torch.equal(got.cpu(), 1 + 2 * hog_tokens(x * 2, ids, bins=12))
        frames.add(counter.frame_count)
    assert len(frames) == 1  # the first call begins anew once it knows that the numbers of a spec are constants


class Target(torch.nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.backend = backend

    def forward(self, x, token_ids):
        return fused_hog_tokens(x, token_ids, backend=self.backend)


@pytest.mark.sampled(lambda strict: strict)
@pytest.mark.parametrize("backend", OPAQUE)
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.usefixtures("fresh_compiler")
def test_exported_with_dynamic_batch_frames_and_count(hog_tokens, backend, strict):
    dim = torch.export.Dim
    batch = dim("batch", max=64)
    dynamic = {"x": {0: batch, 1: dim("frames", max=64)}, "token_ids": {0: batch, 1: dim("count", max=64)}}
    device = device_of(backend)
    example = byte_images(2, 3, 2, 16, 32).to(device), torch.zeros(2, 4, dtype=torch.int64, device=device)
    program = torch.export.export(Target(backend), example, dynamic_shapes=dynamic, strict=strict)
    for frames, batch in ((3, 2), (2, 5)):
        x, ids = byte_images(batch, frames, 2, 16, 32, seed=49), some_ids(batch, 2 * frames)
        assert torch.equal(program.module()(x.to(device), ids.to(device)).cpu(), hog_tokens(x, ids))


@pytest.mark.parametrize("backend", OPAQUE)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64], ids=str)
def test_fake_and_meta_results_look_like_real_ones(hog_tokens, backend, dtype):
    x, ids = torch.zeros(2, 3, 16, 32, dtype=dtype), torch.zeros(2, 5, dtype=torch.int64)
    real = hog_tokens(x, ids)
    results = [fused_hog_tokens(x.to("meta"), ids.to("meta"))]
    with FakeTensorMode() as mode:
        fake = (mode.from_tensor(tensor.to(device_of(backend))) for tensor in (x, ids))
        results.append(fused_hog_tokens(*fake, backend=backend))
    for result in results:
        assert (result.shape, result.dtype, result.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("backend", OPAQUE)
@pytest.mark.parametrize("in_dims", [(0, 0), (3, 1), (None, 2), (1, None)], ids=str)
def test_vmap_over_images_ids_or_both_is_a_loop(hog_tokens, backend, in_dims):
    x, ids = byte_images(3, 2, 2, 16, 32, seed=50), torch.stack([some_ids(2, 2, seed) for seed in range(3)])
    arguments = [part[0] if dim is None else part.movedim(0, dim) for part, dim in zip((x, ids), in_dims, strict=True)]

    def one(x, token_ids):
        return fused_hog_tokens(x, token_ids, backend=backend)

    got = torch.vmap(one, in_dims)(*(part.to(device_of(backend)) for part in arguments))
    want = [hog_tokens(x[0 if in_dims[0] is None else i], ids[0 if in_dims[1] is None else i]) for i in range(3)]
    assert torch.equal(got.cpu(), torch.stack(want))


def test_auto_is_the_first_backend_of_the_device():
    x, ids, spec = byte_images(1, 3, 16, 16, seed=51), torch.zeros(1, 1, dtype=torch.int64), HogSpec(cell=4)
    want = fused_hog(x, spec).flatten(1).unsqueeze(1)
    torch.testing.assert_close(fused_hog_tokens(x, ids, 16, spec), want, rtol=0, atol=ATOL[torch.float32])
