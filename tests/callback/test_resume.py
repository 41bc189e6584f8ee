"""Interrupted and resumed equals uninterrupted, bit for bit."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from tests.resuming import Manual, SaveEverywhere
from tests.small import BATCHES, Small, callback, copies, data, differing, loader, seeded, trainer

MOMENTS = ["step1", "step9", "step10", "step11", "step25", "step30", "step39", "epoch0", "epoch1", "epoch2"]


def fit(optimizer: str, *extra: Callback, workers: int = 0, ckpt_path=None, **options: object):
    module = seeded(optimizer)
    if ckpt_path:  # nothing of the interrupted process is left
        torch.manual_seed(99)
        module = Small(optimizer)
    runner = trainer(callback(frobenius_decay=1e-3, **options), *extra)
    runner.fit(module, loader(workers), ckpt_path=ckpt_path)
    optimizers = [value for state in runner.optimizers[0].state.values() for value in state.values()]
    return copies(module), optimizers, runner


SGD, ADAMW_WITH_WORKERS = ("SGD", 0), ("AdamW", 2)

with_sgd = pytest.mark.parametrize("uninterrupted", [SGD], indirect=True, ids=["SGD"])


@pytest.fixture(scope="module")
def uninterrupted(request, tmp_path_factory):
    optimizer, workers = request.param
    folder = tmp_path_factory.mktemp(optimizer)
    return (*fit(optimizer, SaveEverywhere(folder), workers=workers), folder, optimizer, workers)


@pytest.mark.parametrize(
    ("uninterrupted", "moment"),
    # Worker processes are slow to start: three moments stand for all.
    [*((SGD, moment) for moment in MOMENTS), *((ADAMW_WITH_WORKERS, m) for m in ("step9", "step25", "epoch1"))],
    indirect=["uninterrupted"],
)
def test_resume_equals_uninterrupted(uninterrupted, moment):
    weights, optimizer_state, _, folder, optimizer, workers = uninterrupted
    again, state_again, runner = fit(optimizer, workers=workers, ckpt_path=folder / f"{moment}.ckpt")
    assert runner.global_step == 4 * BATCHES
    assert differing(weights, again) == []
    pairs = zip(optimizer_state, state_again, strict=True)
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)


class SaveWhenItFails(Callback):
    def __init__(self, folder) -> None:
        self.folder = folder

    def on_exception(self, trainer, module, exception):
        trainer.save_checkpoint(self.folder / "failed.ckpt")


class Fails(Small):
    """Fails in the middle of an epoch, in a batch that has drawn random numbers already."""

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 15:
            torch.rand(3)
            raise ConnectionError("lost")
        return super().training_step(batch, batch_idx)


@with_sgd
def test_batch_that_failed_is_trained_on_when_resumed(uninterrupted, tmp_path):
    weights, optimizer_state, *_ = uninterrupted
    seeded("SGD")
    module = Fails("SGD")
    module.load_state_dict(seeded("SGD").state_dict())
    with pytest.raises(ConnectionError):
        trainer(callback(frobenius_decay=1e-3), SaveWhenItFails(tmp_path)).fit(module, loader())
    again, state_again, runner = fit("SGD", ckpt_path=tmp_path / "failed.ckpt")
    assert runner.global_step == 4 * BATCHES
    assert differing(weights, again) == []
    assert all(torch.equal(a, b) for a, b in zip(optimizer_state, state_again, strict=True))


@pytest.mark.parametrize(
    "options",
    [{"mask": "magnitude", "distribution": "global"}, {"parametrization": "plain"}],
    ids=["magnitude", "plain"],
)
def test_resume_takes_mask_from_checkpoint(tmp_path, options):
    weights, *_ = fit("SGD", SaveEverywhere(tmp_path), **options)
    again, *_ = fit("SGD", ckpt_path=tmp_path / "step25.ckpt", **options)
    assert differing(weights, again) == []


def test_resume_after_fit_continues_a_finished_run(tmp_path):
    whole, *_ = fit("SGD", rescale_until=9)
    module = seeded()
    short = trainer(callback(frobenius_decay=1e-3, rescale_until=9), epochs=2)
    short.fit(module, loader())
    short.save_checkpoint(tmp_path / "after.ckpt")
    again, *_ = fit("SGD", ckpt_path=tmp_path / "after.ckpt", rescale_until=9)
    assert differing(whole, again) == []


class Reloading(Small):
    """Makes new loaders every epoch: two of other lengths, the shorter one begins again within the epoch."""

    def train_dataloader(self):
        return {"long": loader(), "short": DataLoader(data(), 16, shuffle=True)}

    def training_step(self, batch, batch_idx):
        return super().training_step(batch["long"], batch_idx) + super().training_step(batch["short"], batch_idx)


def two_loaders(folder, reload: int, moment: str) -> tuple[Small, Small]:
    seeded()
    whole = Reloading()
    trainer(callback(), SaveEverywhere(folder), reload_dataloaders_every_n_epochs=reload).fit(whole)
    torch.manual_seed(99)
    again = Reloading()
    runner = trainer(callback(), reload_dataloaders_every_n_epochs=reload)
    runner.fit(again, ckpt_path=folder / f"{moment}.ckpt")
    return whole, again


@pytest.mark.parametrize(
    ("reload", "moment"), [(0, "step13"), (0, "step18"), (0, "epoch1"), (1, "step13"), (1, "step18")]
)
def test_resume_of_two_loaders_equals_uninterrupted(tmp_path, reload, moment):
    whole, again = two_loaders(tmp_path, reload, moment)
    assert differing(copies(whole), copies(again)) == []


def test_resume_says_when_loaders_are_reloaded(tmp_path):
    with pytest.warns(UserWarning, match="not bit for bit: reload_dataloaders_every_n_epochs draws further seeds"):
        two_loaders(tmp_path, 1, "epoch1")


@pytest.mark.parametrize("interval", [1.0, 0.5], ids=["validated at epoch ends", "validated twice an epoch"])
def test_resume_from_checkpoints_of_validations_equals_uninterrupted(tmp_path, interval):
    def fit_validated(*extra: Callback, ckpt_path=None):
        module = seeded()
        if ckpt_path:
            torch.manual_seed(99)
            module = Small()
        options = {"val_check_interval": interval, "enable_checkpointing": True, "num_sanity_val_steps": 1}
        runner = trainer(callback(), *(extra or [ModelCheckpoint(tmp_path / "again")]), **options)
        runner.fit(module, loader(), DataLoader(data(), 16), ckpt_path=ckpt_path)
        return copies(module)

    saver = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, monitor="val_loss", save_last=False)
    whole = fit_validated(saver)
    steps = range(10, 40, 10) if interval == 1 else range(5, 40, 5)
    for step in steps:
        assert differing(whole, fit_validated(ckpt_path=tmp_path / f"step={step}.ckpt")) == [], step


@pytest.mark.parametrize(("kind", "accumulate"), [(Small, 2), (Manual, 1)], ids=["accumulation", "manual optimization"])
def test_resume_of_other_ways_to_step_equals_uninterrupted(tmp_path, kind, accumulate):
    seeded()
    whole = kind()
    trainer(callback(frobenius_decay=1e-3), SaveEverywhere(tmp_path), accumulate_grad_batches=accumulate).fit(
        whole, loader()
    )
    for moment in ("step8", "step14", "epoch2"):
        torch.manual_seed(99)
        again = kind()
        runner = trainer(callback(frobenius_decay=1e-3), accumulate_grad_batches=accumulate)
        runner.fit(again, loader(), ckpt_path=tmp_path / f"{moment}.ckpt")
        assert differing(copies(whole), copies(again)) == [], moment


COUNTED_IN_STEPS = {"rescale_every_n_epochs": None, "rescale_every_n_steps": 7}


@pytest.mark.parametrize("epochs", [-1, 4])
@pytest.mark.parametrize("moment", ["step9", "step10", "step25", "epoch0", "epoch2"])
def test_resume_of_a_run_with_max_steps_equals_uninterrupted(tmp_path, epochs, moment):
    whole = seeded()
    limits = {"epochs": epochs, "max_steps": 35}
    trainer(callback(**COUNTED_IN_STEPS), SaveEverywhere(tmp_path), **limits).fit(whole, loader())
    torch.manual_seed(99)
    again = Small()
    runner = trainer(callback(**COUNTED_IN_STEPS), **limits)
    runner.fit(again, loader(), ckpt_path=tmp_path / f"{moment}.ckpt")
    assert (runner.global_step, runner.current_epoch) == (35, 4)
    assert differing(copies(whole), copies(again)) == []


@pytest.mark.parametrize("first", [20, 25], ids=["ended with an epoch", "ended within an epoch"])
def test_finished_run_with_max_steps_goes_on(tmp_path, first):
    whole = seeded()
    options = {**COUNTED_IN_STEPS, "rescale_until": 9}
    trainer(callback(**options), epochs=-1, max_steps=35).fit(whole, loader())
    short = seeded()
    runner = trainer(callback(**options), epochs=-1, max_steps=first)
    runner.fit(short, loader())
    runner.save_checkpoint(tmp_path / "after.ckpt")
    torch.manual_seed(99)
    again = Small()
    trainer(callback(**options), epochs=-1, max_steps=35).fit(again, loader(), ckpt_path=tmp_path / "after.ckpt")
    assert differing(copies(whole), copies(again)) == []
