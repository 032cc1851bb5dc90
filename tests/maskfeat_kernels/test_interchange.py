"""Arrays of other libraries in and out: the bits of tensors, whatever the memory; what is refused, and how."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maskfeat_kernels import SKIMAGE, fused_hog, fused_hog_tokens, hog_image
from maskfeat_kernels.compat.skimage import hog as skimage_hog

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 48), dtype=np.uint8)
IDS = np.array([[0, 5, 2], [3, 3, 1]])


class Foreign:
    """An array of a library that shares its memory by DLPack alone, as CuPy does with that of a GPU."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, **arguments):
        return self.tensor.__dlpack__(**arguments)

    def __array_namespace__(self):
        return SimpleNamespace(from_dlpack=lambda x: Foreign(torch.from_dlpack(x)))


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


MEMORY = {
    "contiguous": lambda x: x,
    "read only": read_only,
    "mirrored": lambda x: x[..., ::-1],
    "every second": lambda x: x.repeat(2, -1)[..., ::2],
    "channels last": lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1),
    "big endian": lambda x: x.astype(">f4"),
    "unaligned": lambda x: np.frombuffer(b"." + x.astype("f4").tobytes(), "f4", offset=1).reshape(x.shape),
    "fields": lambda x: np.rec.fromarrays([x.astype("f4"), x], names="a, b")["a"],
    "float16": lambda x: x.astype("f2"),
    "float64": lambda x: x.astype("f8"),
}


@pytest.mark.parametrize("memory", MEMORY)
def test_numpy_arrays_give_the_bits_of_tensors(memory):
    x = MEMORY[memory](IMAGES)
    native = torch.from_numpy(np.array(x, x.dtype.newbyteorder("=")))
    for spec in ({}, {"spec": SKIMAGE, "bins": 12}):
        result = fused_hog(x, **spec)
        want = fused_hog(native, **spec).numpy()
        assert type(result) is np.ndarray and result.dtype == want.dtype and result.flags.writeable
        np.testing.assert_array_equal(result, want)


def test_tokens_and_pictures_of_arrays():
    tokens = fused_hog_tokens(IMAGES, IDS, backend="reference")
    np.testing.assert_array_equal(
        tokens, fused_hog_tokens(torch.from_numpy(IMAGES), torch.from_numpy(IDS), backend="reference")
    )
    np.testing.assert_array_equal(tokens, fused_hog_tokens(IMAGES, IDS.astype("i4"), backend="reference"))
    hog = fused_hog(IMAGES)
    picture = hog_image(hog, channel=1)
    assert type(tokens) is type(picture) is np.ndarray
    np.testing.assert_array_equal(picture, hog_image(torch.from_numpy(hog), channel=1))


def test_the_memory_of_another_library_is_read_in_place_and_its_kind_comes_back():
    x = torch.from_numpy(IMAGES).clone()
    result = fused_hog(Foreign(x))
    assert type(result) is Foreign and torch.equal(result.tensor, fused_hog(x))
    picture = hog_image(result)
    assert type(picture) is Foreign and picture.tensor.shape == (2, 64, 96)
    tokens = fused_hog_tokens(Foreign(x), Foreign(torch.from_numpy(IDS)))
    assert type(tokens) is Foreign and tokens.tensor.shape == (2, 3, 108)


def test_the_drop_in_for_scikit_image_takes_them_and_returns_both_of_its_results():
    x = torch.from_numpy(IMAGES[0])
    results = skimage_hog(Foreign(x), 8, (4, 4), (2, 2), "L1", visualize=True, channel_axis=0)
    wants = skimage_hog(x, 8, (4, 4), (2, 2), "L1", visualize=True, channel_axis=0)
    for result, want in zip(results, wants, strict=True):
        assert type(result) is Foreign and torch.equal(result.tensor, want)


def test_a_library_without_a_namespace_is_found_by_its_module(monkeypatch):
    class Array(Foreign):
        __array_namespace__ = property()  # has none

    monkeypatch.setattr(Array, "__module__", "another_library.core")
    with pytest.raises(TypeError, match="x is an array of another_library, which has no from_dlpack: give torch"):
        fused_hog(Array(torch.from_numpy(IMAGES)))
    monkeypatch.setitem(sys.modules, "another_library", SimpleNamespace(from_dlpack=lambda x: Array(x)))
    assert type(fused_hog(Array(torch.from_numpy(IMAGES)))) is Array


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (IMAGES.tolist(), "x must be a torch.Tensor, or an array with __dlpack__, got list"),
        (None, "got NoneType"),
        (np.ma.masked_array(IMAGES, IMAGES > 9), r"got a masked one; take its filled\(value\)"),
        (IMAGES.astype(object), "x is an array that DLPack cannot pass on"),
        (IMAGES.astype("U3"), "x is an array that DLPack cannot pass on"),
        (IMAGES.astype("M8[s]"), "x is an array that DLPack cannot pass on"),
        (IMAGES.astype(complex), "x must be uint8, float16, .* got torch.complex128"),
    ],
    ids=["list", "None", "masked", "object", "text", "time", "complex"],
)
def test_what_is_no_array_of_pixels_is_refused_by_name(x, message):
    with pytest.raises(TypeError, match=message):
        fused_hog(x)


def test_wrong_arguments_beside_an_array_are_refused():
    with pytest.raises(TypeError, match="unknown HOG option 'bin'; did you mean 'bins'"):
        fused_hog(IMAGES, bin=3)
    with pytest.raises(ValueError, match="an image of 4 x 48 pixels is smaller"):
        fused_hog(IMAGES[..., :4, :])
    with pytest.raises(TypeError, match="an array with __dlpack__, got list"):
        fused_hog_tokens(IMAGES, IDS.tolist())
    with pytest.raises(TypeError, match=r"token_ids must be int64, got torch\.int16"):
        fused_hog_tokens(IMAGES, IDS.astype("i2"))
    with pytest.raises(TypeError, match="hog must be of a floating dtype"):
        hog_image(IMAGES)
