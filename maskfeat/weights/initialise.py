"""What a run starts from (``init=``): weights of ours, of timm, or of Hugging Face, in local files."""

from pathlib import Path

from torch import Tensor, nn

from ..config import Pretrain, Recipe
from ..encoders.timm import TimmEncoder
from ..model import MaskFeat, trunk
from .convert import is_foreign, read, tensors_of
from .files import put, read_weights
from .layout import unwrap
from .torch_files import read_file

CLASSIFIER = ("fc_norm.", "norm.", "head.")
TIMM_ENDS = (*CLASSIFIER, "head_dist.", "attn_pool.")
"""What follows the blocks in timm: nothing of it is in an encoder here."""


def initialise(model: nn.Module, path: Path) -> str:
    """Put the weights at ``path`` into ``model`` by :func:`~maskfeat.weights.files.put`, whose note this returns.

    A classifier takes the encoder of a pre-trained model and keeps its own norm and head. Weights of a classifier
    must fit completely. Files of other projects start the encoder alone. For an encoder of timm, the file has timm's
    names.

    Raises ValueError with the names that are missing, left over or of another shape.
    """
    path, fresh = Path(path), tuple[str, ...]()
    if is_foreign(path):
        weights, recipe = _foreign_encoder(model, path)
        fresh = ("mask_token", "pred_head.") if isinstance(model, MaskFeat) else CLASSIFIER
        note = put(model, weights, recipe, path, fresh, predicts=False)
        return f"{note}; what predicts is new".removeprefix("; ")
    weights, recipe = read_weights(path)
    if not isinstance(model, MaskFeat) and any(name.startswith("encoder.") for name in weights):
        weights = {name.removeprefix("encoder."): t for name, t in weights.items() if name.startswith("encoder.")}
        fresh = CLASSIFIER
    return put(model, weights, recipe, path, fresh, predicts=False)


def _foreign_encoder(model: nn.Module, path: Path) -> tuple[dict[str, Tensor], Recipe]:
    """The weights of an encoder in a file of another project, by the names that ``model`` has, and their recipe."""
    recipe: Recipe = Pretrain()  # of a file of timm none is known: its positions are those of a square
    if isinstance(trunk(model), TimmEncoder):
        file = read_file(path / "model.safetensors" if path.is_dir() else path)
        tensors = unwrap(tensors_of(file.get("state_dict", file.get("model", file)), path))
        weights = {f"vit.{name}": tensor for name, tensor in tensors.items() if not name.startswith(TIMM_ENDS)}
    else:
        found, recipe, _ = read(path)
        weights = {name: t for name, t in trunk(found).state_dict().items() if not name.startswith(CLASSIFIER)}
    prefix = "encoder." if isinstance(model, MaskFeat) else ""
    return {prefix + name: tensor for name, tensor in weights.items()}, recipe
