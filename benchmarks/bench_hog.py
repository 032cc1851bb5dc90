"""HOG of whole images, and of the masked patches only: rivals, precisions, parameters, and curves of scaling."""

from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from benchmarks import rivals as r
from benchmarks import timing
from benchmarks.timing import Case, Rival, Settings
from maskfeat_kernels import available_backends, fused_hog, fused_hog_tokens

KEPT, PATCHES = 78, 196
"""Masked patches of a 224x224 image, in patches of 16x16: two fifths."""


def hog(settings: Settings) -> list[Case]:
    on_cpu, quick = settings.device == "cpu", settings.quick
    few, many = (1, 2) if quick else (1, 16 if on_cpu else 256)
    cases = [
        Case(f"RGB 224x224, batch {few}", partial(against_others, settings, few)),
        Case(f"RGB 224x224, batch {many}, from memory", partial(against_others, settings, many, cold=True)),
        Case("Dtypes and layouts", partial(dtypes_and_layouts, settings, 2 if quick else 8)),
        Case("Bins, cells and blocks", partial(parameters, settings, 2 if quick else 8)),
        Case("Video clip of 16 frames", partial(video, settings)),
        Case("One call on one cell", partial(overhead, settings)),
        Case("Time and pixels", partial(pixels, settings), axis="pixels of one RGB image"),
        Case("Time and batch", partial(batches, settings), axis="batch of RGB 224x224"),
    ]
    if on_cpu:
        cases.insert(2, Case(f"Gray 224x224, batch {many}", partial(gray, many)))
        cases.append(Case("Time and threads", partial(threads, settings, many), axis="threads"))
    return cases


def tokens(settings: Settings) -> list[Case]:
    batch = 2 if settings.quick else 8 if settings.device == "cpu" else 256
    return [
        Case(f"Targets of {KEPT} of {PATCHES} patches, batch {batch}", partial(targets, settings, batch)),
        Case("Time and mask ratio", partial(mask_ratios, settings, batch), axis="share of the patches"),
    ]


def our_backends(device: str) -> dict[str, str]:
    """How a row of each compiled backend begins, and its name: "fused_hog" is the one that "auto" takes.

    Not Triton's interpreter, which is what runs it on a CPU.
    """
    slow = ("reference", "triton") if device == "cpu" else ("reference",)
    names = [name for name in available_backends(device) if name not in slow] or ["reference"]
    return {"fused_hog" if name == names[0] else f"fused_hog {name}": name for name in names}


def operations(pixels: int, bins: int = 9) -> int:
    """Arithmetic that a HOG needs, counted as in DESIGN.md: channels are counted as pixels.

    12 for the gradient, 5 to fold it, 4 for its length; a product for each pair of edges, a comparison and a selection
    for each edge, and a sum for each bin.
    """
    return pixels * (12 + 5 + 4 + bins // 2 + 2 * (bins - 1) + bins)


def planar(images: np.ndarray) -> Tensor:  # [B, H, W, 3] -> [B, 3, H, W]
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def exact(planes: Tensor, **changes) -> Tensor:
    """What all results are checked against: the reference backend in float64, in strips where the image is large."""
    height, strip, margin = planes.shape[-2], 256, 8
    if changes or height <= 2 * strip:
        return fused_hog(planes.double(), backend="reference", **changes)
    strips = []
    for y in range(0, height, strip):
        above, below = min(y, margin), min(height - y - strip, margin)
        part = fused_hog(planes[..., y - above : y + strip + below, :].double(), backend="reference")
        strips.append(part[..., above // 8 : part.shape[-2] - below // 8, :])
    return torch.cat(strips, dim=-2)


@cache
def photographs(batch: int, device: str, side: int = 224) -> tuple[Tensor, Tensor]:
    """Bytes [batch, 3, side, side] and their exact HOG; a large batch repeats 32 crops."""
    planes = planar(r.photograph_batch(min(batch, 32), side)).to(device)
    repeats = -(-batch // 32), 1, 1, 1
    return planes.repeat(repeats), exact(planes).repeat(*repeats, 1)


def against_others(settings: Settings, batch: int, cold: bool = False) -> list[Rival]:
    """Everyone on the same photographs; ``cold``: read from memory, not from cache."""
    planes, truth = photographs(batch, settings.device)
    turns = partial(timing.rotating, device=settings.device) if cold else lambda x: [x]
    planes_u8, planes_f32 = turns(planes), turns(planes.float())
    job = {"items": batch, "operations": operations(planes.numel())}
    rivals = []
    for name, backend in our_backends(settings.device).items():
        run = partial(fused_hog, backend=backend)
        rivals.append(Rival(f"{name} uint8", run, planes_u8, truth, **job))
        rivals.append(Rival(f"{name} float32", run, planes_f32, truth, versus=f"{name} uint8", **job))
    layer = {"expected": truth, "versus": "fused_hog float32", **job}
    rivals.append(Rival("reference layer float32", r.hog_layer, planes_f32, **layer))
    anything = {**layer, "tolerance": 2.0}  # what fp16 does to it is in the table, and in the accuracy benchmark
    rivals.append(Rival("reference layer fp16 autocast", r.hog_layer_autocast, planes_f32, **anything))
    if cold and not settings.quick:
        compiled = r.hog_layer_compiled(settings.device)
        rivals.append(Rival("reference layer compiled", compiled, planes_f32, **layer))
    soft = torch.cat([r.soft_conv_hog(image.unsqueeze(0).double()) for image in planes])
    versus = {"versus": "fused_hog float32", "items": batch}
    rivals.append(Rival("soft conv HOG float32", r.soft_conv_hog, planes_f32, soft, tolerance=5e-6, **versus))
    if settings.device == "cpu":
        rivals += libraries(turns(r.photograph_batch(batch)), "fused_hog uint8", batch)
    return rivals


def gray(batch: int) -> list[Rival]:
    """One channel: the libraries compute as many histograms as we do."""
    images = r.gray_batch(batch)
    planes = torch.from_numpy(images).unsqueeze(1)
    job = {"items": batch, "operations": operations(planes.numel())}
    rivals = [Rival("fused_hog uint8", fused_hog, [planes], exact(planes), **job)]
    rivals += libraries([images], "fused_hog uint8", batch)
    job = {"items": batch, "versus": "fused_hog uint8"}
    if r.is_there("fasthog"):
        rivals.append(Rival("fasthog float64", r.fasthog_hog, [images.astype(np.float64)], **job))
    if r.is_there("cv2") and r.optional("cv2").ocl.haveOpenCL():
        on_device = [r.optional("cv2").UMat(image) for image in images]
        rivals.append(Rival("OpenCV OpenCL uint8", r.opencv_opencl_hog, [on_device], **job))
    return rivals


def libraries(images: list[np.ndarray], versus: str, batch: int) -> list[Rival]:
    """Those that take colour and gray images, each with the dtype it is fastest with."""
    options = {"versus": versus, "items": batch}
    floats = [x.astype(np.float32) for x in images]
    rivals = [Rival("scikit-image float32", r.skimage_hog, floats, **options)]
    if r.is_there("cv2"):
        rivals.insert(0, Rival("OpenCV uint8", r.opencv_hog, images, **options))
    if r.is_there("hogpp"):
        rivals.append(Rival("hogpp float32", r.hogpp_hog, floats, **options))
    return rivals


def dtypes_and_layouts(settings: Settings, batch: int) -> list[Rival]:
    """Ours on every dtype, and on images whose channels are interleaved. The photographs are the same whole numbers."""
    planes, truth = photographs(batch, settings.device)
    job = {"operations": operations(planes.numel()), "items": batch}
    rivals = [Rival("float32", fused_hog, [planes.float()], truth, **job)]
    for dtype in (torch.uint8, torch.float16, torch.bfloat16, torch.float64):
        name = str(dtype).removeprefix("torch.")
        rivals.append(Rival(name, fused_hog, [planes.to(dtype)], truth, versus="float32", **job))
    for name in ("uint8", "float32"):
        x = planes.to(getattr(torch, name), memory_format=torch.channels_last)
        rivals.append(Rival(f"{name} channels-last", fused_hog, [x], truth, versus=name, **job))
    return rivals


def parameters(settings: Settings, batch: int) -> list[Rival]:
    """Other bins, cells and blocks: what a general kernel costs against its usual case."""
    planes, truth = photographs(batch, settings.device)
    first = "9 bins, cell 8x8"
    rivals = [Rival(first, fused_hog, [planes], truth, operations=operations(planes.numel()), items=batch)]
    choices = [{"bins": bins} for bins in (4, 6, 12, 18, 36)] + [{"cell": cell} for cell in (4, 16, (6, 5))]
    choices += [{"block": 2}, {"block": 3, "norm": "l2-hys"}]
    for changes in choices:
        name = ", ".join(f"{option} {value}" for option, value in changes.items())
        job = {"versus": first, "operations": operations(planes.numel(), changes.get("bins", 9)), "items": batch}
        rivals.append(Rival(name, partial(fused_hog, **changes), [planes], exact(planes, **changes), **job))
    return rivals


def video(settings: Settings) -> list[Rival]:
    """Every second frame of a clip, read where it lies, against a copy of these frames first."""
    clip = photographs(16, settings.device)[0].unsqueeze(0)  # [1, 16, 3, 224, 224]
    truth = exact(clip[:, ::2])
    job = {"items": 8, "operations": operations(clip[:, ::2].numel())}
    place, copy = "every second frame, in place", "every second frame, copied first"
    return [
        Rival(place, lambda x: fused_hog(x[:, ::2]), [clip], truth, **job),
        Rival(copy, lambda x: fused_hog(x[:, ::2].contiguous()), [clip], truth, versus=place, **job),
    ]


def overhead(settings: Settings) -> list[Rival]:
    """One cell: what a call costs before it computes anything, beside the cheapest of torch's own ops."""
    planes = photographs(1, settings.device)[0][0, :1, 100:108, 100:108].contiguous()  # [1, 8, 8]
    rivals = [Rival("torch.mul", lambda x: torch.mul(x, x), [planes], on_host=True)]
    for name, backend in our_backends(settings.device).items():
        run = partial(fused_hog, backend=backend)
        rivals.append(Rival(name, run, [planes], exact(planes), versus="torch.mul", on_host=True))
    return rivals


def pixels(settings: Settings) -> list[Rival]:
    """One image from 32x32 to 4096x4096, those who take seconds for a large one up to 1024x1024."""
    rivals = []
    for side in (32, 128, 512) if settings.quick else (32, 64, 128, 256, 512, 1024, 2048, 4096):
        planes, truth = photographs(1, settings.device, side)
        job = {"at": side**2, "operations": operations(planes.numel())}
        for name, backend in our_backends(settings.device).items():
            for x in (planes, planes.float()):
                series = f"{name} {str(x.dtype).removeprefix('torch.')}"
                run = partial(fused_hog, backend=backend)
                rivals.append(Rival(f"{series}, {side}x{side}", run, [x], truth, series=series, **job))
        if side <= 1024:
            run, series = r.hog_layer, "reference layer float32"
            job |= {"versus": f"fused_hog float32, {side}x{side}"}
            rivals.append(Rival(f"{series}, {side}x{side}", run, [planes.float()], truth, series=series, **job))
        if settings.device == "cpu":
            for other in libraries([r.photograph_batch(1, side)], f"fused_hog uint8, {side}x{side}", 0):
                if side <= 1024 or other.name.startswith("OpenCV"):
                    other.series, other.name, other.at = other.name, f"{other.name}, {side}x{side}", side**2
                    rivals.append(other)
    return rivals


def batches(settings: Settings) -> list[Rival]:
    """The throughput of many images in a call."""
    rivals = []
    for batch in (1, 4) if settings.quick else (1, 2, 8, 32, 128, 512):
        planes, truth = photographs(batch, settings.device)
        job = {"at": batch, "items": batch, "operations": operations(planes.numel())}
        for name, backend in our_backends(settings.device).items():
            for x in (planes, planes.float()):
                series = f"{name} {str(x.dtype).removeprefix('torch.')}"
                run = partial(fused_hog, backend=backend)
                rivals.append(Rival(f"{series}, batch {batch}", run, [x], truth, series=series, **job))
    return rivals


def threads(settings: Settings, batch: int) -> list[Rival]:
    """The ratio to one thread is the inverse of the speed-up."""
    planes, truth = photographs(batch, "cpu")
    photos = r.photograph_batch(batch)
    counts = sorted({1, settings.threads} | {2**k for k in range(10) if 2**k < settings.threads})
    rivals = []
    for count in counts:
        job = {"at": count, "threads": count}
        contenders = {
            "fused_hog uint8": (fused_hog, planes, truth),
            "fused_hog float32": (fused_hog, planes.float(), truth),
            "reference layer float32": (r.hog_layer, planes.float(), truth),
        }
        if r.is_there("cv2"):
            contenders["OpenCV uint8"] = (r.opencv_hog, photos, None)
        for series, (run, x, expected) in contenders.items():
            versus = None if count == 1 else f"{series}, threads 1"
            rivals.append(Rival(f"{series}, threads {count}", run, [x], expected, versus, series=series, **job))
    return rivals


def targets(settings: Settings, batch: int) -> list[Rival]:
    """The targets of the masked patches: ours alone, ours of the whole image, and the way of the reference layer."""
    planes, truth = photographs(batch, settings.device)
    ids = chosen_patches(batch, KEPT, settings.device)
    expected = take(to_tokens(truth), ids)
    floats, rivals = planes.float(), []
    for name, backend in our_backends(settings.device).items():
        name = name.replace("fused_hog", "fused_hog_tokens")
        run = partial(fused_hog_tokens, token_ids=ids, backend=backend)
        rivals.append(Rival(f"{name} uint8", run, [planes], expected, items=batch))
        rivals.append(Rival(f"{name} float32", run, [floats], expected, f"{name} uint8", items=batch))

    def whole(run):
        return lambda x: take(to_tokens(run(x)), ids)

    for name, x in (("uint8", planes), ("float32", floats)):
        versus = f"fused_hog_tokens {name}"
        rivals.append(Rival(f"fused_hog {name}, then gather", whole(fused_hog), [x], expected, versus, items=batch))
    name, versus = "reference layer float32, then gather", "fused_hog_tokens float32"
    rivals.append(Rival(name, whole(r.hog_layer), [floats], expected, versus, items=batch))
    return rivals


def mask_ratios(settings: Settings, batch: int) -> list[Rival]:
    """From a tenth of the patches to all of them, beside the whole image in one go."""
    planes, truth = photographs(batch, settings.device)
    rivals = []
    for x in (planes, planes.float()):
        dtype = str(x.dtype).removeprefix("torch.")
        whole = f"whole image, {dtype}"
        rivals.append(Rival(whole, fused_hog, [x], truth, at=1.0, series=whole))
        for tenths in (2, 10) if settings.quick else range(1, 11):
            ids = chosen_patches(batch, round(PATCHES * tenths / 10), settings.device)
            run, expected = partial(fused_hog_tokens, token_ids=ids), take(to_tokens(truth), ids)
            place = {"at": tenths / 10, "series": f"fused_hog_tokens {dtype}"}
            rivals.append(Rival(f"{10 * tenths} % of the patches, {dtype}", run, [x], expected, whole, **place))
    return rivals


def chosen_patches(batch: int, count: int, device: str) -> Tensor:  # [batch, count], int64, ascending
    order = torch.rand(batch, PATCHES, generator=torch.Generator().manual_seed(0)).argsort(1)
    return order[:, :count].sort(1).values.to(device)


def to_tokens(
    histograms: Tensor,  # [B, 3, 9, 28, 28]
) -> Tensor:  # [B, 196, 108]
    """Patches of 2x2 cells, in the order of SlowFast's labels."""
    cells = histograms.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))  # [B, 3, 9, 14, 2, 14, 2]
    return cells.permute(0, 3, 5, 1, 2, 4, 6).flatten(3).flatten(1, 2)


def take(tokens: Tensor, ids: Tensor) -> Tensor:  # [B, N, D], [B, K] -> [B, K, D]
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
