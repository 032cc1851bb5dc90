"""fused_hog and fused_hog_tokens: histograms of oriented gradients of a batch, or of chosen patches, in one pass."""

import dataclasses
import warnings
from typing import Any, Protocol, overload

import torch
from torch import Tensor

from ..backend import choose_backend
from ..checks import check_companion, check_range_of_ids, check_tensor, check_token_ids
from ..interchange import Array, through_tensors
from ..library import needs_autograd
from ..scalars import at_least
from . import ops, reference
from .plan import Region, whole
from .spec import MASKFEAT, HogSpec

WHOLE = (torch.bool, torch.int8, torch.int16, torch.uint16)
"""Whole numbers that :func:`as_pixels` turns into what the kernels read."""
DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
TAKEN = (*DTYPES, *WHOLE)


@overload
def fused_hog(
    x: Tensor, spec: HogSpec = ..., *, mask: Tensor | None = ..., backend: str = ..., **changes: Any
) -> Tensor: ...
@overload
def fused_hog(
    x: Array, spec: HogSpec = ..., *, mask: Array | None = ..., backend: str = ..., **changes: Any
) -> Any: ...
def fused_hog(
    x: Any,  # [..., C, H, W]
    spec: HogSpec = MASKFEAT,
    *,
    mask: Any = None,  # [H, W] or [..., H, W], bool
    backend: str = "auto",
    **changes: Any,
) -> Any:  # [..., C, bins, H // cell_h, W // cell_w] for MASKFEAT; see below
    r"""Histograms of oriented gradients, as of MaskFeat or in the dialect of any library.

    MASKFEAT takes the 3x3 Sobel gradient :math:`(g_x, g_y)` of each pixel; the image is reflected at its border. The
    pixel has the orientation :math:`\phi = \operatorname{atan2}(g_x, g_y) \bmod \pi` and the magnitude
    :math:`m = \sqrt{g_x^2 + g_y^2}`. The histogram of a cell is
    :math:`h_k = \sum m\,[\lfloor \phi\,\mathrm{bins}/\pi \rfloor = k]` over its pixels. The result is
    :math:`h / \max(\lVert h \rVert_2, 10^{-12})`.

    In general, a cell of a block has the histogram :math:`h_{ck} = \sum_p w_c(p)\,m(p)\,s_k(\phi(p))` over the pixels p
    of the block. Here :math:`w_c` is the weight of a pixel in the cell, and :math:`s_k` its share for a bin. The cells
    of a block are normalised as one vector. :class:`HogSpec` has the choices.

    Args:
        x: images ``[..., C, H, W]`` with any leading axes; video is ``[B, T, C, H, W]`` and ``[H, W]`` is one channel.
            The dtype is uint8, float16, bfloat16, float32 or float64. Any strides are read in place, never copied.
            uint8 is exact: every backend puts every pixel into the bin of exact arithmetic. So are bool, int8, int16
            and uint16, which are copied: 16 bits to float64, the others to bytes. Any array with ``__dlpack__`` (CuPy,
            JAX, NumPy) is taken too, and gives an array of its kind on its device.
        spec: a :class:`HogSpec`; ``changes`` are changes to it, as in ``fused_hog(x, bins=12)``.
        mask: the pixels that vote, bool, ``[H, W]`` for all images or ``[..., H, W]`` with the leading axes of ``x``
            before its channels. A pixel outside it casts no vote, but the gradients of its neighbours still read its
            value. The "mean" of a cell is over all of its pixels. There are no kernels for it: "auto" is "reference".
        backend: "auto", or one of ``available_backends(x.device)``.

    Returns:
        The leading axes, then C unless channels are "strongest", then the axes of ``spec.layout``. For MASKFEAT these
        are ``[bins, H // cell_h, W // cell_w]``. In general there are ``(H - block_h) // stride_h + 1`` by
        ``(W - block_w) // stride_w + 1`` blocks, with sizes in pixels. The result is float64 for float64 images, else
        float32. It is contiguous and on the device of ``x``.

        Rows and columns that do not fill a cell are dropped. A flat block is exactly zero. A gradient whose square is
        not finite makes all of its blocks NaN, and nothing else: that of a pixel beside NaN or infinity or, in float32,
        one above 1e19.

        Every dialect is differentiable once. Hard votes have gradients through the magnitudes and the normalisation,
        and keep their bins. Linear votes have them through the orientation too. The gradient is zero, never NaN, at
        flat pixels and where ``clip`` cuts.

    Raises:
        TypeError: ``x`` or ``mask`` is not a tensor or array, or not of a dtype above; an unknown option.
        ValueError: fewer than two axes; a mask of another shape or device, or with a backend but "reference"; an image
            smaller than a block; no channel to choose from; a Gaussian window that does not tile the image; an unknown
            or unavailable backend. Backends of a GPU have no arithmetic "skimage", and "cuda" refuses tables beyond the
            memory of its kernels. For MASKFEAT these are more than 256 bins, or a window of more than 256 pixels.

    Source: Wei et al., Masked Feature Prediction for Self-Supervised Visual Pre-Training, CVPR 2022; Dalal and Triggs,
    Histograms of Oriented Gradients for Human Detection, CVPR 2005.
    """
    if not isinstance(x, Tensor):
        arrays = {"x": x} if mask is None else {"x": x, "mask": mask}
        return through_tensors(lambda x, mask=None: fused_hog(x, spec, mask=mask, backend=backend, **changes), **arrays)
    spec = with_changes(spec, changes)
    check_images(x, spec)
    if mask is not None:
        _check_mask(mask, x, backend)
        backend = "reference"
    backend = choose_backend(x.device, backend)
    if spec.arithmetic == "opencv":
        warn_of_unit_range(x.float() if x.dtype == torch.bool else x)
    pixels = as_pixels(x, spec) if x.dtype in WHOLE else x
    result = hog(pixels, spec, None, backend) if mask is None else reference.hog(pixels, spec, mask=mask)
    return result.float() if x.dtype in WHOLE else result


@overload
def fused_hog_tokens(
    x: Tensor, token_ids: Tensor, patch_size: int = ..., spec: HogSpec = ..., **options: Any
) -> Tensor: ...
@overload
def fused_hog_tokens(x: Array, token_ids: Array, patch_size: int = ..., spec: HogSpec = ..., **options: Any) -> Any: ...
def fused_hog_tokens(
    x: Any,  # [B, C, H, W] or [B, T, C, H, W]
    token_ids: Any,  # [B, K], int64
    patch_size: int = 16,
    spec: HogSpec = MASKFEAT,
    *,
    check_ids: bool = False,
    backend: str = "auto",
    **changes: Any,
) -> Any:  # [B, K, C * bins * u_h * u_w], u = patch_size // cell
    r"""Histograms of oriented gradients of the listed patches only: the targets of MaskFeat, token by token.

    The same as :func:`fused_hog` of the whole images, cut into patches of ``u_h`` by ``u_w`` cells and gathered, bit by
    bit on compiled backends; but nothing else is computed. The element of the cell in row y and column x of a patch is
    :math:`((\mathrm{channel} \cdot \mathrm{bins} + \mathrm{bin})\,u_h + y)\,u_w + x`.

    Args:
        x: images ``[B, C, H, W]`` or video ``[B, T, C, H, W]``, as for :func:`fused_hog`; H and W are multiples of
            the patch. If it is an array of another library, so are the ids (int32 too), and the result.
        token_ids: ``[B, K]``, int64, on the device of ``x``, in any order: places in the grid of patches, row by row,
            for video frame by frame. Give every second frame as ``x[:, ::2]``: it is read in place.
        patch_size: side of a patch in pixels, a multiple of the cell.
        spec: a :class:`HogSpec` that differs from MASKFEAT in bins, cell and gaussian_window alone; ``changes`` are
            changes to it.
        check_ids: raise IndexError for an id out of range on every backend, which costs a pass over the ids, on a GPU a
            synchronisation with the host, and under torch.compile a graph break. Without it the backend "cpu" raises
            all the same, and the others return NaN for such a token; none reads outside ``x``.
        backend: "auto", or one of ``available_backends(x.device)``.

    Returns:
        ``[B, K, C * bins * u_h * u_w]``, float64 for float64 images and float32 for all others, without a gradient.

    Raises:
        TypeError: ``x`` or ``token_ids`` is not a tensor or not of a dtype above; an unknown option.
        ValueError: another dialect; a shape or device that does not fit; an unknown or unavailable backend.
        IndexError: an id out of range; see ``check_ids``.

    Source: as :func:`fused_hog`; the order of elements is that of SlowFast's labels.
    """
    if not isinstance(x, Tensor):

        def of_tensors(x: Tensor, ids: Tensor) -> Tensor:
            ids = ids.long() if ids.dtype == torch.int32 else ids  # JAX has no others by default
            return fused_hog_tokens(x, ids, patch_size, spec, check_ids=check_ids, backend=backend, **changes)

        return through_tensors(of_tensors, x=x, token_ids=token_ids)
    spec = with_changes(spec, changes)
    check_family(spec, "fused_hog_tokens")
    check_images(x, spec)
    if x.ndim not in (4, 5):
        raise ValueError(f"x must be [B, C, H, W] or [B, T, C, H, W], got shape {tuple(x.shape)}")
    if x.dtype in WHOLE:
        options = {"check_ids": check_ids, "backend": backend}
        return fused_hog_tokens(as_pixels(x, spec), token_ids, patch_size, spec, **options).float()
    x = _constant(x.unsqueeze(1) if x.ndim == 4 else x)
    grid = _check_patches(x, patch_size, spec)
    check_token_ids(token_ids, "x", x)
    if check_ids:
        check_range_of_ids(token_ids, x.shape[1] * grid)
    return _kernels(choose_backend(x.device, backend)).hog_tokens(x, token_ids, patch_size, spec)


def warn_of_unit_range(x: Tensor) -> None:
    """Say that pixels in [0, 1] are too small for OpenCV's epsilon.

    Only where a look costs next to nothing: on the CPU, as a GPU would have to be waited for, and at all pixels only
    if a few of them leave room for doubt.
    """
    if not (x.is_cpu and x.is_floating_point() and type(x) in (Tensor, torch.nn.Parameter)):
        return
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or x.numel() == 0:
        return
    few = x.detach()[..., :: x.shape[-2] // 8 + 1, :: x.shape[-1] // 8 + 1]
    if few.amax() <= 1 and 0 < x.detach().amax() <= 1:
        warnings.warn(
            "the pixels are in [0, 1], where OpenCV's epsilon, which is for bytes, dims the features: give x * 255 for"
            " those of OpenCV",
            stacklevel=3,
        )


def with_changes(spec: HogSpec, changes: dict[str, Any]) -> HogSpec:
    """The spec that a user means; TypeError for what is none."""
    if not isinstance(spec, HogSpec):
        raise TypeError(f"spec must be a HogSpec, got {spec!r}")
    return spec.replace(**changes) if changes else spec


def check_family(spec: HogSpec, function: str) -> None:
    """Refuse a spec that is not of the MASKFEAT family, with the first field that tells."""
    if spec.is_maskfeat:
        return
    family = HogSpec(spec.bins, spec.cell)
    fields = (field.name for field in dataclasses.fields(spec) if field.name != "gaussian_window")
    wrong = next(f"{name} {getattr(spec, name)!r}" for name in fields if getattr(spec, name) != getattr(family, name))
    raise ValueError(f"{function} takes the dialect of MASKFEAT, got {wrong}; use fused_hog")


def _constant(x: Tensor) -> Tensor:
    return x.detach() if x.requires_grad else x


def hog(
    x: Tensor,  # [..., C, H, W]
    spec: HogSpec,
    region: Region | None,  # the image, if None
    backend: str,
) -> Tensor:  # [..., (C unless channels are "strongest"), *block_shape(spec, region)]
    """The door of HOG: any dialect, any region that holds a block, on a chosen backend. Checks nothing else.

    Raises ValueError where the backend cannot round as the spec says, and RuntimeError under torch.jit.trace.
    """
    if spec.arithmetic == "skimage" and backend not in ("reference", "cpu"):
        raise ValueError(f"arithmetic 'skimage' needs backend 'cpu' or 'reference', got {backend!r}; or take 'exact'")
    if backend != "reference" and needs_autograd(x):
        ops.refuse_tracing()
        blocks: Tensor = _Hog.apply(x, spec, region, backend)
        return blocks
    return _run(x, spec, region, backend)


def _run(x: Tensor, spec: HogSpec, region: Region | None, backend: str) -> Tensor:
    """Call the kernels of a backend, and choose between its two sets. Without a region it takes those of cells."""
    if region is None and not spec.is_maskfeat:
        region = whole(spec, *x.shape[-2:])
    return _kernels(backend).hog(x, spec, region)


class _Hog(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, spec: HogSpec, region: Region | None, backend: str) -> Tensor:
        return _run(x, spec, region, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.parameters = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        return hog_backward(grad, x, *ctx.parameters), None, None, None


def hog_backward(
    grad: Tensor,  # of the result of hog()
    x: Tensor,  # [..., C, H, W]
    spec: HogSpec,
    region: Region | None,
    backend: str,  # not the reference
) -> Tensor:  # [..., C, H, W], of the dtype of x
    """The gradient of :func:`hog` to its pixels, differentiable no more."""
    grad_x: Tensor = _HogBackward.apply(grad, x, spec, region, backend)
    return grad_x


class _HogBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, x: Tensor, spec: HogSpec, region: Region | None, backend: str) -> Tensor:
        region = whole(spec, *x.shape[-2:]) if region is None else region
        return _with_backward(backend).hog_backward(grad.contiguous(), x, spec, region).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError("kernels of HOG are differentiable once; backend='reference' is as often as you like")


class Kernels(Protocol):
    """What every backend has."""

    def hog(self, x: Tensor, spec: HogSpec, region: Region | None) -> Tensor: ...

    def hog_tokens(self, x: Tensor, token_ids: Tensor, patch_size: int, spec: HogSpec) -> Tensor: ...


class KernelsWithBackward(Kernels, Protocol):
    """What every backend has but the reference, whose gradients are by autograd."""

    def hog_backward(self, grad: Tensor, x: Tensor, spec: HogSpec, region: Region) -> Tensor: ...


def _kernels(backend: str) -> Kernels:
    return reference if backend == "reference" else _with_backward(backend)


def _with_backward(backend: str) -> KernelsWithBackward:
    if backend == "triton":
        from .triton import launch

        return launch
    return ops


def as_pixels(x: Tensor, spec: HogSpec) -> Tensor:
    """Whole numbers as bytes or float64, in both of which every bin is exact.

    A constant that is added changes no gradient, so int8 become bytes. Differences of 16 bits decide their bins exactly
    in float64, and not in float32 (test_hog_exact_bins.py).
    """
    if x.dtype == torch.bool:
        return x.to(torch.uint8)
    if x.dtype == torch.int8 and not spec.sqrt:
        return x.to(torch.uint8) ^ 128
    return x.double()


def check_images(x: Tensor, spec: HogSpec, block_size: tuple[int, int] | None = None) -> None:
    """Refuse a tensor that is no images with a block of this spec, or of another size."""
    check_tensor("x", x, TAKEN)
    if x.ndim < 2:
        raise ValueError(f"x must have the axes [..., C, H, W], got shape {tuple(x.shape)}")
    height, width = x.shape[-2:]
    block_h, block_w = block_size or spec.block_size
    if height < block_h or width < block_w:
        block = "cell" if spec.block == (1, 1) else "block"
        raise ValueError(f"an image of {height} x {width} pixels is smaller than a {block} of {block_h} x {block_w}")
    if spec.channels == "strongest" and x.ndim > 2 and x.shape[-3] == 0:
        raise ValueError(f"channels 'strongest' needs a channel, got shape {tuple(x.shape)}")
    window = spec.gaussian_window
    if window and (height % window or width % window):
        raise ValueError(f"gaussian_window {window} does not tile an image of {height} x {width} pixels")


def _check_mask(mask: Tensor, x: Tensor, backend: str) -> None:
    check_companion("mask", mask, torch.bool, "x", x)
    shapes = x.shape[-2:], (*x.shape[:-3], *x.shape[-2:])
    if mask.shape not in shapes:
        raise ValueError(f"mask must be [H, W] or [..., H, W] of x, {shapes[1]}, got shape {tuple(mask.shape)}")
    if backend not in ("auto", "reference"):
        raise ValueError(f"a mask needs backend 'reference', got {backend!r}: the others have no kernels for it")


def _check_patches(x: Tensor, patch_size: int, spec: HogSpec) -> int:
    """The number of patches of a frame."""
    patch_size = at_least("patch_size", patch_size, 1)
    cell_h, cell_w = spec.cell
    if patch_size % cell_h or patch_size % cell_w:
        raise ValueError(f"patch_size must be a multiple of the cell of {cell_h} x {cell_w} pixels, got {patch_size}")
    height, width = x.shape[-2:]
    if height % patch_size or width % patch_size:
        raise ValueError(f"patch_size {patch_size} does not divide an image of {height} x {width} pixels")
    return (height // patch_size) * (width // patch_size)
