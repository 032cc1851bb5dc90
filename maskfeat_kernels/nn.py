"""HOG as a layer: ``from maskfeat_kernels.nn import HOG``."""

import dataclasses
from typing import Any

from torch import Tensor, nn

from .hog.api import fused_hog
from .hog.spec import MASKFEAT, HogSpec


class HOG(nn.Module):
    """:func:`maskfeat_kernels.fused_hog` as a module without parameters: ``HOG(bins=12)``, ``HOG(SKIMAGE, cell=4)``.

    It takes images ``[..., C, H, W]`` of any dtype of ``fused_hog``, and a mask if there is one, and returns what
    that returns, with its gradient. It is a layer of a model, which ``torch.compile``, ``torch.export`` and
    ``torch.onnx.export`` take, or a transform of torchvision, before or after the batch is made. In
    ``torchvision.transforms.v2`` a sample with labels or boxes needs ``v2.Lambda(HOG(), tv_tensors.Image)``, which
    leaves those as they are.

    Args:
        spec: a :class:`HogSpec`; ``changes`` are changes to it.
        backend: "auto", or one of ``available_backends(device)``; it is looked for when images come.

    Raises TypeError or ValueError that names an option which makes no sense.
    """

    def __init__(self, spec: HogSpec = MASKFEAT, *, backend: str = "auto", **changes: Any):
        super().__init__()
        if not isinstance(spec, HogSpec):
            raise TypeError(f"spec must be a HogSpec, got {spec!r}")
        self.spec, self.backend = spec.replace(**changes), backend

    def forward(
        self,
        x: Tensor,  # [..., C, H, W]
        mask: Tensor | None = None,  # [H, W] or [..., H, W], bool: the pixels that vote
    ) -> Tensor:  # as of fused_hog: [..., C, bins, H // cell_h, W // cell_w] for MASKFEAT
        return fused_hog(x, self.spec, mask=mask, backend=self.backend)

    def extra_repr(self) -> str:
        said = dataclasses.asdict(self.spec)
        always, usual = ("bins", "cell"), dataclasses.asdict(MASKFEAT)
        said = {name: value for name, value in said.items() if name in always or value != usual[name]}
        said |= {} if self.backend == "auto" else {"backend": self.backend}
        return ", ".join(f"{name}={value!r}" for name, value in said.items())
