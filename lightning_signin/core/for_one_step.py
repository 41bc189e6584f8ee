"""What an optimizer sees of some parameters during one step only: other gradients, and another weight decay."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_OF_PARAMETERS = ("params", "param_names")


class ForOneStep:
    """Exchanges gradients, and the decay of groups, and puts back what was there.

    Args:
        optimizer: The optimizer that takes the step.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._gradients: list[tuple[Tensor, Tensor]] = []
        self._settings: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._added: list[dict[str, Any]] = []

    def exchange(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Replace the gradients of parameters. Their own stay untouched, for code that reads them after the step."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            assert parameter.grad is not None
            self._gradients.append((parameter, parameter.grad))
            parameter.grad = gradient

    def decay(self, group: dict[str, Any], parameters: list[Tensor], decay: Any) -> None:
        """Give parameters of a group another ``weight_decay``: in a group of their own, if the group holds others too.

        Counters that the optimizer keeps in the group continue as usual.
        """
        listed = [key for key in _OF_PARAMETERS if key in group]
        self._settings.append((group, {key: group[key] for key in (*listed, "weight_decay")}))
        chosen = {id(parameter) for parameter in parameters}
        mine = [id(parameter) in chosen for parameter in group["params"]]
        if all(mine):
            group["weight_decay"] = decay
            return
        own = {key: value.clone() if isinstance(value, Tensor) else value for key, value in group.items()}
        for key in listed:
            values = list(zip(group[key], mine, strict=True))
            own[key] = [value for value, is_mine in values if is_mine]
            group[key] = [value for value, is_mine in values if not is_mine]
        self._added.append(own | {"weight_decay": decay})
        self.optimizer.param_groups.append(self._added[-1])

    @torch.no_grad()
    def undo(self) -> None:
        """Put everything back; a second call does nothing."""
        scale, found_inf = (getattr(self.optimizer, name, None) for name in ("grad_scale", "found_inf"))
        if scale is not None and found_inf is not None:
            scale = torch.where(found_inf == 0, scale, torch.ones_like(scale))
        for parameter, gradient in self._gradients:
            if scale is not None:  # fused optimizers have unscaled it
                gradient /= scale
            parameter.grad = gradient
        for group, given in self._settings:
            group.update(given)
        groups, added = self.optimizer.param_groups, {id(group) for group in self._added}
        groups[:] = [group for group in groups if id(group) not in added] if added else groups
        self._gradients, self._settings, self._added = [], [], []
