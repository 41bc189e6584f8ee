"""The folder of a sweep: which runs are finished, queued and in progress.

The queue is an Optuna study in a journal file, which several processes, on several machines, may use at the same time.
A run in progress holds the lock of its folder. The lock is released as soon as its process ends, for whatever reason,
and then the run is queued again.
"""

import json
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from lightning_signin.errors import SignInError
from lightning_signin.sweep.grid import Cell
from lightning_signin.sweep.result import Result

JOURNAL = "sweep.journal"


@dataclass(frozen=True)
class Claim:
    """A run that this process has taken from the queue.

    Attributes:
        cell: What to run.
        folder: Its folder, which is empty except for the lock.
        trial: Its entry in the study.
        lock: Held until the run is recorded.
    """

    cell: Cell
    folder: Path
    trial: Trial
    lock: FileLock


class SweepFolder:
    """The runs of a sweep.

    Args:
        path: The folder; it is created if it does not exist.
        same: The settings that all of its runs share, as plain values, by their names in error messages.

    Raises:
        SignInError: If the folder holds other files, a damaged journal, or runs with other shared settings.
    """

    def __init__(self, path: str | os.PathLike[str], same: dict[str, Any]) -> None:
        self.path = Path(path)
        if self.path.exists() and not (self.path / JOURNAL).exists() and not _is_empty(self.path):
            raise SignInError(
                f"`--folder` must be a new or empty folder, or one of an earlier sweep, but {self.path} holds other "
                "files. Choose another."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / ".lock")
        self._claims: dict[int, Claim] = {}
        with self._lock:
            self._study = _opened(self.path / JOURNAL)
            begun_with = self._study.user_attrs or same
            for name, value in same.items():
                if begun_with.get(name) != value:
                    raise SignInError(
                        f"The sweep in {self.path} was started with {name}={begun_with.get(name)!r}, but here it is "
                        f"{value!r}. Pass the same to resume it, or choose another `--folder`."
                    )
                self._study.set_user_attr(name, value)

    def queue(self, cells: Iterable[Cell], retry_failed: bool = False) -> None:
        """Queue the cells that have no run yet, and optionally those whose run failed."""
        with self._lock:
            last = {_cell(trial): trial for trial in self._trials()}
            for cell in cells:
                trial = last.get(cell)
                failed = trial is not None and trial.state == TrialState.FAIL
                if trial is None or (failed and (retry_failed or not _result(trial).is_finished)):
                    self._study.enqueue_trial({}, user_attrs=asdict(cell))

    def claim(self) -> Claim | None:
        """Take a queued run, or one whose process is gone; None if there is none."""
        with self._lock:
            self._queue_dead_runs()
            if not self._trials(TrialState.WAITING):
                return None
            trial = self._study.ask()
            cell = Cell(**trial.user_attrs)
            folder = self.path / "runs" / _name(trial.number, cell)
            shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed at this point
            folder.mkdir(parents=True)
            claim = Claim(cell, folder, trial, FileLock(folder / ".lock"))
            claim.lock.acquire()
            self._claims[trial.number] = claim
            return claim

    def record(self, claim: Claim, result: dict[str, Any], metric: str | None) -> None:
        """Record the outcome of a run, as attributes of `Result`, and release it."""
        value = result.get("measured", {}).get(metric, math.nan)
        is_number = math.isfinite(value)
        with self._lock:
            for name, plain in result.items():
                claim.trial.set_user_attr(name, plain)
            state = TrialState.COMPLETE if is_number else TrialState.FAIL
            self._study.tell(claim.trial, value if is_number else None, state)
        self._claims.pop(claim.trial.number).lock.release()

    def let_go(self) -> None:
        """Release the runs that are not recorded, for others or a later sweep. Their processes must have ended."""
        for claim in self._claims.values():
            claim.lock.release()
        self._claims.clear()

    def results(self) -> list[Result]:
        """One result per cell, in the order in which the cells were first queued."""
        return [_result(trial) for trial in {_cell(trial): trial for trial in self._trials()}.values()]

    def _trials(self, *states: TrialState) -> Sequence[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _queue_dead_runs(self) -> None:
        for trial in self._trials(TrialState.RUNNING):
            folder = self.path / "runs" / _name(trial.number, _cell(trial))
            if trial.number not in self._claims and _is_free(folder / ".lock"):
                shutil.rmtree(folder, ignore_errors=True)
                self._study.tell(trial.number, state=TrialState.FAIL)
                self._study.enqueue_trial({}, user_attrs=asdict(_cell(trial)))


def _opened(journal: Path) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        _check_lines(journal)
        # The default lock is a symbolic link, which some file systems do not support.
        storage = JournalStorage(JournalFileBackend(str(journal), JournalFileOpenLock(str(journal))))
        study = optuna.create_study(storage=storage, study_name="sweep", direction="maximize", load_if_exists=True)
        for trial in study.get_trials(deepcopy=False):
            _cell(trial)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise SignInError(
            f"{journal} is damaged ({reason}). Choose another `--folder`, or restore the file."
        ) from error
    return study


def _check_lines(journal: Path) -> None:
    """Raise `SignInError` for a line that is not JSON: Optuna may detect it only after others were appended."""
    if not journal.exists():
        return
    whole, newline, half = journal.read_bytes().rpartition(b"\n")
    for line in whole.splitlines():
        json.loads(line)
    if half:  # from a process that was killed while writing: the next line would be appended to this one
        os.truncate(journal, len(whole + newline))


def _is_empty(path: Path) -> bool:
    return path.is_dir() and {inside.name for inside in path.iterdir()} <= {".lock"}


def _is_free(lock: Path) -> bool:
    if not lock.parent.is_dir():
        return True
    try:
        with FileLock(lock).acquire(timeout=0):
            return True
    except Timeout:
        return False


def _cell(trial: FrozenTrial) -> Cell:
    return Cell(*(trial.user_attrs[name] for name in ("method", "sparsity", "seed")))


def _name(number: int, cell: Cell) -> str:
    return f"{number:03}-{cell}"


def _result(trial: FrozenTrial) -> Result:
    result = {name: trial.user_attrs.get(name) for name in ("measured", "error", "seconds", "warnings", "weight_decay")}
    cell = _cell(trial)
    return Result(cell, f"runs/{_name(trial.number, cell)}", **result)
