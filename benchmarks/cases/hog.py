"""HOG of whole images: rivals, precisions, parameters, and curves of scaling."""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from benchmarks import rivals as r
from benchmarks import timing
from benchmarks.timing import Case, Rival, Settings
from maskfeat_kernels import available_backends, fused_hog, fused_hog_scales

LAYER = "reference layer float32"
LIBRARIES = ("OpenCV", "scikit-image", "hogpp")
"""They take colour and gray images."""


def hog(settings: Settings) -> list[Case]:
    on_cpu, some, many = settings.device == "cpu", settings.batch(2, 8, 8), settings.batch(2, 16, 256)
    one_call = Case("One image, from call to result", partial(latency, settings))
    cases = [
        Case("RGB 224x224, batch 1", partial(against_others, settings, 1)),
        Case(f"RGB 224x224, batch {many}, from memory", partial(against_others, settings, many, cold=True)),
        Case(f"Gray 224x224, batch {many}", partial(gray, settings, many)) if on_cpu else one_call,
        Case("Dtypes and layouts", partial(dtypes_and_layouts, settings, some)),
        Case("Bins, cells and blocks", partial(parameters, settings, some)),
        Case("Several cell sizes", partial(scales, settings, some)),
        Case("Video clip of 16 frames", partial(video, settings)),
        Case("One call on one cell", partial(overhead, settings)),
        Case("Time and pixels", partial(pixels, settings), axis="pixels of one RGB image"),
        Case("Time and batch", partial(batches, settings), axis="batch of RGB 224x224"),
    ]
    return cases + [Case(f"Time and threads, batch {many}", partial(threads, settings, many), axis="threads")] * on_cpu


def our_backends(settings: Settings, op: str = "hog") -> dict[str, str]:
    """The name of each compiled backend, by the words that its rows begin with. "auto" takes "fused_hog".

    Triton's interpreter, which would run it on a CPU, is left out. So is what the run leaves out for this op.
    """
    slow = ("reference", "triton") if settings.device == "cpu" else ("reference",)
    names = [name for name in available_backends(settings.device) if name not in slow] or ["reference"]
    rows = {"fused_hog" if name == names[0] else f"fused_hog {name}": name for name in names}
    return {row: name for row, name in rows.items() if f"{name}:{op}" not in settings.without}


def ours(
    backends: dict[str, str],
    inputs: list[list[Tensor]],
    truth: Tensor,
    run: Callable = fused_hog,
    more: str = "",
    to: str = "",
    **fields,
) -> list[Rival]:
    """A row for each list of inputs and each backend. Other backends are compared with "fused_hog" on the same dtype.

    more: follows in the names of rows.
    to: what "fused_hog" itself is compared with, where "{}" stands for the dtype; "" for nothing.
    """
    rows = []
    for x in inputs:
        dtype = short(x[0].dtype)
        for name, backend in backends.items():
            row = f"{name} {dtype}{more}"
            versus = to.format(dtype) if name == "fused_hog" else f"fused_hog {dtype}{more}"
            versus = None if versus in ("", row) else versus
            rows.append(Rival(row, partial(run, backend=backend), x, truth, versus, **fields))
    return rows


def operations(pixels: int, bins: int = 9) -> int:
    """The arithmetic that a HOG needs, as DESIGN.md counts it. Each channel counts as a pixel.

    The gradient takes 12 operations, its fold 5, its length 4. Each pair of edges takes a product, each edge a
    comparison and a selection, and each bin a sum.
    """
    return pixels * (12 + 5 + 4 + bins // 2 + 2 * (bins - 1) + bins)


def job_of(planes: Tensor, bins: int = 9) -> dict:
    return {"items": len(planes), "operations": operations(planes.numel(), bins)}


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@cache
def photographs(batch: int, device: str, side: int = 224) -> Tensor:
    """Bytes [batch, 3, side, side]. A large batch repeats 32 crops."""
    return r.planar(r.photograph_batch(min(batch, 32), side)).repeat(-(-batch // 32), 1, 1, 1).to(device)


@cache
def truth_of(batch: int, device: str, side: int = 224, **changes) -> Tensor:
    """Their exact HOG."""
    some = r.exact(photographs(min(batch, 32), device, side), **changes)
    return some.repeat(-(-batch // 32), *[1] * (some.ndim - 1))


def against_others(settings: Settings, batch: int, cold: bool = False) -> list[Rival]:
    """Everyone takes the same photographs. If ``cold``, they are read from memory, not from the cache."""
    planes, truth = photographs(batch, settings.device), truth_of(batch, settings.device)
    turns = partial(timing.rotating, device=settings.device) if cold else lambda x: [x]
    floats, job = turns(planes.float()), job_of(planes)
    rows = ours(our_backends(settings), [turns(planes), floats], truth, to="fused_hog uint8", **job)
    layers = {LAYER: r.hog_layer, "reference layer fp16 autocast": r.hog_layer_autocast}
    if cold and not settings.quick:
        layers["reference layer compiled"] = r.hog_layer_compiled(settings.device)
    for name, layer in layers.items():
        gate = {"tolerance": r.AUTOCAST_TOLERANCE, "on_average": True} if "autocast" in name else {}
        rows.append(Rival(name, layer, floats, truth, "fused_hog float32", **gate, **job))
    soft = torch.cat([r.soft_conv_hog(image.unsqueeze(0).double()) for image in planes])
    gate = {"tolerance": r.SOFT_TOLERANCE, "items": batch}
    rows.append(Rival("soft conv HOG float32", r.soft_conv_hog, floats, soft, "fused_hog float32", **gate))
    on_cpu = settings.device == "cpu"
    return rows + (libraries(r.photograph_batch(batch), turns, items=batch) if on_cpu else [])


def latency(settings: Settings) -> list[Rival]:
    """A caller who needs the result waits for the launch, the kernels, and the way back."""
    planes, truth = photographs(1, settings.device), truth_of(1, settings.device)
    runs = {"fused_hog uint8": (fused_hog, planes), LAYER: (r.hog_layer, planes.float())}
    if not settings.quick:
        runs["reference layer compiled"] = r.hog_layer_compiled(settings.device), planes.float()

    def waits(run, x):
        result = run(x)
        torch.cuda.synchronize()
        return result

    versus = {name: "fused_hog uint8" for name in runs if name != "fused_hog uint8"}
    return [
        Rival(name, partial(waits, run), [x], truth, versus.get(name), on_host=True) for name, (run, x) in runs.items()
    ]


def gray(settings: Settings, batch: int) -> list[Rival]:
    """Images have one channel, so that the libraries compute as many histograms as we do."""
    images = r.gray_batch(batch)
    planes = r.planar(images)
    inputs = [[planes.to(dtype)] for dtype in (torch.uint8, torch.float32, torch.float64)]
    rows = ours(our_backends(settings), inputs, r.exact(planes), **job_of(planes))
    rows += libraries(images, items=batch)
    if r.is_there("fasthog"):  # its definition has no other implementation to check it against
        x = images.astype(np.float64)
        rows.append(Rival("fasthog float64", r.fasthog_hog, [x], versus="fused_hog float64", items=batch))
    if r.is_there("cv2") and r.optional("cv2").ocl.haveOpenCL():
        descriptor = r.opencv_descriptor(*images.shape[1:], 16)

        def run(images):  # arrays, or cv2.UMat on the device
            return np.stack([descriptor.compute(image) for image in images])

        truth, on_device = torch.from_numpy(run(images)), [r.optional("cv2").UMat(image) for image in images]
        gate = {"tolerance": r.OPENCL_TOLERANCE, "on_average": True, "reads": images.nbytes, "items": batch}
        rows.append(Rival("OpenCV OpenCL uint8", run, [on_device], truth, "fused_hog uint8", **gate))
    return rows


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
    changes, floats = changes or {}, images.astype(np.float32)
    of_opencv = {option: value for option, value in changes.items() if option != "norm"}
    opencv = r.OPENCV_TOLERANCE * max(1, changes.get("bins", 9) / 9)
    skimage = r.SKIMAGE_TOLERANCE * max(1, np.prod(np.broadcast_to(changes.get("cell", 8), 2)) / 64)
    known = {
        "OpenCV": ("cv2", r.opencv_hog, r.exact_opencv_hog, images, of_opencv, {"tolerance": opencv}),
        "scikit-image": ("skimage", r.skimage_hog, r.exact_skimage_hog, floats, changes, {"tolerance": skimage}),
        "hogpp": ("hogpp", r.hogpp_hog, r.hogpp_hog, floats, {}, r.HOGPP_GATE),  # it computes bytes in float64
    }
    rows = []
    for name in names:
        module, hog, exact, x, options, gate = known[name]
        if r.is_there(module):
            series = {"series": f"{name} {x.dtype}"} if more else {}
            truth, versus = torch.as_tensor(exact(images, **options)), f"fused_hog {x.dtype}{more}"
            fields = {**gate, **job, **series}
            rows.append(Rival(f"{name} {x.dtype}{more}", partial(hog, **options), turns(x), truth, versus, **fields))
    return rows


def dtypes_and_layouts(settings: Settings, batch: int) -> list[Rival]:
    """We take every dtype, and images whose channels are interleaved. The photographs are the same whole numbers."""
    planes, truth = photographs(batch, settings.device), truth_of(batch, settings.device)
    auto, job = {"fused_hog": "auto"}, job_of(planes)
    dtypes = (torch.float32, torch.uint8, torch.float16, torch.bfloat16, torch.float64)
    rows = ours(auto, [[planes.to(dtype)] for dtype in dtypes], truth, to="fused_hog float32", **job)
    last = [[planes.to(dtype, memory_format=torch.channels_last)] for dtype in (torch.uint8, torch.float32)]
    return rows + ours(auto, last, truth, more=" channels-last", to="fused_hog {}", **job)


def parameters(settings: Settings, batch: int) -> list[Rival]:
    """Other bins, cells and blocks are compared with the usual case, and the libraries with ours on the same."""
    planes, images = photographs(batch, settings.device), r.photograph_batch(batch)
    choices = [{}] + [{"bins": bins} for bins in (4, 6, 12, 18, 36)] + [{"cell": cell} for cell in (4, 16, (6, 5))]
    choices += [{"block": 2}, {"block": 3, "norm": "l2-hys"}]
    rows, usual = [], ", 9 bins, cell 8x8"
    for changes in choices:
        more = "".join(f", {option} {value}" for option, value in changes.items()) or usual
        truth, job = truth_of(batch, settings.device, **changes), job_of(planes, changes.get("bins", 9))
        place = {"run": partial(fused_hog, **changes), "more": more, "to": f"fused_hog {{}}{usual}"}
        rows += ours({"fused_hog": "auto"}, [[planes], [planes.float()]], truth, **place, **job)
        if settings.device == "cpu":
            names = ("scikit-image",) if isinstance(changes.get("cell"), tuple) else ("OpenCV", "scikit-image")
            rows += libraries(images, names=names, more=more, changes=changes, items=batch)
    return rows


def scales(settings: Settings, batch: int) -> list[Rival]:
    """Cells of 4, 8 and 16 pixels in one call, and in a call for each, are compared with those of 4 alone."""
    planes, cells, finest = photographs(batch, settings.device), (4, 8, 16), ", cell 4"
    truths = [truth_of(batch, settings.device, cell=cell) for cell in cells]
    truth, inputs = torch.cat([one.flatten() for one in truths]), [[planes], [planes.float()]]
    place = {"to": f"fused_hog {{}}{finest}", "items": batch}

    def apart(x: Tensor, backend: str) -> tuple[Tensor, ...]:
        return tuple(fused_hog(x, cell=cell, backend=backend) for cell in cells)

    backends = our_backends(settings)
    rows = ours(backends, inputs, truths[0], partial(fused_hog, cell=4), finest, items=batch)
    rows += ours(backends, inputs, truth, partial(fused_hog_scales, cells=cells), ", cells 4, 8 and 16", **place)
    return rows + ours(backends, inputs, truth, apart, ", a call for each", **place)


def video(settings: Settings) -> list[Rival]:
    """Every second frame of a clip is read where it lies, or copied first."""
    clip = photographs(16, settings.device).unsqueeze(0)  # [1, 16, 3, 224, 224]
    frames, truth = clip[0, ::2], truth_of(16, settings.device)[::2].unsqueeze(0)
    job, place = {**job_of(frames), "reads": frames.numel()}, "fused_hog, every second frame in place"
    copy = "every second frame copied, then fused_hog"
    return [
        Rival(place, lambda x: fused_hog(x[:, ::2]), [clip], truth, **job),
        Rival(copy, lambda x: fused_hog(x[:, ::2].contiguous()), [clip], truth, versus=place, **job),
    ]


def overhead(settings: Settings) -> list[Rival]:
    """One cell shows what a call costs before it computes anything, beside the cheapest of torch's own ops."""
    planes = photographs(1, settings.device)[:, :1, 100:108, 100:108].contiguous()  # [1, 1, 8, 8]
    rows = [Rival("torch.mul", lambda x: torch.mul(x, x), [planes[0]], on_host=True)]
    for name, backend in our_backends(settings).items():
        run = partial(fused_hog, backend=backend)
        rows.append(Rival(name, run, [planes[0]], r.exact(planes)[0], versus="torch.mul", on_host=True))
    return rows


def along(
    settings: Settings, batch: int, more: str, layer: bool, names: tuple[str, ...], side: int = 224, to="", **place
) -> list[Rival]:
    """One place on a curve: each of our backends on bytes and float32, the reference layer, and libraries by name."""
    planes, truth = photographs(batch, settings.device, side), truth_of(batch, settings.device, side)
    counted = {"operations": operations(planes.numel()), **place}
    rows = ours(our_backends(settings), [[planes], [planes.float()]], truth, more=more, to=to, **counted)
    if layer:
        rows.append(Rival(LAYER + more, r.hog_layer, [planes.float()], truth, f"fused_hog float32{more}", **counted))
    for row in rows:
        row.series = row.name.removesuffix(more)
    if settings.device == "cpu":
        rows += libraries(r.photograph_batch(batch, side), names=names, more=more, **place)
    return rows


def pixels(settings: Settings) -> list[Rival]:
    """One image has 32x32 to 4096x4096 pixels. Who takes seconds for a large one stops at 1024x1024."""
    rows = []
    for side in (32, 128, 512) if settings.quick else (32, 64, 128, 256, 512, 1024, 2048, 4096):
        names = LIBRARIES if side <= 1024 else ("OpenCV",)
        rows += along(settings, 1, f", {side}x{side}", side <= 1024, names, side, at=side**2)
    return rows


def batches(settings: Settings) -> list[Rival]:
    """A call takes many images: up to 512 for ours, 128 for the reference layer, 32 for OpenCV."""
    rows = []
    for batch in (1, 4) if settings.quick else (1, 2, 8, 32, 128, 512):
        names = ("OpenCV",) if batch <= 32 else ()
        rows += along(settings, batch, f", batch {batch}", batch <= 128, names, at=batch, items=batch)
    return rows


def threads(settings: Settings, batch: int) -> list[Rival]:
    """Ours are compared with one thread, the others with ours on as many threads."""
    rows, job = [], {"to": "fused_hog {}, threads 1", **job_of(photographs(batch, settings.device))}
    for count in sorted({1, settings.threads} | {2**k for k in range(10) if 2**k < settings.threads}):
        rows += along(settings, batch, f", threads {count}", True, ("OpenCV",), at=count, threads=count, **job)
    return rows
