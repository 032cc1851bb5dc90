"""``python -m examples.photographs.picture DATA OUT``: a ViT for the picture of predictions in ``docs/evidence.md``.

``maskfeat show OUT/whole`` draws it. Attention has to learn which tokens lie side by side. Among the 64 tokens of a
crop it did so within minutes, among the 784 of a whole photograph it did not. So the ViT learns on crops of 64 x 64
pixels, and then goes on with photographs of 224 x 224. Its positions begin as sines and cosines, by which neighbours
differ alike at both sizes.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from maskfeat.build import build
from maskfeat.config import Recipe, get_recipe, override
from maskfeat.run.distributed import Terminated
from maskfeat.run.train import train
from maskfeat.weights.files import read_weights

POSITIONS = "encoder.pos_embed"
MODEL = dict(size="micro", patch_size=8, hog_cell=8, mask="random", mask_stride=16)
RUN = dict(warmup_lr=1e-6, end_lr=1e-6, knn=0, device="cpu", precision="fp32", workers=0, cache_mb=1024)
CROPS = dict(image_size=64, crop_scale=(0.07, 0.12), batch_size=64, lr=2e-3, epochs=90, warmup_epochs=3, eval_every=10)
WHOLE = dict(image_size=224, crop_scale=(0.8, 1.0), batch_size=4, lr=1e-3, epochs=8, warmup_epochs=0.3, eval_every=4)


def waves(
    side: int,  # patches
    width: int,  # a multiple of 4
) -> Tensor:  # [side * side, width]
    """The positions of MAE (He et al., 2022): sines and cosines of the row, and then of the column."""
    speeds = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(side)[:, None] * speeds
    line = torch.cat([angles.sin(), angles.cos()], 1)  # [side, width / 2]
    grid = torch.cat([line[:, None].expand(-1, side, -1), line.expand(side, -1, -1)], -1)
    return grid.flatten(0, 1).float()


def on_crops(recipe: Recipe) -> nn.Module:
    """A new model whose positions are waves."""
    model = build(recipe)
    positions = model.encoder.pos_embed.data  # [1, 1 + side * side, width]
    positions[0, 1:] = waves(model.encoder.grid[0], positions.shape[-1])
    return model


def on_whole(recipe: Recipe, crops: Path) -> nn.Module:
    """The model that learned on crops; the positions are waves moved by the mean of what they have learned there."""
    model, (weights, small) = on_crops(recipe), read_weights(crops)
    learned, begun = weights[POSITIONS], on_crops(small).encoder.pos_embed.data
    moved = (learned - begun)[:, 1:].mean(1, keepdim=True)
    weights[POSITIONS] = torch.cat([learned[:, :1], model.encoder.pos_embed.data[:, 1:] + moved], 1)
    model.load_state_dict(weights)
    return model


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.photographs.picture", description=__doc__)
    parser.add_argument("data", help="photographs of 224 x 224 pixels, as data= takes them")
    parser.add_argument("out", type=Path, help="the folder of two runs, with which a later call goes on")
    options = parser.parse_args(words)
    recipe = override(get_recipe("vit_tiny"), {**MODEL, **RUN, "data": options.data})
    crops, whole = options.out / "crops", options.out / "whole"
    try:
        train(override(recipe, {**CROPS, "out": str(crops)}), on_crops)
        train(override(recipe, {**WHOLE, "out": str(whole)}), lambda recipe: on_whole(recipe, crops))
    except Terminated as reason:
        sys.exit(f"{reason}; the same command goes on")


if __name__ == "__main__":
    main()
