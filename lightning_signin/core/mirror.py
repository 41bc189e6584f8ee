"""One tensor θ that moves as a product m ⊙ w would that is rescaled to m² − w² = β after every step."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signin.core.around_steps import AroundSteps, trained
from lightning_signin.core.decay_kind import decay_kind
from lightning_signin.core.for_one_step import ForOneStep
from lightning_signin.core.functional import check_beta
from lightning_signin.core.masked import Masked
from lightning_signin.core.optimizer_parts import takes_hooks
from lightning_signin.core.step_kind import step_kind
from lightning_signin.core.storage import Storage
from lightning_signin.core.weights import SparseWeight, sparse_weights
from lightning_signin.errors import SignInError, warn


class Mirrored(Masked):
    """θ itself, to be trained inside `mirror_steps`.

    Args:
        storage: The mask, and how the values on it are stored.
        beta: The scaling β of the product that is not there, positive.

    Attributes:
        has_steps: Whether `mirror_steps` follows its optimizer.
    """

    def __init__(self, storage: Storage, beta: float = 1.0) -> None:
        super().__init__(storage)
        self.beta = check_beta(beta)
        self.has_steps = self._has_warned = False

    def join(self, *factors: Tensor) -> Tensor:
        """θ, with a warning where it is trained as a plain weight."""
        if torch.is_grad_enabled() and self.training and not (self.has_steps or self._has_warned):
            self._has_warned = True
            warn(
                "Weights with parametrization='mirror' are trained like plain ones, until `mirror_steps(module, "
                "optimizers)` is called once. SignInCallback does that by itself."
            )
        return super().join(*factors)

    def full(self, *tensors: Tensor, lend: bool) -> Tensor:
        """The full weight."""
        return self.storage.unpack(self.join(*tensors), lend=lend)

    def extra_repr(self) -> str:
        """Shape, active entries, storage and β, for `print(module)`."""
        return f"{super().extra_repr()}, beta={self.beta}"


def mirror_steps(module: nn.Module, optimizers: Iterable[Optimizer]) -> "MirrorSteps":
    r"""Let weights with ``parametrization="mirror"`` move as products do that are rescaled after every step.

    With m ⊙ w = θ and m² − w² = β, a step of m and w along gradients w ⊙ g and m ⊙ g moves θ, up to second order in the
    learning rate, by

    .. math:: -\eta\, (m^2 + w^2)\, g = -\eta \sqrt{4 \theta^2 + \beta^2}\; g

    if the optimizer's steps are proportional to gradients, as those of SGD: the gradient that the optimizer gets is
    multiplied by the root, before the momentum. Optimizers that normalize gradients, such as Adam, move m by
    sign(w) d and w by d, with d their step for g, and so θ by

    .. math:: (m + |w|)\, d = \sqrt{\sqrt{4 \theta^2 + \beta^2} + 2 |\theta|}\; d

    which takes effect after the step. A coupled ``weight_decay`` is part of g; one that is decoupled acts on θ as on
    a plain weight.

    Args:
        module: A module after ``sparsify(…, parametrization="mirror")``.
        optimizers: Those that train it.

    Returns:
        A handle; its `remove` ends it.

    Raises:
        SignInError: If the steps of an optimizer are neither proportional to gradients nor independent of their size,
            or no hooks can be given to them.

    Example:
        >>> from lightning_signin import plain_view, sparsify
        >>> net = sparsify(nn.Linear(8, 8, bias=False), sparsity=0.5, parametrization="mirror", beta=2.0)
        >>> with plain_view(net):
        ...     optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> handle = mirror_steps(net, [optimizer])
        >>> (theta,) = net.parameters()
        >>> before, theta.grad = theta.detach().clone(), torch.ones_like(theta)
        >>> optimizer.step()
        >>> torch.allclose(theta, before - 0.1 * (4 * before**2 + 4).sqrt())
        True
    """
    return MirrorSteps(sparse_weights(module).values(), optimizers)


class MirrorSteps(AroundSteps):
    """See `mirror_steps`.

    Args:
        weights: Sparse weights; those that are not mirrored are left alone.
        optimizers: Those that train them.
    """

    def __init__(self, weights: Iterable[SparseWeight], optimizers: Iterable[Optimizer]) -> None:
        self._masked: dict[int, Mirrored] = {}
        for weight in weights:
            if isinstance(weight.parametrization, Mirrored):
                self._masked[id(weight.factors[0])] = weight.parametrization
        super().__init__(optimizers if self._masked else ())
        self._before: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
        for optimizer in self.steppers:
            for group in optimizer.param_groups:
                if self._held(group):
                    self._kind(optimizer, group)
        for masked in self._masked.values():
            masked.has_steps = True

    def remove(self) -> None:
        """Let the optimizers train θ as a plain weight again."""
        super().remove()
        for masked in self._masked.values():
            masked.has_steps = False

    def before(self, optimizer: Optimizer, change: ForOneStep, first: bool) -> None:
        """Multiply gradients, or note θ before the step."""
        noted = self._before.setdefault(id(optimizer), [])
        if first:
            noted.clear()
        for group in optimizer.param_groups:
            held = trained(self._held(group))
            if not held:
                continue
            proportional = self._kind(optimizer, group) == "proportional"
            decay = group.get("weight_decay") or 0.0
            of_decay = decay_kind(optimizer, group, held[0].ndim) if decay else "none"
            if proportional:
                coupled = {"coupled": 1.0, "coupled, maximizing": -1.0}.get(of_decay or "none", 0.0) * decay
                change.exchange(held, [self._gradient(theta, coupled) for theta in held])
            elif first:
                pull = group["lr"] * decay if of_decay in ("decoupled", "separate") else 0.0
                noted += [(theta, theta.clone(), -pull * theta) for theta in held]

    def after(self, optimizer: Optimizer) -> None:
        """Multiply the steps of an optimizer that normalizes gradients."""
        for theta, start, decay in self._before.pop(id(optimizer), []):
            step = theta - start
            times = (self._root(theta, start) + 2 * start.abs()).sqrt()
            moved = start + decay + times * (step - decay)
            theta.copy_(torch.where(step == 0, start, moved))  # where a scaler skips the step, nothing moves

    def _gradient(self, theta: Tensor, decay: float) -> Tensor:
        assert theta.grad is not None
        pull = decay * theta
        return self._root(theta, theta) * (theta.grad + pull) - pull

    def _root(self, parameter: Tensor, theta: Tensor) -> Tensor:
        return torch.hypot(2 * theta, theta.new_tensor(self._masked[id(parameter)].beta))

    def _held(self, group: dict[str, Any]) -> list[Tensor]:
        return [parameter for parameter in group["params"] if id(parameter) in self._masked]

    def _kind(self, optimizer: Optimizer, group: dict[str, Any]) -> str:
        kind = step_kind(optimizer, group) if takes_hooks(optimizer) else None
        if kind is None:
            raise SignInError(
                f"parametrization='mirror' cannot follow {type(optimizer).__name__}: its steps are neither "
                "proportional to gradients nor independent of their size, or it takes no hooks. Use SGD, Adam or "
                "AdamW, or parametrization='sign-in'."
            )
        return kind
