"""The sharpness of the user's own training loss, at the end of epochs of a fit."""

from contextlib import closing
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_signin.callback.scoring.data import LightningData
from lightning_signin.metrics.sharpness import Sharpness, sharpness_of
from lightning_signin.randomness.generators import untouched


class Curvature:
    """Measures the sharpness with the training step on the same training batches every time.

    Create it before the fit reads its loaders: from then on they are recorded for exact resuming.

    Args:
        trainer: The trainer of the fit.
        module: The sparse module.
        batches: Number of batches; their graph is kept in memory during a measurement.
        seed: Seed of the batch order.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, batches: int, seed: int) -> None:
        self.trainer, self.module = trainer, module
        with closing(LightningData(trainer, module)) as data, untouched():
            torch.manual_seed(seed)
            self.batches: list[Any] = []
            for batch in data.batches:
                self.batches.append(batch)
                if len(self.batches) == batches:
                    break

    def measure(self, *, train: bool) -> Sharpness:
        """The current sharpness, over all ranks' batches together.

        Args:
            train: Enable batch statistics and dropout, with the dropout masks that the next training step would draw.

        Returns:
            The largest eigenvalue of the Hessian with respect to θ on the mask, and how it was found.
        """
        with closing(_SameStatistics(self.trainer, self.module)) as data, untouched():
            return sharpness_of(self.module, data, self.batches, train=train)


class _SameStatistics(LightningData):
    """Uses the buffers of rank 0 on all ranks, as in checkpoints.

    Running statistics differ between ranks until DDP broadcasts rank 0's in the next forward. With those of several
    ranks, the Hessian would not be that of any single model.
    """

    @torch.no_grad()
    def copy(self, module: nn.Module) -> nn.Module:
        scored = super().copy(module)
        if self.trainer.world_size > 1:
            buffers = list(scored.buffers())
            sent = self.trainer.strategy.broadcast([buffer.cpu() for buffer in buffers])
            for buffer, value in zip(buffers, sent, strict=True):
                buffer.copy_(value)
        return scored
