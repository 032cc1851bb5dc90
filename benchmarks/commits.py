"""Compare with another commit: built in a throw-away worktree, and measured by the benchmarks of this tree, in turn."""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.machine import ROOT, told_commit
from benchmarks.report import aligned
from benchmarks.timing import Settings, summary

TURNS = 3


@contextlib.contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """The files of a commit, with its extension built and with the benchmarks of this tree; gone afterwards."""
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "base")
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            subprocess.run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], cwd=tree, check=True)
            shutil.rmtree(tree / "benchmarks", ignore_errors=True)
            shutil.copytree(ROOT / "benchmarks", tree / "benchmarks", ignore=shutil.ignore_patterns("results"))
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def is_commit(name: str) -> bool:
    git = ["git", "-C", str(ROOT), "rev-parse", "--quiet", "--verify", f"{name}^{{commit}}"]
    return subprocess.run(git, capture_output=True, check=False).returncode == 0


def compare(commit: str, suites: list[str], settings: Settings, out: "Path | None" = None) -> str:
    """A table of both, each measured ``TURNS`` times by turns in processes of its own, whose reports go to ``out``.

    The ratio is time of the base over time now, more than 1 where this tree is faster: the middle one of the turns, and
    the range of them. Rows of rivals, which did not change, show how far the ratios can be trusted.
    """
    taken: dict[str, list[dict]] = {"now": [], "base": []}
    words = [*suites, "--device", settings.device, "--threads", str(settings.threads), *["--quick"] * settings.quick]
    with worktree(commit) as tree, tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS):
            for side, root in (("now", ROOT), ("base", tree)):
                to = Path(out or folder, f"{side}-{turn + 1}").resolve()
                shutil.rmtree(to, ignore_errors=True)
                print(f"turn {turn + 1} of {TURNS}: {side}", flush=True)
                command = [sys.executable, "-m", "benchmarks", *words, "--out", str(to)]
                run = subprocess.run(command, cwd=root, stdout=subprocess.DEVNULL, check=False)
                found = list(to.glob("*.json"))
                if not found:
                    raise RuntimeError(f"--base {commit}: these benchmarks do not run on {side} ({run.returncode})")
                taken[side].append(json.loads(found[0].read_text()))
    lines = [["", "ms now", "ms base", "base / now", "range"]]
    now, base = ([_medians(report) for report in taken[side]] for side in ("now", "base"))
    for row in now[0]:
        if all(row in medians for medians in (*now, *base)):
            ratios = [b[row] / n[row] for n, b in zip(now, base, strict=True)]
            times = [f"{1e3 * summary([m[row] for m in side])['median']:.4g}" for side in (now, base)]
            spread = f"{min(ratios):.3g} to {max(ratios):.3g}"
            lines.append([row, *times, f"{summary(ratios)['median']:.3g}", spread])
    commits = [taken[side][0]["environment"]["commit"] for side in ("now", "base")]
    told = (
        f"Now: {told_commit(commits[0])}. Base: {commit}, which is {commits[1].rstrip('+')}. More than 1 is slower "
        "there. Rows of rivals, which did not change, show how far the ratios can be trusted."
    )
    return "\n".join(["", told, "", *aligned(lines)])


def _medians(report: dict) -> dict[str, float]:
    return {
        f"{case['title']}: {row['name']}": row["seconds"]["median"]
        for case in report["cases"]
        for row in case["rows"]
        if "seconds" in row
    }
