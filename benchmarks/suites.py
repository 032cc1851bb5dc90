"""The suites of benchmarks by name, and their cases."""

import importlib

from benchmarks.timing import Case, Settings

SUITES = {
    "hog": "bench_hog",
    "tokens": "bench_tokens",
    "gather": "bench_masked_gather",
    "mask": "bench_masked_gather",
    "accuracy": "bench_accuracy",
    "step": "bench_training",
    "memory": "bench_memory",
    "compat": "bench_compat",
    "loader": "bench_training",
}
"""Each is a function of that name in that file: from the settings of a run to its cases."""


def cases(suite: str, settings: Settings) -> list[Case]:
    return getattr(importlib.import_module(f"benchmarks.{SUITES[suite]}"), suite)(settings)
