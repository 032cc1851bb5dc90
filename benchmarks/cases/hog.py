"""HOG of whole images: rivals, precisions, parameters, and curves of scaling."""

from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from benchmarks import rivals as r
from benchmarks import timing
from benchmarks.timing import Case, Rival, Settings
from maskfeat_kernels import available_backends, fused_hog

LAYER = "reference layer float32"


def hog(settings: Settings) -> list[Case]:
    on_cpu, few, some, many = settings.device == "cpu", 1, settings.batch(2, 8, 8), settings.batch(2, 16, 256)
    cases = [
        Case(f"RGB 224x224, batch {few}", partial(against_others, settings, few)),
        Case(f"RGB 224x224, batch {many}, from memory", partial(against_others, settings, many, cold=True)),
        Case("Dtypes and layouts", partial(dtypes_and_layouts, settings, some)),
        Case("Bins, cells and blocks", partial(parameters, settings, some)),
        Case("Video clip of 16 frames", partial(video, settings)),
        Case("One call on one cell", partial(overhead, settings)),
        Case("Time and pixels", partial(pixels, settings), axis="pixels of one RGB image"),
        Case("Time and batch", partial(batches, settings), axis="batch of RGB 224x224"),
    ]
    if not on_cpu:
        return [*cases[:2], Case("One image, from call to result", partial(latency, settings)), *cases[2:]]
    cases.insert(2, Case(f"Gray 224x224, batch {many}", partial(gray, many)))
    return [*cases, Case(f"Time and threads, batch {many}", partial(threads, settings, many), axis="threads")]


def our_backends(settings: Settings, op: str = "hog") -> dict[str, str]:
    """The name of each compiled backend, by the words that its rows begin with. "auto" takes "fused_hog".

    Triton's interpreter, which would run it on a CPU, is left out. So is what the run leaves out for this op.
    """
    slow = ("reference", "triton") if settings.device == "cpu" else ("reference",)
    names = [name for name in available_backends(settings.device) if name not in slow] or ["reference"]
    rows = {"fused_hog" if name == names[0] else f"fused_hog {name}": name for name in names}
    return {row: name for row, name in rows.items() if f"{name}:{op}" not in settings.without}


def operations(pixels: int, bins: int = 9) -> int:
    """The arithmetic that a HOG needs, as DESIGN.md counts it. Each channel counts as a pixel.

    The gradient takes 12 operations, its fold 5, its length 4. Each pair of edges takes a product, each edge a
    comparison and a selection, and each bin a sum.
    """
    return pixels * (12 + 5 + 4 + bins // 2 + 2 * (bins - 1) + bins)


def job_of(planes: Tensor, items: int, bins: int = 9) -> dict:
    return {"items": items, "operations": operations(planes.numel(), bins)}


def planar(images: np.ndarray) -> Tensor:  # [B, H, W, 3] -> [B, 3, H, W]
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def exact(planes: Tensor, **changes) -> Tensor:
    """The reference backend in float64, against which all results are checked. A large image is done in strips."""
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
    """Bytes [batch, 3, side, side] and their exact HOG. A large batch repeats 32 crops."""
    planes = planar(r.photograph_batch(min(batch, 32), side)).to(device)
    repeats = -(-batch // 32), 1, 1, 1
    return planes.repeat(repeats), exact(planes).repeat(*repeats, 1)


def against_others(settings: Settings, batch: int, cold: bool = False) -> list[Rival]:
    """Everyone takes the same photographs. If ``cold``, they are read from memory, not from the cache."""
    planes, truth = photographs(batch, settings.device)
    turns = partial(timing.rotating, device=settings.device) if cold else lambda x: [x]
    planes_u8, planes_f32 = turns(planes), turns(planes.float())
    job, rivals = job_of(planes, batch), []
    for name, backend in our_backends(settings).items():
        run, other = partial(fused_hog, backend=backend), name != "fused_hog"
        floats_to = f"fused_hog {'float32' if other else 'uint8'}"
        rivals.append(Rival(f"{name} uint8", run, planes_u8, truth, "fused_hog uint8" if other else None, **job))
        rivals.append(Rival(f"{name} float32", run, planes_f32, truth, floats_to, **job))
    layers = {LAYER: r.hog_layer, "reference layer fp16 autocast": r.hog_layer_autocast}
    if cold and not settings.quick:
        layers["reference layer compiled"] = r.hog_layer_compiled(settings.device)
    for name, layer in layers.items():
        gate = {"tolerance": r.AUTOCAST_TOLERANCE, "on_average": True} if "autocast" in name else {}
        rivals.append(Rival(name, layer, planes_f32, truth, "fused_hog float32", **gate, **job))
    soft = torch.cat([r.soft_conv_hog(image.unsqueeze(0).double()) for image in planes])
    gate = {"tolerance": r.SOFT_TOLERANCE, "items": batch}
    rivals.append(Rival("soft conv HOG float32", r.soft_conv_hog, planes_f32, soft, "fused_hog float32", **gate))
    if settings.device == "cpu":
        rivals += libraries(r.photograph_batch(batch), turns, items=batch)
    return rivals


def latency(settings: Settings) -> list[Rival]:
    """A caller who needs the result waits for the launch, the kernels, and the way back."""
    planes, truth = photographs(1, settings.device)

    def rival(name, run, x, versus="fused_hog uint8"):
        def waits(x):
            result = run(x)
            torch.cuda.synchronize()
            return result

        return Rival(name, waits, [x], truth, versus, on_host=True)

    rivals = [rival("fused_hog uint8", fused_hog, planes, None), rival(LAYER, r.hog_layer, planes.float())]
    if not settings.quick:
        rivals.append(rival("reference layer compiled", r.hog_layer_compiled(settings.device), planes.float()))
    return rivals


def gray(batch: int) -> list[Rival]:
    """Images have one channel, so that the libraries compute as many histograms as we do."""
    images = r.gray_batch(batch)
    planes = torch.from_numpy(images).unsqueeze(1)
    job, truth, dtypes = job_of(planes, batch), exact(planes), (torch.uint8, torch.float32, torch.float64)
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
        gate = {"tolerance": r.OPENCV_TOLERANCE, "on_average": True, "reads": images.nbytes, "items": batch}
        rivals.append(Rival("OpenCV OpenCL uint8", run, [on_device], truth, "fused_hog uint8", **gate))
    return rivals


LIBRARIES = ("OpenCV", "scikit-image", "hogpp")
"""They take colour and gray images."""


def libraries(
    images: np.ndarray,
    turns=lambda x: [x],
    names: tuple[str, ...] = LIBRARIES,
    more: str = "",
    changes: dict | None = None,
    **job,
) -> list[Rival]:
    """Each of ``names``, with the dtype that it is fastest with. It is compared to ours on the same dtype.

    turns: makes the inputs of an array.
    more: follows in the names of rows, ours too.
    changes: other bins, cell, block and norm. hogpp has none of them, and OpenCV no norm.
    job: further fields of the rivals.
    """
    rivals, floats, changes = [], images.astype(np.float32), changes or {}

    def add(name: str, hog, exact_hog, x: np.ndarray, options: dict, **gate) -> None:
        fields = {**gate, **job, **({"series": f"{name} {x.dtype}"} if more else {})}
        truth, versus = torch.from_numpy(exact_hog(images, **options)), f"fused_hog {x.dtype}{more}"
        rivals.append(Rival(f"{name} {x.dtype}{more}", partial(hog, **options), turns(x), truth, versus, **fields))

    if "OpenCV" in names and r.is_there("cv2"):
        options = {option: value for option, value in changes.items() if option != "norm"}
        tolerance = r.OPENCV_TOLERANCE * options.get("bins", 9) / 9
        add("OpenCV", r.opencv_hog, r.exact_opencv_hog, images, options, tolerance=tolerance)
    if "scikit-image" in names:
        tolerance = r.SKIMAGE_TOLERANCE * max(1, np.prod(np.broadcast_to(changes.get("cell", 8), 2)) / 64)
        add("scikit-image", r.skimage_hog, r.exact_skimage_hog, floats, changes, tolerance=tolerance)
    if "hogpp" in names and r.is_there("hogpp"):  # it computes bytes in float64
        add("hogpp", r.hogpp_hog, r.hogpp_hog, floats, {}, tolerance=r.INTEGRAL_TOLERANCE, on_average=True)
    return rivals


def dtypes_and_layouts(settings: Settings, batch: int) -> list[Rival]:
    """We take every dtype, and images whose channels are interleaved. The photographs are the same whole numbers."""
    planes, truth = photographs(batch, settings.device)
    rivals = []
    for dtype in (torch.float32, torch.uint8, torch.float16, torch.bfloat16, torch.float64):
        versus = "fused_hog float32" if rivals else None
        x, job = planes.to(dtype), job_of(planes, batch)
        rivals.append(Rival(f"fused_hog {short(dtype)}", fused_hog, [x], truth, versus, **job))
    for name, dtype in (("fused_hog uint8", torch.uint8), ("fused_hog float32", torch.float32)):
        x = planes.to(dtype, memory_format=torch.channels_last)
        rivals.append(Rival(f"{name} channels-last", fused_hog, [x], truth, name, **job))
    return rivals


def parameters(settings: Settings, batch: int) -> list[Rival]:
    """Other bins, cells and blocks are compared with the usual case, and the libraries with ours on the same."""
    planes, _ = photographs(batch, settings.device)
    choices = [{}] + [{"bins": bins} for bins in (4, 6, 12, 18, 36)] + [{"cell": cell} for cell in (4, 16, (6, 5))]
    choices += [{"block": 2}, {"block": 3, "norm": "l2-hys"}]
    rivals, usual = [], ", 9 bins, cell 8x8"
    for changes in choices:
        more = "".join(f", {option} {value}" for option, value in changes.items()) or usual
        job, truth = job_of(planes, batch, changes.get("bins", 9)), exact(planes, **changes)
        for x in (planes, planes.float()):
            name = f"fused_hog {short(x.dtype)}"
            versus = f"{name}{usual}" if changes else None
            rivals.append(Rival(f"{name}{more}", partial(fused_hog, **changes), [x], truth, versus, **job))
        if settings.device == "cpu":
            names = ("scikit-image",) if isinstance(changes.get("cell"), tuple) else ("OpenCV", "scikit-image")
            rivals += libraries(r.photograph_batch(batch), names=names, more=more, changes=changes, items=batch)
    return rivals


def video(settings: Settings) -> list[Rival]:
    """Every second frame of a clip is read where it lies, or copied first."""
    clip = photographs(16, settings.device)[0].unsqueeze(0)  # [1, 16, 3, 224, 224]
    frames = clip[:, ::2]
    truth, job = exact(frames), {**job_of(frames, 8), "reads": frames.numel()}
    place, copy = "fused_hog, every second frame in place", "every second frame copied, then fused_hog"
    return [
        Rival(place, lambda x: fused_hog(x[:, ::2]), [clip], truth, **job),
        Rival(copy, lambda x: fused_hog(x[:, ::2].contiguous()), [clip], truth, versus=place, **job),
    ]


def overhead(settings: Settings) -> list[Rival]:
    """One cell shows what a call costs before it computes anything, beside the cheapest of torch's own ops."""
    planes = photographs(1, settings.device)[0][0, :1, 100:108, 100:108].contiguous()  # [1, 8, 8]
    rivals = [Rival("torch.mul", lambda x: torch.mul(x, x), [planes], on_host=True)]
    for name, backend in our_backends(settings).items():
        run = partial(fused_hog, backend=backend)
        rivals.append(Rival(name, run, [planes], exact(planes), versus="torch.mul", on_host=True))
    return rivals


def ours_along(
    settings: Settings, batch: int, more: str, layer: bool, side: int = 224, to: str = "", **place
) -> list[Rival]:
    """One place on a curve: each of our backends on bytes and float32, and the reference layer if asked for.

    to: what follows in the name of the place that ours are compared with; "" for none.
    """
    planes, truth = photographs(batch, settings.device, side)
    place["operations"] = operations(planes.numel())
    rivals = []
    for name, backend in our_backends(settings).items():
        for x in (planes, planes.float()):
            series, run = f"{name} {short(x.dtype)}", partial(fused_hog, backend=backend)
            versus = f"{series}{to}" if to else None
            rivals.append(Rival(f"{series}{more}", run, [x], truth, versus, series=series, **place))
    if layer:
        place |= {"versus": f"fused_hog float32{more}", "series": LAYER}
        rivals.append(Rival(f"{LAYER}{more}", r.hog_layer, [planes.float()], truth, **place))
    return rivals


def pixels(settings: Settings) -> list[Rival]:
    """One image has 32x32 to 4096x4096 pixels. Who takes seconds for a large one stops at 1024x1024."""
    rivals = []
    for side in (32, 128, 512) if settings.quick else (32, 64, 128, 256, 512, 1024, 2048, 4096):
        more, place = f", {side}x{side}", {"at": side**2}
        rivals += ours_along(settings, 1, more, side <= 1024, side, **place)
        if settings.device == "cpu":
            names = LIBRARIES if side <= 1024 else ("OpenCV",)
            rivals += libraries(r.photograph_batch(1, side), names=names, more=more, **place)
    return rivals


def batches(settings: Settings) -> list[Rival]:
    """A call takes many images: up to 512 for ours, 128 for the reference layer, 32 for OpenCV."""
    rivals = []
    for batch in (1, 4) if settings.quick else (1, 2, 8, 32, 128, 512):
        more, place = f", batch {batch}", {"at": batch, "items": batch}
        rivals += ours_along(settings, batch, more, batch <= 128, **place)
        if batch <= 32 and settings.device == "cpu":
            rivals += libraries(r.photograph_batch(batch), names=("OpenCV",), more=more, **place)
    return rivals


def threads(settings: Settings, batch: int) -> list[Rival]:
    """Ours are compared with one thread, the others with ours on as many threads."""
    rivals, images = [], r.photograph_batch(batch)
    for count in sorted({1, settings.threads} | {2**k for k in range(10) if 2**k < settings.threads}):
        more, place = f", threads {count}", {"at": count, "threads": count, "items": batch}
        rivals += ours_along(settings, batch, more, True, to=", threads 1" if count > 1 else "", **place)
        rivals += libraries(images, names=("OpenCV",), more=more, operations=operations(images.size), **place)
    return rivals
