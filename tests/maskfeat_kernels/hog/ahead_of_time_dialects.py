"""HOGs of blocks for test_hog_blocks_triton.py that take every branch of the Triton kernels."""

import torch

from maskfeat_kernels import HogSpec
from maskfeat_kernels.hog.spec import OPENCV
from maskfeat_kernels.hog.triton import launch

DIALECTS = (
    ("opencv", OPENCV.replace(signed=True, bins=18), torch.bfloat16, True),
    ("unit", HogSpec(sqrt=True, votes="linear", block=2), torch.float64, True),
    ("l1", HogSpec(signed=True, bins=8, norm="l1", layout="columns"), torch.uint8, True),
    ("l1-sqrt", HogSpec(channels="strongest", cells="bilinear", norm="l1-sqrt"), torch.uint8, False),
    ("l2", HogSpec(signed=True, bins=35, gradient="central", norm="l2", gaussian_window=12), torch.float32, False),
    ("none", HogSpec(bins=1, cell=1, norm="none", layout="rows"), torch.float32, False),
)


def ahead_of_time_cases():
    return launch.ahead_of_time_cases(DIALECTS)
