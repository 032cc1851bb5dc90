"""Which implementation runs: plain functions, asked once per call."""

import importlib.util
import os

import torch

from . import library

BACKENDS = ("cuda", "cpu", "triton", "reference")
_TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None


def available_backends(device: torch.device | str = "cpu") -> list[str]:
    """Backends that can run on ``device`` ("cpu", "cuda", ...); "auto" takes the first of them."""
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        return []
    return [name for name in BACKENDS if why_unavailable(name, kind) is None]


def choose_backend(device: torch.device, backend: str = "auto") -> str:
    """Resolve "auto" for ``device``; an explicit name is returned as it is or refused, never replaced.

    Raises ValueError for an unknown backend, and with the reason for one that cannot run on ``device``.
    """
    kind = device.type
    if backend == "auto":
        for name in BACKENDS:
            if why_unavailable(name, kind) is None:
                return name
    if backend not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {BACKENDS}, got {backend!r}")
    reason = why_unavailable(backend, kind)
    if reason is not None:
        raise ValueError(f"backend {backend!r} is not available on device '{device}': {reason}")
    return backend


def why_unavailable(backend: str, device: str) -> str | None:
    """None if ``backend`` can run on devices of type ``device``, else the reason in words."""
    if backend == "reference":
        return None
    if backend == "triton":
        return why_no_triton(device)
    if device == backend:
        return library.why_not_compiled(backend)
    reason = library.why_not_compiled(backend)
    return f"it runs on {backend} tensors" + (f", and {reason}" if reason else "")


def why_no_triton(device: str) -> str | None:
    """None if Triton compiles for ``device``, or interprets, which is slow and for tests; else the reason in words."""
    if not _TRITON_IS_INSTALLED:
        return "the package triton is not installed"
    if device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return "it runs on cuda tensors, or anywhere in its interpreter (set TRITON_INTERPRET=1 before triton is imported)"
