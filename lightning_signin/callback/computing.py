"""How layers compute in a fit: ranks agree on what was measured, and one line says it."""

from collections.abc import Mapping

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_signin.core.weights import SparseWeight

_BATCHES = 2  # the first may be watched by the check for cuts, so that nothing can be timed in it


class Computing:
    """Follows the choices of ``compute="auto"`` in the first batches of a fit.

    Args:
        trainer: The trainer of the fit.
        weights: The sparse weights by name.
    """

    def __init__(self, trainer: Trainer, weights: Mapping[str, SparseWeight]) -> None:
        self._trainer, self._left = trainer, _BATCHES
        self._choices = {name: weight.parametrization.choice for name, weight in weights.items()}

    def after_batch(self) -> None:
        """Settle the choices when they are made: all ranks make those of the first."""
        if not self._left:
            return
        self._left -= 1
        if self._left and any(choice is not None and choice.taken is None for choice in self._choices.values()):
            return
        self._left = 0
        if self._trainer.world_size > 1:
            self._agree()
        self._say()

    def _agree(self) -> None:
        own = {name: choice.taken for name, choice in self._choices.items() if choice is not None}
        for name, taken in self._trainer.strategy.broadcast(own).items():
            choice = self._choices[name]
            assert choice is not None
            choice.of.frozen = True
            if taken is None:
                choice.stay_dense("not run in the first batch")
            else:
                choice.taken = taken

    def _say(self) -> None:
        known = [choice for choice in self._choices.values() if choice is not None]
        sparse = sum(choice.taken == "sparse" for choice in known)
        if sparse or any(choice.times is not None for choice in known):
            how = " (timed on the first batch; `compute_table(module)` shows it)" if known[0].of.asked == "auto" else ""
            rank_zero_info(f"SignIn: {sparse} of {len(known)} sparse weights are computed on their non-zeros{how}.")
