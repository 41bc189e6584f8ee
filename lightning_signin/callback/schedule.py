"""The length of a run, which schedules of masks and decays depend on."""

from math import inf

from lightning.pytorch import Trainer

from lightning_signin.errors import SignInError


def total_steps(trainer: Trainer, max_epochs: int | None) -> int:
    """The length of a run in optimizer steps.

    Args:
        trainer: Its fit loop counts.
        max_epochs: What the fit loop had before another callback changed it.

    Returns:
        The number of steps.

    Raises:
        SignInError: If it is unknown.
    """
    loop = trainer.fit_loop
    in_force, loop.max_epochs = loop.max_epochs, max_epochs
    try:
        total = trainer.estimated_stepping_batches
    finally:
        loop.max_epochs = in_force
    if total == inf or total < 0:  # −1: data without a length
        raise SignInError(
            "The length of the run is unknown, but the schedule of the mask or the decay depends on it. Give the "
            "Trainer `max_epochs` and data that has a length, or `max_steps`."
        )
    return int(total)
