"""The parametrizations that ``parametrization=`` names: one class per method, one row in `PARAMETRIZATIONS`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from lightning_signin.core.elementwise_maps import Power, SoftThreshold
from lightning_signin.core.masked import Masked, SignIn
from lightning_signin.core.mirror import Mirrored
from lightning_signin.core.naming import resolve
from lightning_signin.core.numbers import check_field, number
from lightning_signin.core.storage import Storage
from lightning_signin.parametrizations.decay import AdaptiveDecay, ConstantDecay, FactorDecay


class Parametrization:
    """How θ is computed from trainable tensors.

    (Not itself a dataclass, unlike the methods: command lines accept subclasses of plain classes only.)

    Attributes:
        prunes: The method makes the zeros during training, so without a given sparsity it starts from all weights.
        update: The update rule that the method uses if none is given.
    """

    prunes: ClassVar[bool] = False
    update: ClassVar[str | None] = None

    @property
    def rescales(self) -> bool:
        """Whether the factors are rescaled every few epochs, as Sign-In does."""
        return False

    def build(self, storage: Storage, beta: float) -> Masked:
        """The parametrization of one weight."""
        return Masked(storage)

    def decay(self) -> FactorDecay | None:
        """The decay of the factors that is part of the method."""
        return None


@dataclass(frozen=True)
class Plain(Parametrization):
    """θ itself."""


@dataclass(frozen=True)
class Product(Parametrization):
    """θ = m ⊙ w with m² − w² = β, rescaled: Sign-In (arXiv:2504.12801)."""

    @property
    def rescales(self) -> bool:
        """Yes."""
        return True

    def build(self, storage: Storage, beta: float) -> Masked:
        """The parametrization of one weight."""
        return SignIn(storage, beta)


@dataclass(frozen=True)
class Mirror(Parametrization):
    """θ itself, moved as m ⊙ w would be with a rescale after every step: Sign-In in one tensor; see `mirror_steps`."""

    def build(self, storage: Storage, beta: float) -> Masked:
        """The parametrization of one weight."""
        return Mirrored(storage, beta)


@dataclass(frozen=True)
class _WithSignIn(Parametrization):
    sign_in: bool = False

    @property
    def rescales(self) -> bool:
        """With Sign-In."""
        return self.sign_in


@dataclass(frozen=True)
class STR(_WithSignIn):
    """θ = sign(v) · max(|v| − sigmoid(s), 0), with one trainable threshold s per layer.

    (Kusupati et al.: "Soft Threshold Weight Reparameterization for Learnable Sparsity", ICML 2020.) The final sparsity
    of a layer results from ``s_init`` and the optimizer's ``weight_decay``, which acts on s too and pulls it up to 0;
    without weight decay, start s where the sigmoid has a slope, e.g. at −5. If ``sparsity`` is given, it is that of an
    additional fixed mask on v.

    Args:
        sign_in: v = m ⊙ w, rescaled, instead of a plain v.
        s_init: Starting value of s; the paper uses −3200 for ResNet-50 at 90 %.

    Example:
        >>> STR(s_init=-10).build.__name__
        'build'
    """

    s_init: float = -3200.0
    prunes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_field(self, "s_init", number)

    def build(self, storage: Storage, beta: float) -> Masked:
        """The parametrization of one weight."""
        threshold = SoftThreshold(self.s_init)
        return SignIn(storage, beta, threshold) if self.sign_in else Masked(storage, threshold)


@dataclass(frozen=True)
class Powerprop(_WithSignIn):
    """θ = v · |v|^(α − 1): small weights learn slowly, so magnitudes spread (Schwarz et al., NeurIPS 2021).

    Args:
        sign_in: v = m ⊙ w, rescaled, instead of a plain v.
        alpha: α > 1.

    Raises:
        SignInError: If ``alpha`` is not above 1.
    """

    alpha: float = 2.0

    def __post_init__(self) -> None:
        check_field(self, "alpha", number, "(1, inf)", "At 1 it is the plain weight.")

    def build(self, storage: Storage, beta: float) -> Masked:
        """The parametrization of one weight."""
        return SignIn(storage, beta, Power(self.alpha)) if self.sign_in else Masked(storage, Power(self.alpha))


@dataclass(frozen=True)
class Spred(_WithSignIn):
    """θ = m ⊙ w with L2 on both factors, which is L1 on θ, then a threshold (Ziyin, Wang: "spred", ICML 2023).

    Training starts from all weights; unless another rule is given, "one-shot" keeps the largest at three quarters of
    the run. The released code starts with m = w: every θ = w² is positive, and by symmetry stays so. Here the signs are
    kept, and m² − w² = β at the start, since a product with |m| = |w| cannot cross zero. The decay pulls m² − w² to 0,
    where m² + w² = 2 |θ|.

    Args:
        sign_in: Rescale as Sign-In does, against the decay.
        decay_strength: α of α · (‖m‖² + ‖w‖²), in addition to the optimizer's ``weight_decay``.

    Raises:
        SignInError: If ``decay_strength`` is negative.
    """

    decay_strength: float = 5e-5
    prunes: ClassVar[bool] = True
    update: ClassVar[str | None] = "one-shot"

    def __post_init__(self) -> None:
        check_field(self, "decay_strength", number, "[0, inf)", "Try 5e-5.")

    def build(self, storage: Storage, beta: float) -> Masked:
        """The parametrization of one weight."""
        return SignIn(storage, beta)

    def decay(self) -> FactorDecay | None:
        """The same strength all the time."""
        return ConstantDecay(self.decay_strength)


@dataclass(frozen=True)
class PILoT(Spred):
    """θ = m ⊙ w with m² − w² = β at the start and a decay of both factors that adapts (Jacobs, Burkholz, ICLR 2025).

    "Mask in the Mirror: Implicit Sparsification", Algorithm 1; see `AdaptiveDecay`. The paper has no code, and its
    Algorithm 1 leaves α₀, δ and K to the task: these defaults are ours. Weights are pruned as in `Spred`.

    Args:
        sign_in: Rescale as Sign-In does.
        decay_strength: α₀.
        delta: δ > 1, the factor by which the strength changes.
        least_l1_norm: K, the ‖m ⊙ w‖₁ below which the strength no longer grows.

    Raises:
        SignInError: If ``delta`` is not above 1.
    """

    delta: float = 1.05
    least_l1_norm: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "delta", number, "(1, inf)", "The strength changes by it every epoch.")
        check_field(self, "least_l1_norm", number)

    def decay(self) -> FactorDecay | None:
        """One that adapts."""
        return AdaptiveDecay(self.decay_strength, self.delta, self.least_l1_norm)


PARAMETRIZATIONS: dict[str, Callable[[], Parametrization]] = {
    "sign-in": Product,
    "plain": Plain,
    "mirror": Mirror,
    "str": STR,
    "powerprop": Powerprop,
    "spred": Spred,
    "pilot": PILoT,
}


def parse_parametrization(parametrization: str | Parametrization) -> Parametrization:
    """The parametrization that an argument stands for: a name, an import path, or an object with arguments.

    Returns:
        The parametrization.

    Raises:
        SignInError: If it is none of these.

    Example:
        >>> parse_parametrization("str") == STR()
        True
    """
    return resolve("parametrization", parametrization, PARAMETRIZATIONS, Parametrization)
