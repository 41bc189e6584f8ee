"""The user's own loss on the user's own data, for scores that need them."""

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from lightning_signin.errors import SignInError
from lightning_signin.objective.network import Network, network_with, recorded_network

Losses = Tensor | Sequence[tuple[Tensor, Iterable[Tensor]]]


class Objective(Protocol):
    """What scores and the sharpness need of the user's loss and data: that of `TrainingData`, or of a fit.

    Attributes:
        example_input: The input of the module, if it is known; see `TrainingData`.
    """

    example_input: Any

    @property
    def batches(self) -> Iterable[Any]:
        """The training batches from the start."""
        ...

    @property
    def shows_network(self) -> bool:
        """Whether `network` may run a training step; if not, it comes to light when training calls it."""
        ...

    def average(self, tensor: Tensor, /) -> Tensor:
        """The mean over ranks."""
        ...

    def copy(self, module: nn.Module) -> nn.Module:
        """A copy of the module to score on, so that training steps leave no trace in the original."""
        ...

    def loss(self, module: nn.Module, batch: Any) -> Losses:
        """The training loss of a batch."""
        ...

    def network(self, module: nn.Module, weights: Collection[str]) -> Network:
        """A copy of the network that runs the named weights, with an example input."""
        ...


class TrainingData:
    """The training loss and the batches that scores are computed with.

    Args:
        loss_fn: ``loss_fn(module, batch)`` returns the scalar training loss; or, where several optimizers train parts
            of the module, a list of (loss, the parameters that it trains).
        batches: An iterable of batches that can be iterated again, e.g. a DataLoader.
        example_input: The input of ``module``: a tensor, a tuple of arguments or a dict of keyword arguments. Without
            it, the call that ``loss_fn`` makes of the network is recorded on the first batch.
        average: Averages a tensor over ranks, so that n ranks score like one rank with n times the batches.

    Example:
        >>> import torch
        >>> net = nn.Linear(3, 1)
        >>> data = TrainingData(lambda module, batch: module(batch).square().mean(), [torch.ones(4, 3)])
        >>> data.loss(net, torch.zeros(4, 3)).shape
        torch.Size([])
    """

    def __init__(
        self,
        loss_fn: Callable[[nn.Module, Any], Losses] | None = None,
        batches: Iterable[Any] = (),
        example_input: Any = None,
        average: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.loss_fn, self.batches, self.example_input = loss_fn, batches, example_input
        self.average = average or (lambda tensor: tensor)

    @property
    def shows_network(self) -> bool:
        """Whether `network` may run a training step; if not, it comes to light when training calls it."""
        return True

    def copy(self, module: nn.Module) -> nn.Module:
        """A copy of the module to score on, so that training steps leave no trace in the original."""
        return copy.deepcopy(module)

    def loss(self, module: nn.Module, batch: Any) -> Losses:
        """The training loss of a batch."""
        if self.loss_fn is None:
            raise SignInError("This score needs the training loss: pass data=TrainingData(loss_fn, batches).")
        return self.loss_fn(module, batch)

    def network(self, module: nn.Module, weights: Collection[str]) -> Network:
        """A copy of the network that runs the named weights, with an example input."""
        if self.example_input is not None:
            return network_with(self.copy(module), weights, self.example_input)
        return network_in_step(self, module, weights)


def network_in_step(data: Objective, module: nn.Module, weights: Collection[str]) -> Network:
    """The network that the first training step calls, with the input that it gives it.

    Args:
        data: Loss and batches.
        module: The module, which is copied.
        weights: Names of the weights that the network has to run.

    Returns:
        A copy of the network.

    Raises:
        SignInError: If there is no batch, or no single call runs all the weights.
    """

    def one_step(module: nn.Module) -> None:
        for batch in data.batches:
            data.loss(module, batch)
            return
        raise SignInError("There are no training batches from which to record the network's input.")

    return recorded_network(data.copy(module), weights, one_step)
