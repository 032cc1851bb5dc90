"""What type checkers and editors read in place of ``__init__.py``, which loads these names on first use."""

from .backend import available_backends as available_backends
from .hog import fused_hog as fused_hog
from .hog import fused_hog_tokens as fused_hog_tokens
from .layouts import convert_layout as convert_layout
from .layouts import planes_to_tokens as planes_to_tokens
from .layouts import tokens_to_planes as tokens_to_planes
from .masked_gather import fused_mask_tokens as fused_mask_tokens
from .masked_gather import fused_masked_gather as fused_masked_gather
from .spec import DALAL_TRIGGS as DALAL_TRIGGS
from .spec import MASKFEAT as MASKFEAT
from .spec import OPENCV as OPENCV
from .spec import SKIMAGE as SKIMAGE
from .spec import HogSpec as HogSpec
from .visualize import hog_image as hog_image

__version__: str
