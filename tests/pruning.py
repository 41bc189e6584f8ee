"""Short iterative pruning of the small task: its sizes, its trainers, which can be cut short, and what it leaves."""

from fractions import Fraction
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer

from lightning_signin import IterativePruning
from tests.small import copies, loader, seeded, trainer

EPOCHS, BATCHES, SIZE = 2, 5, 18 + 48 * 24 + 24 * 3
WEIGHTS = ["conv.weight", "fc1.weight", "fc2.weight"]
SPARSITY, RATE, LAST = 0.7, 0.5, 2
KEPT = [SIZE, SIZE // 2, round(Fraction(3, 10) * SIZE)]
FACTORS = {"rescale_every_n_epochs": 1, "rescale_until": 1.0, "frobenius_decay": 1e-3}


class At(Callback):
    """Stops a fit with an exception: at a batch, or after all epochs."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise RuntimeError("power cut")

    def on_train_end(self, *_):
        if self.step is None:
            raise RuntimeError("power cut")


class Trainers:
    """Makes the trainers of the levels, and says which level is cut short."""

    def __init__(self, cut: dict[int, int | None] | None = None, epochs: int = EPOCHS, *extra: Callback) -> None:
        self.cut, self.epochs, self.extra, self.made = cut or {}, epochs, extra, []

    def __call__(self, callbacks: list[Callback]) -> Trainer:
        level = len(self.made)
        cut = [At(self.cut[level])] if level in self.cut else []
        options = {"epochs": self.epochs, "limit_train_batches": BATCHES, "enable_checkpointing": True}
        self.made.append(trainer(*self.extra, *cut, *callbacks, **options))
        return self.made[-1]


def pruning(folder: Path, form: str = "sign-in", **options: object) -> IterativePruning:
    sign_in = {"parametrization": form, **FACTORS}
    return IterativePruning(folder, **{"sparsity": SPARSITY, "prune_rate": RATE, "sign_in": sign_in, **options})


def pruned(folder: Path, optimizer: str = "SGD", form: str = "sign-in", **options: object) -> dict:
    module = seeded(optimizer, epochs=EPOCHS)
    pruning(folder, form, **options).fit(Trainers(), module, loader())
    return copies(module)


def kept(folder: Path, level: int) -> dict:
    return torch.load(folder / f"level-{level:02}.mask.pt", weights_only=True)


def count(masks: dict) -> int:
    return sum(int(mask.sum()) for mask in masks.values())
