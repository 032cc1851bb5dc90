"""The suites of benchmarks by name, and their cases: a file for each op."""

import importlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # memory.py is a program here, whose start is timed without torch
    from benchmarks.timing import Case, Settings

SUITES = {
    "hog": ("hog", {"hog"}),
    "tokens": ("tokens", {"hog", "tokens"}),
    "blocks": ("blocks", {"blocks"}),
    "gradients": ("blocks", {"gradients"}),
    "gather": ("moves", {"moves"}),
    "mask": ("moves", {"moves"}),
    "accuracy": ("accuracy", {"hog"}),
    "loader": ("training", {"hog", "tokens"}),
    "step": ("training", {"hog", "tokens", "moves"}),
    "memory": ("memory", {"hog"}),
    "compat": ("compat", {"blocks"}),
}
"""Each is a function of that name in that file: from the settings of a run to its cases, which call these ops."""

OPS = ("hog", "tokens", "blocks", "gradients", "moves", "places")
"""As ``benchmarks.small_calls`` has them: "moves" gather and mask tokens, "places" are streams, graphs and threads."""


def cases(suite: str, settings: "Settings", only: str = "") -> "list[Case]":
    """Those in whose "suite: title" the pattern ``only`` is found; none where "auto" takes what is left out."""
    from maskfeat_kernels import available_backends

    (file, ops), auto = SUITES[suite], available_backends(settings.device)[0]
    if any(f"{auto}:{op}" in settings.without for op in ops):
        return []
    every = getattr(importlib.import_module(f"benchmarks.cases.{file}"), suite)(settings)
    return [case for case in every if re.search(only, f"{suite}: {case.title}")]
