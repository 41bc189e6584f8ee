"""The check for cuts at the first call of the network in a fit: it takes no training step, batch or random number."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.hooks import RemovableHandle

from lightning_signin.callback.scoring.data import LightningData
from lightning_signin.core.torch_internals import is_transformed, registered_parameters
from lightning_signin.core.weights import sparse_weights
from lightning_signin.objective.network import Network, no_call, parts_with_all
from lightning_signin.objective.sample import Call
from lightning_signin.randomness.generators import untouched
from lightning_signin.units.connected import check_connected, may_cut
from lightning_signin.verbs.model import masks


class FirstCall:
    """Checks whether the mask of a module cuts it, as soon as the first training step calls the network.

    Args:
        trainer: The trainer of the fit.
        module: The sparse module.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.trainer, self.module = trainer, module
        self._handles: list[RemovableHandle] = []
        self._entered = False
        self._owners: set[tuple[int, str]] = set()  # of the sparse weights
        self._dense: set[int] = set()  # the other parameters, by their ids

    def begin(self) -> None:
        """Wait for the call, if the mask alone cannot tell."""
        if may_cut(masks(self.module)):
            weights = sparse_weights(self.module).values()
            self._owners = {(id(owner), name) for weight in weights for owner, name in weight.owners}
            self._dense = self._others()
            parts = list(parts_with_all(self.module, sparse_weights(self.module)))
            hooks = {prefix: partial(self._look, prefix) for prefix, _ in parts}
            self._handles = [part.register_forward_pre_hook(hooks[p], with_kwargs=True) for p, part in parts]

    def end(self) -> None:
        """After the first training step: warn if nothing was called."""
        if self._handles:
            self._check(_never)

    def close(self) -> None:
        """Stop waiting."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __reduce__(self) -> tuple[type["FirstCall"], tuple[None, None]]:
        # Copies of the network have copies of its hooks: these wait for nothing, and hold no trainer.
        return FirstCall, (None, None)

    def _look(self, prefix: str, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._handles:
            return
        # Wait for an ordinary call: not one with other parameters (`functional_call`), or within a transform.
        if self._others() != self._dense or is_transformed(torch.empty(0)):
            return
        # A strategy that wraps the module, such as DDP, runs the training step by a call of the module.
        if part is self.module and self.trainer.strategy.model is not part and not self._entered:
            self._entered = True
            return
        call: Call = (args, kwargs)
        data = LightningData(self.trainer, self.module)
        self._check(lambda: data.called(prefix, call, list(sparse_weights(self.module))))

    def _others(self) -> set[int]:
        parts = [part for part in self.module.modules() if not isinstance(part, ParametrizationList)]
        named = [(id(part), name, value) for part in parts for name, value in registered_parameters(part).items()]
        return {id(value) for owner, name, value in named if (owner, name) not in self._owners}

    def _check(self, network: Callable[[], Network]) -> None:
        self.close()
        with untouched(), ExitStack() as stack:
            for device in {"cpu", self.module.device.type}:  # the step may be in mixed precision
                stack.enter_context(torch.autocast(device, enabled=False))
            check_connected(masks(self.module), network)


def _never() -> Network:
    raise no_call()
