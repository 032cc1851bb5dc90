"""The numbers of the package do not change: the calls of tests/manifest.py have the bits that tests/manifest.txt holds.

Compiled kernels must return these bits at every vector width: a process for each instruction set of this machine. The
narrower ones are what older machines and arm64 run. The reference and Triton add in another order; they must come as
near as the rounding errors of their sums allow.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import manifest
import pytest
import torch
from conftest import BACKENDS, COMPILED, moved

ROOT = Path(__file__).parent.parent
WANT = manifest.FILE.read_text().split()
needs_cpu = pytest.mark.skipif("cpu" not in COMPILED, reason="the extension is not built")


PRINT = """
import itertools, sys
from tests import manifest
for _, call in itertools.islice(manifest.calls(), 0, None, int(sys.argv[1])):
    print(manifest.digest(call()))
"""


def run(instruction_set: str, every: int = 1) -> str:
    """What every so many calls of the list print with the kernels of an instruction set, or why they failed."""
    environment = {**os.environ, "MASKFEAT_CPU": instruction_set}
    command = [sys.executable, "-c", PRINT, str(every)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else done.stderr


@pytest.fixture(scope="module")
def instruction_sets() -> list[str]:
    """As the refusal of an unknown one lists them."""
    refusal = re.search(
        "ValueError: MASKFEAT_CPU must be one of those that this machine has, (.*), got sse", run("sse")
    )
    assert refusal, run("sse")
    return refusal[1].split(", ")


@needs_cpu
def test_the_calls_return_the_bits_of_the_list():
    assert len(WANT) >= 2000
    calls = zip(manifest.calls(), WANT, strict=True)
    changed = [name for (name, call), want in calls if manifest.digest(call()) != want]
    assert not changed, f"{len(changed)} results changed, the first of {changed[0]}"


@needs_cpu
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_every_instruction_set_returns_the_bits_of_the_list(instruction_sets, every):
    """The last one is that of this process, unless MASKFEAT_CPU says another."""
    assert instruction_sets[0] == "baseline"
    for instruction_set in instruction_sets if every == 1 else instruction_sets[:-1]:
        printed = run(instruction_set, every)
        got, want = printed.split(), WANT[::every]
        assert len(got) == len(want), printed[-2000:]
        changed = [every * i for i in range(len(want)) if got[i] != want[i]]
        assert not changed, f"{instruction_set}: {len(changed)} results changed, the first in line {changed[0] + 1}"


def check_near(backend: str, every: int, first: int = 0) -> None:
    """Compare every so many results of a backend with those of the compiled kernels."""
    for name, call in [*manifest.hog_calls()][first::every]:
        if call.gradient and not has_a_bound(call):
            continue
        want = call.run(COMPILED[0]).double().cpu()
        got = call._replace(x=moved(call.x, backend)).run(backend).double().cpu()
        power = 2 if call.spec.norm == "l1-sqrt" and not call.gradient else 1  # the root of a rounding error is large
        off, atol = (got**power - want**power).abs().max(), tolerance(call, float(want.abs().max()))
        assert got.shape == want.shape and off <= atol, f"off by {off:.3g}, more than {atol:.3g}: {name}"


def has_a_bound(call: manifest.HogCall) -> bool:
    """Whether rounding moves a gradient little. It moves float32 gradients of a few pixels that cancel by a lot."""
    return call.x.dtype == torch.float64 or (call.x.dtype == torch.float32 and min(call.spec.cell) > 2)


def tolerance(call: manifest.HogCall, largest: float) -> float:
    """Of two results whose sums have different orders, each some 34 roundings from the truth.

    With linear votes, the place of a pixel among the bins is off by 3e-8 and three roundings of numbers up to twice
    the bins. The coefficients of OpenCV's polynomial are float32. The gradients of float32 pixels that differ by little
    carry rounding errors of 2^-24 of the pixels, some 1e-5 of what they are; a sum that cancels has those of its terms.
    """
    wide, spec = call.x.dtype == torch.float64, call.spec
    if call.gradient:
        return 1e-6 * largest + 1e-12 if wide else 6e-5 * largest + 1e-6
    if wide:
        return (1e-6 if spec.arithmetic == "opencv" else 2e-13) * max(1.0, largest)
    return (4e-6 + (4 * spec.bins * 3 * 2.0**-24 if spec.votes == "linear" else 0)) * max(1.0, largest)


@pytest.mark.skipif(not COMPILED, reason="the extension is not built")
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in COMPILED])
def test_other_backends_come_near_the_compiled_ones(backend):
    check_near(backend, *((23, 3) if backend == "reference" else (797, 1)))


@pytest.mark.slow
@pytest.mark.skipif(not COMPILED, reason="the extension is not built")
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in COMPILED])
def test_other_backends_come_near_the_compiled_ones_on_more(backend):
    check_near(backend, 3 if backend == "reference" else 67)
