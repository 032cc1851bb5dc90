"""What type checkers and editors read in place of ``__init__.py``, which loads these names on first use."""

from .backend import available_backends as available_backends
from .hog.api import fused_hog as fused_hog
from .hog.api import fused_hog_tokens as fused_hog_tokens
from .hog.points import fused_hog_at as fused_hog_at
from .hog.scales import fused_hog_scales as fused_hog_scales
from .hog.spec import DALAL_TRIGGS as DALAL_TRIGGS
from .hog.spec import MASKFEAT as MASKFEAT
from .hog.spec import OPENCV as OPENCV
from .hog.spec import SKIMAGE as SKIMAGE
from .hog.spec import HogSpec as HogSpec
from .layouts import convert_layout as convert_layout
from .layouts import planes_to_tokens as planes_to_tokens
from .layouts import tokens_to_planes as tokens_to_planes
from .tokens.api import fused_mask_tokens as fused_mask_tokens
from .tokens.api import fused_masked_gather as fused_masked_gather
from .visualize import hog_image as hog_image

__version__: str
