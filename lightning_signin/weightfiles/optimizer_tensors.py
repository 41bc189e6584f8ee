"""How many tensors an optimizer's state in a checkpoint has per weight, e.g. 1 for momentum and 2 for Adam."""

from typing import Any

from torch import Tensor

from lightning_signin.core.structure import each, entries, of_type, optional, several

_OF_OPTIMIZERS = entries({}, {"optimizer_states": optional(several(entries({"state": each(of_type(dict))})))})


def tensors_per_weight(checkpoint: dict[str, Any]) -> int | str:
    """The number for the first weight of the first optimizer; 1, as for momentum, if nothing is saved of it.

    Args:
        checkpoint: A checkpoint, or any other dict.

    Returns:
        The number; in words what is wrong, if the state does not have the structure of torch's optimizers.
    """
    if wrong := _OF_OPTIMIZERS(checkpoint, ""):
        return wrong
    states = checkpoint.get("optimizer_states") or [{"state": {}}]
    first = next(iter(states[0]["state"].values()), None)
    return 1 if first is None else sum(isinstance(value, Tensor) and value.ndim > 0 for value in first.values())
