"""The device that a recipe names, and the arithmetic that it trains in."""

import platform
from functools import lru_cache
from typing import Literal

import torch


def device_named(name: str, precision: str = "fp32") -> torch.device:
    """The device of a recipe; ValueError if this machine has none of the kind, or if it lacks the precision."""
    found = torch.accelerator.current_accelerator(check_available=True)
    try:
        device = (found or torch.device("cpu")) if name == "auto" else torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or the like, got {name!r}") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if found is None or found.type != device.type:
        offer = found.type if found else "no accelerator"
        raise ValueError(f"device={name}, but this machine has {offer}; use device=auto")
    count = torch.accelerator.device_count()
    if (device.index or 0) >= count:
        raise ValueError(f"device={name}, but this machine has {count} of them, numbered from 0")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"{torch.cuda.get_device_name(device)} has no bf16 arithmetic; use precision=fp16")
    return device


def arithmetic(
    device: torch.device, precision: Literal["auto", "fp32", "bf16", "fp16"]
) -> Literal["fp32", "bf16", "fp16"]:
    """ "fp32", "bf16" or "fp16"; for "auto" bf16 where the device has instructions for it, as others take long."""
    return precision if precision != "auto" else "bf16" if has_bf16(device.type) else "fp32"


@lru_cache
def has_bf16(kind: str) -> bool:
    """Whether devices of this kind multiply bf16 numbers in hardware, as far as torch says."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return True
    if platform.machine().lower() in ("x86_64", "amd64"):  # where oneDNN takes any AVX-512 for enough
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
