"""Checkpoints of averaged runs: what they hold, at any moment, and that a resumed run equals the uninterrupted one."""

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, OnExceptionCheckpoint
from torch import Tensor

from lightning_signin.callback.resuming import STATE_KEY
from lightning_signin.parametrizations import STR
from lightning_signin.updates import Cosine, RigL
from tests.averages import (
    DECAY,
    KINDS,
    Path,
    Validated,
    beside,
    each_order,
    fit,
    quiet_swa,
    skip_unsafe,
    swa,
    validation,
)
from tests.small import BATCHES, Small, copies, differing, loader, seeded, trainer

pytestmark = quiet_swa


@each_order
def test_checkpoints_hold_the_average_and_the_trained_weights(first, tmp_path):
    saver = ModelCheckpoint(tmp_path, "{step}", monitor="val_loss", save_top_k=-1)
    path = Path()
    module, runner = fit(
        path, saver, *beside(EMAWeightAveraging(decay=DECAY), first), enable_checkpointing=True, val_check_interval=0.5
    )
    runner.save_checkpoint(tmp_path / "after.ckpt")
    for step, validated in zip(range(5, 45, 5), module.validated[1:], strict=True):
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        assert differing(saved["state_dict"], validated) == []
        assert differing(saved["current_model_state"], path.steps[step - 1]) == []
        Small().load_state_dict(saved["state_dict"], strict=True)
    assert differing(torch.load(tmp_path / "after.ckpt", weights_only=True)["state_dict"], copies(module)) == []


@pytest.mark.parametrize(
    ("kind", "first", "options"),
    [
        *((kind, first, {}) for kind in KINDS for first in (True, False)),
        ("EMA", True, {"update": RigL(Cosine(3))}),
        ("SWA", True, {"update": RigL(Cosine(3))}),
        ("EMA", False, {"parametrization": STR(s_init=-20.0), "sparsity": None}),
    ],
    ids=str,
)
def test_resume_equals_uninterrupted(kind, first, options, tmp_path):
    skip_unsafe(kind)

    def run(folder: str, ckpt_path: Any = None) -> tuple[dict[str, Tensor], Any]:
        by_step = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=7, save_top_k=-1)
        by_epoch = ModelCheckpoint(tmp_path / folder, "end-{step}", monitor="val_loss", save_top_k=-1)
        both = {"enable_checkpointing": True, "ckpt_path": ckpt_path}
        module, _ = fit(*beside(KINDS[kind](), first, **options), by_step, by_epoch, **both)
        return copies(module), torch.load(tmp_path / folder / "step=35.ckpt", weights_only=True)

    whole, late = run("whole")
    # Within its epochs Lightning resumes stochastic averaging without its schedule.
    within = ["step=7"] if kind == "SWA" else ["step=14", "step=28"]
    for moment in ("end-step=10", "end-step=20", "end-step=30", *within):
        again, late_again = run(moment, tmp_path / "whole" / f"{moment}.ckpt")
        assert differing(whole, again) == [], moment
        assert differing(late["state_dict"], late_again["state_dict"]) == [], moment
        if kind != "SWA":
            assert differing(late["current_model_state"], late_again["current_model_state"]) == [], moment
        assert late["callbacks"].keys() == late_again["callbacks"].keys()


def test_resume_says_when_stochastic_averaging_loses_its_schedule(tmp_path):
    skip_unsafe("SWA")
    by_step = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=14)
    fit(*beside(swa()), by_step, enable_checkpointing=True)
    with pytest.warns(
        UserWarning, match="not bit for bit: Lightning takes up StochasticWeightAveraging's schedule only"
    ):
        fit(*beside(swa()), ckpt_path=tmp_path / "step=28.ckpt")


def test_finished_run_goes_on_from_the_average(tmp_path):
    module, runner = fit(*beside(EMAWeightAveraging(decay=DECAY)), epochs=2)
    runner.save_checkpoint(tmp_path / "after.ckpt")
    again, _ = fit(*beside(EMAWeightAveraging(decay=DECAY)), ckpt_path=tmp_path / "after.ckpt", epochs=3)
    assert differing(again.validated[0], copies(module)) == []
    assert len(again.losses) == BATCHES


class Saves(Validated):
    """Saves in the middle of every validation."""

    path: Any

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        if batch_idx == 1 and not self.trainer.sanity_checking:
            self.trainer.save_checkpoint(self.path / f"{self.trainer.global_step}.ckpt")


@each_order
def test_checkpoint_from_within_a_validation_is_that_of_after_it(first, tmp_path):
    saver = ModelCheckpoint(tmp_path, "after-{step}", monitor="val_loss", save_top_k=-1)
    seeded()
    module = Saves()
    module.path = tmp_path
    runner = trainer(saver, *beside(EMAWeightAveraging(decay=DECAY), first), epochs=2, enable_checkpointing=True)
    runner.fit(module, loader(), validation())
    for step in (BATCHES, 2 * BATCHES):
        within = torch.load(tmp_path / f"{step}.ckpt", weights_only=True)
        after = torch.load(tmp_path / f"after-step={step}.ckpt", weights_only=True)
        for key in ("state_dict", "current_model_state"):
            assert differing(within[key], after[key]) == [], key
        for name, factors in after["callbacks"][STATE_KEY]["factors"].items():
            saved = within["callbacks"][STATE_KEY]["factors"][name]
            assert all(torch.equal(a, b) for a, b in zip(saved, factors, strict=True))


class Breaks(Validated):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == 2 * BATCHES:
            raise ZeroDivisionError
        super().validation_step(batch, batch_idx)


def test_validation_that_breaks_off_leaves_the_trained_model_and_a_checkpoint(tmp_path):
    seeded()
    module, path = Breaks(), Path()
    saver = OnExceptionCheckpoint(tmp_path, "broken")
    runner = trainer(path, saver, *beside(EMAWeightAveraging(decay=DECAY)), enable_checkpointing=True)
    with pytest.raises(ZeroDivisionError):
        runner.fit(module, loader(), validation())
    assert differing(copies(module), path.steps[-1]) == []
    saved = torch.load(tmp_path / "broken.ckpt", weights_only=True)
    assert differing(saved["current_model_state"], path.steps[-1]) == []
    assert differing(saved["state_dict"], module.validated[-1]) == []
    assert saved["callbacks"][STATE_KEY]["factors"].keys() == path.masks[-1].keys()
