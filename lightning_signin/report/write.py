"""A report as files: the page and its plots, written atomically."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lightning_signin.errors import SignInError
from lightning_signin.report.drawing import as_png
from lightning_signin.report.page import page
from lightning_signin.report.pictures import PICTURES
from lightning_signin.report.runs import read_runs

PAGE = "report.html"


def write_report(runs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str] | None = None) -> Path:
    r"""Write one page about one or several runs, and its plots as PNG files next to it. Needs matplotlib.

    Args:
        runs: Folders that Lightning's CSVLogger wrote, e.g. ``runs/digits/version_0``.
        output: The folder to write into; None is ``report`` in the first run's folder.

    Returns:
        The path of the page.

    Raises:
        MissingFileError: If a folder, or the ``metrics.csv`` in it, does not exist.
        SignInError: If a run's file is empty, damaged or from another program, or ``output`` cannot be written or holds
            files that are not from an earlier report.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "metrics.csv").write_text("epoch,step,val_acc\n0,9,0.5\n1,19,0.75\n")
        ...     path = write_report([folder])
        ...     sorted(file.name for file in path.parent.iterdir())
        ['accuracy.png', 'report.html']
    """
    read = read_runs(runs)
    folder = Path(runs[0], "report") if output is None else Path(output)
    _check(folder)
    drawn = {}
    for picture in PICTURES:
        shown = [run for run in read if picture.has(run)]
        if shown:
            drawn[picture.name] = as_png(picture.draw, shown)
    files = {f"{name}.png": png for name, png in drawn.items()}
    try:
        _write(folder, files | {PAGE: page(read, drawn).encode()})
        for old in {f"{picture.name}.png" for picture in PICTURES} - files.keys():  # from an earlier report
            (folder / old).unlink(missing_ok=True)
    except OSError as error:
        raise SignInError(f"`output` must be a writable folder, but {folder} is not: {error}.") from error
    return folder / PAGE


def _check(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise SignInError(f"`output` must be a folder, but {folder} is a file. Choose another name.")
    holds_files = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if holds_files and not (folder / PAGE).exists():
        raise SignInError(
            f"`output` must be a new or empty folder, or one of an earlier report, and {folder} holds other files. "
            f"Choose another, e.g. {folder / 'report'}."
        )


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    parts = {folder / name: folder / f".{name}.part" for name in files}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for (path, part), content in zip(parts.items(), files.values(), strict=True):
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder")
            part.write_bytes(content)
        for path, part in parts.items():
            os.replace(part, path)
    except BaseException:
        for part in parts.values():
            part.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()  # if it is empty
        raise
