"""Two Triton kernels for test_kernel_report.py: one that fits the registers, and one that cannot."""

import triton
import triton.language as tl


@triton.jit
def _double(x, out, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, 2 * tl.load(x + i))


@triton.jit
def _cumulate_both_ways(x, out, BLOCK: tl.constexpr):
    """Every thread of the block needs all of its BLOCK / threads values twice."""
    i = tl.arange(0, BLOCK)
    values = tl.load(x + i)
    tl.store(out + i, values / tl.sum(values * values))


def ahead_of_time_cases():
    signature = {"x": "*fp32", "out": "*fp32", "BLOCK": "constexpr"}
    return [
        ("fits", _double, signature, {"BLOCK": 1024}, 4),
        ("spills", _cumulate_both_ways, signature, {"BLOCK": 8192}, 1),
    ]
