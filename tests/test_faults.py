"""What goes wrong around a run: it is killed, the disk is full, the loss is lost, a checkpoint is damaged."""

import contextlib
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from benchmarks.faults import RUNS, Faults, Killer
from lightning_signin import masks, masks_from_file
from lightning_signin.factor_state import saved_masks
from lightning_signin.files.paths import write_whole
from lightning_signin.parametrizations import STR
from lightning_signin.saved import read_weights
from lightning_signin.updates import ACDC, GMP, MEST, SET, OneShot, RigL, SRigL
from tests.small import Small, callback, loader, seeded, trainer


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
from lightning_signin.files.paths import write_whole

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
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["fit failed Linear", "write failed", "same"], done.stderr[-3000:]
    for name in ("last.ckpt", "step=10.ckpt"):
        assert masks_from_file(tmp_path / name)


def test_killed_write_leaves_the_previous_file_whole(tmp_path):
    """The kill comes when all is written, but not yet under its name."""
    write_whole(tmp_path / "file", b"before")
    script = (
        "import os, signal, sys\n"
        "from lightning_signin.files.paths import write_whole\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_whole(sys.argv[1], bytes(100_000))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "file")], check=False)
    assert done.returncode == -9
    assert (tmp_path / "file").read_bytes() == b"before"


class Lost(Small):
    """The loss of one step is NaN."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_step == 6 else loss


class Counts(Callback):
    def __init__(self):
        self.masks = []

    def on_train_batch_end(self, trainer, module, *_):
        self.masks.append(masks(module))


@pytest.mark.parametrize(
    ("rule", "step"),
    [(SET(4), 8), (RigL(4), 8), (RigL(3), 7), (SRigL(4), 8), (MEST(4), 8), (GMP(4), 8), (ACDC(), 8), (OneShot(), 30)],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.* is not finite")
def test_lost_loss_ends_the_run_before_the_mask_follows_it(rule, step):
    seeded()
    module, counts = Lost(), Counts()
    with pytest.raises(ValueError, match=rf"conv.weight is not finite at step {step}, where the mask changes: the tr"):
        trainer(sign_in := callback(update=rule), counts).fit(module, loader())
    saved = saved_masks(sign_in.state_dict())
    assert all(torch.equal(mask, saved[name]) for name, mask in counts.masks[6].items())
    assert type(module.fc1) is torch.nn.Linear


@pytest.mark.parametrize(
    "options", [{}, {"storage": "dense"}, {"mask": "magnitude"}, {"parametrization": STR()}], ids=str
)
def test_lost_loss_is_named_where_the_mask_stays(options):
    seeded()
    module, counts = Lost(), Counts()
    with pytest.warns(UserWarning, match="conv.weight is not finite at the end of epoch 0: the training loss or a "):
        trainer(callback(**options), counts).fit(module, loader())
    assert len({str({n: m.tolist() for n, m in masks.items()}) for masks in counts.masks}) == 1
    assert type(module.fc1) is torch.nn.Linear


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run = trainer(callback(), epochs=1)
    run.fit(seeded(), loader())
    run.save_checkpoint(folder / "whole.ckpt")
    return folder / "whole.ckpt"


def resume(path, model=None, **options):
    model = Small() if model is None else model
    trainer(callback(**options), epochs=2).fit(model, loader(), ckpt_path=path, weights_only=True)
    return model


def altered(checkpoint, path, change):
    saved = torch.load(checkpoint, weights_only=True)
    ours = next(state for key, state in saved["callbacks"].items() if "signin" in key)
    change(saved, ours)
    torch.save(saved, path)
    return path


def other_mask(saved, ours):
    ours["masks"]["fc1.weight"]["bits"][3] ^= 255


def missing_mask(saved, ours):
    del ours["masks"]["fc1.weight"]


def other_shape(saved, ours):
    ours["masks"]["fc1.weight"]["shape"] = [24, 47]


def short_factors(saved, ours):
    ours["factors"]["fc1.weight"] = [factor[:-1] for factor in ours["factors"]["fc1.weight"]]


def missing_factors(saved, ours):
    del ours["factors"]["fc1.weight"]


def extra_mask(saved, ours):
    ours["masks"]["fc9.weight"] = ours["masks"]["fc1.weight"]


def missing_key(saved, ours):
    del ours["sign_flips"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (other_mask, "The masks in this checkpoint do not fit their digest: the file is damaged"),
        (missing_mask, "The masks in this checkpoint do not fit their digest: the file is damaged"),
        (extra_mask, "The masks in this checkpoint do not fit their digest: the file is damaged"),
        (other_shape, "The masks in this checkpoint do not fit their digest: the file is damaged"),
        (short_factors, "The checkpoint's factors of fc1.weight"),
        (missing_factors, "was written with another `parametrization` of fc1.weight"),
        (missing_key, "The checkpoint's state of SignInCallback has no 'sign_flips'"),
    ],
)
def test_altered_state_is_refused_in_words(checkpoint, tmp_path, change, text):
    module = Small()
    with pytest.raises(ValueError, match=text):
        resume(altered(checkpoint, tmp_path / "altered.ckpt", change), module)
    assert type(module.fc1) is torch.nn.Linear


def test_checkpoint_of_another_model_is_refused_in_words(checkpoint):
    class Other(Small):
        def __init__(self):
            super().__init__()
            self.fc2 = torch.nn.Linear(24, 4)

    with pytest.raises((ValueError, RuntimeError), match=r"fc2\.weight"):
        resume(checkpoint, Other())


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_checkpoint_is_refused_in_words(checkpoint, tmp_path, share):
    data = checkpoint.read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(data[: int(share * len(data))])
    for read in (read_weights, masks_from_file):
        with pytest.raises(ValueError, match="cannot be read safely: it is damaged, not a checkpoint, or"):
            read(path)


def test_bytes_altered_at_random_are_an_error_in_words_or_change_no_more_than_values(checkpoint, tmp_path):
    data, draw, path = checkpoint.read_bytes(), random.Random(0), tmp_path / "altered.ckpt"
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(draw.choice((1, 50))):
            damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):  # nothing else
            read_weights(path)


@pytest.mark.parametrize("place", ["alone", "in a checkpoint"])
def test_no_checkpoint_executes_code(checkpoint, tmp_path, place):
    path, ran = tmp_path / "code.ckpt", tmp_path / "ran"
    if place == "alone":
        path.write_bytes(pickle.dumps(Code(ran)))
    else:
        torch.save({**torch.load(checkpoint, weights_only=True), "hyper_parameters": Code(ran)}, path)
    for read in (read_weights, masks_from_file, lambda path: resume(path, signs_from=None)):
        with pytest.raises(Exception, match=r"cannot be read safely|Weights only load failed|weights_only"):
            read(path)
    with pytest.raises(ValueError, match="cannot be read safely"):
        trainer(callback(signs_from=path), epochs=1).fit(Small(), loader())
    assert not ran.exists()
