"""``lightning-signin inspect FILE --config …``: what the masks of a file cost on the network of a configuration."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn

from lightning_signin.callback import SignInCallback
from lightning_signin.cli.configured import configured
from lightning_signin.errors import ALTERED, SignInError
from lightning_signin.metrics.flops import flops
from lightning_signin.metrics.memory import memory
from lightning_signin.objective.network import in_double
from lightning_signin.report.cost import byte_table, flop_table
from lightning_signin.verbs.model import sparsify
from lightning_signin.weightfiles.saved import SavedWeights, masks_in


def cost_tables(saved: SavedWeights, file: str, arguments: list[str]) -> str:
    """The tables of FLOPs and bytes.

    The network's input is the module's ``example_input_array``, or else what its training step passes to it for the
    first sample of the first training batch.

    Args:
        saved: What `read_weights` read of the file.
        file: Its name in error messages.
        arguments: The arguments of ``fit``.

    Returns:
        Both tables, with an empty line between them.

    Raises:
        SignInError: If the file has no masks or they do not fit the model, or the network's input is not found.
    """
    run = configured(arguments)
    found = masks_in(saved, file)
    if isinstance(saved.optimizer_tensors, str):
        what = f"The state of the optimizer in {file}"
        raise SignInError(f"{what} does not have the expected structure ({saved.optimizer_tensors}): {ALTERED}")
    if missing := found.keys() - dict(run.model.named_parameters()).keys():
        raise SignInError(f"{file} has a mask of {min(missing)}, but the model of `--config` has no such weight.")
    network = run.network(list(found))
    with in_double():
        _as_trained(network.module, {network.names[name]: mask for name, mask in found.items()}, run.cli)
        count = flops(network.module, *network.args, **network.kwargs)
    held = memory(_as_trained(run.model, found, run.cli), saved.optimizer_tensors)
    return f"{flop_table(count)}\n\n{byte_table(held)}"


def _as_trained(module: nn.Module, masks: Mapping[str, Tensor], cli: LightningCLI) -> nn.Module:
    """Make a module sparse as the configuration's callback does; without one, with the package's defaults."""
    callbacks = [callback for callback in cli.trainer.callbacks if isinstance(callback, SignInCallback)]  # type: ignore[attr-defined]
    own: dict[str, Any] = {}
    for callback in callbacks:
        own = {"storage": callback.arguments.storage, "parametrization": callback.arguments.parametrization}
    return sparsify(module, mask=masks, include=list(masks), **own)
