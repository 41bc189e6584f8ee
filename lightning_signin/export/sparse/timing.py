"""The time of each layer, dense and on its non-zeros, on the inputs that it gets in the model."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

PAIRS = (5, 100)  # least and largest number of alternating dense and sparse runs
LAYER_SECONDS, MODEL_SECONDS = 0.1, 2.0  # time budget of one comparison, beyond the least number of pairs
GAIN = 1.1  # a layer runs on its non-zeros if it is faster by this factor, so that noise does not decide


@dataclass
class Compared:
    """Median seconds of one call, dense and on the non-zeros."""

    dense: float = 0.0
    sparse: float = 0.0

    @property
    def gain(self) -> float:
        """The speedup of the non-zeros over dense."""
        return self.dense / self.sparse


def compare(dense: Callable[[], object], sparse: Callable[[], object], seconds: float) -> Compared:
    """Time two calls alternately, after one warm-up call of each."""
    runs: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    dense(), sparse()
    while len(runs[0]) < PAIRS[0] or (len(runs[0]) < PAIRS[1] and time.perf_counter() < end):
        for call, times in zip((dense, sparse), runs, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return Compared(median(runs[0]), median(runs[1]))


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
