"""The HOG layers of the MaskFeat code bases as modules on the kernels of this package."""

import torch
from torch import Tensor, nn

from ..hog.api import fused_hog
from ..hog.plan import gaussian_kernel
from ..hog.spec import MASKFEAT


class HOGLayerC(nn.Module):
    """SlowFast's ``HOGLayerC``: HOG of every channel, normalised per cell (``pool`` pixels square), without a gradient.

    Its buffers are SlowFast's, so that state dicts load either way; they are not used. On whole numbers of 0 .. 255
    results are within 1e-6 of SlowFast's. What it takes is wider: any dtype of :func:`maskfeat_kernels.fused_hog`
    (bytes are the fastest, and exact), any number of channels and leading axes, autocast, and windows of images that
    are not square.

    Not mirrored: SlowFast's rounding residues become unit vectors where a normalised image is flat (here such cells are
    0), and its bins at 45 degrees depend on where in memory a pixel lies.
    """

    def __init__(self, nbins: int = 9, pool: int = 7, gaussian_window: int = 0):
        super().__init__()
        self.spec = MASKFEAT.replace(bins=nbins, cell=pool, gaussian_window=gaussian_window)
        self.nbins, self.pool, self.gaussian_window = nbins, pool, gaussian_window
        sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        self.register_buffer("weight_x", sobel.expand(3, 1, 3, 3).contiguous())
        self.register_buffer("weight_y", sobel.T.expand(3, 1, 3, 3).contiguous())
        if gaussian_window:
            e = torch.tensor(gaussian_kernel(gaussian_window))
            self.register_buffer("gkern", torch.outer(e, e))

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,  # [..., C, H, W]
    ) -> Tensor:  # [..., C, nbins, H // pool, W // pool]
        return fused_hog(x, self.spec)

    def extra_repr(self) -> str:
        return f"nbins={self.nbins}, pool={self.pool}, gaussian_window={self.gaussian_window}"


class HOGGenerator(HOGLayerC):
    """mmpretrain's ``HOGGenerator``: the same with other defaults, laid out in 14 x 14 patches.

    A patch is a vector [C, nbins, u, u], where u is the 14th part of the cells across. ``out``, ``h`` and ``w`` keep
    the last result before that, and the size of the last image.
    """

    def __init__(self, nbins: int = 9, pool: int = 8, gaussian_window: int = 16):
        super().__init__(nbins, pool, gaussian_window)

    @torch.no_grad()
    def forward(
        self,
        x: Tensor,  # [B, C, H, W]
    ) -> Tensor:  # [B, patches, C * nbins * u * u]
        self.h, self.w = x.shape[-2:]
        self.out = fused_hog(x, self.spec)
        u = self.out.shape[-1] // 14
        if u == 0:
            raise ValueError(f"x must be at least {14 * self.pool} pixels wide, got shape {tuple(x.shape)}")
        patches = self.out.unfold(-2, u, u).unfold(-2, u, u)  # [B, C, nbins, patches down, patches across, u, u]
        return patches.movedim((3, 4), (1, 2)).flatten(3).flatten(1, 2)
