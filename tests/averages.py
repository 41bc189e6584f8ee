"""Fits of the small task beside Lightning's averaging callbacks, and what they go through."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import SWALR
from torch.utils.data import DataLoader

from lightning_signin import masks
from tests.small import Small, callback, copies, data, loader, seeded, trainer

DECAY = 0.9


class NowAndThen(WeightAveraging):
    """The equally weighted mean of every third step and of the ends of epochs, from the eighth step on."""

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return epoch_idx is not None or (step_idx is not None and step_idx >= 8 and step_idx % 3 == 0)


def swa() -> StochasticWeightAveraging:
    return StochasticWeightAveraging(0.05, swa_epoch_start=2, annealing_epochs=1)


KINDS: dict[str, Callable[[], Any]] = {
    "EMA": lambda: EMAWeightAveraging(decay=DECAY),
    "mean": WeightAveraging,
    "now and then": NowAndThen,
    "SWA": swa,
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_order = pytest.mark.parametrize("first", [True, False], ids=["before it", "after it"])
quiet_swa = pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
IN_STEPS = {"rescale_every_n_epochs": None, "rescale_every_n_steps": 7}
DENSE = {"sparsity": 0.0, "parametrization": "plain"}


def skip_unsafe(kind: str) -> None:
    """Skip where checkpoints of stochastic averaging hold a function, which ``weights_only`` refuses: torch 2.6."""
    schedule = SWALR(torch.optim.SGD([torch.zeros(1)], 1.0), 1.0).state_dict()
    if kind == "SWA" and any(map(callable, schedule.values())):
        pytest.skip("The state of this torch's SWALR holds a function.")


class Validated(Small):
    """Notes the weights that it is validated with."""

    def __init__(self, **options: float) -> None:
        super().__init__(**options)
        self.validated: list[dict[str, Tensor]] = []

    def on_validation_epoch_start(self) -> None:
        self.validated.append(copies(self))


class Path(Callback):
    """Notes θ and the masks after every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.masks: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.steps.append(copies(module))
        self.masks.append(masks(module))


def validation() -> DataLoader:
    return DataLoader(data(), 16)


def beside(average: Any, first: bool = True, **options: Any) -> list[Any]:
    ours = callback(**{**IN_STEPS, **options})
    return [average, ours] if first else [ours, average]


def fit(*callbacks: Any, ckpt_path: Any = None, sgd: Any = None, **options: Any) -> tuple[Validated, Any]:
    seeded()
    if ckpt_path:  # nothing of the interrupted process is left
        torch.manual_seed(99)
    module, runner = Validated(**(sgd or {})), trainer(*callbacks, **options)
    runner.fit(module, loader(), validation(), ckpt_path=ckpt_path)
    return module, runner
