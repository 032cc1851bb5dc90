"""hog_image: strokes along the edges, brightness, shapes, and refusals."""

import math

import pytest
import torch

from maskfeat_kernels import DALAL_TRIGGS, OPENCV, SKIMAGE, HogSpec, fused_hog, hog_image
from maskfeat_kernels.visualize import glyph_stamps

# Degrees of an edge counter-clockwise from horizontal, as seen, and an image whose edges all run that way.
EDGES = {
    "horizontal": (0, lambda y, x: y >= 12),
    "diagonal /": (45, lambda y, x: x + y >= 24),
    "vertical": (90, lambda y, x: x >= 12),
    "diagonal \\": (135, lambda y, x: x - y >= 0),
}


def edge_image(is_bright):
    y, x = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    return (is_bright(y, x) * 255).to(torch.uint8)


def stroke_degrees(picture):
    """Direction of the long axis of the bright pixels, in degrees counter-clockwise from horizontal, in [0, 180)."""
    rows, columns = picture.shape
    y = (torch.arange(rows) - (rows - 1) / 2)[:, None]
    x = (torch.arange(columns) - (columns - 1) / 2)[None, :]
    xx, yy, xy = (picture * x * x).sum(), (picture * y * y).sum(), (picture * x * y).sum()
    return math.degrees(0.5 * math.atan2(-2 * xy, xx - yy)) % 180


def angle_between(a, b):
    return abs((a - b + 90) % 180 - 90)


@pytest.mark.parametrize("bins", [4, 9, 12])
@pytest.mark.parametrize("name", EDGES)
def test_strokes_run_along_the_edge(name, bins):
    """The stroke of the central cell is the edge's, up to half a bin: a bin is drawn at its centre."""
    degrees, is_bright = EDGES[name]
    glyph = 32
    picture = hog_image(fused_hog(edge_image(is_bright), bins=bins), glyph=glyph)
    assert picture.shape == (3 * glyph, 3 * glyph)
    centre = picture[glyph : 2 * glyph, glyph : 2 * glyph]
    assert centre.max() > 0.9
    assert angle_between(stroke_degrees(centre), degrees) <= 90 / bins + 0.1


def test_a_vertical_edge_is_an_upright_stroke():
    """With 9 bins, bin 4 is centred on 90 degrees: two full columns of pixels, nothing beside them."""
    picture = hog_image(fused_hog(edge_image(lambda y, x: x >= 12)), glyph=16)
    lit = picture[16:32, 16:32]
    assert torch.equal(lit[2:14, 7:9], torch.ones(12, 2))
    assert lit[:, :6].max() == 0 and lit[:, 10:].max() == 0
    assert picture[:, :16].max() == 0 and picture[:, 32:].max() == 0, "the flat columns of cells must stay dark"


@pytest.mark.parametrize("bins", [1, 2, 9, 18])
def test_stamps_turn_counter_clockwise_from_horizontal(bins):
    stamps = glyph_stamps(HogSpec(bins=bins), 33)
    assert stamps.shape == (bins, 33, 33) and stamps.dtype == torch.float32
    for k, stamp in enumerate(stamps):
        assert angle_between(stroke_degrees(stamp), (k + 0.5) * 180 / bins) < 0.1
    assert torch.allclose(stamps, stamps.flip(-1, -2), atol=1e-6), "strokes pass through the centre"
    assert torch.allclose(stamps, stamps.flip(0, -1), atol=1e-6), "mirrored bins are mirrored strokes"


def test_brightness_is_the_value():
    """Also where strokes cross: nine equal ones are hardly brighter in the middle than one alone."""
    hog = torch.zeros(1, 9, 1, 3)
    hog[0, 4, 0, 0] = 0.25
    hog[0, :, 0, 1] = 1 / 3
    alone, star, dark = hog_image(hog).chunk(3, dim=-1)
    assert alone.max() == pytest.approx(0.25)
    assert star[2:4, 7:9].min() == pytest.approx(1 / 3)
    assert 1 / 3 < star[7:9, 7:9].max() <= 9 ** (1 / 8) / 3
    assert dark.max() == 0


@pytest.mark.parametrize(("value", "brightness"), [(-1.0, 0.0), (2.0, 1.0)])
def test_brightness_is_clipped(value, brightness):
    assert hog_image(torch.full((1, 9, 1, 1), value)).max() == brightness


def test_histograms_without_a_norm_are_drawn_over_the_largest_bin_of_their_image():
    """None is cut off: pictures are as those of the histograms divided by that bin, and so at most 1."""
    spec = SKIMAGE.replace(norm="none", block=1)
    x = torch.randint(0, 256, (1, 1, 32, 40), generator=torch.Generator().manual_seed(1)).float()
    hog = fused_hog(torch.cat([x, x / 64]), spec)  # [2, rows, columns, 1, 1, bins]
    assert hog[0].mean() > 1 > hog[1].max()
    picture = hog_image(hog, spec, glyph=8)
    for image, result in zip(hog, picture, strict=True):
        torch.testing.assert_close(hog_image(image / image.max(), spec.replace(norm="l2"), glyph=8), result)
        assert 0.9 < float(result.max()) <= 1 and (result > 0.9).float().mean() < 0.01
    torch.testing.assert_close(picture[0], picture[1], rtol=0, atol=1e-5)  # scaled, they are the same image's
    assert hog_image(torch.zeros(1, 1, 1, 1, 1, 9), spec).eq(0).all()
    hog[0, 0, 0, 0, 0, 3] = torch.nan
    stained = hog_image(hog, spec, glyph=8)
    assert stained[0, :8, :8].isnan().all() and stained.isnan().sum() == 64
    assert hog_image(hog[:0], spec).shape == (0, 64, 80)


def test_channels():
    hog = fused_hog(torch.stack([edge_image(is_bright) for _, is_bright in EDGES.values()]))
    alone = [hog_image(hog[c]) for c in range(4)]
    for c in range(4):
        assert torch.equal(hog_image(hog, channel=c), alone[c])
    assert torch.equal(hog_image(hog, channel=-1), alone[3])
    assert torch.equal(hog_image(hog), hog_image(hog.mean(0)))


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (0,)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_batches(lead, dtype):
    hog = torch.rand(*lead, 3, 9, 2, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    picture = hog_image(hog, glyph=7)
    assert picture.shape == (*lead, 14, 35) and picture.dtype == torch.float32
    flat, flat_picture = hog.reshape(-1, 3, 9, 2, 5), picture.reshape(-1, 14, 35)
    for one, expected in zip(flat, flat_picture, strict=True):
        assert torch.allclose(hog_image(one, glyph=7), expected, atol=1e-6)


def test_nan_stays_in_its_cell():
    hog = torch.zeros(1, 9, 1, 2)
    hog[0, 0, 0, 0] = float("nan")
    bad, good = hog_image(hog).chunk(2, dim=-1)
    assert bad.isnan().all() and not good.isnan().any()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "names"),
    [
        (([1, 2],), {}, TypeError, "list"),
        ((torch.zeros(1, 9, 2, 2, dtype=torch.uint8),), {}, TypeError, "uint8"),
        ((torch.zeros(1, 9, 2, 2, dtype=torch.complex64),), {}, TypeError, "complex64"),
        ((torch.zeros(2, 2),), {}, ValueError, r"\(2, 2\)"),
        ((torch.zeros(1, 0, 2, 2),), {}, ValueError, r"\(1, 0, 2, 2\)"),
        ((torch.zeros(1, 9, 2, 2),), {"glyph": 2}, ValueError, "got 2"),
        ((torch.zeros(1, 9, 2, 2),), {"glyph": 8.5}, TypeError, "8.5"),
        ((torch.zeros(3, 9, 2, 2),), {"channel": 3}, ValueError, "got 3"),
        ((torch.zeros(3, 9, 2, 2),), {"channel": "red"}, TypeError, "'red'"),
        ((torch.zeros(3, 9, 2, 2),), {"channel": True}, TypeError, "must be an int, got True"),
        ((torch.zeros(0, 9, 2, 2),), {}, ValueError, r"\(0, 9, 2, 2\)"),
    ],
)
def test_bad_input_is_named(arguments, options, error, names):
    with pytest.raises(error, match=names):
        hog_image(*arguments, **options)


DIALECTS = {"skimage": SKIMAGE, "opencv": OPENCV, "signed": DALAL_TRIGGS.replace(signed=True)}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("layout", ["planes", "rows", "columns"])
@pytest.mark.parametrize("name", EDGES)
def test_strokes_of_other_dialects_run_along_the_edge(name, layout, dialect):
    degrees, is_bright = EDGES[name]
    spec, glyph = DIALECTS[dialect].replace(layout=layout), 32
    picture = hog_image(fused_hog(edge_image(is_bright), spec), spec, glyph=glyph)
    assert picture.shape == (3 * glyph, 3 * glyph)
    centre = picture[glyph : 2 * glyph, glyph : 2 * glyph]
    assert centre.max() > 0.1
    assert angle_between(stroke_degrees(centre), degrees) <= (180 if spec.signed else 90) / spec.bins + 0.1


@pytest.mark.parametrize("stride", [(8, 8), (16, 8), (24, 16)])
def test_a_cell_of_several_blocks_is_their_mean(stride):
    spec = HogSpec(block=2, block_stride=stride, norm="l2", layout="rows", channels="strongest")
    hog = torch.rand(2, 3, 2, 2, 9, generator=torch.Generator().manual_seed(0))
    step_y, step_x = stride[0] // 8, stride[1] // 8
    cells = torch.zeros(9, step_y + 2, 2 * step_x + 2)
    for y in range(step_y + 2):
        for x in range(2 * step_x + 2):
            held = [
                hog[r, c, y - r * step_y, x - c * step_x]
                for r in range(2)
                for c in range(3)
                if 0 <= y - r * step_y < 2 and 0 <= x - c * step_x < 2
            ]
            if held:
                cells[:, y, x] = torch.stack(held).mean(0)
    alone = spec.replace(block=1, block_stride=None, layout="planes")
    torch.testing.assert_close(hog_image(hog, spec), hog_image(cells, alone))


def test_channels_of_blocks():
    spec = HogSpec(block=2, norm="l2", layout="columns")
    hog = fused_hog(torch.stack([edge_image(is_bright) for _, is_bright in EDGES.values()]), spec)
    for c in range(4):
        assert torch.equal(hog_image(hog, spec, channel=c), hog_image(hog[c], spec))


@pytest.mark.parametrize(
    "shape, spec, names",
    [
        ((2, 2, 3, 9), SKIMAGE, r"\[..., rows, columns, block_rows, block_columns, bins\]"),
        ((2, 2, 3, 3, 0), SKIMAGE, "bins empty"),
        ((2, 2, 2, 2, 9), OPENCV.replace(block_stride=4), r"whole cells of \(8, 8\)"),
    ],
)
def test_bad_input_of_other_dialects_is_named(shape, spec, names):
    with pytest.raises(ValueError, match=names):
        hog_image(torch.zeros(shape), spec)
