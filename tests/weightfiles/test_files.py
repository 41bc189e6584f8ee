"""Files are there whole or not at all, on disks and behind URLs."""

import os
import signal
import subprocess
import sys
import time

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lightning_signin.weightfiles.files.paths import is_file, opened, write_whole

WRITER = """
import sys, time
from lightning_signin.weightfiles.files.paths import write_whole
data = b"n" * 200_000_000
print("ready", flush=True)
while True:
    write_whole(sys.argv[1], data)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("old", [None, b"old"])
def test_killed_write_leaves_the_old_file_or_the_whole_new_one(tmp_path, old):
    path = tmp_path / "weights"
    if old is not None:
        path.write_bytes(old)
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    latest = time.monotonic() + 20
    while not (begun := list(tmp_path.glob(".weights.*.part"))) and time.monotonic() < latest:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert begun  # a write was under way
    content = path.read_bytes() if path.exists() else None
    assert content == old or content == b"n" * 200_000_000


def test_failed_write_to_a_url_leaves_nothing(monkeypatch):
    write_whole("memory://place/file", b"old")

    def fails(*_args, **_options):
        raise OSError("No connection")

    monkeypatch.setattr(MemoryFileSystem, "mv", fails)
    with pytest.raises(OSError, match="No connection"):
        write_whole("memory://place/file", b"new")
    assert [path.rpartition("/")[2] for path in MemoryFileSystem().find("/place")] == ["file"]
    assert MemoryFileSystem().cat("/place/file") == b"old"


def test_url_that_nothing_opens_is_refused():
    with pytest.raises(ValueError, match="nowhere://x cannot be opened: Protocol not known: nowhere"):
        is_file("nowhere://x")


def test_permissions_are_those_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_local_urls_are_local_paths(tmp_path):
    write_whole(f"file://{tmp_path}/file", b"x")
    with opened(f"file://{tmp_path}/file") as file:
        assert file.read() == (tmp_path / "file").read_bytes() == b"x"


def test_missing_files_are_named():
    for path in ("missing", "memory://missing"):
        with pytest.raises(FileNotFoundError, match=f"There is no file {path}"), opened(path):
            pass
