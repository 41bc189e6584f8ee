"""Reading and writing by local path or fsspec URL, such as ``s3://bucket/run.ckpt`` or ``memory://run.ckpt``."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lightning_signin.errors import MissingFileError, SignInError

PathLike = str | os.PathLike[str]


def is_url(path: PathLike) -> bool:
    """Whether a path is not on this machine's disks.

    Returns:
        True for a URL of any scheme but ``file``.

    Example:
        >>> is_url("s3://bucket/run.ckpt"), is_url("runs/run.ckpt"), is_url("file:///runs/run.ckpt")
        (True, False, False)
    """
    return "://" in os.fspath(path) and not os.fspath(path).startswith("file://")


def is_file(path: PathLike) -> bool:
    """Whether there is such a file."""
    if not is_url(path):
        return _local(path).is_file()
    system, inner = _remote(path)
    return bool(system.isfile(inner))


@contextmanager
def opened(path: PathLike) -> Iterator[BinaryIO]:
    """Open a file for reading.

    Raises:
        MissingFileError: If there is no such file.
        SignInError: If no installed package can open such URLs.
    """
    if not is_file(path):
        raise MissingFileError(f"There is no file {path}.")
    if not is_url(path):
        with open(_local(path), "rb") as file:
            yield file
    else:
        system, inner = _remote(path)
        with system.open(inner, "rb") as file:
            yield file


def write_whole(path: PathLike, data: bytes | memoryview) -> None:
    """Write a file atomically: an older file is replaced only by the complete new one.

    It is written under another name in the same folder, and then renamed.

    Args:
        path: A local path, whose folder must exist, or an fsspec URL.
        data: All of its bytes.

    Raises:
        MissingFileError: If the local folder does not exist.
        SignInError: If no installed package can open such URLs.

    Example:
        >>> write_whole("memory://folder/file", b"all")
        >>> with opened("memory://folder/file") as file:
        ...     file.read()
        b'all'
    """
    if is_url(path):
        _write_remote(path, data)
        return
    target = _local(path)
    if not target.parent.is_dir():
        raise MissingFileError(f"There is no folder {target.parent} to write {target.name} into. Create it first.")
    temporary = target.with_name(_temporary(target.name))
    try:
        with open(temporary, "xb") as file:  # with the permissions that the umask leaves
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a crash could leave the new name without the content
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_remote(path: PathLike, data: bytes | memoryview) -> None:
    system, inner = _remote(path)
    folder, slash, name = inner.rpartition("/")
    temporary = folder + slash + _temporary(name)
    try:
        system.pipe_file(temporary, bytes(data))
        system.mv(temporary, inner)
    except BaseException:
        with suppress(Exception):  # the first error is the one to report
            system.rm_file(temporary)
        raise


def _temporary(name: str) -> str:
    return f".{name}.{secrets.token_hex(4)}.part"


def _local(path: PathLike) -> Path:
    return Path(os.fspath(path).removeprefix("file://"))


def _remote(path: PathLike) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(os.fspath(path))
    except (ValueError, ImportError) as error:
        raise SignInError(
            f"{path} cannot be opened: {error}. Use a local path, or install the fsspec package of this protocol."
        ) from error
