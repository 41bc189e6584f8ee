"""The zip archives that ``torch.save`` writes: each record has a checksum, which ``torch.load`` does not verify."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from lightning_signin.errors import SignInError
from lightning_signin.weightfiles.files.paths import PathLike, is_file, is_url, opened

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # the latter for torch's old format
_OF_TORCH = "PytorchStreamReader"  # appears in torch's errors about archives
_CHUNK = 2**20  # bytes


def check_archive(file: BinaryIO, source: str) -> None:
    """Check a file that starts as a zip archive for truncation and altered records.

    Reads the whole file: 0.4 s for 300 MB, which ``torch.load`` takes 0.7 s to load. Records that were written with
    ``torch.serialization.set_crc32_options(False)`` have no checksum.

    Args:
        file: Open file, positioned at its start; left there again.
        source: Its name in error messages.

    Raises:
        SignInError: If the file is damaged.
    """
    is_archive = file.read(len(_ZIP)) == _ZIP
    file.seek(0)
    reason = _damage(file) if is_archive else None
    file.seek(0)
    if reason is not None:
        raise SignInError(f"{source} is damaged: {reason}. Use another one, or copy it again.")


@contextmanager
def checked_while_read(path: PathLike, by_torch: bool) -> Iterator[None]:
    """Check a checkpoint before it is read inside the context; if torch cannot read it, name it in the error.

    Lightning opens the file again to load it, now from the page cache. Folders are not checked, nor URLs, which would
    be transferred twice.

    Args:
        path: The checkpoint.
        by_torch: Whether it is read by ``torch.load``, not in a user-defined format.

    Raises:
        SignInError: If the file is damaged, or was not written by ``torch.save``.
        RuntimeError: As raised inside the context, if it is not about an archive.
    """
    if is_url(path) or not is_file(path):
        yield
        return
    damaged = f"{path} is damaged, or not a checkpoint. Use another one, or copy it again."
    with opened(path) as file:
        if by_torch and not file.read(len(_ZIP)).startswith((_ZIP, _PICKLE)):
            raise SignInError(damaged)
        file.seek(0)
        check_archive(file, str(path))
    try:
        yield
    except RuntimeError as error:
        if _OF_TORCH not in str(error):
            raise
        raise SignInError(damaged) from error


def _damage(file: BinaryIO) -> str | None:
    record = None
    try:
        with zipfile.ZipFile(file) as archive:
            for record in archive.infolist():
                if record.CRC:
                    with archive.open(record) as content:  # compares the checksum at the end
                        while content.read(_CHUNK):
                            pass
    except OSError:
        raise
    except Exception as error:  # altered headers can raise anything
        return f"its record {record.filename!r} was altered" if record else f"it is incomplete ({error})"
    return None
