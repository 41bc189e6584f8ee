"""A script of `distributed/test_ddp.py`: one fit on two gloo ranks; each rank writes what it ended with."""

import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.distributed.optim import ZeroRedundancyOptimizer

from lightning_signin import masks
from lightning_signin.core.weights import sparse_weights
from lightning_signin.updates import Cosine, RigL
from lightning_signin.weightfiles.factor_state import mask_digest
from tests.small import Small, callback, copies, loader, trainer


class Digest(Callback):
    """Notes the mask while it is there."""

    def on_train_end(self, trainer, module):
        self.digest = mask_digest(module)


class Save(Callback):
    """Saves in the middle of the second epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 8:
            trainer.save_checkpoint(self.path)


class Differ(Callback):
    """Lets the ranks choose differently how layers compute, and notes what they have agreed on."""

    def __init__(self) -> None:
        self.agreed: dict[str, str] = {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 0:
            for choice in self._choices(module).values():
                choice.taken = ("sparse", "dense")[trainer.global_rank]

    def on_train_end(self, trainer, module):
        self.agreed = {name: choice.taken for name, choice in self._choices(module).items()}

    @staticmethod
    def _choices(module):
        return {name: weight.parametrization.choice for name, weight in sparse_weights(module).items()}


class Moments(Callback):
    """Notes weights, masks and what is logged, at the start and at the end of every epoch."""

    def __init__(self) -> None:
        self.noted = []

    def on_train_start(self, trainer, module):
        logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
        self.noted.append({"weights": copies(module), "masks": masks(module), "logged": logged})

    on_train_epoch_end = on_train_start


MEASURED = {"sharpness_every_n_epochs": 1, "sharpness_batches": 2}


class Sharded(Small):
    """With an optimizer that shards its state over the ranks."""

    def configure_optimizers(self):
        return ZeroRedundancyOptimizer(self.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)


def main(case: str, folder: Path) -> None:
    torch.set_num_threads(1)
    options = {
        "unseeded": {"mask": "magnitude", "distribution": "global"},
        "sharded": {"rescale_momentum": "keep"},
        "whole": {"compute": "sparse"},
        "resumed": {"compute": "sparse"},
        "measured": MEASURED,
        "measured rigl": {"update": RigL(Cosine(4)), **MEASURED},
    }.get(case, {})
    seed_everything(1, verbose=False)
    digest, moments, differ, checkpoint = Digest(), Moments(), Differ(), folder / "mid.ckpt"
    extra = [Save(checkpoint)] if case == "whole" else []
    extra += [EMAWeightAveraging(decay=0.8)] if case == "averaged" else []
    extra += [differ] if case == "unseeded" else []
    runner = trainer(callback(**options), digest, moments, *extra, epochs=3, devices=2, strategy="ddp")
    if case == "unseeded" or "measured" in case:  # the ranks start from other weights, so their largest ones differ
        torch.manual_seed(runner.global_rank)
    module = Sharded() if case == "sharded" else Small()
    validation = loader() if case == "averaged" else None
    runner.fit(module, loader(), validation, ckpt_path=checkpoint if case == "resumed" else None)
    # Running statistics belong to each rank until the next forward sends rank 0's.
    weights = {name: weight for name, weight in copies(module).items() if "running" not in name}
    found = {"digest": digest.digest, "weights": weights, "moments": moments.noted, "compute": differ.agreed}
    torch.save(found, folder / f"{case}{runner.global_rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads now and then abort an orderly exit: what counts is on disk


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
