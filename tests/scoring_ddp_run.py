"""A script of `distributed/test_scoring_ddp.py`: fits on two gloo ranks that score their masks with data."""

import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from lightning_signin import masks
from tests.small import Small, callback, data, seeded, trainer

CASES = ["random", "snip", "force", "grasp", "prospr", "synflow", "phew"]


class Masks(Callback):
    """Notes the masks of a fit."""

    def on_fit_start(self, trainer, module):
        self.found = masks(module)


class Manual(Small):
    """Steps by hand, with the other part frozen meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        with optimizer.toggle_model():
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()
            optimizer.zero_grad()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found = {}
    for case in [*CASES, "unseeded snip", "manual snip", "silent snip"]:
        module, noted = seeded(), Masks()
        if "manual" in case:
            module = Manual()
        module.dropout.p = 0.0
        sign_in = callback(mask=case.split()[-1], seed=3, distribution="erk" if "silent" in case else None)
        if "silent" in case:
            torch.nn.init.zeros_(module.fc2.weight)
        runner = trainer(sign_in, noted, epochs=1, devices=2, strategy="ddp", limit_train_batches=1)
        if "unseeded" in case:
            torch.manual_seed(runner.global_rank)
            module = Small()
        runner.fit(module, DataLoader(data(), 8))
        found[case] = noted.found
    torch.save(found, folder / f"{runner.global_rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads now and then abort an orderly exit: what counts is on disk


if __name__ == "__main__":
    main(Path(sys.argv[1]))
