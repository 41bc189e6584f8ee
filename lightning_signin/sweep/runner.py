"""Doing the runs of a sweep, each in its own process."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_signin.sweep.folder import Claim, SweepFolder
from lightning_signin.sweep.result import DEFAULT_METRICS

_RESULT, _LOG = "result.json", "log.txt"
_PAUSE = 0.1  # seconds between two polls of the processes
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Running:
    claim: Claim
    process: subprocess.Popen[bytes]
    since: float


def run_all(
    folder: SweepFolder, arguments_of: Callable[[Claim], list[str]], jobs: int, metric: str | None = None
) -> None:
    """Do all queued runs, ``jobs`` at a time. Runs in progress when this is interrupted are restarted next time.

    Args:
        folder: The folder of the sweep.
        arguments_of: Returns the command's arguments for a run.
        jobs: Number of parallel processes; they share the cores evenly, unless ``OMP_NUM_THREADS`` is set.
        metric: The metric to log when a run ends; None is the first of `DEFAULT_METRICS` that it logged.
    """
    threads = max(1, _cores() // jobs)
    running: list[_Running] = []
    try:
        while True:
            while len(running) < jobs and (claim := folder.claim()) is not None:
                running.append(_Running(claim, _started(claim, arguments_of(claim), threads), time.monotonic()))
            if not running:
                return
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                _record(folder, one, metric)
            time.sleep(_PAUSE)
    finally:
        for one in running:
            _end_input(one.process)  # ends the ranks that it started as well
            one.process.kill()
        for one in running:
            one.process.wait()
        folder.let_go()


def _started(claim: Claim, arguments: list[str], threads: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lightning_signin.sweep.trial", str(claim.folder / _RESULT), *arguments]
    with open(claim.folder / _LOG, "wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            start_new_session=True,  # else Ctrl-C would reach it, and it would end as if it had finished
        )


def _end_input(process: subprocess.Popen[bytes]) -> None:
    """Close the input pipe, which ends a process that is still running."""
    if process.stdin is not None:
        process.stdin.close()


def _record(folder: SweepFolder, one: _Running, metric: str | None) -> None:
    _end_input(one.process)
    seconds = round(time.monotonic() - one.since, 1)
    result: dict[str, Any]
    try:
        result = json.loads((one.claim.folder / _RESULT).read_bytes())
    except FileNotFoundError:
        result = {"error": f"the process ended with status {one.process.returncode} and no result"}
    measured = result.get("measured", {})
    shown = next((name for name in ([metric] if metric else DEFAULT_METRICS) if name in measured), None)
    folder.record(one.claim, result | {"seconds": seconds}, shown)
    results = folder.results()
    outcome = f"{shown} {measured[shown]:.4f}" if shown else result.get("error", "ended")
    done = sum(result.is_finished for result in results)
    _log.info("[%d/%d] %s: %s (%.0f s)", done, len(results), one.claim.cell, outcome, seconds)
    known = {text for result in results if result.cell != one.claim.cell for text in result.warnings or ()}
    for text in result.get("warnings", ()):
        if text not in known:
            _log.warning("%s warns: %s", one.claim.cell, text)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
