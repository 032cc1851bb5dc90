"""Cold start and peak memory: every rival in a process of its own, several times, in turn.

This file is also the program of these processes, and so it imports torch nowhere but for those who need it.
"""

import ctypes
import gc
import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]


def memory(settings) -> list:
    from benchmarks.timing import Case

    batch = 2 if settings.quick else 16
    title = f"Cold start and peak memory, RGB 224x224, batch {batch}"
    return [Case(title, partial(contenders, settings, batch), measure=measure_processes)]


def contenders(settings, batch: int) -> list[tuple[str, int]]:
    from benchmarks.rivals import NUMPY_OPS, is_there

    needed = {"cv2": "cv2", "maskfeat_kernels.compat.opencv": NUMPY_OPS, "maskfeat_kernels.compat.skimage": NUMPY_OPS}
    there = [name for name, (module, *_) in PROGRAMS.items() if module not in needed or is_there(needed[module])]
    return [(name, batch) for name in there if settings.device == "cpu" or PROGRAMS[name][2]]


def measure_processes(contenders: list[tuple[str, int]], settings) -> list[dict]:
    """From the start of Python to the first result, and the memory that a later call takes beyond its input.

    Raises WrongResult where the results of a rival and of ours that does its job differ by more than 1e-5.
    """
    from benchmarks.rivals import photograph_batch
    from benchmarks.timing import WrongResult, summary, times

    taken: dict[str, list[dict]] = {name: [] for name, _ in contenders}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images.npy")
        np.save(images, photograph_batch(contenders[0][1]))
        for _ in range(1 if settings.quick else 3):
            for name in taken:
                words = [name, images, settings.device, Path(folder, f"{name}.npy"), time.time()]
                command = [sys.executable, "-m", "benchmarks.cases.memory", *map(str, words)]
                run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
                taken[name].append(json.loads(run.stdout.splitlines()[-1]))
        results = {name: np.load(Path(folder, f"{name}.npy")).ravel() for name in taken}
    rows, samples = [], {name: [f["cold_start"] for f in facts] for name, facts in taken.items()}
    for name, facts in taken.items():
        row, ours = {"name": name, "threads": 1}, PROGRAMS[name][3]
        if ours in taken and not (error := np.abs(results[name] - results[ours]).max()) <= 1e-5:
            raise WrongResult(f"{name} and {ours} differ by {error:.2g}, allowed are 1e-05")
        row |= {key: summary([f[key] for f in facts])["median"] for key in ("import_seconds", "peak_bytes")}
        rows.append({**row, "result_bytes": facts[0]["result_bytes"], **times(name, ours, samples)})
    return rows


def process_of(name: str, images: str, device: str, to: str, asked_for: str) -> None:
    """The process of one rival, which was asked for at that time.time(). The result of all images goes to a file."""
    begin = time.time()
    hog, planes = load(name, device)
    facts = {"import_seconds": time.time() - begin}
    batch = np.load(images)
    first = hog(planes(batch[:1]))
    if device == "cuda":  # which is still at work when the call returns
        first.cpu()
    facts["cold_start"] = time.time() - float(asked_for)
    batch = planes(batch)
    result, facts["peak_bytes"] = peak_bytes(lambda: hog(batch), device)
    np.save(to, result.cpu() if device == "cuda" else result)
    print(json.dumps({**facts, "result_bytes": result.nbytes}))


def peak_bytes(call, device: str):
    """The result of a call, and the memory that it took at most, the result included."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return call(), torch.cuda.max_memory_allocated() - before
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if reset.exists():
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)
        trim(0)  # of glibc, which would else take freed memory again without being seen
        reset.write_text("5")  # the high-water mark goes down to what is in use

    def high_water() -> int:
        if reset.exists():
            return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    before = high_water()
    return call(), high_water() - before


PROGRAMS = {
    "fused_hog uint8": ("maskfeat_kernels", "fused_hog", "uint8", None),
    "reference layer float32": ("benchmarks.rivals", "hog_layer", "float32", "fused_hog uint8"),
    "compat.opencv": ("maskfeat_kernels.compat.opencv", "HOGDescriptor", None, None),
    "OpenCV uint8": ("cv2", "HOGDescriptor", None, "compat.opencv"),
    "compat.skimage": ("maskfeat_kernels.compat.skimage", "hog", None, None),
    "scikit-image uint8": ("skimage.feature", "hog", None, "compat.skimage"),
}
"""For each rival what is imported from where, its dtype if it takes tensors, and which of ours does its job."""


def load(name: str, device: str) -> tuple:
    """Import a rival: its HOG, and what makes its input of [B, 224, 224, 3]."""
    module, attribute, dtype, _ = PROGRAMS[name]
    library = importlib.import_module(module)
    hog = getattr(library, attribute)
    if dtype:
        import torch

        torch.set_num_threads(1)
        return hog, lambda images: torch.from_numpy(images).permute(0, 3, 1, 2).to(device, getattr(torch, dtype))
    if module == "cv2":
        library.setNumThreads(1)
    is_descriptor = attribute == "HOGDescriptor"
    run = hog((224, 224), (16, 16), (8, 8), (8, 8), 9).compute if is_descriptor else partial(hog, channel_axis=-1)
    return lambda images: np.stack([run(image) for image in images]), lambda images: images


if __name__ == "__main__":
    process_of(*sys.argv[1:])
