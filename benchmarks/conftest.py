"""Options of ``pytest benchmarks``."""

import pytest
import torch


def pytest_addoption(parser):
    group = parser.getgroup("HOG benchmarks")
    group.addoption("--bench-device", choices=("cpu", "cuda"), default="cpu", help="of bench_pytest.py")
    group.addoption(
        "--bench-full", action="store_true", help="the cases of a full run; the default is those of a quick one"
    )


def pytest_configure(config):
    if config.option.bench_device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--bench-device cuda: torch finds no GPU")
