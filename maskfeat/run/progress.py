"""What a run says while it trains: its progress, a log with one JSON object a line, TensorBoard, Weights & Biases."""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..config import Recipe, to_dict
from ..weights.storage import one_line, write_atomically, writing


class Progress:
    """The progress and the log ``OUT/log.jsonl`` of a run that stands at ``step`` of ``total``.

    A terminal has a line that moves. Elsewhere every line of the log is also a line on stderr.
    Lines of the log beyond ``step`` come from a process that died after its last checkpoint; they are dropped.
    Other ranks than the first say nothing (``silent``).
    """

    def __init__(self, out: Path, recipe: Recipe, step: int, total: int, silent: bool = False):
        self.file, self.writer = Path(out) / "log.jsonl", None
        self.wandb: Any = None
        self.name, self.total = recipe.name, total
        self.last: dict[str, float] = {}  # line of the log
        self.silent = silent
        if silent:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        kept = self.file.read_bytes().splitlines(keepends=True) if step and self.file.exists() else []
        kept = [line for line in kept if _step_of(line) <= step]
        write_atomically(self.file, b"".join(kept))
        self.last = json.loads(kept[-1]) if kept else {}
        if recipe.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError(
                    f"tensorboard=true needs the package tensorboard: pip install tensorboard ({error})"
                ) from error
            self.writer = SummaryWriter(str(out), purge_step=step + 1)
        if recipe.wandb:
            try:
                import wandb
            except ImportError as error:
                raise ValueError(
                    f"wandb={recipe.wandb} needs the package wandb: pip install wandb ({error})"
                ) from error
            folder = self.file.parent
            same = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # a run goes on under its id
            names = dict(project=recipe.wandb, name=folder.name, id=same, resume="allow")
            try:
                self.wandb = wandb.init(dir=str(out), config=to_dict(recipe), **names)
            except Exception as error:  # it has its own, as for a key that is missing
                raise ValueError(f"wandb={recipe.wandb}: the package wandb says: {one_line(error)}") from error
        self.moves = sys.stderr.isatty()
        shape: dict[str, Any] = dict(desc=recipe.name, unit="step", dynamic_ncols=True, smoothing=0.1)
        self.line: tqdm[Any] = tqdm(total=total, initial=step, disable=not self.moves, **shape)

    def say(self, text: str) -> None:
        if not self.silent:
            tqdm.write(text, file=sys.stderr)

    def advance(self) -> None:
        if not self.silent:
            self.line.update()

    def log(self, step: int, **values: float | None) -> None:
        """Append the values to the log and show them."""
        if self.silent or not values:
            return
        with writing(self.file), open(self.file, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        known = {name: value for name, value in values.items() if value is not None}
        if self.writer is not None:
            with writing(self.file.parent):
                for name, value in known.items():
                    self.writer.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(known, step=step)
        text = "  ".join(_show(name, value) for name, value in known.items() if name != "eta_s")
        if self.moves:
            self.line.set_postfix_str(text)
        else:
            left = f"  {seconds / 60:.1f} min left" if (seconds := known.get("eta_s")) else ""
            self.say(f"{self.name}  step {step} of {self.total}  {text}{left}")

    def close(self) -> None:
        if not self.silent:
            self.line.close()
            if self.writer is not None:
                with writing(self.file.parent):
                    self.writer.close()
            if self.wandb is not None:
                self.wandb.finish()


class Stopwatch:
    """Seconds spent in the calls of some modules: wall time on the CPU, stream time on an accelerator.

    Reading waits for the device.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device):
        self.device = device
        self.marks: list[tuple[Any, Any]] = []
        for module in modules:
            module.register_forward_pre_hook(lambda *_: self.marks.append((self._now(), None)))
            module.register_forward_hook(lambda *_: self.marks.append((self.marks.pop()[0], self._now())))

    def read(self) -> float:
        """Seconds since the last reading."""
        marks, self.marks = self.marks, []
        if self.device.type == "cpu":
            return sum(end - start for start, end in marks)
        torch.accelerator.synchronize(self.device)
        return sum(start.elapsed_time(end) for start, end in marks) / 1e3

    def _now(self) -> Any:  # a number, or an event of an accelerator
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self.device, enable_timing=True)
        event.record()
        return event


def _step_of(line: bytes) -> float:
    """The step of a line of the log; infinity for one that was cut short or is damaged."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return float("inf")


def _show(name: str, value: float) -> str:
    return f"{name} {float(f'{100 * value:.2g}'):g}%" if name.endswith("_share") else f"{name} {value:.4g}"
