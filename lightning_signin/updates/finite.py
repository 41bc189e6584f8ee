"""When the training loss becomes NaN, masks stay as they are, with a clear error."""

from collections.abc import Mapping

from lightning_signin.core.weights import SparseWeight
from lightning_signin.errors import SignInError

ADVICE = "The mask stays as it is. Resume an earlier checkpoint with a lower learning rate or clipped gradients."


def not_finite(weights: Mapping[str, SparseWeight]) -> str | None:
    """The first weight with an entry that is NaN or infinite; None if there is none."""
    return next((name for name, weight in weights.items() if not weight.values().isfinite().all()), None)


def check_finite(weights: Mapping[str, SparseWeight], step: int) -> None:
    """Raise `SignInError` if a weight is not finite: NaN cannot be ranked, so a mask could keep any number."""
    if name := not_finite(weights):
        raise SignInError(
            f"{name} is not finite at step {step}, where the mask changes: the training loss or a gradient was not "
            f"finite before. {ADVICE}"
        )
