"""The suites of benchmarks by name, and their cases: a file for each op."""

import importlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # memory.py is a program here, whose start is timed without torch
    from benchmarks.timing import Case, Settings

SUITES = {
    "hog": "hog",
    "tokens": "tokens",
    "blocks": "blocks",
    "gradients": "blocks",
    "gather": "moves",
    "mask": "moves",
    "accuracy": "accuracy",
    "loader": "training",
    "step": "training",
    "memory": "memory",
    "compat": "compat",
}
"""Each is a function of that name in that file: from the settings of a run to its cases."""

OPS = ("hog", "tokens", "blocks", "gradients", "moves", "places")
"""As ``benchmarks.small_calls`` has them: "moves" gather and mask tokens, "places" are streams, graphs and threads."""

NEEDED = {"tokens": ("hog", "tokens"), "gather": ("moves",), "mask": ("moves",), "compat": ("blocks",)}
NEEDED |= {"step": ("hog", "tokens", "moves"), "loader": ("hog", "tokens")}
NEEDED |= {"blocks": ("blocks",), "gradients": ("gradients",)}
"""The ops that the cases of a suite call; "hog" where nothing is said."""


def cases(suite: str, settings: "Settings", only: str = "") -> "list[Case]":
    """Those in whose "suite: title" the pattern ``only`` is found; none where "auto" takes what is left out."""
    from maskfeat_kernels import available_backends

    auto = available_backends(settings.device)[0]
    if any(f"{auto}:{op}" in settings.without for op in NEEDED.get(suite, ("hog",))):
        return []
    every = getattr(importlib.import_module(f"benchmarks.cases.{SUITES[suite]}"), suite)(settings)
    return [case for case in every if re.search(only, f"{suite}: {case.title}")]
