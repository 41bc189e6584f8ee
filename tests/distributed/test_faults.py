"""What goes wrong around a run: it is killed, or the disk is full."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.faults import RUNS, Faults, Killer
from lightning_signin import masks_from_file
from lightning_signin.weightfiles.files.paths import write_whole


@pytest.fixture(scope="module")
def killer(tmp_path_factory):
    return Killer(tmp_path_factory.mktemp("killed"))


@pytest.mark.parametrize(("optimizer", "update"), RUNS)
def test_run_that_is_killed_three_times_ends_as_the_one_left_alone(killer, optimizer, update):
    whole, seconds = killer.alone(optimizer, update)
    found = Faults(optimizer, update, str(killer.root))
    killer.kill(found, whole, longest=seconds / 2, most=3)
    assert found.equal == found.runs == 1


FULL = """
import resource, signal, sys
from pathlib import Path
from tests.small import callback, loader, seeded, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_signin.weightfiles.files.paths import write_whole

folder = Path(sys.argv[1])
module = seeded()
saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=5, save_last=True)
run = trainer(callback(), saver, enable_checkpointing=True, epochs=1)
run.fit(module, loader())
write_whole(folder / "ours", b"before")
before = {path.name: path.read_bytes() for path in folder.iterdir()}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # every write beyond it fails, as on a full disk
run = trainer(callback(), ModelCheckpoint(folder, "{step}", every_n_train_steps=5), enable_checkpointing=True, epochs=2)
module = seeded()
try:
    run.fit(module, loader(), ckpt_path=folder / "last.ckpt")
except OSError:
    print("fit failed", type(module.fc1).__name__)
try:
    write_whole(folder / "ours", bytes(10_000))
except OSError:
    print("write failed")
after = {path.name: path.read_bytes() for path in folder.iterdir()}
print("same" if before == after else sorted(before) + sorted(after))
"""


def test_full_disk_leaves_the_previous_files_whole_and_a_plain_model(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", FULL, str(tmp_path)]
    environment = {**os.environ, "TMPDIR": str(tmp_path.parent)}
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["fit failed Linear", "write failed", "same"], done.stderr[-3000:]
    for name in ("last.ckpt", "step=10.ckpt"):
        assert masks_from_file(tmp_path / name)


def test_killed_write_leaves_the_previous_file_whole(tmp_path):
    """The kill comes when all is written, but not yet under its name."""
    write_whole(tmp_path / "file", b"before")
    script = (
        "import os, signal, sys\n"
        "from lightning_signin.weightfiles.files.paths import write_whole\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_whole(sys.argv[1], bytes(100_000))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "file")], check=False)
    assert done.returncode == -9
    assert (tmp_path / "file").read_bytes() == b"before"
