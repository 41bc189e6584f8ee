"""The optimizer's ``weight_decay`` acts on θ = m ⊙ w instead of on m and w."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signin.core.around_steps import AroundSteps, trained
from lightning_signin.core.decay_kind import decay_kind
from lightning_signin.core.for_one_step import ForOneStep
from lightning_signin.core.optimizer_parts import takes_hooks
from lightning_signin.core.torch_internals import add_each_, multiplied_each, multiply_each_
from lightning_signin.core.weights import SparseWeight, sign_in_weights
from lightning_signin.errors import SignInError, warn

WEIGHT_DECAY = ("theta", "factors")


def decay_theta(module: nn.Module, optimizers: Iterable[Optimizer]) -> "ThetaDecay":
    r"""Let the ``weight_decay`` λ of optimizers act on θ = m ⊙ w, as it does on a plain weight.

    Without it, as after `sparsify` alone, λ acts on m and on w, which pulls small θ to zero like an L1 penalty.

    Where decay is decoupled (AdamW), θ is multiplied by 1 − lr · λ in every step, and m and w by the root of that each,
    so m² − w² shrinks as θ does until the next rescale. Where it is coupled (SGD, Adam, LARS), the gradient of
    :math:`\frac{λ}{2} \|m ⊙ w\|^2` takes the place of that of :math:`\frac{λ}{2} (\|m\|^2 + \|w\|^2)`: λθw for m and
    λθm for w, after clipping. Where a pull to 0 is added to steps that do not depend on the size of gradients (LAMB,
    NovoGrad, Adan), m and w get half of it each, which for θ is all of it, but for terms of (lr · λ)². The gradients
    and the groups of the optimizers stay as they are, so schedules of λ and loggers of gradients work. With a
    parametrization θ = ψ(m ⊙ w), m ⊙ w decays.

    Args:
        module: A module after `sparsify`. Weights that are no product are left alone: there λ acts on θ already.
        optimizers: Those that train it.

    Returns:
        A handle; its `remove` ends it.

    Example:
        >>> from lightning_signin import effective_weights, plain_view, sparsify
        >>> net = sparsify(nn.Linear(8, 8), sparsity=0.5)
        >>> with plain_view(net):
        ...     optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
        >>> handle = decay_theta(net, [optimizer])
        >>> before = effective_weights(net)["weight"]
        >>> (0 * net(torch.ones(1, 8))).sum().backward()
        >>> optimizer.step()
        >>> torch.allclose(effective_weights(net)["weight"], 0.95 * before)
        True
    """
    return ThetaDecay(sign_in_weights(module).values(), optimizers)


class ThetaDecay(AroundSteps):
    """See `decay_theta`.

    The optimizer goes on to decay m and w by itself. Before it does, m and w, their gradients or their λ are changed by
    as much as the two decays differ; the last two for the time of the step.

    Args:
        weights: Products.
        optimizers: Those that train them.

    Attributes:
        left: The classes of optimizers whose decay still acts on m and w.
    """

    def __init__(self, weights: Iterable[SparseWeight], optimizers: Iterable[Optimizer]) -> None:
        self._other: dict[int, Tensor] = {}
        for weight in weights:
            m, w = weight.factors
            self._other |= {id(m): w, id(w): m}
        self.left: set[str] = set()
        super().__init__(optimizers)
        for optimizer in self.steppers:
            for group in optimizer.param_groups:
                if group.get("weight_decay") and (held := self._held(group)):
                    self._kind(optimizer, group, held[0].ndim)

    def before(self, optimizer: Optimizer, change: ForOneStep, first: bool) -> None:
        """Change what the optimizer's decay does."""
        for group in list(optimizer.param_groups):
            decay = group.get("weight_decay") or 0.0
            held = trained(self._held(group)) if decay else []
            kind = self._kind(optimizer, group, held[0].ndim) if held else None
            if kind == "decoupled" and first:
                _undo_half_(held, _kept(group["lr"], decay), getattr(optimizer, "found_inf", None))
            elif kind == "separate" and first:
                change.decay(group, held, decay / 2)
            elif kind is not None and kind.startswith("coupled"):
                others = [self._other[id(factor)] for factor in held]
                sign = -1 if "maximizing" in kind else 1
                scale = getattr(optimizer, "grad_scale", None)
                change.exchange(held, _with_decay_of_theta(held, others, sign * float(decay), scale))

    def _held(self, group: dict[str, Any]) -> list[Tensor]:
        return [parameter for parameter in group["params"] if id(parameter) in self._other]

    def _kind(self, optimizer: Optimizer, group: dict[str, Any], ndim: int) -> str | None:
        kind = decay_kind(optimizer, group, ndim) if takes_hooks(optimizer) else None
        name = type(optimizer).__name__
        if kind is None and name not in self.left:
            self.left.add(name)
            warn(
                f"The `weight_decay` of {name} acts on m and w, and not on θ: it is neither part of the gradient nor a "
                "pull to 0 in proportion to the parameter, or no hooks can be given to its steps. Set it to 0, use "
                "SGD, Adam or AdamW, or pass weight_decay='factors' to SignInCallback if that is intended."
            )
        return kind


def _undo_half_(factors: list[Tensor], kept: Any, found_inf: Tensor | None) -> None:
    """Divide by √kept, where the optimizer multiplies by what is kept next, if it does not skip the step."""
    times = kept**-0.5
    if found_inf is not None:
        ones = torch.ones_like(found_inf, dtype=factors[0].dtype)
        times = torch.where(found_inf == 0, ones * times, ones)
    multiply_each_(factors, times)


def _with_decay_of_theta(
    factors: list[Tensor], others: list[Tensor], decay: float, grad_scale: Tensor | None
) -> list[Tensor]:
    """The gradients of m plus λ(θw − m), where the optimizer adds λm next."""
    gradients = multiplied_each(multiplied_each(factors, others), others)
    add_each_(gradients, factors, -1.0)
    multiply_each_(gradients, decay)
    if grad_scale is not None:  # fused optimizers divide the gradients by it in their step
        multiply_each_(gradients, grad_scale)
    add_each_(gradients, [factor.grad for factor in factors])  # type: ignore[misc]
    return gradients


def _kept(lr: Any, decay: Any) -> Any:
    kept = 1 - lr * decay
    if not isinstance(kept, Tensor) and kept <= 0:
        raise SignInError(
            f"The learning rate {lr} times the optimizer's `weight_decay` {decay} is {lr * decay}: it must be below 1, "
            "or θ would change its sign in every step."
        )
    return kept


def decays_of(weights: Iterable[SparseWeight], optimizers: Iterable[Optimizer]) -> list[float]:
    """The values of ``weight_decay`` in the groups that train weights, each once, in ascending order."""
    factors = {id(weight.factors[0]) for weight in weights}
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    training = [group for group in groups if any(id(parameter) in factors for parameter in group["params"])]
    return sorted({float(group.get("weight_decay") or 0.0) for group in training})
