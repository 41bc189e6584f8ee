"""Callbacks that cannot stand beside this one."""

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelPruning, StochasticWeightAveraging, WeightAveraging

from lightning_signin.callback.both import both


def check_companions(trainer: Trainer) -> None:
    """Raise `ValueError` before a fit that another callback would break later, in other words or none."""
    for companion in trainer.callbacks:  # type: ignore[attr-defined]
        name = type(companion).__name__
        if isinstance(companion, both(WeightAveraging, StochasticWeightAveraging)):
            raise ValueError(
                f"{name} averages parameters, which are the factors during a sparse fit: their averages are not those "
                "of θ. It does not work with SignInCallback yet; take it out of the Trainer."
            )
        if isinstance(companion, both(ModelPruning)):
            raise ValueError(f"{name} replaces the weights that SignInCallback replaces. Use one of them.")
