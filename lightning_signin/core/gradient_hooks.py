"""Hooks of the plain parameter of a sparse weight: they get gradients of θ; what they return goes to the factors."""

from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from lightning_signin.core.masked_product import strided
from lightning_signin.core.torch_internals import gradient_hooks, post_accumulate_hooks, without_torch_function
from lightning_signin.errors import warn


class HookedUses:
    """Lets the gradient of θ of each forward pass go through the hooks of the plain parameter.

    A parameter's hooks get the sum of the gradients of all its uses in a step; these get one after the other, which is
    the same for hooks that are linear. A warning says so when a weight is used twice.

    Args:
        masked: The parametrization of the weight.
    """

    def __init__(self, masked: Any) -> None:
        self.masked = masked
        self.forwards = 0
        self._last: tuple[int, int] | None = None  # the number of forward passes at the last call, and that of its θ
        self._warned = False

    def watch(self, theta: Tensor) -> None:
        """Attach the hooks to the θ of a forward pass."""
        self.forwards += 1
        own = self.forwards

        def through_hooks(gradient: Tensor) -> Tensor:
            if self._last is not None and self._last[0] == self.forwards and self._last[1] != own:
                self._warn()
            self._last = self.forwards, own
            return on_theta(self.masked, gradient)

        theta.register_hook(through_hooks)

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warn(
                f"{self.masked.name} has hooks on its gradient, and is used several times in a step: they get the "
                "gradient of each use, and not their sum. Hooks that only multiply it are right; for others leave the "
                f"weight dense with exclude=['{self.masked.name}']."
            )


def on_theta(masked: Any, gradient: Tensor) -> Tensor:
    """A gradient of θ, zero off the mask, after the hooks of the plain parameter."""
    gradient = masked.storage.unpack(masked.storage.pack(strided(gradient)))
    with without_torch_function():
        hooks = list(gradient_hooks(masked.plain_parameter))
    for hook in hooks:
        changed = hook(gradient)
        gradient = gradient if changed is None else changed
    return gradient


def carry_hooks(parameter: nn.Parameter, holder: ParametrizationList) -> None:
    """Let the hooks of a plain parameter act on gradients of θ, and when all factors have theirs.

    Args:
        parameter: The plain parameter.
        holder: torch's list of the weight's parametrization, which holds the trainable tensors.
    """
    masked: Any = holder[0]
    with without_torch_function():
        before, after = bool(gradient_hooks(parameter)), bool(post_accumulate_hooks(parameter))
    tensors = list(holder.parameters(recurse=False))
    if before and masked.hooked_uses is None:
        masked.hooked_uses = HookedUses(masked)
        if masked.names == ("theta",) and tensors[0].requires_grad:  # it gets the sum itself
            tensors[0].register_hook(lambda gradient: masked.storage.pack(on_theta(masked, _full(masked, gradient))))
    if after and not masked.waits:
        masked.waits = True
        _call_when_complete(parameter, tensors)


def _full(masked: Any, gradient: Tensor) -> Tensor:
    return masked.storage.unpack(strided(gradient))


def _call_when_complete(parameter: nn.Parameter, tensors: list[nn.Parameter]) -> None:
    arrived: set[int] = set()

    def arrives(tensor: Tensor) -> None:
        arrived.add(id(tensor))
        if len(arrived) < sum(other.requires_grad for other in tensors):
            return
        arrived.clear()
        with without_torch_function():
            hooks = list(post_accumulate_hooks(parameter))
        for hook in hooks:
            hook(parameter)

    for tensor in tensors:
        tensor.register_post_accumulate_grad_hook(arrives)
