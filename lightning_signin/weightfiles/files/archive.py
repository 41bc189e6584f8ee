"""The zip archives that ``torch.save`` writes: each record has a checksum, at which ``torch.load`` does not look."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from lightning_signin.weightfiles.files.paths import PathLike, is_file, is_url, opened

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # the latter of torch's old format
_OF_TORCH = "PytorchStreamReader"  # in its errors of archives
_CHUNK = 2**20  # bytes


def check_archive(file: BinaryIO, source: str) -> None:
    """Raise `ValueError` if a file that starts as a zip archive is damaged: cut off, or with a record that was altered.

    Reads all of it: 0.4 s for 300 MB, of which ``torch.load`` takes 0.7 s. Records that were written with
    ``torch.serialization.set_crc32_options(False)`` have no checksum.

    Args:
        file: Open at its start, where it is left again.
        source: What errors call it.
    """
    is_archive = file.read(len(_ZIP)) == _ZIP
    file.seek(0)
    reason = _damage(file) if is_archive else None
    file.seek(0)
    if reason is not None:
        raise ValueError(f"{source} is damaged: {reason}. Use another one, or copy it again.")


@contextmanager
def checked_while_read(path: PathLike, by_torch: bool) -> Iterator[None]:
    """Check a checkpoint before others read it inside, and name it where torch finds that it is none.

    Folders are not looked at, nor URLs, which would be loaded twice.

    Args:
        path: The checkpoint.
        by_torch: It is read by ``torch.load``, and not in a format of the user's own.

    Raises:
        ValueError: If the file is damaged, or was not written by ``torch.save``.
    """
    if is_url(path) or not is_file(path):
        yield
        return
    told = f"{path} is damaged, or no checkpoint. Use another one, or copy it again."
    with opened(path) as file:
        if by_torch and not file.read(len(_ZIP)).startswith((_ZIP, _PICKLE)):
            raise ValueError(told)
        file.seek(0)
        check_archive(file, str(path))
    try:
        yield
    except RuntimeError as error:
        if _OF_TORCH not in str(error):
            raise
        raise ValueError(told) from error


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
    except Exception as error:  # whatever altered headers happen to raise
        return f"its record {record.filename!r} was altered" if record else f"it is not whole ({error})"
    return None
