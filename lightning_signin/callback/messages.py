"""What a fit reports about its sparse weights: one line at its start, and warnings about parts that would not train."""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.optim import Optimizer

from lightning_signin.core.matrices import dense_matrices
from lightning_signin.core.weights import SparseWeight, sparse_weights
from lightning_signin.errors import some, warn
from lightning_signin.updates.rescale_schedule import RescaleSchedule


def say_start(module: LightningModule, origin: str) -> None:
    """Log, on rank 0, how much is sparse, by which mask, how much stays dense, and how many numbers train.

    Args:
        module: A module after `sparsify`.
        origin: Where the mask is from.
    """
    weights = sparse_weights(module).values()
    kept, size = sum(weight.kept for weight in weights), sum(weight.storage.shape.numel() for weight in weights)
    tensors = sum(tensor.numel() for weight in weights for tensor in weight.tensors)
    dense = dense_matrices(module)
    share = sum(dense.values()) / (size + sum(dense.values()))
    rest = f"{100 * share:.1f} % of the matrix entries stay dense ({some(list(dense), 3)})" if dense else ""
    rank_zero_info(
        f"SignIn: {len(weights)} weights, {kept:,} of {size:,} values kept ({100 * (1 - kept / size):.2f} % sparse), "
        f"{origin}; {rest or 'no matrix stays dense'}. They train as {tensors:,} numbers."
    )


def say_untrained(module: LightningModule, optimizers: Iterable[Optimizer]) -> None:
    """Warn about trainable parameters that are in no optimizer, sparse weights among them."""
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    plain = {id(tensor): weight.name for weight in sparse_weights(module).values() for tensor in weight.tensors}
    left = [(name, p) for name, p in module.named_parameters() if p.requires_grad and id(p) not in held]
    names = list(dict.fromkeys(plain.get(id(p), name) for name, p in left))  # m and w have one name
    if names:
        have, are, they = ("has", "is", "it") if len(names) == 1 else ("have", "are", "they")
        warn(
            f"{some(names)} {have} requires_grad=True but {are} in no optimizer, so {they} will not train. Add what "
            "should train to an optimizer in `configure_optimizers`, and freeze the rest (requires_grad_(False))."
        )


def say_decays(of_optimizers: Sequence[float], on: str, frobenius: float, of_method: float) -> str:
    """What decays the sparse weights, in words; warns if there are two decays at once.

    Args:
        of_optimizers: The values of ``weight_decay`` in the optimizers' groups of these weights.
        on: What the optimizers' decay acts on.
        frobenius: The callback's ``frobenius_decay``.
        of_method: The ``decay_strength`` of the parametrization, at the start.

    Returns:
        The decays, or "none".
    """
    values = ", ".join(f"{decay:g}" for decay in of_optimizers if decay)
    if values and frobenius:
        warn(
            f"The sparse weights decay twice: by `frobenius_decay`={frobenius:g} and by the optimizer's `weight_decay`="
            f"{values}. Set one of them to 0."
        )
    decays = {
        f"{values} on {on}": bool(values),
        f"{frobenius:g} on θ (frobenius_decay)": frobenius > 0,
        f"{of_method:g} on m and w (decay_strength)": of_method > 0,
    }
    return " and ".join(words for words, is_there in decays.items() if is_there) or "none"


def say_never_rescaled(trainer: Trainer, schedule: RescaleSchedule, max_epochs: int | None) -> None:
    """Warn of a run in which no rescale is due."""
    batches: Any = trainer.num_training_batches
    steps = batches if batches == inf else -(-batches // trainer.accumulate_grad_batches)
    limits = (max_epochs, trainer.max_steps)
    if not trainer.fast_dev_run and schedule.never(*limits, steps):  # type: ignore[attr-defined]
        counted = "epochs" if schedule.every_n_epochs else "steps"
        warn(
            f"`rescale_every_n_{counted}`={schedule.every_n_epochs or schedule.every_n_steps} and `rescale_until`="
            f"{schedule.until}: this run, with `max_epochs`={max_epochs} and `max_steps`={trainer.max_steps}, has no "
            "rescale, so it trains m ⊙ w without Sign-In. Rescale more often, or pass `rescale_every_n_epochs=None` if "
            "that is intended."
        )


class Reached:
    """Records which sparse weights a gradient reaches, and warns about those that none has reached.

    Args:
        weights: The sparse weights of a module by name.
    """

    def __init__(self, weights: Mapping[str, SparseWeight]) -> None:
        self._missing = {name: weight for name, weight in weights.items() if weight.tensors[0].requires_grad}
        self._stepped: set[int] = set()

    def note(self, optimizer: Optimizer) -> None:
        """Look at the gradients that an optimizer is about to step on."""
        if self._missing:
            self._stepped |= {id(p) for group in optimizer.param_groups for p in group["params"]}
            reached = [n for n, w in self._missing.items() if any(tensor.grad is not None for tensor in w.tensors)]
            for name in reached:
                del self._missing[name]

    def say(self) -> None:
        """Warn, once, about weights that their optimizer has stepped without a gradient."""
        names = [name for name, weight in self._missing.items() if id(weight.tensors[0]) in self._stepped]
        self._missing = {}
        if names:
            it = "it does" if len(names) == 1 else "they do"
            warn(
                f"No gradient has reached {some(names)} in the first epoch: {it} not train. If that is intended, as "
                "for a teacher, freeze (requires_grad_(False)) or leave dense with `exclude`."
            )
