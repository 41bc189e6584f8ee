"""Jobs in processes of their own, with one line of JSON a job: what is in the file is kept if a run is cut off."""

import json
import multiprocessing
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from tqdm import tqdm


def run_jobs(run_job: Callable[[tuple], dict], jobs: Sequence[tuple], path: Path, processes: int | None) -> None:
    """Add a row for each job as it ends; None is one process for each core."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool, path.open("a") as file:
        for row in tqdm(pool.imap_unordered(run_job, jobs), total=len(jobs), desc=path.stem):
            file.write(json.dumps(row) + "\n")
            file.flush()


def read_rows(path: Path) -> list[dict]:
    """The rows of a file; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def command(name: str, stages: Collection[str], run_stage: Callable, report: Callable[[], None], results: Path) -> None:
    """What ``python -m benchmarks.NAME STAGE [PROCESSES]`` does: run a stage, or print the report."""
    stage = sys.argv[1] if len(sys.argv) > 1 else ""
    results.mkdir(parents=True, exist_ok=True)
    if stage == "report":
        report()
    elif stage in stages:
        run_stage(stage, int(sys.argv[2]) if len(sys.argv) > 2 else None)
    else:
        sys.exit(f"usage: python -m benchmarks.{name} {'|'.join([*stages, 'report'])} [PROCESSES]")
