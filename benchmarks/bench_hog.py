"""HOG of whole images: rivals, precisions, parameters, and curves of scaling."""

from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from benchmarks import rivals as r
from benchmarks import timing
from benchmarks.tables import is_ours
from benchmarks.timing import Case, Rival, Settings
from maskfeat_kernels import available_backends, fused_hog


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
    if not on_cpu:
        cases.insert(2, Case("One image, from call to result", partial(latency, settings)))
    if on_cpu:
        cases.insert(2, Case(f"Gray 224x224, batch {many}", partial(gray, many)))
        cases.append(Case(f"Time and threads, batch {many}", partial(threads, settings, many), axis="threads"))
    return cases


def our_backends(settings: Settings, op: str = "hog") -> dict[str, str]:
    """How a row of each compiled backend begins, and its name: "fused_hog" is the one that "auto" takes.

    Not Triton's interpreter, which is what runs it on a CPU, nor those that are to be left out for this op.
    """
    slow = ("reference", "triton") if settings.device == "cpu" else ("reference",)
    names = [name for name in available_backends(settings.device) if name not in slow] or ["reference"]
    rows = {"fused_hog" if name == names[0] else f"fused_hog {name}": name for name in names}
    return {row: name for row, name in rows.items() if f"{name}:{op}" not in settings.without}


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


OPENCV_TOLERANCE = 2e-3
"""Its polynomial for the arc tangent is off by 1.7e-4 radians, 5e-4 of one of nine bins (of more in proportion), which
moves that share of a vote: into a bin from one neighbour and out of it to the other, and the norm after clipping is at
most half of that before."""

SKIMAGE_TOLERANCE = 1e-5
"""64 additions in float32 and the norm: 70 roundings of 2^-24 are 4e-6 of a bin, and as much again of the norm. Larger
cells have more in proportion."""

INTEGRAL_TOLERANCE = 0.1
"""On average, of hogpp: float32 sums over an image of 1e6 pixels or less with a mean gradient of 30 reach 3e7, where a
step is 2; a cell is a difference of four, off by some units where a bin has a hundred. Cells without a gradient become
noise altogether. Histograms with permuted bins or cells are off by 0.18 and more."""

AUTOCAST_TOLERANCE = 0.04
"""On average: the angle in float16, up to 9 bins in steps of 2^-8, is off by three roundings, up to 0.013 of a bin, so
that up to 3 % of the votes pass an edge. Out of one bin and into another, of nine bins whose sum is at most three times
the norm: 0.02 a bin, and as much by the norm. Histograms with permuted bins are off by 0.18."""

SOFT_TOLERANCE = 5e-6
"""The place in float32, up to 9 bins, is off by three roundings of 2^-24, 1.6e-6 of a bin, which moves that share of
the votes, whose sum is at most three times the norm."""


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
    for name, backend in our_backends(settings).items():
        run, other = partial(fused_hog, backend=backend), name != "fused_hog"
        floats_to = f"fused_hog {'float32' if other else 'uint8'}"
        rivals.append(Rival(f"{name} uint8", run, planes_u8, truth, "fused_hog uint8" if other else None, **job))
        rivals.append(Rival(f"{name} float32", run, planes_f32, truth, floats_to, **job))
    layer = {"expected": truth, "versus": "fused_hog float32", **job}
    rivals.append(Rival("reference layer float32", r.hog_layer, planes_f32, **layer))
    mixed = {**layer, "tolerance": AUTOCAST_TOLERANCE, "on_average": True}
    rivals.append(Rival("reference layer fp16 autocast", r.hog_layer_autocast, planes_f32, **mixed))
    if cold and not settings.quick:
        compiled = r.hog_layer_compiled(settings.device)
        rivals.append(Rival("reference layer compiled", compiled, planes_f32, **layer))
    soft = torch.cat([r.soft_conv_hog(image.unsqueeze(0).double()) for image in planes])
    versus = {"versus": "fused_hog float32", "items": batch}
    rivals.append(Rival("soft conv HOG float32", r.soft_conv_hog, planes_f32, soft, tolerance=SOFT_TOLERANCE, **versus))
    if settings.device == "cpu":
        rivals += libraries(r.photograph_batch(batch), turns, items=batch)
    return rivals


def latency(settings: Settings) -> list[Rival]:
    """What a caller waits for who needs the result: the launch, the kernels, and the way back."""
    planes, truth = photographs(1, settings.device)

    def waits(run):
        def call(x):
            result = run(x)
            torch.cuda.synchronize()
            return result

        return call

    rivals = [Rival("fused_hog uint8", waits(fused_hog), [planes], truth, on_host=True)]
    layers = {"reference layer float32": r.hog_layer}
    if not settings.quick:
        layers["reference layer compiled"] = r.hog_layer_compiled(settings.device)
    for name, layer in layers.items():
        rivals.append(Rival(name, waits(layer), [planes.float()], truth, "fused_hog uint8", on_host=True))
    return rivals


def gray(batch: int) -> list[Rival]:
    """One channel: the libraries compute as many histograms as we do."""
    images = r.gray_batch(batch)
    planes = torch.from_numpy(images).unsqueeze(1)
    job = {"items": batch, "operations": operations(planes.numel())}
    truth, dtypes = exact(planes), (torch.uint8, torch.float32, torch.float64)
    rivals = [Rival(f"fused_hog {short(dtype)}", fused_hog, [planes.to(dtype)], truth, **job) for dtype in dtypes]
    rivals += libraries(images, items=batch)
    if r.is_there("fasthog"):  # its definition has no other implementation to check it against
        x = images.astype(np.float64)
        rivals.append(Rival("fasthog float64", r.fasthog_hog, [x], versus="fused_hog float64", items=batch))
    if r.is_there("cv2") and r.optional("cv2").ocl.haveOpenCL():
        size = images.shape[1:]
        on_device = [r.optional("cv2").UMat(image) for image in images]
        run = partial(r.opencv_opencl_hog, height=size[0], width=size[1])
        truth = torch.from_numpy(np.stack([r.opencv_descriptor(*size, 16).compute(image) for image in images]))
        options = {"versus": "fused_hog uint8", "items": batch, "reads": images.nbytes, "tolerance": OPENCV_TOLERANCE}
        rivals.append(Rival("OpenCV OpenCL uint8", run, [on_device], truth, on_average=True, **options))
    return rivals


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


USUAL = "9 bins, cell 8x8"

LIBRARIES = ("OpenCV", "scikit-image", "hogpp")
"""Those that take colour and gray images."""


def libraries(
    images: np.ndarray,
    turns=lambda x: [x],
    names: tuple[str, ...] = LIBRARIES,
    more: str = "",
    changes: dict | None = None,
    **job,
) -> list[Rival]:
    """Each of ``names`` with the dtype it is fastest with and compared to ours on it.

    turns: makes the inputs of an array; more: what follows in the names, ours too; changes: the bins, cell, block and
    norm where they are others, without hogpp, and of OpenCV without the norm; job: further fields of the rivals.
    """
    rivals, floats, changes = [], images.astype(np.float32), changes or {}

    def add(name: str, hog, exact_hog, x: np.ndarray, options: dict, **gate) -> None:
        fields = {"versus": f"fused_hog {x.dtype}{more}", **gate, **job}
        if more:
            fields["series"] = f"{name} {x.dtype}"
        truth = torch.from_numpy(exact_hog(images, **options))
        rivals.append(Rival(f"{name} {x.dtype}{more}", partial(hog, **options), turns(x), truth, **fields))

    if "OpenCV" in names and r.is_there("cv2"):
        options = {option: value for option, value in changes.items() if option != "norm"}
        tolerance = OPENCV_TOLERANCE * options.get("bins", 9) / 9
        add("OpenCV", r.opencv_hog, r.exact_opencv_hog, images, options, tolerance=tolerance)
    if "scikit-image" in names:
        tolerance = SKIMAGE_TOLERANCE * max(1, np.prod(np.broadcast_to(changes.get("cell", 8), 2)) / 64)
        add("scikit-image", r.skimage_hog, r.exact_skimage_hog, floats, changes, tolerance=tolerance)
    if "hogpp" in names and r.is_there("hogpp"):  # it computes bytes in float64
        gate = {"tolerance": INTEGRAL_TOLERANCE, "on_average": True}
        add("hogpp", r.hogpp_hog, r.hogpp_hog, floats, {}, **gate)
    return rivals


def dtypes_and_layouts(settings: Settings, batch: int) -> list[Rival]:
    """Ours on every dtype, and on images whose channels are interleaved. The photographs are the same whole numbers."""
    planes, truth = photographs(batch, settings.device)
    job = {"operations": operations(planes.numel()), "items": batch}
    first = "fused_hog float32"
    rivals = [Rival(first, fused_hog, [planes.float()], truth, **job)]
    for dtype in (torch.uint8, torch.float16, torch.bfloat16, torch.float64):
        rivals.append(Rival(f"fused_hog {short(dtype)}", fused_hog, [planes.to(dtype)], truth, versus=first, **job))
    for name in ("uint8", "float32"):
        x = planes.to(getattr(torch, name), memory_format=torch.channels_last)
        name = f"fused_hog {name}"
        rivals.append(Rival(f"{name} channels-last", fused_hog, [x], truth, versus=name, **job))
    return rivals


def parameters(settings: Settings, batch: int) -> list[Rival]:
    """Other bins, cells and blocks: what a general kernel costs against its usual case, and the libraries by ours."""
    planes, _ = photographs(batch, settings.device)
    choices = [{}] + [{"bins": bins} for bins in (4, 6, 12, 18, 36)] + [{"cell": cell} for cell in (4, 16, (6, 5))]
    choices += [{"block": 2}, {"block": 3, "norm": "l2-hys"}]
    rivals = []
    for changes in choices:
        more = ", " + (", ".join(f"{option} {value}" for option, value in changes.items()) or USUAL)
        job = {"operations": operations(planes.numel(), changes.get("bins", 9)), "items": batch}
        truth = exact(planes, **changes)
        for x in (planes, planes.float()):
            name = f"fused_hog {short(x.dtype)}"
            versus = f"{name}, {USUAL}" if changes else None
            rivals.append(Rival(f"{name}{more}", partial(fused_hog, **changes), [x], truth, versus, **job))
        if settings.device == "cpu":
            names = ("scikit-image",) if isinstance(changes.get("cell"), tuple) else ("OpenCV", "scikit-image")
            rivals += libraries(r.photograph_batch(batch), names=names, more=more, changes=changes, items=batch)
    return rivals


def video(settings: Settings) -> list[Rival]:
    """Every second frame of a clip, read where it lies, against a copy of these frames first."""
    clip = photographs(16, settings.device)[0].unsqueeze(0)  # [1, 16, 3, 224, 224]
    truth = exact(clip[:, ::2])
    job = {"items": 8, "operations": operations(clip[:, ::2].numel()), "reads": clip[:, ::2].numel()}
    place, copy = "fused_hog, every second frame in place", "every second frame copied, then fused_hog"
    return [
        Rival(place, lambda x: fused_hog(x[:, ::2]), [clip], truth, **job),
        Rival(copy, lambda x: fused_hog(x[:, ::2].contiguous()), [clip], truth, versus=place, **job),
    ]


def overhead(settings: Settings) -> list[Rival]:
    """One cell: what a call costs before it computes anything, beside the cheapest of torch's own ops."""
    planes = photographs(1, settings.device)[0][0, :1, 100:108, 100:108].contiguous()  # [1, 8, 8]
    rivals = [Rival("torch.mul", lambda x: torch.mul(x, x), [planes], on_host=True)]
    for name, backend in our_backends(settings).items():
        run = partial(fused_hog, backend=backend)
        rivals.append(Rival(name, run, [planes], exact(planes), versus="torch.mul", on_host=True))
    return rivals


def pixels(settings: Settings) -> list[Rival]:
    """One image from 32x32 to 4096x4096, those who take seconds for a large one up to 1024x1024."""
    rivals = []
    for side in (32, 128, 512) if settings.quick else (32, 64, 128, 256, 512, 1024, 2048, 4096):
        planes, truth = photographs(1, settings.device, side)
        job = {"at": side**2, "operations": operations(planes.numel())}
        for name, backend in our_backends(settings).items():
            for x in (planes, planes.float()):
                series = f"{name} {short(x.dtype)}"
                run = partial(fused_hog, backend=backend)
                rivals.append(Rival(f"{series}, {side}x{side}", run, [x], truth, series=series, **job))
        if side <= 1024:
            run, series = r.hog_layer, "reference layer float32"
            job |= {"versus": f"fused_hog float32, {side}x{side}"}
            rivals.append(Rival(f"{series}, {side}x{side}", run, [planes.float()], truth, series=series, **job))
        if settings.device == "cpu":
            names = LIBRARIES if side <= 1024 else ("OpenCV",)
            rivals += libraries(r.photograph_batch(1, side), names=names, more=f", {side}x{side}", at=side**2)
    return rivals


def batches(settings: Settings) -> list[Rival]:
    """The throughput of many images in a call: ours up to 512, the reference layer up to 128, OpenCV up to 32."""
    rivals = []
    for batch in (1, 4) if settings.quick else (1, 2, 8, 32, 128, 512):
        planes, truth = photographs(batch, settings.device)
        more, place = f", batch {batch}", {"at": batch, "items": batch}
        job = {**place, "operations": operations(planes.numel())}
        for name, backend in our_backends(settings).items():
            for x in (planes, planes.float()):
                series = f"{name} {short(x.dtype)}"
                run = partial(fused_hog, backend=backend)
                rivals.append(Rival(f"{series}{more}", run, [x], truth, series=series, **job))
        if batch <= 128:
            series, versus = "reference layer float32", f"fused_hog float32{more}"
            rivals.append(Rival(f"{series}{more}", r.hog_layer, [planes.float()], truth, versus, series=series, **job))
        if batch <= 32 and settings.device == "cpu":
            rivals += libraries(r.photograph_batch(batch), names=("OpenCV",), more=more, **place)
    return rivals


def threads(settings: Settings, batch: int) -> list[Rival]:
    """Ours to one thread, the inverse of the speed-up; the others to ours on as many threads."""
    planes, truth = photographs(batch, "cpu")
    photos = r.photograph_batch(batch)
    opencv_truth = torch.from_numpy(r.exact_opencv_hog(photos)) if r.is_there("cv2") else None
    counts = sorted({1, settings.threads} | {2**k for k in range(10) if 2**k < settings.threads})
    rivals = []
    for count in counts:
        job = {"at": count, "threads": count, "items": batch, "operations": operations(planes.numel())}
        contenders = {
            "fused_hog uint8": (fused_hog, planes, truth),
            "fused_hog float32": (fused_hog, planes.float(), truth),
            "reference layer float32": (r.hog_layer, planes.float(), truth),
        }
        if r.is_there("cv2"):
            contenders["OpenCV uint8"] = (r.opencv_hog, photos, opencv_truth)
        for series, (run, x, expected) in contenders.items():
            if is_ours(series):
                versus = None if count == 1 else f"{series}, threads 1"
            else:
                versus = f"fused_hog {series.split()[-1]}, threads {count}"
            tolerance = OPENCV_TOLERANCE if series.startswith("OpenCV") else timing.TOLERANCE
            place = {"tolerance": tolerance, "series": series, **job}
            rivals.append(Rival(f"{series}, threads {count}", run, [x], expected, versus, **place))
    return rivals
