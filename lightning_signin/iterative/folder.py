"""The files of a run of levels. Each is written atomically, so a run that is killed can be resumed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch import Trainer

from lightning_signin.errors import SignInError
from lightning_signin.weightfiles.files.archive import check_archive

State = dict[str, Any]


class Folder:
    """The folder that holds the files of a run.

    ``start.ckpt`` has the weights, the random generators and the arguments that the run started with, ``rewind.ckpt``
    the weights that levels rewind to. Each level has ``level-03.mask.pt``, written when it begins, and
    ``level-03.ckpt``, written when it has ended; in between, ``level-03.last.ckpt`` is its last finished epoch.

    Args:
        path: The folder; it is created when the first file is written.
        rewinds: Whether level 0 writes ``rewind.ckpt``.

    Raises:
        SignInError: If the path is a file.
    """

    def __init__(self, path: str | os.PathLike[str], rewinds: bool) -> None:
        self.path, self.rewinds = Path(path), rewinds
        if self.path.exists() and not self.path.is_dir():
            raise SignInError(f"`folder` must be a folder, but {self.path} is a file. Choose another name.")
        self.start, self.rewind = self.path / "start.ckpt", self.path / "rewind.ckpt"

    def mask(self, level: int) -> Path:
        """The mask of a level: a dict of bool tensors."""
        return self.path / f"level-{level:02}.mask.pt"

    def end(self, level: int) -> Path:
        """The checkpoint of a finished level."""
        return self.path / f"level-{level:02}.ckpt"

    def progress(self, level: int) -> Path:
        """The checkpoint of the last finished epoch of a level."""
        return self.path / f"level-{level:02}.last.ckpt"

    def finished(self) -> int:
        """The number of finished levels, counted from level 0 without a gap."""
        level = 0
        while all(path.exists() for path in self._files(level)):
            level += 1
        return level

    def read(self, path: Path) -> State:
        """The content of a file of this folder.

        Returns:
            What `write` or `save_checkpoint` wrote, on the CPU and mapped into memory.

        Raises:
            FileNotFoundError: If there is no such file.
            OSError: If it cannot be read.
            SignInError: If it is damaged.
        """
        try:
            with open(path, "rb") as file:
                check_archive(file, str(path))
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (SignInError, RuntimeError, UnpicklingError, EOFError) as error:  # not an archive, or of other objects
            raise SignInError(
                f"{path} is damaged, or holds objects beyond tensors and plain values. Delete it: the level that wrote "
                "it is then trained again."
            ) from error

    def write(self, content: State, path: Path) -> None:
        """Write a file atomically: an older one is replaced only by the complete new one. Call it on rank zero."""
        self.path.mkdir(parents=True, exist_ok=True)
        with _part(path) as part:
            torch.save(content, part)
            _put(part, path)

    def save_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """Like ``trainer.save_checkpoint``, but atomic. Call it on all ranks."""
        with _part(path) as part:
            trainer.save_checkpoint(part, weights_only=False)
            if trainer.is_global_zero:
                _put(part, path)
        trainer.strategy.barrier()

    def _files(self, level: int) -> Iterator[Path]:
        yield from (self.mask(level), self.end(level))
        if level == 0:
            yield self.start
            if self.rewinds:
                yield self.rewind


def _put(part: Path, path: Path) -> None:
    """Give a file its name once its content is on the disk: a crash must not leave the name without the content."""
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


@contextmanager
def _part(path: Path) -> Iterator[Path]:
    """The temporary name of a file that is being written; it is deleted if that fails."""
    part = path.with_name(f"{path.name}.part")  # always the same name: leftovers of a killed run are overwritten
    try:
        yield part
    except BaseException:
        part.unlink(missing_ok=True)
        raise
