"""The files of a run of levels. Each is written whole or not at all, so a run that is killed can go on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from lightning_signin.weightfiles.files.archive import check_archive

State = dict[str, Any]


class Folder:
    """Where the files of a run are.

    ``start.ckpt`` has the weights, the random generators and the arguments that the run began with, ``rewind.ckpt`` the
    weights that levels go back to. Of each level there are ``level-03.mask.pt``, written when it begins, and
    ``level-03.ckpt``, when it has ended; between, ``level-03.last.ckpt`` is its last finished epoch.

    Args:
        path: The folder; it is created when the first file is written.
        rewinds: Whether level 0 writes ``rewind.ckpt``.

    Raises:
        ValueError: If the path is a file.
    """

    def __init__(self, path: str | os.PathLike, rewinds: bool) -> None:
        self.path, self.rewinds = Path(path), rewinds
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"`folder` must be a folder, and {self.path} is a file. Choose another name.")
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
        """The number of levels that are finished, from level 0 on without a gap."""
        level = 0
        while all(path.exists() for path in self._files(level)):
            level += 1
        return level

    def read(self, path: Path) -> State:
        """What a file of this folder holds.

        Raises:
            ValueError: If it is damaged.
        """
        try:
            with open(path, "rb") as file:
                check_archive(file, str(path))
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever the bytes of half a file happen to raise
            raise ValueError(
                f"{path} is damaged, or holds objects beyond tensors and plain values. Delete it, and the level that "
                "wrote it is trained again."
            ) from error

    def write(self, content: State, path: Path) -> None:
        """Write a file, which replaces an older one only when it is whole; to be called on rank zero."""
        self.path.mkdir(parents=True, exist_ok=True)
        with _part(path) as part:
            torch.save(content, part)
            _put(part, path)

    def save_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """As ``trainer.save_checkpoint``, but whole or not at all; to be called on all ranks."""
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
    """Give a file its name once its content is on the disk: a crash must not leave the name with none of it."""
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


@contextmanager
def _part(path: Path) -> Iterator[Path]:
    """The name of a file that is being written, and is deleted where that fails."""
    part = path.with_name(f"{path.name}.part")  # always the same: what a killed run left is written over
    try:
        yield part
    except BaseException:
        part.unlink(missing_ok=True)
        raise
