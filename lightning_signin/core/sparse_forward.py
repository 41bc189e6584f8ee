"""Layers with sparse weights run on their non-zeros, where that is possible and chosen.

Everything else takes the whole weight: other kinds of layers, devices other than the CPU, half precision, autocast,
compilers, `torch.func`, a dense gradient that an update rule needs, and hooks on the gradient of θ.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_signin.core.compact import Compact
from lightning_signin.core.masked import Masked
from lightning_signin.core.sparse_layer import dense_product, fits, form_of, products, sparse_product
from lightning_signin.core.torch_internals import is_transformed, is_watched
from lightning_signin.errors import warn
from lightning_signin.kernels.timing import Compared

_DTYPES = (torch.float32, torch.float64)
_SPEED = 2e10  # multiplications a second that a core makes at least, where one has to be guessed
_ROWS = 128  # of a linear layer's input, with which more of them take proportionally longer


def on_non_zeros(layer: Any, x: Tensor) -> Tensor | None:
    """The output of a layer whose weight is sparse, computed on its non-zeros.

    Args:
        layer: A parametrized layer of one of `lightning_signin.core.sparse_layer.KINDS`, and of no subclass.
        x: Its input.

    Returns:
        The output; None where the whole weight has to be used, or is the faster one.
    """
    holder = layer.parametrizations.weight
    masked: Masked = holder[0]
    choice = masked.choice
    if choice is None or choice.taken == "dense" or not _can_run(layer, masked, x):
        return None
    tensors = tuple(holder.parameters(recurse=False))
    if choice.taken is None:
        if not (torch.is_grad_enabled() and layer.training and tensors[0].requires_grad):
            return None  # it does not train yet
        choice.take(_measured(layer, masked, tensors, x), masked.storage.active)
        if choice.taken == "dense":
            return None
    assert isinstance(masked.storage, Compact)
    return sparse_product(layer, x, masked.storage, masked.values(*tensors), layer.bias)


def _can_run(layer: Any, masked: Masked, x: Tensor) -> bool:
    holder, bias, storage = layer.parametrizations.weight, layer.bias, masked.storage
    factor = holder.original0
    if type(x) not in (Tensor, nn.Parameter) or type(factor) is not nn.Parameter or not isinstance(storage, Compact):
        return False
    if masked.probe is not None or masked.hooked_uses is not None or holder.given.tensors:
        return False
    if is_transformed(x) or is_watched() or x.numel() == 0 or storage.device != x.device:
        return False
    if x.device.type != "cpu" or x.dtype not in _DTYPES or torch.is_autocast_enabled("cpu"):
        _say_dense(masked, x)
        return False
    return factor.dtype == x.dtype and (bias is None or bias.dtype == x.dtype) and fits(layer, x)


def _say_dense(masked: Masked, x: Tensor) -> None:
    """Warn, once for a module, where it was asked for what cannot be done."""
    assert masked.choice is not None
    compute = masked.choice.of
    if compute.asked == "sparse" and not compute.has_warned:
        compute.has_warned = True
        under = " under autocast" if torch.is_autocast_enabled(x.device.type) else ""
        warn(
            f"{masked.name} gets {x.dtype} on {x.device.type}{under}, and runs with its whole weight, as with "
            "compute='dense': products on the non-zeros are made on the CPU, in float32 or float64, without autocast."
        )


def _measured(layer: Any, masked: Masked, tensors: tuple[Tensor, ...], x: Tensor) -> Compared:
    """The times forward and backward, on as much of the batch as there is time for."""
    assert masked.choice is not None
    assert isinstance(masked.storage, Compact)
    compute, storage = masked.choice.of, masked.storage
    linear = isinstance(layer, nn.Linear)
    part = x.detach().reshape(-1, x.shape[-1]) if linear else x.detach()
    share = compute.seconds * _SPEED / (3 * products(layer, part))  # of the batch, forward and backward
    if share < 1 and (linear or part.ndim == len(layer.kernel_size) + 2):
        part = part[: max(_ROWS if linear else 1, int(len(part) * share))]
    part.requires_grad_(x.requires_grad)
    own = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
    bias = None if layer.bias is None else layer.bias.detach().requires_grad_(layer.bias.requires_grad)
    wanted = [tensor for tensor in (part, bias, *own) if tensor is not None and tensor.requires_grad]

    def dense() -> None:
        out = dense_product(layer, part, masked.full(*own, lend=True), bias)
        torch.autograd.grad(out, wanted, out.detach())

    def sparse() -> None:
        out = sparse_product(layer, part, storage, masked.values(*own), bias)
        torch.autograd.grad(out, wanted, out.detach())

    kept = round(100 * storage.active / storage.size)
    form = (*form_of(layer), kept, masked.names, part.shape, part.dtype, x.requires_grad)
    # Whoever watches what the layer saves, as activation checkpointing does, is not to see this.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        return compute.compared(form, dense, sparse)
