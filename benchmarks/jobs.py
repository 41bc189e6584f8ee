"""Jobs in processes of their own, with one line of JSON a job: what is in the file is kept if a run is cut off."""

import json
import multiprocessing
from collections.abc import Callable, Sequence
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
