"""Inputs for tracing a network, and a check that the traced network computes the same."""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from lightning_signin.core.torch_internals import tree_leaves, tree_map
from lightning_signin.errors import SignInError

Inputs = tuple[Tensor, ...]


def example_batch(module: nn.Module, example_input: Any) -> Inputs:
    """The inputs for tracing: at least two samples, since a dimension of 1 would be treated as a constant.

    Args:
        module: The network, on the CPU; its ``example_input_array`` is used if ``example_input`` is None.
        example_input: A tensor or a tuple of tensors, with the batch in dimension 0 of each.

    Returns:
        One tensor per input, detached, on the CPU.

    Raises:
        SignInError: If there is none, or it is not of this kind.

    Example:
        >>> [tuple(x.shape) for x in example_batch(nn.Identity(), torch.zeros(1, 3))]
        [(2, 3)]
    """
    given = getattr(module, "example_input_array", None) if example_input is None else example_input
    if given is None:
        raise SignInError("The network's input is not known. Pass `example_input`, or set `example_input_array`.")
    inputs = tuple(given) if isinstance(given, list | tuple) else (given,)
    for value in inputs:
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) == 0:
            shown = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise SignInError(
                "`example_input` must be a tensor or a tuple of tensors with the batch in dimension 0, got "
                f"{shown}. Wrap the network in a module that takes such inputs."
            )
    if len({len(value) for value in inputs}) > 1:
        sizes = ", ".join(str(len(value)) for value in inputs)
        raise SignInError(f"`example_input` has several batch sizes: {sizes}. Give each tensor the same dimension 0.")
    return tuple((torch.cat([v, v]) if len(v) == 1 else v).detach().cpu() for v in inputs)


def dynamic_shapes(module: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The argument of ``torch.export`` that makes dimension 0 of all inputs one batch of any size."""
    batch = Dim("batch")
    return tree_map(lambda _: {0: batch}, dict(signature(module.forward).bind(*inputs).arguments))


def check_outputs(module: nn.Module, exported: Callable[..., Any], inputs: Inputs, tolerance: float, kind: str) -> None:
    """Compare outputs for the traced batch, and for a batch with one more sample.

    Args:
        module: The original module.
        exported: The exported one, which takes the same arguments.
        inputs: The inputs used for tracing.
        tolerance: Largest difference, relative to the largest output of the module.
        kind: The format's name in error messages.

    Raises:
        SignInError: If outputs differ, or either does not run.
    """
    for batch in (inputs, tuple(torch.cat([value, value[:1]]) for value in inputs)):
        try:
            with torch.no_grad():
                expected, found = _tensors(module(*batch)), _tensors(exported(*batch))
        except Exception as error:  # a forward, or the runtime of a format, can raise anything
            size = len(batch[0])
            raise SignInError(f"The {kind} export does not run with a batch of {size}. {_FIX} {error}") from error
        if [tuple(a.shape) for a in found] != [tuple(b.shape) for b in expected]:
            raise SignInError(f"The {kind} export has outputs of other shapes than the module. {_FIX}")
        for ours, theirs in zip(expected, found, strict=True):
            scale = max(float(ours.abs().max()), 1.0) if ours.numel() and ours.is_floating_point() else 1.0
            if not torch.allclose(theirs, ours.to(theirs.dtype), rtol=0, atol=tolerance * scale, equal_nan=True):
                worst = float((theirs - ours).abs().max())
                raise SignInError(
                    f"The {kind} export differs from the module by {worst:.1e} with a batch of {len(batch[0])}. {_FIX}"
                )


_FIX = "Its forward may depend on the batch's size or on random numbers in eval mode: make it a function of the input."


def _tensors(outputs: Any) -> Sequence[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
