"""The folder of an iterative pruning: finished, moved, damaged, started with other arguments; and what is none."""

import re

import pytest

from lightning_signin import IterativePruning
from lightning_signin.iterative.folder import Folder
from tests.pruning import EPOCHS, FACTORS, Trainers, pruned, pruning
from tests.small import Small, copies, differing, loader, seeded


@pytest.fixture(scope="module")
def lrr(tmp_path_factory):
    return pruned(tmp_path_factory.mktemp("lrr"))


def test_finished_folder_gives_its_weights_at_once(tmp_path):
    weights, module, trainers = pruned(tmp_path), Small(), Trainers()
    pruning(tmp_path).fit(trainers, module, loader())
    assert (differing(weights, copies(module)), trainers.made) == ([], [])


def test_folder_can_move(tmp_path, lrr):
    with pytest.raises(RuntimeError, match="power cut"):
        pruning(tmp_path / "here").fit(Trainers({1: 7}), seeded(epochs=EPOCHS), loader())
    (tmp_path / "here").rename(tmp_path / "there")
    module = Small(epochs=EPOCHS)
    pruning(tmp_path / "there").fit(Trainers(), module, loader())
    assert differing(lrr, copies(module)) == []


def test_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"`folder` must be a folder, but .*file is a file. Choose another name."):
        IterativePruning(tmp_path / "file")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun")
    with pytest.raises(RuntimeError, match="power cut"):
        pruning(folder).fit(Trainers({0: 3}), seeded(), loader())
    return folder


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"prune_rate": 0.3}, "was started with prune_rate=0.5, but here it is 0.3. Pass prune_rate=0.5 to resume"),
        ({"sparsity": 0.8}, "started with sparsity=0.7, but here it is 0.8"),
        ({"rewind": "imp"}, "started with rewind='lrr', but here it is 'imp'"),
        ({"structure": "2:4-cap"}, "started with structure='unstructured'"),
        ({"form": "plain"}, "started with parametrization='sign-in', but here it is 'plain'"),
        ({"sign_in": {**FACTORS, "frobenius_decay": 0.1}}, "started with frobenius_decay=0.001, but here it is 0.1"),
        ({"sign_in": {**FACTORS, "exclude": ["conv.*"]}}, "started with exclude=None, but here it is ['conv.*']"),
    ],
    ids=str,
)
def test_other_arguments_than_the_folders_are_refused(begun, change, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        pruning(begun, **change).fit(Trainers(), Small(), loader())


@pytest.mark.parametrize(
    ("name", "cut"), [("start.ckpt", 7), ("level-00.ckpt", 0), ("level-00.mask.pt", 0), ("level-01.last.ckpt", 7)]
)
def test_damaged_file_is_named_and_can_be_deleted(tmp_path, lrr, name, cut):
    with pytest.raises(RuntimeError, match="power cut"):
        pruning(tmp_path).fit(Trainers({1: cut}), seeded(epochs=EPOCHS), loader())
    damaged = tmp_path / name
    damaged.write_bytes(damaged.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"{name} is damaged.*Delete it: the level that wrote it is then trained"):
        pruning(tmp_path).fit(Trainers(), Small(), loader())
    damaged.unlink()
    module = seeded(epochs=EPOCHS)
    pruning(tmp_path).fit(Trainers(), module, loader())
    assert differing(lrr, copies(module)) == []


def test_file_is_written_whole_or_not_at_all(tmp_path):
    folder = Folder(tmp_path, rewinds=False)
    folder.write({"a": 1}, folder.start)
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        folder.write({"a": lambda: 2}, folder.start)
    assert folder.read(folder.start) == {"a": 1}


def test_checkpoint_to_resume_is_the_folders(tmp_path):
    with pytest.raises(ValueError, match="`ckpt_path` must be left out: the run resumes from its folder"):
        pruning(tmp_path).fit(Trainers(), Small(), loader(), ckpt_path="last")
