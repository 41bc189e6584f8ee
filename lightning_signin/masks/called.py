"""The training loss as a module's forward, so that its parameters can be replaced by values while it runs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_signin.errors import SignInError
from lightning_signin.objective.training_data import Objective


class Called(nn.Module):
    """A module whose forward is the loss of a batch.

    Args:
        module: The module whose parameters can be replaced.
        data: Loss and batches.
    """

    def __init__(self, module: nn.Module, data: Objective) -> None:
        super().__init__()
        self.module, self.data = module, data
        self.originals = list(module.named_parameters())

    def forward(self, batch: Any) -> list[tuple[Tensor, set[str] | None]]:
        """The losses, each with the plain names of the parameters that it trains; None for all."""
        owners = {id(parameter): name for name, parameter in self.originals}
        with torch.enable_grad():
            losses = self.data.loss(self.module, batch)
        if not isinstance(losses, Sequence):
            return [(losses, None)]
        # The step may list the values that are in the module now, or the parameters that an optimizer got before.
        owners |= {id(parameter): name for name, parameter in self.module.named_parameters()}
        found: list[tuple[Tensor, set[str] | None]]
        found = [(loss, {owners[id(p)] for p in trained if id(p) in owners}) for loss, trained in losses]
        if not any(names for _, names in found):
            raise SignInError(
                "None of the losses trains a parameter of the module that `loss_fn` was called with, so there is "
                "nothing to score with. List parameters of that module: it is a copy."
            )
        return found
