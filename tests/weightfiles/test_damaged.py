"""Checkpoints that are altered, cut off, of another model, or made to run code."""

import pickle
import random
import re
import struct
import zipfile

import pytest
import torch

from lightning_signin import SignInError, masks_from_file
from lightning_signin.callback.resuming import VERSION
from lightning_signin.metrics.sign_flips import SignFlips
from lightning_signin.randomness import generators
from lightning_signin.randomness.replay import Recorder
from lightning_signin.updates import Cosine, MaskUpdates, RigL
from lightning_signin.weightfiles.saved import read_weights
from tests.small import Small, callback, copies, differing, loader, seeded, trainer

MOVES = {"update": RigL(Cosine(1))}


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


def other_version(saved, ours):
    ours["version"] = VERSION + 1


def missing_argument(saved, ours):
    del ours["arguments"]["mask"]


def other_signs(saved, ours):
    ours["sign_flips"]["references"]["start"]["signs"]["fc1.weight"] = {"size": 3}


def short_position(saved, ours):
    ours["position"]["ranks"][0]["generators"]["numpy"] = ()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (other_mask, "The checkpoint's masks do not match their digest: the file is damaged"),
        (missing_mask, "The checkpoint's masks do not match their digest: the file is damaged"),
        (extra_mask, "The checkpoint's masks do not match their digest: the file is damaged"),
        (other_shape, "The checkpoint's masks do not match their digest: the file is damaged"),
        (short_factors, "The checkpoint's factors of fc1.weight"),
        (missing_factors, "was written with another `parametrization` of fc1.weight"),
        (other_version, r"has version 3, and this release of lightning-signin reads version 2\. Resume with the rel"),
        (missing_key, "The checkpoint's state of SignInCallback has no 'sign_flips'"),
        (
            missing_argument,
            "state of SignInCallback has 'arguments' without 'mask': the file was altered, or another v",
        ),
        (
            other_signs,
            r"state of SignInCallback does not have the expected structure \(\['sign_flips'\]\['references'\]"
            r"\['start'\]\['signs'\]\['fc1\.weight'\] has no 'positive'\): the file was altered",
        ),
        (short_position, "position in the data does not have the expected structure"),
    ],
)
def test_altered_state_is_refused_in_words(checkpoint, tmp_path, change, text):
    module = Small()
    with pytest.raises(ValueError, match=text):
        resume(altered(checkpoint, tmp_path / "altered.ckpt", change), module)
    assert type(module.fc1) is torch.nn.Linear


PLACES = {
    "": "none",
    "arguments": 3,
    "masks": [],
    "masks/fc1.weight": None,
    "masks/fc1.weight/bits": torch.zeros(3),
    "masks/fc1.weight/shape": [24, -1],
    "digest": None,
    "storage/fc1.weight": "none",
    "factors/fc1.weight": torch.zeros(2),
    "factors/fc1.weight/0": "none",
    "sign_flips/to_warmup": torch.zeros(1),
    "sign_flips/references": {},
    "sign_flips/references/start/masks": {},
    "sign_flips/references/start/signs/fc1.weight/size": 4,
    "sign_flips/references/start/signs/fc1.weight/positive": torch.zeros(1, dtype=torch.uint8),
    "seen": (1,),
    "seen/0": "none",
    "losses": None,
    "losses/": torch.zeros(3),
    "updates": "none",
    "updates/lanes": [],
    "updates/lanes/0": [1, None],
    "updates/targets": {},
    "updates/mask_change": "none",
    "position": None,
    "position/epoch_complete": "none",
    "position/inexact": None,
    "position/ranks": 3,
    "position/ranks/0": [],
    "position/ranks/0/loaders": None,
    "position/ranks/0/loaders/0/seen": 0.5,
    "position/ranks/0/loaders/0/at_start/global/python": (2, (), None),
    "position/ranks/0/loaders/0/at_first/torch": torch.zeros(5056, dtype=torch.uint8),
    "position/ranks/0/generators/torch": torch.zeros(7, dtype=torch.uint8),
    "position/ranks/0/generators/numpy/2": 625,
    "position/ranks/0/generators/python/1/624": 625,
}


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """A checkpoint from within an epoch of a run whose masks move."""
    path = tmp_path_factory.mktemp("moving") / "whole.ckpt"
    run = trainer(callback(**MOVES), max_steps=2)
    run.fit(seeded(), loader())
    run.save_checkpoint(path)
    return path


def replaced(value, places, new):
    if not places or places == [""]:
        return new
    first, *rest = places
    if isinstance(value, dict):
        return {**value, first: replaced(value[first], rest, new)}
    entries = [replaced(entry, rest, new) if str(i) == first else entry for i, entry in enumerate(value)]
    return type(value)(entries)


def resume_changed(path, place, new):
    saved = torch.load(path, weights_only=True)
    key = next(key for key in saved["callbacks"] if "signin" in key)
    saved["callbacks"][key] = replaced(saved["callbacks"][key], place.split("/") if place else [], new)
    torch.save(saved, path.with_name("changed.ckpt"))
    resume(path.with_name("changed.ckpt"), **MOVES)


@pytest.mark.parametrize("place", PLACES)
def test_wrong_entry_anywhere_is_refused_in_words(moving, place):
    with pytest.raises(SignInError, match=r"does not have the expected structure|do not match their digest"):
        resume_changed(moving, place, PLACES[place])


@pytest.mark.parametrize(
    "place", [(SignFlips, "load"), (MaskUpdates, "load_state"), (Recorder, "_set_own"), (generators, "restore")]
)
@pytest.mark.parametrize("error", [KeyError, ValueError])
def test_error_of_our_own_is_not_called_an_altered_file(moving, monkeypatch, place, error):
    def broken(*_):
        raise error("a bug of ours")

    monkeypatch.setattr(*place, broken)
    with pytest.raises(error, match="a bug of ours") as caught:
        resume(moving, **MOVES)
    assert not isinstance(caught.value, SignInError)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda saved, ours: saved["state_dict"].pop("fc1.weight"), r"The state_dict beside the state .*fc1\.weight"),
        (lambda saved, ours: ours["sign_flips"].pop("references"), r"\['sign_flips'\] has no 'references'"),
        (other_signs, r"\['signs'\]\['fc1\.weight'\] has no 'positive'"),
        (lambda saved, ours: ours.pop("makes_zeros"), "it has no 'makes_zeros'"),
    ],
)
def test_altered_state_is_not_read_for_masks(checkpoint, tmp_path, change, text):
    path = altered(checkpoint, tmp_path / "altered.ckpt", change)
    with pytest.raises(SignInError, match=text):
        read_weights(path)


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
    for read in (read_weights, masks_from_file, resume):
        with pytest.raises(
            ValueError, match=r"cut\.ckpt is damaged: it is incomplete \(.*\)\. Use another one, or copy it again"
        ):
            read(path)


def refusal(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("seed", range(12))
def test_altered_byte_is_refused_in_words_or_belongs_to_nothing(checkpoint, tmp_path, seed):
    """Padding between records is nothing."""
    draw, path, (model, whole) = random.Random(seed), tmp_path / "altered.ckpt", (Small(), Small())
    data = bytearray(checkpoint.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    refused = refusal(lambda: resume(path, model))
    if refused is None:
        resume(checkpoint, whole)
        assert differing(copies(model), copies(whole)) == []
    else:
        assert re.search(r"altered\.ckpt is damaged[:,] .*\. Use another one, or copy it again\.$", refused)
        with pytest.raises(
            ValueError, match=r"altered\.ckpt (is damaged: its record|cannot be read safely: it is dam)"
        ):
            read_weights(path)
    assert type(model.fc1) is torch.nn.Linear


def test_every_altered_value_is_found(checkpoint, tmp_path):
    path, data = tmp_path / "altered.ckpt", checkpoint.read_bytes()
    with zipfile.ZipFile(checkpoint) as archive:
        records = [record for record in archive.infolist() if record.file_size >= 64]
    assert len(records) > 10
    for record in records:
        damaged, header = bytearray(data), record.header_offset
        name, extra = struct.unpack("<HH", data[header + 26 : header + 30])  # lengths, which end the 30 fixed bytes
        damaged[header + 30 + name + extra + record.file_size // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"is damaged: its record '{record.filename}' was altered"):
            read_weights(path)


@pytest.mark.parametrize("content", [b"", b"some notes", b"PK\x03\x04", bytes([2] + [0] * 7) + b"{}"])
def test_file_that_is_no_checkpoint_is_not_resumed(tmp_path, content):
    path = tmp_path / "other.ckpt"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"other\.ckpt is damaged(: it is incomplete \(.*\)|, or not a checkpoint)\. Use ano"
    ):
        resume(path)


def test_checkpoint_without_checksums_is_read(checkpoint, tmp_path):
    path, saved = tmp_path / "plain.ckpt", torch.load(checkpoint, weights_only=True)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(saved, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert differing(copies(resume(path)), copies(resume(checkpoint))) == []


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
