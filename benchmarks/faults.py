"""Runs that are killed and resumed, against the run that is left alone: `python -m benchmarks.faults`.

SIGKILL comes at random moments of `benchmarks.killed_run`, in training, in writes, and before the first step; each time
the run is started again as its user would, from the newest checkpoint that can be read. In the end weights, optimizer
state, factors, masks, counters and random generators must equal, bit for bit, those of a run that nobody killed.
"""

import argparse
import json
import multiprocessing
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.killed_run import train

RESULTS = Path(__file__).parent / "results" / "faults"
RUNS = [(optimizer, update) for optimizer in ("sgd", "adamw") for update in ("static", "rigl")]
PHASES = ("before the first step", "in training", "in a write")


@dataclass
class Faults:
    """What was done to the runs of one kind, and what came of it."""

    optimizer: str
    update: str
    folder: str
    kills: int = 0
    runs: int = 0
    equal: int = 0
    broken: int = 0  # files that could not be read when a run was to be resumed
    phases: list[int] = field(default_factory=lambda: [0, 0, 0])
    steps: list[int] = field(default_factory=list)  # at which it was killed, −1 before the first


def newest_whole(folder: Path) -> tuple[Path | None, int]:
    """The newest checkpoint that can be read, and how many newer ones cannot."""
    paths = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for broken, path in enumerate(paths):
        try:
            torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # whatever a part of a file happens to raise
            continue
        return path, broken
    return None, len(paths)


def same(a: Any, b: Any) -> bool:
    """Whether two nests of tensors and plain values are equal bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


class Killer:
    """Starts runs, kills them and starts them again.

    Args:
        root: Where the folders of the runs are made.
        seed: Of the moments.
    """

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.root, self.random = root, random.Random(seed)
        self.scratch = tempfile.TemporaryDirectory()  # Lightning writes there and moves; killed writes stay there
        self.processes = multiprocessing.get_context("forkserver")  # a fresh process without a fresh import of torch
        self.processes.set_forkserver_preload(["benchmarks.killed_run", "sklearn.datasets", "sklearn.model_selection"])

    def alone(self, optimizer: str, update: str) -> tuple[dict[str, Any], float]:
        """The end of a run that is left alone, and its seconds."""
        with self._folder() as name:
            folder = Path(name)
            self._run(optimizer, update, folder, None, None)  # the first one waits for the imports
            began = time.perf_counter()
            self._run(optimizer, update, folder, None, None)
            seconds = time.perf_counter() - began
            return torch.load(folder / "end.pt", weights_only=True), seconds

    def kill(self, found: Faults, whole: dict[str, Any], longest: float, most: int) -> None:
        """One run, killed after at most ``longest`` seconds, again and again until it ends, or ``most`` times."""
        with self._folder() as name:
            folder = Path(name)
            for kill in range(most + 1):
                checkpoint, broken = newest_whole(folder)
                found.broken += broken
                wait = self.random.uniform(0, longest) if kill < most else None
                phase, step = self._run(found.optimizer, found.update, folder, checkpoint, wait)
                if (folder / "end.pt").exists():
                    break
                found.kills += 1
                found.phases[phase] += 1
                found.steps.append(step)
            found.runs += 1
            found.equal += same(whole, torch.load(folder / "end.pt", weights_only=True))

    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(dir=self.root)

    def _run(self, optimizer: str, update: str, folder: Path, checkpoint: Path | None, wait: float | None) -> list[int]:
        moment = self.processes.RawArray("i", [0, -1])
        arguments = (optimizer, update, folder, checkpoint, moment, self.scratch.name)
        process = self.processes.Process(target=train, args=arguments)
        process.start()
        process.join(wait)
        process.kill()
        process.join()
        if process.exitcode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"A run of {optimizer} with {update} failed by itself; {checkpoint=}.")
        return list(moment)


def rows(root: Path, kills: int) -> Iterator[Faults]:
    """At least so many kills of each kind of run."""
    killer = Killer(root)
    for optimizer, update in RUNS:
        whole, seconds = killer.alone(optimizer, update)
        found = Faults(optimizer, update, str(root))
        while found.kills < kills:
            killer.kill(found, whole, longest=seconds / 2, most=kills)
        yield found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="of each kind of run, at least")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the checkpoints go")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    print(f"| optimizer | mask | kills | {' | '.join(PHASES)} | broken files | runs | equal |")
    print("|---|---|---|---|---|---|---|---|---|")
    with (RESULTS / f"kills-{options.folder.resolve().name}.jsonl").open("w") as file:
        for row in rows(options.folder, options.kills):
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()
            numbers = [row.kills, *row.phases, row.broken, row.runs, row.equal]
            print(f"| {row.optimizer} | {row.update} | {' | '.join(map(str, numbers))} |", flush=True)
