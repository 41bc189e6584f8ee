"""Many small ReLU students at once, each with data and a start of its own, trained by full-batch gradient descent.

f(z) = Σ_i a_i σ(w_i · z) and L = 1 / (2n) Σ (f(z) − y)², the loss of Section 5. A run is one row of every tensor:
``inputs`` (runs, n, d), ``targets`` (runs, n), ``a`` (runs, k), ``w`` (runs, k, d). The k neurons of a row are one
student, or, ``apart``, k students of one neuron each on the same samples. The gradient with respect to θ = (a, w) is
written out below; that of the factors behind θ comes from the package's own parametrizations.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import trange

from lightning_signin.core.masked import Masked
from lightning_signin.core.storage import Dense
from lightning_signin.parametrizations import Parametrization, parse_parametrization


@dataclass(frozen=True)
class Data:
    """Inputs, the teacher's outputs, and whether the neurons of a row are students of their own."""

    inputs: Tensor
    targets: Tensor
    apart: bool = False

    @cached_property
    def columns(self) -> Tensor:
        """The inputs as (runs, d, n), the layout in which the product with w is fastest."""
        return self.inputs.mT.contiguous()

    def errors(self, a: Tensor, hidden: Tensor) -> Tensor:
        """f(z) − y of every student, as (runs, students or 1, n)."""
        parts = hidden * a.unsqueeze(2)
        return (parts if self.apart else parts.sum(1, keepdim=True)) - self.targets.unsqueeze(1)

    def loss(self, a: Tensor, w: Tensor) -> Tensor:
        """L of every student, as (runs, students or 1)."""
        return self.errors(a, torch.bmm(w, self.columns).relu()).square().mean(2) / 2

    def gradients(self, a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """∂L/∂a and ∂L/∂w of every neuron; σ'(0) = 0, as in PyTorch."""
        hidden = torch.bmm(w, self.columns).relu_()
        active_errors = self.errors(a, hidden) * hidden.sign_()
        toward = torch.bmm(active_errors, self.inputs) / self.targets.shape[1]
        # An active neuron is w · z, so both gradients are made of the mean of error · z over its active samples.
        return (toward * w).sum(2), toward * a.unsqueeze(2)

    def to(self, dtype: torch.dtype) -> "Data":
        """The same in another precision."""
        return Data(self.inputs.to(dtype), self.targets.to(dtype), self.apart)


class History(NamedTuple):
    """θ at the moments that were asked for, stacked in front."""

    a: Tensor
    w: Tensor


def taught(inputs: Tensor, a: Tensor, w: Tensor, apart: bool = False) -> Data:
    """Inputs and what a teacher (a, w) of every run says to them."""
    return Data(inputs, torch.einsum("rk,rkn->rn", a, torch.bmm(w, inputs.mT).relu()), apart)


def make_forms(
    parametrization: str | Parametrization, a: Tensor, w: Tensor, betas: tuple[float, float] = (1.0, 1.0)
) -> tuple[Masked, Masked]:
    """The package's parametrizations of a and of w, with β₁ and β₂, on masks that keep every entry."""
    chosen = parse_parametrization(parametrization)
    of_a, of_w = (
        chosen.build(Dense(torch.ones_like(theta, dtype=torch.bool)), beta)
        for theta, beta in zip((a, w), betas, strict=True)
    )
    return of_a, of_w


def train(
    data: Data,
    a: Tensor,
    w: Tensor,
    forms: tuple[Masked, Masked],
    rate: float,
    moments: Iterable[int],
    *,
    balanced: bool = False,
    label: str = "",
) -> History:
    """Gradient descent on the factors, up to the last moment.

    Args:
        data: Inputs and targets.
        a: θ of the outer layer at the start.
        w: θ of the inner layer at the start.
        forms: How a and w are made of factors; see `make_forms`.
        rate: The learning rate η.
        moments: Numbers of steps after which θ is kept, in any order.
        balanced: Keep |a| = |w| (d = 1), which exact arithmetic keeps and rounding does not; see `on_balance`.
        label: Name of the progress bar.

    Returns:
        θ of both layers at the moments, ascending.
    """
    wanted = set(moments)
    factors = [_split(form, theta) for form, theta in zip(forms, (a, w), strict=True)]
    kept: list[list[Tensor]] = []
    for step in trange(max(wanted) + 1, desc=label, mininterval=1.0, leave=False):
        thetas = [form(*own) for form, own in zip(forms, factors, strict=True)]
        if step in wanted:
            kept.append([theta.detach().clone() for theta in thetas])
        with torch.no_grad():
            gradients = data.gradients(*thetas)
        for theta, own, gradient in zip(thetas, factors, gradients, strict=True):
            slopes = torch.autograd.grad(theta, own, gradient)
            with torch.no_grad():
                for factor, slope in zip(own, slopes, strict=True):
                    factor.sub_(slope, alpha=rate)
        if balanced:
            with torch.no_grad():
                a, w = on_balance(*(form(*own) for form, own in zip(forms, factors, strict=True)))
            factors = [_split(form, theta) for form, theta in zip(forms, (a, w), strict=True)]
    return History(torch.stack([a for a, _ in kept]), torch.stack([w for _, w in kept]))


def on_balance(a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest pairs with |a| = |w| and the same product and signs, for d = 1."""
    size = (a * w.squeeze(2)).abs().sqrt()
    return a.sign() * size, w.sign() * size.unsqueeze(2)


def _split(form: Masked, theta: Tensor) -> list[Tensor]:
    return [factor.clone().requires_grad_() for factor in form.right_inverse(theta)]
