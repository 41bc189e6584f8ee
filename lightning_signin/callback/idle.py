"""Fits in which nothing is masked: checkpoints of dense runs can be resumed, and `ModelPruning` has the weights."""

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelPruning
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_signin.arguments import Arguments, default
from lightning_signin.callback.two_packages import in_both
from lightning_signin.errors import SignInError
from lightning_signin.parametrizations.choices import Plain

_CHANGING = ("mask_from", "signs_from", "magnitudes_from", "flip_signs", "structure", "frobenius_decay", "export")


def changes_nothing(arguments: Arguments) -> bool:
    """Whether weights train as without the callback, which then only measures and makes resumes exact.

    Returns:
        True if all that changes weights is left at its default, without sparsity, an update rule or factors.

    Example:
        >>> changes_nothing(Arguments(sparsity=0.0, parametrization="plain")), changes_nothing(Arguments(sparsity=0.0))
        (True, False)
    """
    as_default = all(getattr(arguments, name) == default(name) for name in _CHANGING)
    return as_default and arguments.sparsity == 0 and arguments.rule is None and type(arguments.form) is Plain


def gives_way(trainer: Trainer, arguments: Arguments) -> bool:
    """Whether a fit is left to another callback that replaces the weights.

    Returns:
        Whether this callback does nothing in the fit.

    Raises:
        SignInError: If there is one, and the weights are to be sparse.
    """
    for companion in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(companion, in_both(ModelPruning)):
            name = type(companion).__name__
            if not changes_nothing(arguments):
                raise SignInError(f"{name} replaces the weights that SignInCallback replaces. Use one of them.")
            rank_zero_info(f"SignIn: nothing is masked, so the weights are left to {name}.")
            return True
    return False
