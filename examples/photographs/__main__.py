"""``make photographs``: the runs that are missing, at low priority; any later call goes on."""

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

os.environ.setdefault("TQDM_MININTERVAL", "0.5" if sys.stderr.isatty() else "30")  # read when tqdm is imported
HERE = Path(__file__).parent


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.photographs", description=__doc__)
    parser.add_argument(
        "--data", required=True, help="photographs of ten classes: folders, lists, shards or a packed .zip"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="checkpoints and logs, of no use when all runs are done"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results", help="a JSON file a run (%(default)s)")
    parser.add_argument("--repeat", nargs=2, metavar=("ARM", "SEED"), help="make a recorded run again and compare bits")
    parser.add_argument("--gpu", action="store_true", help="the larger model and schedules of a GPU; another --results")
    parser.add_argument("--minutes", type=float, help="end after so many, with a checkpoint; a later call goes on")
    options = parser.parse_args(words)
    if options.gpu and options.results.resolve() == (HERE / "results").resolve():
        parser.error("--gpu needs --results, as its runs are not those of the protocol on a CPU")
    if not options.data or options.out == Path():  # as make gives them, if it is not told them
        parser.error("say where the photographs are and where to train: make photographs DATA=folder OUT=folder")
    os.nice(19)

    import torch

    from maskfeat.run.distributed import Terminated

    from .pack import unpack
    from .runs import Runs
    from .settings import GPU, Settings

    torch.set_num_threads(1)  # two processes on two cores do more than one with two threads
    data = options.data
    if data.endswith(".zip"):
        data = str(unpack(Path(data), options.out / "photographs"))
    runs = Runs(GPU if options.gpu else Settings(), data, options.out, options.results)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM; the same command goes on")
    )  # between trainings
    if options.minutes is not None:
        threading.Thread(target=alarm, args=(60 * options.minutes,), daemon=True).start()
    try:
        if options.repeat:
            sys.exit(repeat(runs, options.repeat[0], int(options.repeat[1])))
        runs.make_all()
    except Terminated as reason:
        sys.exit(f"{reason}; the same command goes on")


def alarm(seconds: float, again: float = 60.0) -> None:
    """SIGTERM for this process, and once more later: what its handler raises is dropped if a finaliser is running."""
    time.sleep(seconds)
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(again)


def repeat(runs, arm: str, seed: int) -> int:
    """0 if a run that is made again has the weights and the answers of the recorded one."""
    recorded = json.loads(runs.file(arm, seed).read_text())
    again = runs.run(arm, seed, runs.out / f"{arm}_{seed}_again")
    parts = [part for part in ("pretrain", "finetune", "few") if part in recorded]
    compared = [(part, key) for part in parts for key in ("weights", "right") if key in recorded[part]]
    differ = [f"{key} of {part}" for part, key in compared if recorded[part][key] != again[part][key]]
    print(f"{arm}, seed {seed}: {', '.join(differ) or 'nothing'} differs")
    return 1 if differ else 0


if __name__ == "__main__":
    main()
