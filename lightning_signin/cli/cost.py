"""``lightning-signin inspect FILE --config …``: what the masks of a file cost on the network of a configuration."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn

from lightning_signin.callback import SignInCallback
from lightning_signin.cli.configured import configured
from lightning_signin.core.structure import check_structure, each, entries, of_type, optional, several
from lightning_signin.errors import SignInError
from lightning_signin.metrics.flops import flops
from lightning_signin.metrics.memory import memory
from lightning_signin.objective.network import in_double
from lightning_signin.report.cost import byte_table, flop_table
from lightning_signin.verbs.model import sparsify
from lightning_signin.weightfiles.files.paths import opened
from lightning_signin.weightfiles.files.safe import is_safetensors
from lightning_signin.weightfiles.files.zstd import MAGIC
from lightning_signin.weightfiles.saved import masks_from_file


def cost_tables(file: str | os.PathLike, arguments: list[str]) -> str:
    """The tables of FLOPs and bytes.

    The network's input is the module's ``example_input_array``, or else what its training step passes to it for the
    first sample of the first training batch.

    Args:
        file: A file that `masks_from_file` reads.
        arguments: The arguments of ``fit``.

    Raises:
        SignInError: If the file has no masks or they do not fit the model, or the network's input is not found.
    """
    run = configured(arguments)
    found = masks_from_file(file)
    if missing := found.keys() - dict(run.model.named_parameters()).keys():
        raise SignInError(f"{file} has a mask of {min(missing)}, but the model of `--config` has no such weight.")
    network = run.network(list(found))
    with in_double():
        _as_trained(network.module, {network.names[name]: mask for name, mask in found.items()}, run.cli)
        count = flops(network.module, *network.args, **network.kwargs)
    held = memory(_as_trained(run.model, found, run.cli), _state_tensors(file))
    return f"{flop_table(count)}\n\n{byte_table(held)}"


def _as_trained(module: nn.Module, masks: Mapping[str, Tensor], cli: LightningCLI) -> nn.Module:
    """Make a module sparse as the configuration's callback does; without one, with the package's defaults."""
    callbacks = [callback for callback in cli.trainer.callbacks if isinstance(callback, SignInCallback)]  # type: ignore[attr-defined]
    own: dict[str, Any] = {}
    for callback in callbacks:
        own = {"storage": callback.arguments.storage, "parametrization": callback.arguments.parametrization}
    return sparsify(module, mask=masks, include=list(masks), **own)


def _state_tensors(file: str | os.PathLike) -> int:
    """The number of tensors per weight in a checkpoint's optimizer state; 1, as for momentum, if there is none."""
    with opened(file) as content:
        if is_safetensors(head := content.read(9)) or head[:4] == MAGIC:
            return 1
        content.seek(0)
        saved = torch.load(content, map_location="cpu", weights_only=True)
    of_optimizers = optional(several(entries({"state": each(of_type(dict))})))
    check_structure(f"The state of the optimizer in {file}", saved, entries({}, {"optimizer_states": of_optimizers}))
    states = saved.get("optimizer_states") or [{"state": {}}]
    first = next(iter(states[0]["state"].values()), None)
    return 1 if first is None else sum(isinstance(value, Tensor) and value.ndim > 0 for value in first.values())
