"""What the words of HogSpec do to a photograph's HOG: ``python -m examples.words`` draws docs/pictures/words.jpg."""

from pathlib import Path

import skimage.data
import torch
from matplotlib import pyplot as plt

from maskfeat_kernels import HogSpec, fused_hog, hog_image

BASE = HogSpec(channels="strongest", block=2, norm="l2-hys", eps=1e-5, layout="rows")
ROWS = {
    "gradient": [{"gradient": "sobel"}, {"gradient": "central"}, {"gradient": "central", "sqrt": True}],
    "cell": [{"cell": 4}, {"cell": 8}, {"cell": 16}],
    "bins, signed": [{"bins": 4}, {"bins": 9}, {"bins": 18, "signed": True}],
    "votes, cells": [{"votes": "hard"}, {"votes": "linear"}, {"votes": "linear", "cells": "bilinear"}],
    "block, norm": [{"block": 1, "norm": "none"}, {"block": 1, "norm": "unit"}, {"block": 3, "norm": "l2-hys"}],
    "norm": [{"norm": "l1"}, {"norm": "l1-sqrt"}, {"norm": "l2"}],
    "windows": [{"gaussian_window": 16}, {"block_sigma": 4.0}, {"block": 4, "block_sigma": 4.0}],
}
"""A row of pictures each. What a picture does not name is as in BASE."""


def main(path: Path = Path("docs/pictures/words.jpg")) -> None:
    photo = skimage.data.astronaut()[:128, 160:288]  # [128, 128, 3]
    x = torch.from_numpy(photo.copy()).permute(2, 0, 1)
    figure, axes = plt.subplots(len(ROWS), 4, figsize=(9, 2.35 * len(ROWS)), layout="constrained")
    for row, (name, changes) in zip(axes, ROWS.items(), strict=True):
        row[0].text(0.5, 0.5, name, ha="center", va="center", fontweight="bold", transform=row[0].transAxes)
        for panel, change in zip(row[1:], changes, strict=True):
            spec = BASE.replace(**change)
            picture = hog_image(fused_hog(x, spec), spec, glyph=3 * spec.cell[0])
            panel.imshow(picture, cmap="gray", vmin=0)
            panel.set_title("\n".join(f"{key}={value!r}" for key, value in change.items()), fontsize=8)
    axes[0, 0].texts[0].remove()
    axes[0, 0].imshow(photo)
    for panel in axes.flat:
        panel.axis("off")
    figure.savefig(path, dpi=100, pil_kwargs={"quality": 75, "optimize": True})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
