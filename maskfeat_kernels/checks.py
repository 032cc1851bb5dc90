"""Checks of the tensors that a user gives, shared by the ops. A refusal names the value and what was expected."""

import torch
from torch import Tensor

STRIDED = torch.strided


def check_tensor(name: str, x: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Refuse a tensor that is not dense or not of one of ``dtypes``."""
    if x.layout is not STRIDED or x.is_nested or type(x) is not Tensor:
        check_dense(name, x)
    if x.dtype not in dtypes:
        *words, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must be {', '.join(words)} or {last}, got {x.dtype}")


def check_dense(name: str, x: Tensor) -> None:
    """Refuse a tensor that is not numbers at even steps in memory: sparse, of MKL-DNN, nested, masked."""
    masked = isinstance(x, torch.masked.MaskedTensor)
    if x.layout is STRIDED and not x.is_nested and not masked:
        return
    kind, advice = str(x.layout).removeprefix("torch."), "take its to_dense()"
    if x.is_nested:
        kind, advice = "nested", "take one of its unbind() at a time"
    elif masked:
        kind, advice = "masked", "take its get_data(), or to_tensor(value)"
    raise TypeError(f"{name} must be a dense tensor, got a {kind} one; {advice}")


def check_companion(name: str, x: Tensor, dtype: torch.dtype, leader_name: str, leader: Tensor) -> None:
    """Refuse a tensor that is not of ``dtype`` or not on the device of ``leader``."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.layout is not STRIDED or x.is_nested or type(x) is not Tensor:
        check_dense(name, x)
    if x.dtype != dtype:
        raise TypeError(f"{name} must be {str(dtype).removeprefix('torch.')}, got {x.dtype}")
    if x.device != leader.device:
        raise ValueError(f"{name} must be on the device of {leader_name}, {leader.device}, got {x.device}")


def check_token_ids(token_ids: Tensor, leader_name: str, leader: Tensor) -> None:
    """Refuse what is not [B, K] ids for the B rows of ``leader``."""
    check_companion("token_ids", token_ids, torch.int64, leader_name, leader)
    if token_ids.ndim != 2 or token_ids.shape[0] != leader.shape[0]:
        raise ValueError(
            f"token_ids must be [{leader.shape[0]}, K] like {leader_name}, got shape {tuple(token_ids.shape)}"
        )


def check_range_of_ids(token_ids: Tensor, length: int) -> None:
    """Refuse ids that are not in 0 .. length - 1."""
    wrong = ((token_ids < 0) | (token_ids >= length)).nonzero()
    if len(wrong):
        b, k = wrong[0].tolist()
        raise IndexError(f"token_ids[{b}, {k}] is {token_ids[b, k]}, outside 0 .. N - 1 with N = {length}")
