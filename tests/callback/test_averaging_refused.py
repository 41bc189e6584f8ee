"""Averages that are refused, in which words."""

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.strategies import SingleDeviceStrategy

from tests.averages import IN_STEPS, Validated, beside, fit, swa
from tests.small import callback, loader, seeded, trainer


def test_two_averages_are_refused():
    with pytest.raises(
        ValueError, match="EMAWeightAveraging and StochasticWeightAveraging would exchange each other's"
    ):
        fit(*beside(EMAWeightAveraging()), swa())


class RestoresLate(SingleDeviceStrategy):
    """Loads weights when the model is wrapped, as strategies that shard it do."""

    restore_checkpoint_after_setup = True


def test_strategy_that_shards_is_refused():
    with pytest.raises(ValueError, match="EMAWeightAveraging copies the whole model, which RestoresLate shards"):
        fit(*beside(EMAWeightAveraging()), strategy=RestoresLate("cpu"))


def test_averaged_checkpoint_without_the_averaging_callback_is_refused(tmp_path):
    _, runner = fit(*beside(EMAWeightAveraging()), epochs=1)
    runner.save_checkpoint(tmp_path / "averaged.ckpt")
    with pytest.raises(ValueError, match="holds the averages of a WeightAveraging callback, and the Trainer has none"):
        fit(callback(**IN_STEPS), ckpt_path=tmp_path / "averaged.ckpt")


def test_layers_that_the_average_lacks_are_named():
    class Late(Validated):
        def setup(self, stage: str) -> None:
            self.fc1 = torch.nn.Linear(48, 24)
            self.late = torch.nn.Linear(3, 3)

    seeded()
    with pytest.raises(
        ValueError, match=r"EMAWeightAveraging copied the module before it had late\.weight, made in its"
    ):
        trainer(*beside(EMAWeightAveraging())).fit(Late(), loader())
