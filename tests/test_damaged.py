"""Checkpoints that are altered, cut off, of another model, or made to run code."""

import contextlib
import pickle
import random

import pytest
import torch

from lightning_signin import masks_from_file
from lightning_signin.saved import read_weights
from tests.small import Small, callback, loader, seeded, trainer


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
