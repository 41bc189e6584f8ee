"""The graph of units, for the scores that follow single units through the network."""

from lightning_signin.errors import SignInError
from lightning_signin.masks.task import Task
from lightning_signin.units.graph import Graph
from lightning_signin.units.tracing import trace


def unit_graph(task: Task, mask: str, why: str) -> Graph:
    """The graph of the network's units, in which a path leads through every selected weight.

    Args:
        task: The score's argument.
        mask: The name of the score.
        why: What the score does with units, for error messages.

    Returns:
        The graph.

    Raises:
        SignInError: If the forward cannot be traced, if an operation mixes units, or if a selected weight is on no path
            from the network's input to its output.
    """
    network = task.network()
    try:
        graph = trace(network.module, network.args, network.kwargs, network.names)
    except ValueError as error:
        instead = "Choose a `mask` that does not follow units, e.g. 'snip' or 'magnitude'."
        raise SignInError(f"mask={mask!r}: {error} {instead}") from error
    try:
        graph.check_units(mask, why)
    except ValueError as error:
        raise SignInError(str(error)) from None
    aside = [*graph.cut({}), *(task.weights.keys() - {layer.parameter for layer in graph.layers})]
    if off := [name for name in task.weights if name in aside]:
        raise SignInError(
            f"mask={mask!r} is undefined for {', '.join(off)}: in eval mode the network's output does not depend on "
            f"it. Leave it dense with exclude={off}."
        )
    return graph
