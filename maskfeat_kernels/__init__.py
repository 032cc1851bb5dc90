"""Histograms of oriented gradients: exact, fused, and the same on every device.

Names are loaded on first use, so that ``import maskfeat_kernels`` costs nothing: neither torch nor triton is
imported until an op is asked for. Where torch is imported already, its ops are registered at once, as a program needs
that ``torch.export`` has saved; ``import maskfeat_kernels.ops`` registers them in any case.
"""

import sys
from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "DALAL_TRIGGS": "hog.spec",
    "HogSpec": "hog.spec",
    "MASKFEAT": "hog.spec",
    "OPENCV": "hog.spec",
    "SKIMAGE": "hog.spec",
    "available_backends": "backend",
    "convert_layout": "layouts",
    "fused_hog": "hog.api",
    "fused_hog_at": "hog.points",
    "fused_hog_scales": "hog.scales",
    "fused_hog_tokens": "hog.api",
    "fused_mask_tokens": "tokens.api",
    "fused_masked_gather": "tokens.api",
    "hog_image": "visualize",
    "planes_to_tokens": "layouts",
    "tokens_to_planes": "layouts",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__


if hasattr(sys.modules.get("torch"), "export"):  # imported to its end
    import_module(f"{__name__}.ops")
