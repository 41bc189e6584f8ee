"""The paper's equations as pure tensor functions.

Gadhikar, Jacobs, Zhou, Burkholz: "Sign-In to the Lottery: Reparameterizing Sparse Training", NeurIPS 2025,
arXiv:2504.12801. A weight θ is replaced by a product m ⊙ w; the scaling m² − w² = β is an inner degree of freedom
that changes how fast θ moves (with both factors following gradient flow, dθ = −√(4θ² + β²) ∇L dt) but not θ itself.
"""

import torch
from torch import Tensor

from lightning_signin.core.numbers import number
from lightning_signin.errors import SignInError, WrongTypeError

_HALF = (torch.float16, torch.bfloat16)


def factorize(theta: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    r"""Split θ into factors with m ⊙ w = θ and m² − w² = β (Appendix C).

    .. math:: m = \sqrt{\alpha + \sqrt{\theta^2 + \alpha^2}}, \quad w = \theta / m, \quad \alpha = \beta / 2

    This is the appendix's u-form, with u = m. Its v-form is equal on paper but cancels for very negative θ, and the
    paper's Listing 1 writes ``m = x`` in ``rescale_mw`` where it must be ``m = u``.

    Args:
        theta: Weights of any shape, in a floating-point dtype.
        beta: The scaling, in (0, ∞).

    Returns:
        m (positive) and w (with the sign of θ), of θ's shape. They are float64 for float64 weights and float32 for all
        others: half-precision weights are computed in float32, and no float16 holds m = √β for every β.

    Raises:
        SignInError: If ``beta`` is not a positive, finite number, or ``theta`` has an entry that is infinite or NaN.
        TypeError: If ``theta`` is not floating-point.

    Example:
        >>> m, w = factorize(torch.tensor([-2.0, 0.0, 0.5]), beta=1.0)
        >>> torch.allclose(m * w, torch.tensor([-2.0, 0.0, 0.5]))
        True
        >>> torch.allclose(scaling(m, w), torch.ones(3))
        True
    """
    beta = check_beta(beta)
    if not theta.isfinite().all():
        raise SignInError("`theta` must be finite, got inf or NaN: an infinity has no factors. Fix the weights first.")
    return factors_of(theta, beta)


def factors_of(theta: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """`factorize` without checking the values, which would make an accelerator synchronize.

    An infinite θ gives m = ∞ and w = NaN.

    Returns:
        m and w, of θ's shape; in float32 if θ is in half precision.

    Raises:
        WrongTypeError: If θ is not floating-point.
    """
    if not theta.is_floating_point():
        raise WrongTypeError(
            f"`theta` must be floating-point, got {theta.dtype}. Convert it first, e.g. `theta.float()`."
        )
    theta = theta.float() if theta.dtype in _HALF else theta
    check_beta_fits(beta / 2, theta.dtype)
    alpha = theta.new_tensor(beta / 2)
    u = (alpha + torch.hypot(theta, alpha)).sqrt()
    return u, theta / u


def scaling(m: Tensor, w: Tensor) -> Tensor:
    """The inner scaling m² − w², which `factorize` sets to β and training moves (Section 4).

    Args:
        m: First factor, of any shape.
        w: Second factor, of m's shape.

    Returns:
        m² − w² of the same shape, as (m − w)(m + w), which loses no digits when the factors are close. Half
        precisions are computed and returned in float32.

    Example:
        >>> scaling(torch.tensor([2.0]), torch.tensor([1.0]))
        tensor([3.])
    """
    if m.dtype in _HALF:
        m, w = m.float(), w.float()
    return (m - w) * (m + w)


def sign_flips(before: Tensor, after: Tensor) -> Tensor:
    """Count the entries whose sign changed; a zero has no sign, so it never counts (Section 3, Figure 1).

    Args:
        before: Weights or signs, of any shape and dtype with a sign.
        after: Weights or signs of the same shape.

    Returns:
        A scalar int64 tensor: the number of entries that are positive in one and negative in the other.

    Example:
        >>> sign_flips(torch.tensor([1.0, -1.0, 0.0, 2.0]), torch.tensor([-3.0, -1.0, 5.0, 0.0]))
        tensor(1)
    """
    return ((before > 0) & (after < 0) | (before < 0) & (after > 0)).sum()


def check_beta_fits(value: float, dtype: torch.dtype) -> None:
    """Raise `SignInError` unless ``value``, which is computed from β, is a normal number of ``dtype``."""
    limits = torch.finfo(dtype)
    if not limits.tiny <= value <= limits.max:
        raise SignInError(f"`beta` is too small or too large for {dtype}: it needs {value}. The paper uses 1.0.")


def check_beta(beta: object) -> float:
    """β as a plain number; see `number`."""
    return number("beta", beta, "(0, inf)", "The paper uses 1.0 everywhere.")
