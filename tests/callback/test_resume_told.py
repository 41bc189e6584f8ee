"""What a resume refuses, and where it says that it is not bit for bit."""

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, IterableDataset

from tests.resuming import SaveEverywhere
from tests.small import BATCHES, Small, callback, data, loader, seeded, trainer


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Of a run, after every step and epoch."""
    folder = tmp_path_factory.mktemp("run")
    trainer(callback(), SaveEverywhere(folder), epochs=2).fit(seeded(), loader())
    return folder


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("sparsity", 0.5),
        ("distribution", "erk"),
        ("seed", 3),
        ("parametrization", "plain"),
        ("exclude", ["fc2.weight"]),
        ("storage", "dense"),
    ],
)
def test_resume_with_another_mask_is_refused(checkpoints, argument, value):
    with pytest.raises(ValueError, match=rf"was trained with {argument}=.*this callback has {argument}=.*another mask"):
        trainer(callback(**{argument: value})).fit(Small(), loader(), ckpt_path=checkpoints / "epoch1.ckpt")


def test_resume_of_a_dense_checkpoint_is_refused(tmp_path):
    runner = trainer()
    runner.fit(seeded(), loader())
    for name, weights_only in (("whole.ckpt", False), ("weights.ckpt", True)):
        runner.save_checkpoint(tmp_path / name, weights_only=weights_only)
        with pytest.raises(ValueError, match=r"was not written by a run with SignInCallback.*load them into the model"):
            trainer(callback()).fit(Small(), loader(), ckpt_path=tmp_path / name)


def test_dense_resume_of_a_sparse_checkpoint_says_what_to_do(checkpoints):
    with (
        pytest.warns(UserWarning, match=r"Please add the following callbacks: \['lightning_signin\.SignInCallback'\]"),
        pytest.raises(ValueError, match="doesn't match the size of optimizer's group"),
    ):
        trainer().fit(Small(), loader(), ckpt_path=checkpoints / "epoch1.ckpt")


def test_resume_says_when_seed_everything_differs(checkpoints, monkeypatch):
    module = seeded(seed=2)
    with pytest.warns(UserWarning, match="not bit for bit: seed_everything was 1, and is 2"):
        trainer(callback(), epochs=3).fit(module, loader(), ckpt_path=checkpoints / "epoch1.ckpt")


def test_resume_says_when_gradients_were_accumulating(tmp_path):
    class SaveInside(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if batch_idx == 4:
                trainer.save_checkpoint(tmp_path / "inside.ckpt")

    trainer(callback(), SaveInside(), epochs=1, accumulate_grad_batches=2).fit(seeded(), loader())
    with pytest.warns(UserWarning, match="inside an accumulation window"):
        trainer(callback(), epochs=1, accumulate_grad_batches=2).fit(
            seeded(), loader(), ckpt_path=tmp_path / "inside.ckpt"
        )


def test_resume_says_when_data_is_iterable(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(data())

    stream = DataLoader(Stream(), 8)
    trainer(callback(), SaveEverywhere(tmp_path), epochs=1).fit(seeded(), stream)
    with pytest.warns(UserWarning, match="the position of an iterable or stateful training loader is not restored"):
        trainer(callback(), epochs=1).fit(seeded(), stream, ckpt_path=tmp_path / "step5.ckpt")


def test_checkpoint_is_read_without_running_code(checkpoints):
    saved = torch.load(checkpoints / "step15.ckpt", weights_only=True)
    assert list(saved["state_dict"]) == list(Small().state_dict())


def test_resume_says_when_a_validation_was_due(tmp_path):
    trainer(callback(), SaveEverywhere(tmp_path), epochs=2).fit(seeded(), loader(), DataLoader(data(), 16))
    with pytest.warns(UserWarning, match="from the last batch of an epoch, before its validation, which is skipped"):
        trainer(callback(), epochs=2).fit(
            seeded(), loader(), DataLoader(data(), 16), ckpt_path=tmp_path / f"step{BATCHES}.ckpt"
        )
