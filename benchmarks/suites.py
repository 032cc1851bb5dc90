"""The suites of benchmarks by name, and their cases."""

import importlib
import re

from benchmarks.timing import Case, Settings
from maskfeat_kernels import available_backends

SUITES = {
    "hog": "bench_hog",
    "tokens": "bench_tokens",
    "blocks": "bench_blocks",
    "gradients": "bench_blocks",
    "gather": "bench_masked_gather",
    "mask": "bench_masked_gather",
    "accuracy": "bench_accuracy",
    "loader": "bench_training",
    "step": "bench_training",
    "memory": "bench_memory",
    "compat": "bench_compat",
}
"""Each is a function of that name in that file: from the settings of a run to its cases."""

OPS = ("hog", "tokens", "blocks", "gradients", "moves", "places")
"""As ``benchmarks.small_calls`` has them: "moves" gather and mask tokens, "places" are streams, graphs and threads."""

NEEDED = {"tokens": ("hog", "tokens"), "gather": ("moves",), "mask": ("moves",), "compat": ("blocks",)}
NEEDED |= {
    "step": ("hog", "tokens", "moves"),
    "loader": ("hog", "tokens"),
    "blocks": ("blocks",),
    "gradients": ("gradients",),
}
"""The ops that the cases of a suite call; "hog" where nothing is said."""


def cases(suite: str, settings: Settings, only: str = "") -> list[Case]:
    """Those in whose "suite: title" the pattern ``only`` is found; none where "auto" takes what is left out."""
    auto = available_backends(settings.device)[0]
    if any(f"{auto}:{op}" in settings.without for op in NEEDED.get(suite, ("hog",))):
        return []
    every = getattr(importlib.import_module(f"benchmarks.{SUITES[suite]}"), suite)(settings)
    return [case for case in every if re.search(only, f"{suite}: {case.title}")]
