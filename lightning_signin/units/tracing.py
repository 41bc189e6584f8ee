"""Reading the unit graph from a model's real forward."""

import logging
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.fx import Node, map_arg

from lightning_signin.core.torch_internals import OpOverload, schema_of, tree_map
from lightning_signin.errors import SignInError, in_one_line
from lightning_signin.objective.network import in_double
from lightning_signin.units.graph import Edge, Graph, Layer
from lightning_signin.units.labels import Stream, Streams, carry, distinct, operation, unexpanded
from lightning_signin.units.weighted import Arrange, Weighted, find_weight


def trace(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Mapping[str, str]) -> Graph:
    """The unit graph of a module.

    The forward is recorded once by `torch.export`. Labels of units then follow its operations
    (`lightning_signin.units.labels`); an operation in which units cannot be followed becomes a mixing layer.

    Args:
        module: A network in eval mode; it is moved to the CPU.
        args: Example inputs.
        kwargs: Example inputs by keyword.
        names: For each selected weight its plain name and its name in ``module``.

    Returns:
        The graph. Convolutions, linear layers, embeddings and products with a weight matrix are layers of it, selected
        or not; a weight that is used twice has two layers.

    Raises:
        SignInError: If the forward cannot be recorded, writes into a part of a tensor, or does not depend on its input.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 5)).eval()
        >>> graph = trace(net, (torch.zeros(1, 1, 4, 4),), {}, {"0.weight": "0.weight"})
        >>> [layer.name for layer in graph.layers]
        ['input', '0.weight', '2 (linear)', 'output']
        >>> graph.edges[1].labels.tolist()
        [0, 0, 0, 0, 1, 1, 1, 1]
    """
    module.cpu()
    args, kwargs = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, (args, dict(kwargs)))
    try:
        with in_double(), _quiet(), torch.no_grad():
            program = torch.export.export(module, args, kwargs, strict=False)
            return _Tracer(program, module, names).run()
    except Exception as error:  # whatever a user's forward, or the export of it, may raise
        raise SignInError(
            f"The forward of {type(module).__name__} cannot be traced to its units ({in_one_line(error)})."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what `torch.export` logs and prints when it fails: the error contains it."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Tracer:
    """Goes through the recorded operations once, in order."""

    def __init__(self, program: ExportedProgram, module: nn.Module, names: Mapping[str, str]) -> None:
        self.program = program
        self.parameters = dict(module.named_parameters(remove_duplicate=False))
        self.plain = {id(self.parameters[inner]): name for name, inner in names.items()}
        self.prefix = next((name.removesuffix(inner) for name, inner in names.items()), "")
        self.streams: dict[Node, Streams | tuple[Streams, ...]] = {}  # of values that depend on the network's input
        self.constants: dict[Node, Any] = {}  # the other values
        self.arranged: dict[Node, tuple[str, Arrange]] = {}  # constants that are views of selected weights
        self.layers: list[Layer] = []
        self.edges: list[Edge] = []

    def run(self) -> Graph:
        """The graph."""
        specs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._begin(node, specs[node.name])
            elif node.op == "get_attr":
                self.constants[node] = getattr(self.program.graph_module, node.target)
            elif node.op == "output":
                self._end(node)
            else:
                self._call(node)
        return Graph(self.layers, self.edges)

    def _begin(self, node: Node, spec: Any) -> None:
        if isinstance(spec.arg, ConstantArgument):
            self.constants[node] = spec.arg.value
        elif spec.kind == InputKind.USER_INPUT:
            self._add(Layer("input", "input", torch.ones(1, 1, 0, 1, dtype=torch.float64)), [], [])
            self.streams[node] = self._flow(node, torch.tensor(0))
        else:
            state = {**self.program.state_dict, **self.program.constants}
            self.constants[node] = state[spec.target]
            if (name := self.plain.get(id(self.parameters.get(spec.target)))) is not None:
                self.arranged[node] = (name, lambda tensor: tensor)

    def _call(self, node: Node) -> None:
        operands = {n: self._read(n) for n in node.all_input_nodes if n in self.streams}
        if not operands:
            self._keep_constant(node)
        elif node.target is operator.getitem:
            parts = self.streams[node.args[0]]  # type: ignore[index]
            self.streams[node] = parts[node.args[1]] if parts else []  # type: ignore[index, assignment]
        elif not any(operands.values()):
            self.streams[node] = []  # e.g. the class token, sliced out again
        else:
            self._follow(node, {n: streams for n, streams in operands.items() if streams})

    def _follow(self, node: Node, operands: dict[Node, Streams]) -> None:
        carried: Streams | tuple[Streams, ...] | None = None
        if isinstance(node.target, OpOverload):  # other targets wrap a block of operations in a gradient mode
            if _writes_aside(node, operands):
                raise SignInError(f"{self._module(node)} writes into a part of a tensor")
            weighted = find_weight(node, self.constants)
            if weighted is not None and weighted.value in operands:
                carried = self._layer(node, weighted, operands[weighted.value])
            elif node.users:
                carried = carry(node, operands, self.constants)
        if carried is None and node.users:
            carried = self._mix(node, [stream for streams in operands.values() for stream in streams])
        self.streams[node] = carried or []

    def _read(self, node: Node) -> Streams:
        """The streams of a value for one of its readers: at a fork, a walk takes one branch."""
        streams = self.streams[node]
        if isinstance(streams, tuple):
            return []  # several results: each is read through its own getitem
        readers = sum(1 for user in node.users if user.users or user.op == "output")
        return [replace(stream, forward=stream.forward / max(readers, 1)) for stream in streams]

    def _keep_constant(self, node: Node) -> None:
        call: Any = node.target
        args, kwargs = map_arg((node.args, node.kwargs), self.constants.get)
        value = self.constants[node] = call(*args, **kwargs)
        first = node.args[0] if node.args else None
        if first not in self.arranged or not isinstance(call, OpOverload):
            return
        name, before = self.arranged[first]  # type: ignore[index]
        if call.is_view and isinstance(value, Tensor):
            self.arranged[node] = (name, lambda tensor: call(before(tensor), *args[1:], **kwargs))
        elif isinstance(value, Tensor) and value.shape == self.constants[first].shape:  # type: ignore[index]
            self.arranged[node] = (name, before)  # e.g. standardized

    def _layer(self, node: Node, weighted: Weighted, streams: Streams) -> Streams:
        blocks = weighted.arrange(self.constants[weighted.weight]).detach().double()
        name, before = self.arranged.get(weighted.weight, (None, None))
        layer = Layer(
            name or f"{self._module(node)} ({operation(node)})",
            "weight",
            blocks,
            name,
            before and (lambda tensor: weighted.arrange(before(tensor))),
        )
        labels = [weighted.inputs(stream.labels) for stream in streams]
        if any(found is None for found in labels):
            streams = [Stream(self._hub(node, streams), torch.tensor(0))]
            labels = [torch.zeros(layer.inputs, dtype=torch.long)]
        self._add(layer, streams, [found.expand(layer.inputs) for found in labels if found is not None])
        shape = [1] * node.meta["val"].dim()
        shape[weighted.out_dim] = layer.units
        return self._flow(node, torch.arange(layer.units).view(shape))  # type: ignore[return-value]

    def _mix(self, node: Node, streams: Streams) -> Streams | tuple[Streams, ...]:
        self._hub(node, streams)
        return self._flow(node, torch.tensor(0))

    def _hub(self, node: Node, streams: Streams) -> int:
        """Add a mixing layer: every unit that a stream brings in is one of its inputs."""
        units = [unexpanded(stream.labels).unique() for stream in streams]
        units = [found[found >= 0] for found in units]
        slots = torch.arange(len(units)).repeat_interleave(torch.tensor([len(found) for found in units]))
        labels = [torch.where(slots == place, torch.cat(units), -1) for place in range(len(units))]
        blocks = torch.ones(1, 1, len(slots), 1, dtype=torch.float64)
        self._add(Layer(f"{self._module(node)} ({operation(node)})", "mixing", blocks), streams, labels)
        return len(self.layers) - 1

    def _end(self, node: Node) -> None:
        for value in node.all_input_nodes:
            streams = self._read(value) if value in self.streams else []
            if streams:
                labels = distinct([stream.labels for stream in streams])
                blocks = torch.ones(len(labels[0]), 1, 1, 1, dtype=torch.float64)
                self._add(Layer("output", "output", blocks), streams, labels)
        if not any(layer.kind == "output" for layer in self.layers):
            raise SignInError("its output does not depend on its input")

    def _add(self, layer: Layer, streams: Streams, labels: Sequence[Tensor]) -> None:
        self.layers.append(layer)
        target = len(self.layers) - 1
        for stream, found in zip(streams, labels, strict=True):
            self.edges.append(Edge(stream.source, target, found, stream.forward, stream.backward))

    def _flow(self, node: Node, labels: Tensor) -> Streams | tuple[Streams, ...]:
        """The streams that start at the layer just added."""
        value, source = node.meta["val"], len(self.layers) - 1
        if isinstance(value, Tensor):
            return [Stream(source, labels.expand(value.shape))]
        return tuple([Stream(source, labels.expand(part.shape))] for part in value)

    def _module(self, node: Node) -> str:
        stack = list(node.meta.get("nn_module_stack", {}).values())
        path = stack[-1][0].partition("@")[0] if stack else ""
        return f"{self.prefix}{path}" if path else "the outermost forward"


def _writes_aside(node: Node, operands: Mapping[Node, Streams]) -> bool:
    """Whether an in-place operation brings units into a value that is then read under another name."""
    written = node.args[0] if node.args else None
    if not schema_of(node).is_mutable or not set(operands) - {written}:
        return False
    is_view = isinstance(written, Node) and isinstance(written.target, OpOverload) and written.target.is_view
    return not node.users or (is_view and len(written.args[0].users) > 1)  # type: ignore[union-attr]
