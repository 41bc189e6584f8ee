"""Unit labels: for every element of a traced value, the unit and layer that it comes from.

A value is a list of streams, one for each layer that it comes from. A stream holds, for every element, the index of the
unit of that layer, or −1 where the element comes from elsewhere (padding, the other parts of a concatenation).
Operations that only move elements run on the labels themselves, elementwise operations and normalizations leave them as
they are, and reductions are followed as long as all elements that they join come from the same unit. Everything else
mixes units.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node, map_arg

from lightning_signin.core.torch_internals import schema_of

# Operations that torch does not tag as pointwise, but that leave every element in its place.
_KEEP = {"to", "_to_copy", "type_as", "contiguous", "where", "masked_fill", "prelu", "hardswish", "log_sigmoid"}
_KEEP |= {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "softmax", "log_softmax"}
_KEEP |= {"rrelu", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}
_JOIN_PARTS = {"cat", "concat", "stack", "hstack", "vstack", "dstack"}
# Operations that only move elements and are not views.
_MOVE = _JOIN_PARTS | {"pad", "constant_pad_nd", "roll", "flip", "repeat", "tile", "repeat_interleave", "index_select"}
_MOVE |= {"index", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"}
_REDUCE = {"mean", "sum", "amax", "amin", "max", "min", "std", "var", "norm", "linalg_vector_norm", "logsumexp", "prod"}
_NEW = re.compile(r"new_\w+|\w+_like")  # uses only the shape of its argument
_LOCAL = re.compile(r"(?:pool|upsample_[a-z]+)(\d)d")  # mixes the last one to three dimensions, and leaves the others


@dataclass(frozen=True)
class Stream:
    """What one layer contributes to a value.

    Attributes:
        source: Index of the layer.
        labels: For every element, the unit of the layer, or −1.
        forward: Probability that a walk from the layer arrives here if it is uniform at every fork.
        backward: Probability that a walk back from here goes to the layer if it is uniform at every join.
    """

    source: int
    labels: Tensor
    forward: float = 1.0
    backward: float = 1.0


Streams = list[Stream]


def carry(
    node: Node, operands: Mapping[Node, Streams], constants: Mapping[Node, Any]
) -> Streams | tuple[Streams, ...] | None:
    """The streams of an operation's result; None if it mixes units.

    Args:
        node: A call of an ATen operation.
        operands: The streams of its arguments that depend on the network's input.
        constants: The values of its other arguments.

    Returns:
        The streams, or a tuple of them for the results of an operation with several.
    """
    name = operation(node)
    value = node.meta["val"]
    single = isinstance(value, Tensor)
    if _NEW.fullmatch(name):
        return []
    if torch.Tag.pointwise in node.target.tags or name in _KEEP:  # type: ignore[union-attr]
        return join([_each(streams, lambda labels: labels.expand(value.shape)) for streams in operands.values()])
    if name in _MOVE or node.target.is_view:  # type: ignore[union-attr]
        return _move(node, operands, constants)
    (streams,) = operands.values() if len(operands) == 1 else ([],)
    if local := _LOCAL.search(name):
        leading = streams[0].labels.dim() - int(local[1]) if streams else 0
        reduced = _collapse(streams, list(range(leading, leading + int(local[1]))), keepdim=True)
    elif name in _REDUCE:
        reduced = _collapse(streams, argument(node, "dim"), bool(argument(node, "keepdim")))
    else:
        return None
    if reduced is None or single:
        return reduced and _each(reduced, lambda labels: labels.expand(value.shape))
    return tuple(_each(reduced, lambda labels, part=part: labels.expand(part.shape)) for part in value)  # type: ignore[misc]


def operation(node: Node) -> str:
    """The name of a node's operation: "conv2d", and "relu" for the in-place ``relu_`` too."""
    return str(node.target).removeprefix("aten.").split(".")[0].rstrip("_")


def argument(node: Node, name: str) -> Any:
    """The argument of a node by its name in the operation's schema; None if it is not given."""
    places = {item.name: place for place, item in enumerate(schema_of(node).arguments)}
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[places[name]] if places.get(name, len(node.args)) < len(node.args) else None


def join(operands: Sequence[Streams]) -> Streams:
    """The streams of a value to which several values of its shape contribute, as a sum does."""
    contributing = [streams for streams in operands if streams]
    joined: Streams = []
    for stream in (replace(s, backward=s.backward / len(contributing)) for streams in contributing for s in streams):
        for place, other in enumerate(joined):
            if other.source == stream.source and torch.equal(other.labels, stream.labels):
                forward, backward = other.forward + stream.forward, other.backward + stream.backward
                joined[place] = replace(other, forward=forward, backward=backward)
                break
        else:
            joined.append(stream)
    return joined


def collapse(labels: Tensor, dims: Sequence[int]) -> Tensor | None:
    """The labels without the dimensions ``dims``, or None if this would merge elements of different units.

    Returns:
        The labels of the other dimensions.

    Example:
        >>> collapse(torch.tensor([[0, 0, -1], [1, 1, 1]]), [1]).tolist()
        [0, 1]
        >>> collapse(torch.tensor([[0, 0, -1], [1, 1, 1]]), [0])
    """
    if not dims:
        return labels
    labels = unexpanded(labels, dims)
    unit = labels.amax(list(dims), keepdim=True)
    return unit.squeeze(list(dims)) if bool(((labels == unit) | (labels < 0)).all()) else None


def unexpanded(labels: Tensor, dims: Iterable[int] | None = None) -> Tensor:
    """The labels with dimensions that repeat a single element cut to it: all such dimensions, or those in ``dims``.

    Returns:
        A view of the labels.

    Example:
        >>> unexpanded(torch.arange(3).view(3, 1).expand(3, 1000)).shape
        torch.Size([3, 1])
    """
    for dim in range(labels.dim()) if dims is None else dims:
        if labels.stride(dim) == 0 and labels.shape[dim]:
            labels = labels.narrow(dim, 0, 1)
    return labels


def distinct(labels: Sequence[Tensor]) -> list[Tensor]:
    """The distinct combinations of labels in tensors of one shape, except the one of −1 only.

    Returns:
        One tensor per input tensor, all of the same length.

    Example:
        >>> [column.tolist() for column in distinct([torch.tensor([4, 4, -1, 5]), torch.tensor([0, 0, -1, 0])])]
        [[4, 5], [0, 0]]
    """
    for dim in range(labels[0].dim()):
        if all(column.stride(dim) == 0 and column.shape[dim] for column in labels):
            labels = [column.narrow(dim, 0, 1) for column in labels]  # an expanded dimension repeats one element
    rows = torch.stack([column.flatten() for column in labels], 1).unique(dim=0)
    return list(rows[(rows >= 0).any(1)].T)


def _each(streams: Streams, change: Callable[[Tensor], Tensor]) -> Streams:
    return [replace(stream, labels=change(stream.labels)) for stream in streams]


def _collapse(streams: Streams, dim: int | Sequence[int] | None, keepdim: bool) -> Streams | None:
    """`collapse` for all streams, over one, several or (None) all dimensions."""
    reduced: Streams = []
    for stream in streams:
        total = stream.labels.dim()
        dims = [dim] if isinstance(dim, int) else list(dim or range(total))
        labels = collapse(stream.labels, dims)
        if labels is None:
            return None
        if keepdim:
            removed = {d % total for d in dims}
            labels = labels.reshape([1 if d in removed else n for d, n in enumerate(stream.labels.shape)])
        reduced.append(replace(stream, labels=labels))
    return reduced or None


def _move(
    node: Node, operands: Mapping[Node, Streams], constants: Mapping[Node, Any]
) -> Streams | tuple[Streams, ...] | None:
    data = node.args[0] if isinstance(node.args[0], Sequence) else [node.args[0]]
    if any(operand not in data for operand in operands):
        return None  # an index that depends on the network's input
    results: list[Any] = []
    origins: Streams = []
    for operand, streams in operands.items():
        for stream in streams:
            values = dict(constants)
            for other in data:
                if isinstance(other, Node) and other is not operand:
                    values[other] = torch.tensor(-1).expand(other.meta["val"].shape)
            results.append(_on_labels(node, values, operand, stream.labels))
            origins.append(stream)
    if isinstance(results[0], Tensor):
        return _present(origins, results)
    return tuple(_present(origins, part) for part in zip(*results, strict=True))


def _present(origins: Streams, moved: Sequence[Tensor]) -> Streams:
    """The streams that still have an element."""
    pairs = zip(origins, moved, strict=True)
    return [replace(stream, labels=labels) for stream, labels in pairs if bool((unexpanded(labels) >= 0).any())]


def _on_labels(node: Node, values: dict[Node, Any], operand: Node, labels: Tensor) -> Any:
    args: list[Any] = list(map_arg(node.args, lambda n: labels if n is operand else values[n]))
    kwargs = map_arg(node.kwargs, lambda n: values[n])
    if operation(node) in ("pad", "constant_pad_nd"):
        mode = argument(node, "mode") or "constant"
        padded = torch.nn.functional.pad(labels.double(), args[1], mode, -1 if mode == "constant" else None)
        return padded.long()
    try:
        return node.target(*args, **kwargs)  # type: ignore[operator]
    except RuntimeError:  # a view of the contiguous value need not be one of its expanded labels
        args = list(map_arg(node.args, lambda n: labels.contiguous() if n is operand else values[n]))
        return node.target(*args, **kwargs)  # type: ignore[operator]
