"""The time of each layer, dense and on its non-zeros, on the inputs that it gets in the model."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lightning_signin.kernels.timing import Compared, compare

LAYER_SECONDS, MODEL_SECONDS = 0.1, 2.0  # time budget of one comparison, beyond the least number of pairs


@torch.inference_mode()
def time_layers(model: nn.Module, layers: Mapping[str, nn.Module], example: tuple[Tensor, ...]) -> dict[str, Compared]:
    """Run the model once, and at each call of a layer time it and its sparse replacement on the same input.

    Args:
        model: The dense model, in eval mode.
        layers: The sparse layers by the name of the dense one.
        example: The model's arguments.

    Returns:
        The times of the layers that were called; those of several calls are added up.
    """
    found: dict[str, Compared] = {}

    def hook(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        one = compare(partial(layer.forward, *args), partial(layers[name], *args), LAYER_SECONDS)
        total = found.setdefault(name, Compared())
        total.dense, total.sparse = total.dense + one.dense, total.sparse + one.sparse

    handles = [model.get_submodule(name).register_forward_pre_hook(partial(hook, name)) for name in layers]
    try:
        model(*example)
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.inference_mode()
def time_models(dense: nn.Module, sparse: nn.Module, example: tuple[Tensor, ...]) -> Compared:
    """Time the dense and the sparse model."""
    return compare(partial(dense, *example), partial(sparse, *example), MODEL_SECONDS)
