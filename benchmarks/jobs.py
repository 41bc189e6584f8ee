"""Jobs in processes of their own, with one line of JSON a job: what is in the file is kept if a run is cut off."""

import json
import multiprocessing
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm


@dataclass(frozen=True)
class Stages:
    """A benchmark in stages, each a grid of settings and the seeds they are run with; a file of rows for each stage.

    Attributes:
        folder: Where the files stand.
        grids: The grid and the seeds of each stage.
        run_job: Runs a job (stage, settings, seeds) and returns its row.
        settings_of: The settings of a row, as the grid has them.
    """

    folder: Path
    grids: Mapping[str, tuple[Callable[[], Iterable[Hashable]], Sequence[int]]]
    run_job: Callable[[tuple], dict]
    settings_of: Callable[[dict], Hashable]

    def read(self, stage: str) -> list[dict]:
        """The rows of a stage."""
        return read_rows(self.folder / f"{stage}.jsonl")

    def run(self, stage: str, processes: int | None = None) -> None:
        """Run what has no row yet."""
        grid, seeds = self.grids[stage]
        done = {self.settings_of(row) for row in self.read(stage)}
        jobs = [(stage, settings, list(seeds)) for settings in grid() if settings not in done]
        run_jobs(self.run_job, jobs, self.folder / f"{stage}.jsonl", processes)

    def command(self, name: str) -> None:
        """What ``python -m benchmarks.NAME STAGE [PROCESSES]`` does."""
        if len(sys.argv) < 2 or sys.argv[1] not in self.grids:
            sys.exit(f"usage: python -m benchmarks.{name} {'|'.join(self.grids)} [PROCESSES]")
        self.run(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)


def run_jobs(run_job: Callable[[tuple], dict], jobs: Sequence[tuple], path: Path, processes: int | None) -> None:
    """Add a row for each job as it ends; None is one process for each core. Without a job nothing is started."""
    if not jobs:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(processes) as pool, path.open("a") as file:
        for row in tqdm(pool.imap_unordered(run_job, jobs), total=len(jobs), desc=path.stem):
            file.write(json.dumps(row) + "\n")
            file.flush()


def read_rows(path: Path) -> list[dict]:
    """The rows of a file; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
