"""The layer: what fused_hog gives, in a model, in programs that are saved, and as a transform of images and batches."""

import copy
import pickle

import pytest
import torch

from maskfeat_kernels import OPENCV, SKIMAGE, fused_hog
from maskfeat_kernels.nn import HOG

IMAGES = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (((), {}), "HOG(bins=9, cell=(8, 8))"),
        (
            ((), {"cell": (16, 8), "bins": 12, "backend": "reference"}),
            "HOG(bins=12, cell=(16, 8), backend='reference')",
        ),
        (((SKIMAGE.replace(norm="l1"),), {"cell": 4}), "HOG(bins=9, cell=(4, 4), gradient='central', "),
    ],
)
def test_it_is_fused_hog_and_says_what_differs_from_maskfeat(arguments, said):
    positional, named = arguments
    layer = HOG(*positional, **named)
    assert torch.equal(layer(IMAGES), fused_hog(IMAGES, *positional, **named))
    assert repr(layer).startswith(said) and "block_sigma" not in repr(layer)
    assert not [*layer.parameters(), *layer.buffers()] and not layer.state_dict()
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied.spec == layer.spec and repr(copied) == repr(layer)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bin": 3}, TypeError, "unknown HOG option 'bin'; did you mean 'bins'"),
        ({"bins": 0}, ValueError, "bins must be at least 1, got 0"),
        ({"spec": "skimage"}, TypeError, "spec must be a HogSpec, got 'skimage'"),
    ],
)
def test_what_makes_no_sense_is_refused_when_the_layer_is_made(arguments, error, message):
    with pytest.raises(error, match=message):
        HOG(**arguments)


class Transform:
    """As ``v2.Compose`` calls what it holds; images of torchvision are a subclass of tensors."""

    def __init__(self, *steps):
        self.steps = steps

    def __call__(self, x):
        for step in self.steps:
            x = step(x)
        return x


class Image(torch.Tensor):
    """As ``tv_tensors.Image``: what is computed of it is a plain tensor."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        with torch._C.DisableTorchFunctionSubclass():
            return function(*arguments, **named or {})


def test_it_is_a_transform_of_an_image_and_of_a_batch():
    transform = Transform(lambda x: x.flip(-1), HOG(OPENCV))
    for x in (IMAGES, IMAGES[0]):
        result = transform(x.as_subclass(Image))
        assert type(result) is torch.Tensor and torch.equal(result, fused_hog(x.flip(-1), OPENCV))


def test_it_passes_gradients_on():
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    model = torch.nn.Sequential(HOG(cell=4), torch.nn.Flatten(), torch.nn.Linear(3 * 9 * 16, 2))
    model(x).sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


@pytest.mark.slow  # loads the exporter
def test_export_with_a_batch_of_any_size():
    model = torch.nn.Sequential(HOG(bins=6), HOG(cell=2, block=2, channels="strongest"))
    program = torch.export.export(model, (IMAGES,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    x = IMAGES.repeat(2, 1, 1, 1)[:3]
    assert torch.equal(program.module()(x), model(x))
