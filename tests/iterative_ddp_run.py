"""A script of `iterative/test_iterative_resume.py`: on two gloo ranks, levels, and levels cut and resumed."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_signin import IterativePruning
from tests.small import Small, copies, loader, trainer


class PowerCut(Callback):
    """Ends the second epoch of a level."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.current_epoch == 1:
            raise RuntimeError("power cut")


def prune(folder: Path, cut: int | None = None) -> Small:
    levels: list[Trainer] = []

    def make_trainer(callbacks: list[Callback]) -> Trainer:
        others = [PowerCut()] if len(levels) == cut else []
        options = {"devices": 2, "strategy": "ddp", "enable_checkpointing": True}
        levels.append(trainer(*others, *callbacks, epochs=2, **options))
        return levels[-1]

    module = Small(epochs=2)
    run = IterativePruning(folder, sparsity=0.7, prune_rate=0.5, rewind="wr", rewind_epoch=1)
    run.fit(make_trainer, module, loader())
    return module


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    seed_everything(1, verbose=False)
    whole = prune(folder / "whole")
    seed_everything(1, verbose=False)
    with suppress(RuntimeError):
        prune(folder / "cut", cut=1)
    torch.manual_seed(99)
    again = prune(folder / "cut")
    for name, module in (("whole", whole), ("again", again)):
        # Running statistics belong to each rank until the next forward sends rank 0's.
        weights = {key: value for key, value in copies(module).items() if "running" not in key}
        torch.save(weights, folder / f"{name}{os.environ['LOCAL_RANK']}.pt")
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads now and then abort an orderly exit: what counts is on disk


if __name__ == "__main__":
    main(Path(sys.argv[1]))
