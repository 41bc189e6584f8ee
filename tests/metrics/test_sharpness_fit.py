"""Sharpness during a fit, in either mode: that of the same batches at the same weights, and the run as without."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_signin.metrics import sharpness
from tests.small import BATCH, callback, copies, data, differing, seeded, trainer

MODES = ("eval", "train")


def cross_entropy(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


class Beside(Callback):
    """Right after the callback at an epoch's end: what it logged, and what the function finds in both modes."""

    def __init__(self) -> None:
        self.logged, self.found = [], []

    def on_train_epoch_end(self, trainer, module):
        x, y = data().tensors  # a DataLoader would draw from the generator that dropout draws from
        batches = [(x[:BATCH], y[:BATCH]), (x[BATCH : 2 * BATCH], y[BATCH : 2 * BATCH])]
        self.logged.append(trainer.callback_metrics["signin/sharpness"].item())
        self.found.append({m: float(sharpness(module, cross_entropy, batches, train=m == "train")) for m in MODES})


class Trace(Callback):
    """Everything that a measurement could have touched, right after it."""

    def __init__(self) -> None:
        self.of_epochs = []

    def on_train_epoch_end(self, trainer, module):
        gradients = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
        self.of_epochs.append(
            {
                "state": list(copies(module).values()),  # batch norm's statistics among them
                "gradients": [gradient for gradient in gradients if gradient is not None],
                "torch": [torch.get_rng_state()],
                "numpy": [torch.from_numpy(np.random.get_state()[1].astype("int64"))],
                "python": [torch.tensor(random.getstate()[1])],
                "modes": [torch.tensor([part.training for part in module.modules()])],
            }
        )


def fit(*extra: Callback, **options: object) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    module = seeded()
    runner = trainer(callback(**options), *extra, epochs=3)
    runner.fit(module, DataLoader(data(), BATCH))
    return module.losses, copies(module), dict(runner.callback_metrics)


@pytest.mark.parametrize("mode", MODES)
def test_a_fit_logs_what_the_function_finds_in_that_mode(mode):
    beside = Beside()
    fit(beside, sharpness_every_n_epochs=1, sharpness_batches=2, sharpness_mode=mode)
    assert len(beside.logged) == 3
    for logged, found in zip(beside.logged, beside.found, strict=True):
        assert logged == pytest.approx(found[mode], rel=1e-5)
        assert found["train"] != pytest.approx(found["eval"], rel=0.01)


@pytest.mark.parametrize("mode", MODES)
def test_a_fit_that_measures_is_bit_for_bit_the_one_that_does_not(mode):
    plain, measured = Trace(), Trace()
    losses, weights, logged = fit(plain)
    again, weights_again, logged_again = fit(measured, sharpness_every_n_epochs=1, sharpness_mode=mode)
    assert losses == again
    assert differing(weights, weights_again) == []
    for before, after in zip(plain.of_epochs, measured.of_epochs, strict=True):
        for what, tensors in before.items():
            assert all(torch.equal(a, b) for a, b in zip(tensors, after[what], strict=True)), what
    assert {name: logged_again[name] for name in logged} == logged
    assert set(logged_again) - set(logged) == {"signin/sharpness", "signin/sharpness_products"}


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match="`sharpness_mode` must be one of 'eval', 'train'; got 'training'"):
        callback(sharpness_mode="training")
