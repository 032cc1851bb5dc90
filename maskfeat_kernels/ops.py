"""The contract with PyTorch: schema, fake kernel and batching rule of each compiled op.

The kernels themselves are registered per device by ``csrc/*_torch.cpp``, in a shared object that is loaded here.
"""

from pathlib import Path

import torch

_NAMESPACE = "maskfeat_kernels"
_library = torch.library.Library(_NAMESPACE, "DEF")
_library.define(
    "hog(Tensor x, int bins, int cell_h, int cell_w, int gaussian_window) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides),
)

# A missing file means "not built"; a file that does not load is a broken build and raises here.
_shared_object = Path(__file__).with_name("_torch_ops.so")
if _shared_object.exists():
    torch.ops.load_library(_shared_object)

compiled_devices = [
    device
    for device in ("cpu", "cuda")
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"{_NAMESPACE}::hog", device.upper())
]
hog = torch.ops.maskfeat_kernels.hog.default


def why_not_compiled(device: str) -> str | None:
    """None if the shared object holds kernels for ``device`` ("cpu" or "cuda"), else what to do about it."""
    if device in compiled_devices:
        return None
    if not compiled_devices:
        return "the compiled extension is not built; run `pip install .` in the source tree"
    return f"the extension was built without it; rebuild with MASKFEAT_BUILD={device}"


def hog_dtype(x: torch.Tensor) -> torch.dtype:
    """float64 images are computed and returned in float64, all others in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.register_fake(f"{_NAMESPACE}::hog", lib=_library)
def _(x, bins, cell_h, cell_w, gaussian_window):
    *lead, height, width = x.shape
    return x.new_empty((*lead, bins, height // cell_h, width // cell_w), dtype=hog_dtype(x))


@torch.library.register_vmap(f"{_NAMESPACE}::hog", lib=_library)
def _(info, in_dims, x, *parameters):
    return hog(x.movedim(in_dims[0], 0), *parameters), 0
