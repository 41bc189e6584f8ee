"""What a network is called with and what it returns: the call for one sample, and the tensors of an output."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_signin.core.torch_internals import tree_leaves, tree_map

Call = tuple[tuple[Any, ...], dict[str, Any]]


def one_sample(part: nn.Module, call: Call) -> Call:
    """The call for the first sample alone: every tensor of the batch's length is cut to one sample.

    The whole call is returned if the network fails on the cut one, or if one of several cut tensors may have had that
    length by chance, as an attention mask can: then the outputs for the sample are not the beginning of those for the
    batch. Losses and other single numbers depend on all samples, and prove nothing.

    Args:
        part: The network, in eval mode.
        call: The positional and the keyword arguments.

    Returns:
        The positional and the keyword arguments of the cut call, or of the whole one.
    """
    batched = [leaf for leaf in tree_leaves(call) if isinstance(leaf, Tensor) and leaf.ndim > 0]
    lengths = {id(leaf) for leaf in batched if len(leaf) == len(batched[0])}
    cut: Call = tree_map(lambda leaf: leaf[:1] if id(leaf) in lengths else leaf, call)
    return cut if _is_beginning(part, cut, call, alone=len(lengths) < 2) else call


def tensors_of(output: object) -> list[Tensor]:
    """The tensors of an output of any kind: in tuples, lists, mappings and dataclasses, and in what torch can flatten.

    Example:
        >>> [len(tensor) for tensor in tensors_of({"loss": torch.tensor(1.0), "parts": [torch.ones(2), None, "text"]})]
        [2]

    Returns:
        The tensors that are more than a single number, such as the loss; if there are none, the numbers.
    """
    found = list(_leaves(output))
    return [tensor for tensor in found if tensor.ndim > 0] or found


@torch.no_grad()
def _is_beginning(part: nn.Module, cut: Call, call: Call, alone: bool) -> bool:
    try:
        few = tensors_of(part(*cut[0], **cut[1]))
        if alone:  # the only tensor of that length must be the batch
            return True
        many = tensors_of(part(*call[0], **call[1]))
        pairs = zip(few, many, strict=True)
        return bool(few) and all(_begins(whole, tensor) for tensor, whole in pairs)  # no single number begins another
    except Exception:  # whatever a forward raises for inputs that do not fit each other
        return False


def _begins(whole: Tensor, tensor: Tensor) -> bool:
    """Whether a tensor is the beginning of another along some dimension: samples need not be in the first."""
    if whole.ndim != tensor.ndim:
        return False
    parts = (whole.narrow(dim, 0, size) for dim, size in enumerate(tensor.shape) if size <= whole.shape[dim])
    return any(part.shape == tensor.shape and torch.allclose(tensor, part, rtol=1e-2, atol=1e-4) for part in parts)


def _leaves(output: object) -> Iterator[Tensor]:
    inner: Iterable[object]
    if isinstance(output, Tensor):
        yield output
        return
    if isinstance(output, Mapping):
        inner = output.values()
    elif is_dataclass(output) and not isinstance(output, type):
        inner = [getattr(output, field.name, None) for field in fields(output)]
    else:
        inner = [leaf for leaf in tree_leaves(output) if leaf is not output]
    for value in inner:
        yield from _leaves(value)
