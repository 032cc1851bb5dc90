"""HOG against the reference layer, OpenCV and scikit-image, on the CPU or on a GPU.

As a script it takes all rivals in turn and writes the tables; under pytest-benchmark it times each of them alone::

    python -m benchmarks.bench_hog [--quick] [--device cpu|cuda] [--threads N] [--out DIRECTORY]
    pytest benchmarks --benchmark-only
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.rivals import hog_layer, opencv_hog, photograph_batch, skimage_hog
from benchmarks.timing import Rival
from maskfeat_kernels import available_backends, fused_hog, fused_hog_tokens

RESULTS = Path(__file__).parent / "results"


def against_others(batch: int, cold: bool = False) -> list[Rival]:
    """Ours, the layer, OpenCV and scikit-image on the same photographs; ``cold``: read from memory, not from cache."""
    images = photograph_batch(batch)  # [B, 224, 224, 3]
    planes = planar(images)  # [B, 3, 224, 224]
    truth = exact(planes)
    turns = timing.rotating if cold else lambda x: [x]
    planes_u8, planes_f32, images_u8 = turns(planes), turns(planes.float()), turns(images)
    return [
        Rival("fused_hog uint8", fused_hog, planes_u8, truth),
        Rival("fused_hog float32", fused_hog, planes_f32, truth, versus="fused_hog uint8"),
        Rival("reference layer float32", hog_layer, planes_f32, truth, versus="fused_hog float32"),
        Rival("OpenCV uint8", opencv_hog, images_u8, versus="fused_hog uint8"),
        Rival("scikit-image uint8", skimage_hog, images_u8, versus="fused_hog uint8"),
    ]


def dtypes_and_layouts(batch: int) -> list[Rival]:
    """Ours on every dtype, and on images whose channels are interleaved. The photographs are the same whole numbers."""
    planes = planar(photograph_batch(batch))
    truth = exact(planes)
    rivals = [Rival("float32", fused_hog, [planes.float()], truth)]
    for dtype in (torch.uint8, torch.float16, torch.bfloat16, torch.float64):
        rivals.append(Rival(str(dtype).removeprefix("torch."), fused_hog, [planes.to(dtype)], truth, versus="float32"))
    for planar_name in ("uint8", "float32"):
        x = planes.to(getattr(torch, planar_name), memory_format=torch.channels_last)
        rivals.append(Rival(f"{planar_name} channels-last", fused_hog, [x], truth, versus=planar_name))
    return rivals


def threads(batch: int, count: int) -> list[Rival]:
    """One thread against several: the ratio is the speed-up, for the single thread is divided by the others."""
    planes = planar(photograph_batch(batch))
    truth = exact(planes)
    rivals = []
    for dtype in (torch.uint8, torch.float32):
        name = str(dtype).removeprefix("torch.")
        several = f"{name}, {count} threads"
        inputs = [planes.to(dtype)]
        rivals.append(Rival(several, fused_hog, inputs, truth, threads=count))
        rivals.append(Rival(f"{name}, 1 thread", fused_hog, inputs, truth, versus=several))
    return rivals


def overhead() -> list[Rival]:
    """One cell: what a call costs before it computes anything, beside the cheapest of torch's own ops."""
    planes = planar(photograph_batch(1))[0, :1, 100:108, 100:108].contiguous()  # [1, 8, 8]
    return [
        Rival("torch.mul", lambda x: torch.mul(x, x), [planes]),
        Rival("fused_hog", fused_hog, [planes], exact(planes), versus="torch.mul"),
    ]


def whole_and_tokens(batch: int, kept: int = 78) -> list[Rival]:
    """All 196 patches of an image, against those that MaskFeat masks: the ratio is what the masked ones cost."""
    planes = planar(photograph_batch(batch))
    generator = torch.Generator().manual_seed(0)
    ids = torch.rand(batch, 196, generator=generator).argsort(1)[:, :kept].sort(1).values
    truth = exact(planes)
    tokens = fused_hog_tokens(planes.double(), ids, backend="reference")
    rivals = []
    for dtype in ("uint8", "float32"):
        x = planes.to(getattr(torch, dtype))
        rivals.append(Rival(f"all patches, {dtype}", fused_hog, [x], truth))
        run = partial(fused_hog_tokens, token_ids=ids)
        rivals.append(Rival(f"{kept} of 196, {dtype}", run, [x], tokens, versus=f"all patches, {dtype}"))
    return rivals


def on_gpu(batch: int) -> list[Rival]:
    """Both backends, on all patches and on 78 of 196, and the layer in eager mode and compiled, read from memory."""
    planes = planar(photograph_batch(batch)).cuda()
    truth = fused_hog(planes.double(), backend="reference")
    ids = torch.rand(batch, 196, device="cuda").argsort(1)[:, :78].sort(1).values
    tokens = fused_hog_tokens(planes.double(), ids, backend="reference")
    inputs = {dtype: timing.rotating(planes.to(getattr(torch, dtype)), "cuda") for dtype in ("uint8", "float32")}
    rivals = []
    for backend in available_backends("cuda"):
        for dtype in inputs if backend != "reference" else ():
            name, run = f"{backend} {dtype}", partial(fused_hog, backend=backend)
            rivals.append(
                Rival(name, run, inputs[dtype], truth, versus=None if dtype == "uint8" else f"{backend} uint8")
            )
            run = partial(fused_hog_tokens, token_ids=ids, backend=backend)
            rivals.append(Rival(f"{name}, 78 of 196", run, inputs[dtype], tokens, versus=name))
    fastest = f"{available_backends('cuda')[0]} float32"
    rivals.append(Rival("reference layer float32", hog_layer, inputs["float32"], truth, versus=fastest))
    rivals.append(Rival("the same, compiled", torch.compile(hog_layer), inputs["float32"], truth, versus=fastest))
    return rivals


def planar(images) -> Tensor:  # [B, H, W, 3] array -> [B, 3, H, W]
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def exact(planes: Tensor) -> Tensor:
    """What all results are checked against: the reference backend in float64."""
    return fused_hog(planes.double(), backend="reference")


def cases(count: int, cold: bool) -> dict:
    """Title of each case, and the function that prepares its rivals."""
    source = ", from memory" if cold else ""
    return {
        "224x224 RGB, batch 1, one thread": partial(against_others, 1),
        "224x224 RGB, batch 8, one thread": partial(against_others, 8),
        f"224x224 RGB, batch 16, one thread{source}": partial(against_others, 16, cold),
        "Dtypes and layouts, batch 8, one thread": partial(dtypes_and_layouts, 8),
        "Tokens, batch 8, one thread": partial(whole_and_tokens, 8),
        f"{count} threads, batch 16": partial(threads, 16, count),
        "One call on one cell": overhead,
    }


def pytest_generate_tests(metafunc):
    """Every rival of every case is a test, grouped by case."""
    prepared = [(title, rival) for title, prepare in cases(count=2, cold=False).items() for rival in prepare()]
    metafunc.parametrize(("title", "rival"), prepared, ids=[f"{title}: {rival.name}" for title, rival in prepared])


def test_hog(benchmark, title: str, rival: Rival):
    benchmark.group = title
    benchmark.extra_info.update(timing.check(rival), threads=rival.threads)
    benchmark(rival.run, rival.inputs[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds; written only where --out says")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="several threads are N of them (default 2)")
    parser.add_argument("--out", type=Path, metavar="DIRECTORY", help=f"where to write (default {RESULTS.name}/ here)")
    options = parser.parse_args()
    if options.threads < 2:
        parser.error(f"--threads must be at least 2, got {options.threads}")

    device = options.device
    environment = timing.environment(device)
    rounds = 3 if options.quick else 30
    report = {"title": f"HOG on {device}", "environment": environment, "rounds": rounds, "cases": []}
    print(timing.markdown(report))
    chosen = cases(options.threads, cold=True)
    if device == "cuda":
        chosen = {f"224x224 RGB, batch {batch}": partial(on_gpu, batch) for batch in (256, 1)}
    for title, prepare in chosen.items():
        print(f"## {title}\n", flush=True)
        rows = timing.measure(prepare(), rounds=rounds, device=device)
        print(*timing.table(rows), "", sep="\n", flush=True)
        report["cases"].append({"title": title, "rows": rows})

    if options.out or not options.quick:
        path = (options.out or RESULTS) / f"hog_{device}_{timing.slug(environment.get('gpu', environment['cpu']))}.json"
        timing.write_report(report, path)
        print(f"wrote {path} and {path.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
