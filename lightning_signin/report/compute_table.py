"""`compute_table`: which layers run on their non-zeros, and what was measured."""

from torch import nn

from lightning_signin.core.weights import sparse_weights
from lightning_signin.errors import SignInError
from lightning_signin.report.columns import aligned


def compute_table(module: nn.Module) -> str:
    """How each sparse weight is used in training: on its non-zeros, or as a whole.

    Args:
        module: A module after `sparsify`, or in a fit.

    Returns:
        A text table, one line per weight: the milliseconds forward and backward on (a part of) the first batch, dense
        and on the non-zeros, the speedup, and what runs. Layers of one form share a measurement.

    Raises:
        SignInError: If the module has no sparse weights.

    Example:
        >>> from lightning_signin import sparsify
        >>> print(compute_table(sparsify(nn.Linear(64, 64), sparsity=0.9)))
        weight  sparsity  dense ms  sparse ms  speedup                       runs
        weight   89.99 %                                dense (too small to gain)
    """
    weights = sparse_weights(module)
    if not weights:
        raise SignInError("The module has no sparse weights. Call `sparsify` first.")
    rows = [("weight", "sparsity", "dense ms", "sparse ms", "speedup", "runs")]
    for name, weight in weights.items():
        choice, size = weight.parametrization.choice, weight.storage.shape.numel()
        times, taken, reason = ("", "", ""), "dense", ""
        if choice is not None:
            taken, reason = choice.taken or "not trained yet", choice.reason
            if (found := choice.times) is not None:
                times = (f"{1e3 * found.dense:.2f}", f"{1e3 * found.sparse:.2f}", f"{found.gain:.2f}")
        runs = f"{taken} ({reason})" if reason else taken
        rows.append((name, f"{100 * (1 - weight.storage.active / size):.2f} %", *times, runs))
    return aligned(rows)
