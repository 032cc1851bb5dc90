"""What an installed wheel does: HOG of an array without torch, then of a tensor. Prints its folder and its devices."""

import sys
from pathlib import Path

import numpy as np

from maskfeat_kernels.compat.skimage import hog

assert hog(np.zeros((24, 24), np.uint8)).shape == (81,)
assert "torch" not in sys.modules

import torch  # noqa: E402  # only now, as above

import maskfeat_kernels  # noqa: E402
from maskfeat_kernels import library  # noqa: E402

assert maskfeat_kernels.fused_hog(torch.zeros(1, 8, 8)).shape == (1, 9, 1, 1)
print(Path(maskfeat_kernels.__file__).parent)
print(*library.compiled_devices)
