"""Vision transformers of timm, and others with their attributes."""

import difflib
import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .vit import init_weights, scale_parameters


def library() -> Any:
    """The package timm; ValueError that says what to install where it is missing or does not load."""
    try:
        import timm
        import timm.layers
    except ModuleNotFoundError as error:
        raise ValueError(f"encoder=timm:NAME needs timm: pip install timm ({error})") from error
    except Exception as error:  # torchvision, which it imports, fails in many ways beside a torch of another build
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"timm does not load; install it with the torchvision of this torch ({reason})") from error
    return timm


def timm_vit(
    name: str, num_classes: int = 0, dropout: float = 0.0, head_init_scale: float = 0.001, **options: Any
) -> "TimmEncoder":
    """The ViT that timm calls ``name``, with fresh weights; nothing is fetched. ``options`` go to timm.

    Raises ValueError for a name that timm does not have, or a model that is no ViT or does not take the options.
    """
    timm = library()
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), n=3, cutoff=0.4)
        meant = f"; the nearest are {', '.join(close)}" if close else ""
        raise ValueError(f"timm {timm.__version__} has no model {name!r}{meant}")
    try:
        vit = timm.create_model(name, pretrained=False, num_classes=0, **options)
        encoder = TimmEncoder(vit, num_classes, dropout, head_init_scale)
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"timm's {name} cannot be the encoder here: {reason}") from error
    if len(set(encoder.patch_size)) > 1:
        raise ValueError(f"timm's {name} has patches of {encoder.patch_size} pixels; here they are square")
    return encoder


class TimmEncoder(nn.Module):
    """A ViT with timm's attributes (``patch_embed``, ``_pos_embed``, ``norm_pre``, ``blocks``) as an encoder.

    Rotary positions (EVA, DINOv3) are those that ``_pos_embed`` returns beside the tokens. Truncating the ViT replaces
    its last norm and its classifier, which pre-training does not reach, by the identity.

    num_classes, dropout, head_init_scale: as of :class:`~maskfeat.VisionTransformer`. A classifier has a norm and a
        linear map of its own, on the mean patch token.
    """

    def __init__(self, vit: Any, num_classes: int = 0, dropout: float = 0.0, head_init_scale: float = 0.001):
        super().__init__()
        missing = [name for name in ("patch_embed", "_pos_embed", "blocks", "embed_dim") if not hasattr(vit, name)]
        if missing:
            raise TypeError(f"{type(vit).__name__} is no timm-like ViT: it has no {', '.join(missing)}")
        self.vit: Any = vit
        self.embed_dim = vit.embed_dim
        self.num_prefix_tokens = getattr(vit, "num_prefix_tokens", 1)
        self.patch_size = vit.patch_embed.patch_size
        self.dropout = dropout
        self.fc_norm: nn.Module = nn.Identity()
        self.head: nn.Module = nn.Identity()
        if num_classes:
            self.truncate(len(vit.blocks))
            self.fc_norm = nn.LayerNorm(self.embed_dim, eps=1e-6)
            self.head = nn.Linear(self.embed_dim, num_classes)
            init_weights(self.head, bias=0)
            scale_parameters(self.head, head_init_scale)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.vit.blocks

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patches for which positions are learned, where the ViT says it."""
        return getattr(self.vit.patch_embed, "grid_size", None)

    @property
    def widths(self) -> list[int]:
        return [self.embed_dim] * len(self.vit.blocks)

    def embed(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        tokens = self.vit.patch_embed(pixels)
        tokens = tokens.flatten(1, -2)  # with dynamic sizes timm gives [B, H, W, D]
        grid = pixels.shape[-2] // self.patch_size[0], pixels.shape[-1] // self.patch_size[1]
        if tokens.shape[1] != math.prod(grid):
            raise ValueError(
                f"the patch embedding of {type(self.vit).__name__} makes {tokens.shape[1]} tokens of an image of "
                f"{tuple(pixels.shape[-2:])} pixels, not the {math.prod(grid)} of its patch_size {self.patch_size}"
            )
        return tokens, grid

    def encode(
        self, tokens: Tensor, grid: tuple[int, int], depths: Sequence[int]
    ) -> list[tuple[Tensor, tuple[int, int]]]:
        if getattr(self.vit, "dynamic_img_size", False):
            tokens = tokens.unflatten(1, grid)
        x = self.vit._pos_embed(tokens)
        x, rope = x if isinstance(x, tuple) else (x, None)
        x = getattr(self.vit, "norm_pre", nn.Identity())(x)
        outputs = {}
        for depth, block in enumerate(self.vit.blocks[: max(depths) + 1]):
            options = {}
            if rope is not None:
                options["rope"] = rope[depth] if getattr(self.vit, "rope_mixed", False) else rope
            recompute = getattr(self.vit, "grad_checkpointing", False) and self.training
            x = checkpoint(block, x, use_reentrant=False, **options) if recompute else block(x, **options)
            outputs[depth] = x
        return [(outputs[depth], grid) for depth in depths]

    def forward(self, pixels: Tensor) -> Tensor:  # [B, num_classes], or [B, D] of a trunk
        """Class scores from the mean patch token of the last block."""
        tokens, grid = self.embed(pixels)
        [(x, _)] = self.encode(tokens, grid, (len(self.vit.blocks) - 1,))
        return self.head(F.dropout(self.fc_norm(x[:, self.num_prefix_tokens :].mean(1)), self.dropout, self.training))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass instead of keeping their activations."""
        self.vit.grad_checkpointing = enable

    def truncate(self, depth: int) -> None:
        """Drop the blocks from ``depth`` on, and what follows them."""
        self.vit.blocks = self.vit.blocks[:depth]
        self.fc_norm, self.head = nn.Identity(), nn.Identity()
        for name in ("norm", "fc_norm", "attn_pool", "head", "head_dist"):
            if hasattr(self.vit, name):
                setattr(self.vit, name, nn.Identity())
