"""HOG of four photographs, as a table and a picture, and a model that learns to predict it for two minutes.

Run ``python -m examples.demo``. The training goes on where an earlier one was interrupted; a finished one stays.
"""

import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import skimage.exposure
import skimage.feature
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from benchmarks import timing
from benchmarks.rivals import PHOTOGRAPHS, SKIMAGE_OPTIONS, hog_layer, opencv_hog, photograph, skimage_hog
from benchmarks.timing import Rival
from maskfeat import cli
from maskfeat.config import Pretrain, from_dict, get_recipe, override
from maskfeat.run.checkpoint import find_checkpoint, read_run
from maskfeat.run.distributed import join
from maskfeat.run.train import Trainer, train
from maskfeat_kernels import available_backends, fused_hog, hog_image

HEIGHT, WIDTH = 296, 448
MEAN, STD = 0.45, 0.225  # MaskFeat's normalisation of pixels in [0, 1]
PICTURE, PANEL, RUN = Path("demo/hog.png"), Path("demo/maskfeat.png"), Path("demo/vit_tiny")
SECONDS = 120  # of training


def main() -> None:
    photos = np.stack([photograph(name)[:HEIGHT, :WIDTH] for name in PHOTOGRAPHS])  # [B, H, W, 3] uint8
    print(f"HOG of {len(photos)} photographs of {HEIGHT}x{WIDTH} pixels ({', '.join(PHOTOGRAPHS)}), 9 bins, 8x8 cells.")
    print(f"Backend {available_backends()[0]!r} on {timing.cpu_name()}, one thread.\n", flush=True)
    print_table(photos)
    draw(photos)
    print(f"\nPicture: {PICTURE.resolve()}\n", flush=True)
    pretrain()
    print(f"\nPicture: {PANEL.resolve()}: photographs it has not seen, dimmed where it was shown the patch")


def print_table(photos: np.ndarray) -> None:
    """Times, and errors against exact float64 where the definition is ours."""
    x = torch.from_numpy(photos).permute(0, 3, 1, 2).contiguous()  # [B, 3, H, W]
    truth = fused_hog(x.double(), backend="reference")
    floats = x.float()
    normalised = (floats / 255 - MEAN) / STD
    # Normalised pixels are rounded, so that neither result on them can pass the gate: the table gives their errors.
    rivals = [
        Rival("fused_hog, bytes", fused_hog, [x], truth),
        Rival("fused_hog, float32 0..255", fused_hog, [floats], truth),
        Rival("reference layer, float32 0..255", hog_layer, [floats], truth),
        Rival("fused_hog, float32 normalised", fused_hog, [normalised]),
        Rival("reference layer, float32 normalised", hog_layer, [normalised]),
        Rival("OpenCV, bytes", opencv_hog, [photos]),
        Rival("scikit-image, bytes", skimage_hog, [photos]),
    ]
    for rival in rivals[1:]:
        rival.versus = rivals[0].name
    rows = timing.measure(rivals, rounds=5)

    print(f"{'':36} {'ms a photo':>10} {'times as long':>14} {'largest error':>14} {'cells off > 0.001':>18}")
    for rival, row in zip(rivals, rows, strict=True):
        milliseconds = 1e3 * row["seconds"]["median"] / len(photos)
        ratio = row["ratio"]["median"] if rival.versus else 1.0
        same_definition = rival.run in (fused_hog, hog_layer)
        largest, off = errors(rival.run(rival.inputs[0]), truth) if same_definition else ("other definition", "")
        print(f"{rival.name:36} {milliseconds:10.3f} {ratio:14.2f} {largest:>14} {off:>18}")
    print("\nErrors are against float64 on the bytes. Normalising rounds the pixels: gradients that lie exactly on a")
    print("bin edge leave it, and whole pixels change their bins. So give bytes to fused_hog.")


def errors(
    result: Tensor,  # [B, C, bins, rows, columns]
    truth: Tensor,  # the same, float64
) -> tuple[str, str]:
    """Largest error, and the share of cells that have one above 0.001."""
    error = (result - truth).abs().amax(2)
    return f"{error.max():.1e}", f"{100 * (error > 1e-3).double().mean():.1f} %"


def draw(photos: np.ndarray) -> None:
    """Photograph, our glyphs and scikit-image's picture, side by side."""
    glyphs = hog_image(fused_hog(torch.from_numpy(photos).permute(0, 3, 1, 2)))
    mpl.use("Agg")
    with plt.style.context("dark_background"):
        figure, axes = plt.subplots(len(photos), 3, figsize=(15, 3.4 * len(photos)), layout="constrained")
        for row, photo, glyph in zip(axes, photos, glyphs, strict=True):
            _, library = skimage.feature.hog(photo, visualize=True, **SKIMAGE_OPTIONS)
            row[0].imshow(photo)
            row[1].imshow(glyph, cmap="inferno", vmin=1 / 3, vmax=0.9)  # a cell of no direction has 1 / 3 in every bin
            row[2].imshow(skimage.exposure.rescale_intensity(library, in_range=(0, library.max() / 4)), cmap="inferno")
        titles = "photograph", "fused_hog: contrast normalised in each cell", "scikit-image: before normalisation"
        for axis, title in zip(axes[0], titles, strict=True):
            axis.set_title(title, fontsize=16, pad=10)
        for axis in axes.flat:
            axis.set_axis_off()
        PICTURE.parent.mkdir(exist_ok=True)
        figure.savefig(PICTURE, dpi=150)
        plt.close(figure)


def pretrain() -> None:
    """Teach a ViT to predict the HOG of hidden patches of photographs, and draw what it predicts on others."""
    if any(RUN.glob("checkpoints/step_*")):
        recipe = from_dict(read_run(find_checkpoint(RUN))["recipe"])
        print(f"Going on with the training in {RUN} (make clean removes it).")
    else:
        changes = dict(data="skimage", out=str(RUN), device="cpu", eval_every=0, save_every=50)
        # For so short a time: four blocks, small patches hidden one by one, a high rate with a tenth of it to warm up.
        small = dict(depths=(3,), image_size=64, patch_size=8, mask_stride=8, mask="random")
        quick = dict(lr=2e-3, betas=(0.9, 0.95), epochs=10)
        recipe = override(get_recipe("vit_tiny"), {**changes, **small, **quick})
        recipe = override(recipe, {"steps": affordable_steps(recipe)})
        print(f"Pre-training {recipe.name} for {recipe.steps} steps on the photographs of scikit-image.", flush=True)
    train(recipe)
    cli.main(["show", str(RUN), "--output", str(PANEL)])


def affordable_steps(recipe: Pretrain) -> int:
    """How many steps this machine does in SECONDS."""
    with join(recipe.device) as world:
        trainer = Trainer(recipe, world)
        batches = iter(trainer.data.at(0))
        trainer.train_step(batches)  # the first step is slower
        begun = time.perf_counter()
        for _ in range(3):
            trainer.train_step(batches)
    return max(round(3 * SECONDS / (time.perf_counter() - begun)), 10)


if __name__ == "__main__":
    main()
