"""Jobs in processes of their own, with one line of JSON a job: what is in the file is kept if a run is cut off."""

import json
import multiprocessing
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

Grid = Callable[[], Iterable[tuple[Hashable, Sequence[int]]]]


@dataclass(frozen=True)
class Stages:
    """A benchmark in stages, each a grid of settings with the seeds they are run with; a file of rows for each stage.

    A row has the settings, its "seeds", and a list by seed for each score.

    Attributes:
        folder: Where the files stand.
        grids: Of each stage, what is run: settings and seeds.
        run_job: Runs a job (stage, settings, seeds) and returns its row.
        settings_of: The settings of a row, as the grid has them.
        chunk: Seeds of a job.
    """

    folder: Path
    grids: Mapping[str, Grid]
    run_job: Callable[[tuple[Any, ...]], dict[str, Any]]
    settings_of: Callable[[dict[str, Any]], Hashable]
    chunk: int = 8

    def read(self, stage: str, score: str = "accuracies") -> dict[Any, list[Any]]:
        """What the seeds have, by settings, seeds ascending."""
        return {settings: list(scores.values()) for settings, scores in self.by_seed(stage, score).items()}

    def by_seed(self, stage: str, score: str = "accuracies") -> dict[Any, dict[int, Any]]:
        """What every seed has, by settings, seeds ascending."""
        found: dict[Hashable, dict[int, Any]] = {}
        for row in read_rows(self.folder / f"{stage}.jsonl"):
            found.setdefault(self.settings_of(row), {}).update(zip(row["seeds"], row[score], strict=True))
        return {settings: dict(sorted(scores.items())) for settings, scores in found.items()}

    def run(self, stage: str, processes: int | None = None) -> None:
        """Run the seeds that have no row yet, the first ones of all settings first."""
        done = self.by_seed(stage, "seeds")
        chunks: dict[int, list[tuple[Any, ...]]] = {}
        for settings, seeds in self.grids[stage]():
            missing = [seed for seed in seeds if seed not in done.get(settings, {})]
            for place in range(0, len(missing), self.chunk):
                chunks.setdefault(place, []).append((stage, settings, missing[place : place + self.chunk]))
        jobs = [job for place in sorted(chunks) for job in chunks[place]]
        run_jobs(self.run_job, jobs, self.folder / f"{stage}.jsonl", processes)

    def command(self, name: str, report: Callable[[], None] | None = None) -> None:
        """What ``python -m benchmarks.NAME STAGE [PROCESSES]`` does, or ``… report``."""
        stage = sys.argv[1] if len(sys.argv) > 1 else ""
        if report is not None and stage == "report":
            report()
        elif stage in self.grids:
            self.run(stage, int(sys.argv[2]) if len(sys.argv) > 2 else None)
        else:
            last = "|report" if report else ""
            sys.exit(f"usage: python -m benchmarks.{name} {'|'.join(self.grids)}{last} [PROCESSES]")


def run_each(
    path: Path, keys: Sequence[str], seeds: Sequence[int], one: Callable[[str, int], Any]
) -> dict[str, list[Any]]:
    """What ``one(key, seed)`` returns, by key, seeds ascending; what a stopped run has done is not done again.

    Args:
        path: Of the rows, "….jsonl".
        keys: What is run; the result has them in this order.
        seeds: Of each.
        one: Makes one run, in another process.

    Returns:
        The results of every key, in the order of ``seeds``.
    """
    grid: dict[str, Grid] = {path.stem: lambda: ((key, seeds) for key in keys)}
    stages = Stages(path.parent, grid, partial(_run_key, one), itemgetter("key"), chunk=1)
    stages.run(path.stem)
    found = stages.read(path.stem, "runs")
    return {key: found[key] for key in keys}


def _run_key(one: Callable[[str, int], Any], job: tuple[str, str, list[int]]) -> dict[str, Any]:
    _, key, seeds = job
    return {"key": key, "seeds": seeds, "runs": [one(key, seed) for seed in seeds]}


def run_jobs(
    run_job: Callable[[tuple[Any, ...]], dict[str, Any]],
    jobs: Sequence[tuple[Any, ...]],
    path: Path,
    processes: int | None,
) -> None:
    """Add a row for each job as it ends; None is one process of one thread for each core. No job starts nothing."""
    if not jobs:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, torch.set_num_threads, (1,)) as pool, path.open("a") as file:
        for row in tqdm(pool.imap_unordered(run_job, jobs), total=len(jobs), desc=path.stem):
            file.write(json.dumps(row) + "\n")
            file.flush()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
