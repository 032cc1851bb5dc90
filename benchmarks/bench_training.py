"""Targets in pre-training: in the workers of a DataLoader or from the batch on the device; and a whole step.

End to end: JPEG photographs are decoded, cropped and batched by the workers.
"""

import dataclasses
import io
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import rivals as r
from benchmarks.bench_hog import SKIMAGE_TOLERANCE, exact
from benchmarks.bench_memory import peak_bytes
from benchmarks.bench_step import step_rivals
from benchmarks.bench_tokens import KEPT, chosen_patches, take, to_tokens
from benchmarks.timing import Case, Rival, Settings, measure_rivals
from maskfeat_kernels import fused_hog, fused_hog_tokens


class Photographs(Dataset):
    """Decodes a JPEG and cuts a crop of 224x224, at a place that its index says; with the target, if it is to."""

    def __init__(self, count: int, target: Callable[[Tensor], Tensor] | None = None):
        self.count, self.target = count, target
        self.files = [_jpeg(r.photograph(name)) for name in r.PHOTOGRAPHS]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        image = np.array(Image.open(io.BytesIO(self.files[index % len(self.files)])))
        y, x = (np.random.default_rng(index).integers(0, size - 223) for size in image.shape[:2])
        planes = torch.from_numpy(image[y : y + 224, x : x + 224]).permute(2, 0, 1).contiguous()
        return planes, self.target(planes) if self.target else torch.empty(0)


def _jpeg(image: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return file.getvalue()


def loader(settings: Settings) -> list[Case]:
    workers = min(settings.threads, 8)
    title = f"Targets in the loader or on the device, {workers} worker{'s' if workers > 1 else ''}"
    return [Case(title, partial(places, settings, workers))]


def places(settings: Settings, workers: int) -> list[Rival]:
    batch = 4 if settings.quick else 16
    count = 4 * batch
    last = torch.stack([Photographs(count)[i][0] for i in range(count - batch, count)])
    truth = exact(last)
    ids = chosen_patches(batch, KEPT, settings.device)
    tokens = take(to_tokens(truth), ids.cpu())
    of_skimage = torch.from_numpy(r.exact_skimage_hog(last.movedim(1, -1).numpy()))[..., None, None, :]

    def rival(name, in_worker, on_device, expected=truth, **gate):
        images = Photographs(count, in_worker)
        data = DataLoader(images, batch_size=batch, num_workers=workers, persistent_workers=True)
        versus = None if name == "no targets" else "no targets"
        run = partial(epoch, on_device=on_device, device=settings.device)
        return Rival(name, run, [data], expected, versus, items=count, on_host=True, **gate)

    rivals = [
        rival("no targets", None, None, None),
        rival("fused_hog_tokens on the device", None, partial(fused_hog_tokens, token_ids=ids), tokens),
        rival("fused_hog on the device", None, fused_hog),
        rival("reference layer on the device", None, lambda x: r.hog_layer(x.float())),
        rival("fused_hog in the workers", fused_hog, None),
        rival("scikit-image in the workers", skimage_target, None, of_skimage, tolerance=SKIMAGE_TOLERANCE),
    ]
    if r.is_there(r.NUMPY_OPS):
        rivals.append(rival("compat.skimage in the workers", compat_target, None, of_skimage))
    return rivals


def skimage_target(planes: Tensor) -> Tensor:  # [3, H, W] uint8 -> blocks of one cell
    """scikit-image on the array of an image."""
    from skimage.feature import hog

    return torch.from_numpy(hog(planes.permute(1, 2, 0).numpy(), **r.SKIMAGE_OPTIONS))


def compat_target(planes: Tensor) -> Tensor:
    """The same call to our drop-in module, which computes on arrays, without torch."""
    from maskfeat_kernels.compat.skimage import hog

    return torch.from_numpy(hog(planes.permute(1, 2, 0).numpy(), **r.SKIMAGE_OPTIONS))


def epoch(data: DataLoader, on_device: Callable | None, device: str) -> Tensor:
    """All batches, with their targets on the device; returns those of the last batch."""
    for images, targets in data:
        images, targets = images.to(device), targets.to(device)
        if on_device:
            targets = on_device(images)
    return targets


def step(settings: Settings) -> list[Case]:
    size, batch = ("tiny", 2) if settings.quick else ("base", 2) if settings.device == "cpu" else ("base", 128)
    title = f"Step of pre-training, ViT-{size}, batch {batch}" + (", bfloat16" if settings.device == "cuda" else "")
    result = [Case(title, partial(steps, settings, size, batch), measure=measure_steps)]
    if settings.device == "cuda":  # for a CPU it takes minutes
        result.append(Case(f"Compiled: {title}", partial(steps, settings, size, batch, True), measure=measure_steps))
    return result


def steps(settings: Settings, size: str, batch: int, compiled: bool = False) -> list[Rival]:
    """As many images a call, and timed from the host: masks are drawn there, and optimizers take no part in a graph."""
    rivals = step_rivals(batch, size, settings.device, compiled)
    return [dataclasses.replace(rival, items=batch, on_host=True) for rival in rivals]


def measure_steps(rivals: list[Rival], settings: Settings) -> list[dict]:
    """The times, and on a CPU the peak memory, which a row on a GPU has already. What a step moves is not counted."""
    rows = measure_rivals(rivals, settings)
    for row in rows:
        for name in ("bytes", "bytes_per_second", "share_of_copy", "result_bytes"):
            row.pop(name, None)
    if settings.device == "cpu":
        for row, rival in zip(rows, rivals, strict=True):
            _, row["peak_bytes"] = peak_bytes(partial(rival.run, rival.inputs[0]), "cpu")
    return rows
