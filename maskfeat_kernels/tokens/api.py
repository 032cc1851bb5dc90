"""fused_masked_gather and fused_mask_tokens: the two token moves of masked pre-training, with their gradients."""

from typing import Any, Protocol

import torch
from torch import Tensor

from ..backend import choose_backend
from ..checks import check_companion, check_range_of_ids, check_tensor, check_token_ids
from ..library import is_traced, needs_autograd
from . import ops, reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def fused_masked_gather(
    tokens: Tensor,  # [B, N, D]
    token_ids: Tensor,  # [B, K], int64
    *,
    check_ids: bool = False,
    backend: str = "auto",
) -> Tensor:  # [B, K, D]
    r"""The listed tokens of each row: :math:`y_{bk} = x_{b,\,i_{bk}}`.

    The gradient to the tokens is :math:`\partial x_{bn} = \sum_{k:\,i_{bk} = n} \partial y_{bk}`. It is summed in the
    order of k and rounded once. So it has the same bits in every run, also where an id is listed more than once.

    Args:
        tokens: ``[B, N, D]``, float16, bfloat16, float32 or float64, any strides; read in place, never copied. It is
            fastest where the last axis is contiguous, as it is in ``x[:, 1:]``, which drops a class token.
        token_ids: ``[B, K]``, int64, in 0 .. N - 1 and in any order, on the device of ``tokens``. Negative ids do not
            count from the end.
        check_ids: raise IndexError for an id out of range on every backend, which costs a pass over the ids, on a GPU a
            synchronisation with the host, and under torch.compile a graph break. Without it the backend "cpu" raises
            all the same, and the others return NaN for such a token; none reads outside ``tokens``.
        backend: "auto", or one of ``available_backends(tokens.device)``.

    Returns:
        ``[B, K, D]``, contiguous, dtype and device of ``tokens``, under autocast too; differentiable twice and more.

    Raises:
        TypeError: an argument is not a tensor or not of a dtype above.
        ValueError: a shape or device that does not fit; an unknown or unavailable backend.
        IndexError: an id out of range; see ``check_ids``.
    """
    _check_tokens(tokens)
    check_token_ids(token_ids, "tokens", tokens)
    if check_ids:
        check_range_of_ids(token_ids, tokens.shape[1])
    return _gather(tokens, token_ids, choose_backend(tokens.device, backend))


def fused_mask_tokens(
    tokens: Tensor,  # [B, N, D]
    mask_token: Tensor,  # [D]
    mask: Tensor,  # [B, N], bool
    *,
    backend: str = "auto",
) -> Tensor:  # [B, N, D]
    r"""The tokens, with the mask token in place of the masked ones: :math:`y_{bn} = m_{bn}\,t + (1 - m_{bn})\,x_{bn}`.

    It is a choice and not a product: a masked NaN or infinity leaves no trace. The gradients are
    :math:`\partial x_{bn} = (1 - m_{bn})\,\partial y_{bn}` and :math:`\partial t = \sum_{bn} m_{bn}\,\partial y_{bn}`,
    the sum in float32 (float64 for float64) in a fixed order and rounded once.

    Args:
        tokens: ``[B, N, D]``, float16, bfloat16, float32 or float64, any strides; read in place, never copied.
        mask_token: ``[D]``, dtype and device of ``tokens``. A parameter ``[1, 1, D]`` is given as ``p.flatten()``, one
            of another dtype, as under autocast, as ``p.to(tokens.dtype)``.
        mask: ``[B, N]``, bool, True where the mask token goes.
        backend: "auto", or one of ``available_backends(tokens.device)``.

    Returns:
        ``[B, N, D]``, contiguous, dtype and device of ``tokens``, under autocast too; differentiable twice and more.

    Raises:
        TypeError: an argument is not a tensor or not of a dtype above.
        ValueError: a shape or device that does not fit; an unknown or unavailable backend.
    """
    _check_tokens(tokens)
    check_companion("mask_token", mask_token, tokens.dtype, "tokens", tokens)
    check_companion("mask", mask, torch.bool, "tokens", tokens)
    if mask_token.shape != tokens.shape[2:]:
        raise ValueError(f"mask_token must be [{tokens.shape[2]}] like tokens, got shape {tuple(mask_token.shape)}")
    if mask.shape != tokens.shape[:2]:
        raise ValueError(f"mask must be {list(tokens.shape[:2])} like tokens, got shape {tuple(mask.shape)}")
    return _mask(tokens, mask_token, mask, choose_backend(tokens.device, backend))


def _check_tokens(tokens: Tensor) -> None:
    if not isinstance(tokens, Tensor):
        raise TypeError(f"tokens must be a torch.Tensor [B, N, D], got {type(tokens).__name__}")
    check_tensor("tokens", tokens, DTYPES)
    if tokens.ndim != 3:
        raise ValueError(f"tokens must have the axes [B, N, D], got shape {tuple(tokens.shape)}")


# The two moves and their adjoints, on any backend. The gradient of each is one of the four again.


def _gather(tokens: Tensor, token_ids: Tensor, backend: str) -> Tensor:
    if _takes_gradient(tokens):
        moved: Tensor = _Gather.apply(tokens, token_ids, backend)
        return moved
    return _kernels(backend).masked_gather(tokens, token_ids)


def _scatter_add(values: Tensor, token_ids: Tensor, length: int, backend: str) -> Tensor:
    if _takes_gradient(values):
        moved: Tensor = _ScatterAdd.apply(values, token_ids, length, backend)
        return moved
    return _kernels(backend).masked_scatter_add(values, token_ids, length)


def _mask(tokens: Tensor, mask_token: Tensor, mask: Tensor, backend: str) -> Tensor:
    if _takes_gradient(tokens, mask_token):
        moved: Tensor = _Mask.apply(tokens, mask_token, mask, backend)
        return moved
    return _kernels(backend).mask_tokens(tokens, mask_token, mask)


def _sum(x: Tensor, mask: Tensor, backend: str) -> Tensor:
    if _takes_gradient(x):
        moved: Tensor = _Sum.apply(x, mask, backend)
        return moved
    return _kernels(backend).masked_sum(x, mask)


class Kernels(Protocol):
    """What every backend has."""

    def masked_gather(self, tokens: Tensor, token_ids: Tensor) -> Tensor: ...

    def masked_scatter_add(self, values: Tensor, token_ids: Tensor, length: int) -> Tensor: ...

    def mask_tokens(self, tokens: Tensor, mask_token: Tensor, mask: Tensor) -> Tensor: ...

    def masked_sum(self, x: Tensor, mask: Tensor) -> Tensor: ...


def _kernels(backend: str) -> Kernels:
    if backend == "reference":
        return reference
    if backend == "triton":
        from . import triton

        return triton
    return ops


def _takes_gradient(*inputs: Tensor) -> bool:
    if not needs_autograd(*inputs):
        return False
    if is_traced():
        raise RuntimeError("torch.jit.trace cannot record gradients of token moves: trace under torch.no_grad()")
    return True


class _Gather(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(tokens: Tensor, token_ids: Tensor, backend: str) -> Tensor:
        return _kernels(backend).masked_gather(tokens, token_ids)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tokens, token_ids, ctx.backend = inputs
        ctx.length = tokens.shape[1]
        ctx.save_for_backward(token_ids)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (token_ids,) = ctx.saved_tensors
        return _scatter_add(grad, token_ids, ctx.length, ctx.backend), None, None


class _ScatterAdd(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, token_ids: Tensor, length: int, backend: str) -> Tensor:
        return _kernels(backend).masked_scatter_add(values, token_ids, length)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, token_ids, _, ctx.backend = inputs
        ctx.save_for_backward(token_ids)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (token_ids,) = ctx.saved_tensors
        return _gather(grad, token_ids, ctx.backend), None, None, None


class _Mask(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(tokens: Tensor, mask_token: Tensor, mask: Tensor, backend: str) -> Tensor:
        return _kernels(backend).mask_tokens(tokens, mask_token, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, mask, ctx.backend = inputs
        ctx.save_for_backward(mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        to_tokens = to_mask_token = None
        # Together the two read the gradient once: first the rows that stay, then the masked ones.
        if ctx.needs_input_grad[0]:
            to_tokens = _mask(grad, grad.new_zeros(grad.shape[2]), mask, ctx.backend)
        if ctx.needs_input_grad[1]:
            to_mask_token = _sum(grad, mask, ctx.backend)
        return to_tokens, to_mask_token, None, None


class _Sum(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mask: Tensor, backend: str) -> Tensor:
        return _kernels(backend).masked_sum(x, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, mask, ctx.backend = inputs
        ctx.save_for_backward(mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        zeros = grad.new_zeros(grad.shape).expand(*mask.shape, -1)
        return _mask(zeros, grad, mask, ctx.backend), None, None
