"""The CUDA sources themselves, run on the host under sanitizers, and where there is a GPU under compute-sanitizer.

Small inputs: what is proved here is that every access is inside its array, ordered and initialised, and that the
arithmetic is right; ``test_hog.py`` has the full table of cases for the backends of this machine.
"""

import re
import subprocess

import pytest
import torch
from conftest import BACKENDS, REQUIRED
from cuda_program import DTYPES, KERNELS, ON_DEVICE, Out, Result, checked, kernel_object, program, run, why_not

from maskfeat_kernels import fused_hog, fused_hog_scales
from maskfeat_kernels.hog.spec import HogSpec
from maskfeat_kernels.testing import check_hog, images

ON_DEVICE_HERE = ON_DEVICE if "cuda" in REQUIRED or why_not("memcheck") is None else ()
# Compiled for two sanitizers, the kernels take most of the time of these tests.
CHECKERS = ("address", pytest.param("thread", marks=pytest.mark.slow), *ON_DEVICE_HERE)
SEEDS = (0, 1)  # blocks and threads in ascending order, and in another
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

X = torch.randint(4, (3, 64), generator=torch.Generator().manual_seed(0)).float()
"""Three blocks for the small kernels: whole numbers, which float32 sums exactly."""


@pytest.fixture(params=CHECKERS)
def checker(request) -> str:
    """Every tool that watches a program."""
    return usable(request.param)


@pytest.fixture(params=CHECKERS[:2])
def sanitizer(request) -> str:
    """The tools that watch on the host."""
    return usable(request.param)


def usable(checker: str) -> str:
    reason = why_not(checker)
    if reason is None:
        return checker
    if checker in ON_DEVICE:
        pytest.fail(reason)
    return pytest.skip(reason)


def seeds_for(checker: str) -> tuple[int, ...]:
    """Races are found in one order as in the other, and a GPU has its own."""
    return SEEDS if checker == "address" else SEEDS[1:]


# What each kernel must compute

HOG_CASES = [
    ((2, 3, 16, 24), torch.uint8, HogSpec()),
    ((3, 17, 41), torch.float32, HogSpec()),
    ((1, 33, 70), torch.float16, HogSpec(bins=12, cell=(3, 5))),
    ((2, 16, 16), torch.bfloat16, HogSpec(bins=18, cell=4)),
    ((2, 16, 32), torch.float64, HogSpec(gaussian_window=16)),
    ((1, 9, 8), torch.uint8, HogSpec(bins=1, cell=(1, 8))),
]


@pytest.mark.parametrize("shape, dtype, spec", HOG_CASES)
def test_hog(checker, shape, dtype, spec):
    x = images(*shape, dtype=dtype)
    results = [whole_hog(checker, x, spec, seed) for seed in seeds_for(checker)]
    check_hog(results[0], x, spec)
    assert all(torch.equal(other, results[0]) for other in results), "the order of blocks and threads shows"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_hog_of_interleaved_channels_and_of_a_crop(dtype):
    checker = usable("address")
    interleaved = images(2, 20, 28, 3, dtype=dtype).permute(0, 3, 1, 2)
    crop = images(2, 3, 30, 40, dtype=dtype)[..., 5:24, 7:35]
    for x in (interleaved, crop, crop.flip(0).transpose(-1, -2)):
        check_hog(whole_hog(checker, x, HogSpec()), x)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU kernel is not built")
@pytest.mark.parametrize("bins", [1, 9, 10, 18, *(pytest.param(bins, marks=pytest.mark.slow) for bins in range(2, 9))])
@pytest.mark.parametrize("dtype", [torch.uint8, *FLOATS])
def test_hog_has_the_bits_of_the_cpu(dtype, bins):
    """Where eight pixels side by side are aligned, and where they are not, or not side by side."""
    checker, spec = usable("address"), HogSpec(bins=bins)
    x, narrow = images(2, 2, 24, 48, dtype=dtype), images(2, 2, 24, 22, dtype=dtype)
    aligned = (x, x[0, :, :8, 8:16], x[:, :, 1:, 16:39])
    for image in (*aligned, x[..., 1:], narrow, x[..., ::2], x.transpose(-1, -2)):
        assert torch.equal(whole_hog(checker, image, spec), fused_hog(image, spec, backend="cpu"))


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU kernel is not built")
@pytest.mark.parametrize("bins", [8, 9])
def test_a_vanishing_gx_has_the_bits_of_the_cpu(bins):
    """Next to gy it is nothing, but its sign decides between the first bin and the last."""
    x = torch.zeros(1, 24, 32)
    x[:, ::4] = 1
    x[:, 1::2] = torch.randn(12, 32, generator=torch.Generator().manual_seed(0)) * 2.0**-120
    spec = HogSpec(bins=bins)
    assert torch.equal(whole_hog(usable("address"), x, spec), fused_hog(x[None], spec, backend="cpu")[0])


@pytest.mark.parametrize("dtype, value", [*((dtype, torch.inf) for dtype in FLOATS), (torch.float32, 1e20)])
@pytest.mark.parametrize("spec", [HogSpec(), HogSpec(bins=18), HogSpec(cell=(12, 4)), HogSpec(gaussian_window=16)])
def test_a_gradient_that_is_not_finite_marks_all_bins_of_its_cell(dtype, value, spec):
    x = images(2, 48, 48, dtype=dtype)
    clean = whole_hog(usable("address"), x, spec)
    x[1, 13, 14] = value
    result = whole_hog(usable("address"), x, spec)
    row, column = 13 // spec.cell[0], 14 // spec.cell[1]
    assert result[1, :, row, column].isnan().all()
    wrong = result.isnan().any(1)
    expected = torch.zeros_like(wrong)
    expected[1, 12 // spec.cell[0] : 14 // spec.cell[0] + 1, 13 // spec.cell[1] : 15 // spec.cell[1] + 1] = True
    assert torch.equal(wrong, expected)
    assert torch.equal(result[(~wrong)[:, None].expand_as(result)], clean[(~wrong)[:, None].expand_as(result)])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("width", [48, 50])
@pytest.mark.parametrize("side, spec", [(16, HogSpec()), (8, HogSpec(cell=4))])
def test_hog_of_patches(checker, dtype, width, side, spec):
    """The cells of the listed patches, those at the border too, as they are in the whole image; ids may repeat."""
    x = images(2, 2, 3, 35, width, dtype=dtype)  # [B, T, C, H, W]
    down, across = 35 // side, width // side
    ids = torch.tensor([[0, down * across - 1, down * across], [2 * down * across - 1, 1, 1]])
    u = side // spec.cell[0]
    out = Out((2, 3, 3, spec.bins, u, u))
    result = checked("hog", checker, PATCHES, *hog_words(x, spec), ids, side, out, seed=1)[0]
    whole = whole_hog(checker, x, spec)[..., : down * u, : across * u]
    patches = whole.unflatten(-1, (across, u)).unflatten(-3, (down, u))  # [B, T, C, bins, down, u, across, u]
    patches = patches.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(1, 3)  # [B, T * down * across, C, bins, u, u]
    assert torch.equal(result, patches[torch.arange(2).unsqueeze(1), ids])


def test_a_patch_outside_is_not_read(checker):
    x, ids = images(1, 1, 1, 16, 32, dtype=torch.uint8), torch.tensor([[1, 2, -1, 2**40]])
    result = checked("hog", checker, PATCHES, *hog_words(x, HogSpec()), ids, 16, Out((1, 4, 1, 9, 2, 2)))[0]
    assert result[:, 0].isfinite().all()
    assert result[:, 1:].isnan().all()


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU kernel is not built")
@pytest.mark.parametrize("dtype, cells, shape", [
    (torch.uint8, (8, 16, 32), (2, 40, 152)),
    (torch.float32, (4, 8, (16, 24)), (3, 37, 53)),
    (torch.float64, (8, 24), (2, 50, 60)),
    *(pytest.param(dtype, (3, 3, (9, 6)), (2, 30, 41), marks=pytest.mark.slow) for dtype in FLOATS),
])  # fmt: skip
def test_several_cells_have_the_bits_of_the_cpu(checker, dtype, cells, shape):
    x = images(*shape, dtype=dtype)
    want = fused_hog_scales(x, cells, backend="cpu")
    words, before = [], HogSpec(cell=cells[0]).cell
    for cell, result in zip(cells, want, strict=True):
        cell = HogSpec(cell=cell).cell
        words += [cell[0] // before[0], cell[1] // before[1], Out(result.shape, result.dtype)]
        before = cell
    for seed in seeds_for(checker):
        got = checked("hog", checker, SCALES, *hog_words(x, HogSpec(cell=cells[0])), *words, seed=seed)
        assert all(map(torch.equal, got, want))


WHOLE, PATCHES, SCALES = range(3)


def whole_hog(checker: str, x: torch.Tensor, spec: HogSpec, seed: int = 0) -> torch.Tensor:
    """x: [..., H, W] -> [..., bins, H // cell_h, W // cell_w], by the CUDA source."""
    *lead, height, width = x.shape
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    out = Out((*lead, spec.bins, height // spec.cell[0], width // spec.cell[1]), dtype)
    return checked("hog", checker, WHOLE, *hog_words(x, spec), out, seed=seed)[0]


def hog_words(x: torch.Tensor, spec: HogSpec) -> tuple:
    return x, spec.bins, *spec.cell, spec.gaussian_window


GATHER, SCATTER_ADD, MASK_TOKENS, MASKED_SUM = range(4)


# Which threads meet at an address does not depend on the dtype.
THREAD = pytest.param("thread", torch.float32, marks=pytest.mark.slow)
GATHER_CASES = [*(("address", dtype) for dtype in FLOATS), THREAD, *((c, torch.float32) for c in ON_DEVICE_HERE)]


@pytest.mark.parametrize("width", [40, 7])
@pytest.mark.parametrize("checker, dtype", GATHER_CASES, indirect=["checker"])
def test_masked_gather(checker, dtype, width):
    random = torch.Generator().manual_seed(width)
    tokens = torch.randn(3, 70, width, generator=random).to(dtype)
    ids = torch.randint(70, (3, 50), generator=random)
    ids[0, :8] = 69
    mask = torch.rand(3, 70, generator=random) < 0.4
    mask_token = torch.randn(width, generator=random).to(dtype)
    for seed in seeds_for(checker):

        def call(function, *arguments, seed=seed):
            return checked("masked_gather", checker, function, *arguments, seed=seed)[0]

        gathered = call(GATHER, tokens, ids, Out((3, 50, width), dtype))
        assert torch.equal(gathered, tokens[torch.arange(3).unsqueeze(1), ids])
        added = call(SCATTER_ADD, gathered, ids, 70, Out(tokens.shape, dtype))
        assert torch.equal(added, sums_in_order(gathered, ids, 70))
        masked = call(MASK_TOKENS, tokens, mask_token, mask, Out(tokens.shape, dtype))
        assert torch.equal(masked, torch.where(mask.unsqueeze(-1), mask_token, tokens))
        chosen = call(MASKED_SUM, tokens, DTYPES.index(dtype), Out((1, width), dtype), mask)
        expected = (tokens.double() * mask.unsqueeze(-1)).sum((0, 1)).unsqueeze(0)
        torch.testing.assert_close(chosen.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)
        # More rows than one block sums: a sum for each 256 rows, in float32 or float64.
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        chunks = call(MASKED_SUM, tokens.repeat(1, 2, 1), DTYPES.index(dtype), Out((2, width), wide))
        expected = torch.stack([part.double().sum(0) for part in tokens.repeat(1, 2, 1).flatten(0, 1).split(256)])
        torch.testing.assert_close(chunks.double(), expected, rtol=0, atol=1e-4)


def test_an_id_outside_is_not_read(checker):
    tokens, ids = torch.randn(2, 40, 8), torch.tensor([[0, 40, -1], [39, 2**40 + 1, -(2**63)]])
    out = checked("masked_gather", checker, GATHER, tokens, ids, Out((2, 3, 8)))[0]
    assert torch.equal(out[:, 0], tokens[[0, 1], [0, 39]])
    assert out[:, 1:].isnan().all()
    added = checked("masked_gather", checker, SCATTER_ADD, tokens[:, :3], ids, 40, Out(tokens.shape))[0]
    expected = torch.zeros_like(tokens)
    expected[[0, 1], [0, 39]] = tokens[:, 0]
    assert torch.equal(added, expected)


def many_ids(checker: str, seed: int, changes=()) -> tuple[Result, torch.Tensor]:
    """Sums of more ids than a block has threads, some of a token twice, and what they must be."""
    random = torch.Generator().manual_seed(0)
    values, ids = torch.randn(1, 300, 8, generator=random), torch.randperm(400, generator=random)[:300].unsqueeze(0)
    ids[0, 280:] = ids[0, :20]
    out = Out((1, 400, 8))
    result = run("masked_gather", checker, SCATTER_ADD, values, ids, 400, out, seed=seed, changes=changes)
    return result, sums_in_order(values, ids, 400)


def test_more_ids_than_threads(checker):
    for seed in seeds_for(checker):
        result, expected = many_ids(checker, seed)
        assert result.status == 0, result.text
        assert torch.equal(result.out[0], expected)


def test_more_ids_than_an_int_counts_are_refused():
    values, ids = torch.zeros(1).expand(1, 2**30 + 1, 1), torch.zeros(1, dtype=torch.int64).expand(1, 2**30 + 1)
    result = run("masked_gather", usable("address"), SCATTER_ADD, values, ids, 1, Out((1, 1, 1)))
    assert (result.status, result.out) == (1, [])


BARRIER = "  __syncthreads();\n"
FIRST, LAST = "last[thread] = -1;\n", "atomicMax(&last[id - n0], k);\n  }\n"
SCATTER_BUGS = {
    "missing barrier before the ids": (FIRST + BARRIER, FIRST),
    "missing barrier after the ids": (LAST + BARRIER, LAST),
    "plain minimum": ("atomicMin(&first[id - n0], k);", "if (k < first[id - n0]) first[id - n0] = k;"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCATTER_BUGS)
def test_a_race_of_scatter_is_seen(name):
    result, _ = many_ids(usable("thread"), 1, (SCATTER_BUGS[name],))
    assert result.status != 0
    assert "data race" in result.text


def sums_in_order(
    values: torch.Tensor,  # [B, K, D]
    ids: torch.Tensor,  # [B, K]
    length: int,
) -> torch.Tensor:  # [B, length, D]
    """For each token the sum of its values in the order of k, in float32 or float64, rounded once at the end."""
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    out = torch.zeros(values.shape[0], length, values.shape[2], dtype=wide)
    for b, k in torch.cartesian_prod(*map(torch.arange, ids.shape)).tolist():
        out[b, ids[b, k]] += values[b, k]
    return out.to(values.dtype)


# What a kernel file must look like for the checks to see everything


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_and_their_shared_memory_are_internal(kernel, sanitizer):
    """Shared memory of an external template gets no redzones, and another mutable static would be taken for it."""
    program(kernel, sanitizer)
    listed = subprocess.run(
        ["nm", "--demangle", kernel_object(kernel, sanitizer)], capture_output=True, text=True, check=True
    )
    data = re.findall(r"^[0-9a-f]* +([bBdDuVvC]) (.*)$", listed.stdout, re.MULTILINE)
    offenders = [
        name
        for kind, name in data
        if (kind != "b" or name.startswith("guard variable")) and not name.startswith(("DW.ref.", "__odr_asan"))
    ]
    assert offenders == []


# That the checks see what they are for

BUGS = re.findall(r"X\((\w+)\)", (KERNELS["seeded_bugs"].with_suffix(".h")).read_text())
SUM, HISTOGRAM = 0, 1

STOPPED = {
    ("global_out_of_bounds", SUM, "address"): "heap-buffer-overflow",
    ("shared_out_of_bounds", SUM, "address"): "index 64 out of bounds for type 'float",
    ("dynamic_out_of_bounds", HISTOGRAM, "address"): "heap-buffer-overflow",
    ("misaligned_vector", SUM, "address"): "misaligned address .* for type 'const struct float4'",
    ("early_exit", SUM, "address"): "1 have left the kernel, 63 wait at __syncthreads",
    ("divergent_barrier", SUM, "address"): "32 have left the kernel, 32 wait at __syncthreads",
    ("absent_lanes", SUM, "address"): "16 wait at a shuffle",
    ("unnamed_lane", SUM, "address"): r"thread \d+ 0 0: line \d+: a shuffle reads lane",
    ("too_many_threads", SUM, "address"): "CUDA error 9",
    ("missing_barrier", SUM, "thread"): "data race",
    ("shuffle_without_fence", SUM, "thread"): "data race",
    ("plain_addition", HISTOGRAM, "thread"): "data race",
}
"""Bugs that end the program, and what it says."""

POISONED = ("uninitialised_shared", "unwritten_result", "missing_barrier")
"""Bugs that leave NaN in the result."""


def test_the_small_kernels_are_right(checker):
    for seed in seeds_for(checker):
        total, count = small(SUM, "none", checker, seed), small(HISTOGRAM, "none", checker, seed)
        assert total.status == count.status == 0, total.text + count.text
        assert total.out[0].tolist() == X.sum(1).tolist()
        assert count.out[0].tolist() == [torch.bincount(row.int(), minlength=4).tolist() for row in X]


@pytest.mark.parametrize("bug, kernel, sanitizer, words", [(*key, words) for key, words in STOPPED.items()])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_bug_is_stopped(bug, kernel, sanitizer, words, seed):
    result = small(kernel, bug, usable(sanitizer), seed)
    assert result.status != 0
    assert re.search(words, result.text), result.text
    assert result.out == []


@pytest.mark.parametrize("bug", POISONED)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_bug_leaves_nan(bug, seed):
    result = small(SUM, bug, usable("address"), seed)
    assert result.out[0].isnan().any()


def test_every_seeded_bug_is_looked_for():
    assert {key[0] for key in STOPPED} | set(POISONED) | {"none"} == set(BUGS)


def small(kernel: int, bug: str, checker: str, seed: int):
    """One of the two kernels of seeded_bugs.cu on X, with a bug or none."""
    out = Out((3, 4) if kernel == HISTOGRAM else (3,))
    return run("seeded_bugs", checker, BUGS.index(bug), kernel, len(X), X, out, seed=seed)
