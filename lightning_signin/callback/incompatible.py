"""Incompatible callbacks."""

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelPruning

from lightning_signin.callback.two_packages import in_both
from lightning_signin.errors import SignInError


def check_companions(trainer: Trainer) -> None:
    """Raise `SignInError` if another callback would break the fit later, with an obscure error or silently."""
    for companion in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(companion, in_both(ModelPruning)):
            name = type(companion).__name__
            raise SignInError(f"{name} replaces the weights that SignInCallback replaces. Use one of them.")
