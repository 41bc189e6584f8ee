"""The unit graph of a network: which units of a layer feed which inputs of other layers.

Units are the output channels of convolutions and the output features of linear layers and embeddings. The graph is read
from the model's real forward (`lightning_signin.units.tracing`), with residual sums, concatenations, flattening,
gates, grouped convolutions and weights that are used twice. It does not distinguish the positions of a feature map.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_signin.errors import SignInError


@dataclass(frozen=True)
class Layer:
    """A node of the graph.

    Attributes:
        name: For messages: the name of the weight, or of the module with the operation in parentheses.
        kind: "input", with one unit; "weight"; "mixing", an operation with one unit that joins everything with
            everything, such as attention; or "output", a tensor of the result, whose units are its features.
        blocks: The weights that join inputs and units, (groups, units per group, inputs per group, kernel positions),
            in float64; ones where there are no weights.
        parameter: The plain name of a weight that is selected for the mask, else None.
        arrange: Brings a tensor of that weight's shape into the shape of ``blocks``.
    """

    name: str
    kind: str
    blocks: Tensor
    parameter: str | None = None
    arrange: Callable[[Tensor], Tensor] | None = None

    @property
    def units(self) -> int:
        """The number of units, numbered group by group."""
        return self.blocks.shape[0] * self.blocks.shape[1]

    @property
    def inputs(self) -> int:
        """The number of inputs, numbered group by group."""
        return self.blocks.shape[0] * self.blocks.shape[2]

    def selected(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """This layer's weight's entry in ``tensors``, in the shape of ``blocks``; None if there is none."""
        tensor = None if self.parameter is None else tensors.get(self.parameter)
        return None if tensor is None or self.arrange is None else self.arrange(tensor.cpu())

    def joined(self, masks: Mapping[str, Tensor]) -> Tensor:
        """Which units and inputs a kept weight joins: (groups, units per group, inputs per group), bool."""
        mask = self.selected(masks)
        return torch.ones(self.blocks.shape[:3], dtype=torch.bool) if mask is None else mask.any(3)


@dataclass(frozen=True)
class Edge:
    """A connection from the units of one layer to the inputs of another, without weights on it.

    Attributes:
        source: Index of the first layer.
        target: Index of the second layer.
        labels: For each input of the target the unit of the source that feeds it, or −1.
        forward: Probability of this edge for a walk that is uniform among the branches at every fork.
        backward: Probability of this edge for a walk back that is uniform among the summands at every sum.
    """

    source: int
    target: int
    labels: Tensor
    forward: float
    backward: float


@dataclass(frozen=True)
class Graph:
    """Layers in the order in which they run, and the edges between them."""

    layers: list[Layer]
    edges: list[Edge]

    @cached_property
    def into(self) -> list[list[Edge]]:
        """For each layer the edges that end in it."""
        return [[edge for edge in self.edges if edge.target == place] for place in range(len(self.layers))]

    @cached_property
    def out_of(self) -> list[list[Edge]]:
        """For each layer the edges that start in it."""
        return [[edge for edge in self.edges if edge.source == place] for place in range(len(self.layers))]

    def feed(self, target: int, values: list[Tensor]) -> Tensor:
        """The values that the inputs of a layer receive if all units send theirs and joins add them.

        Args:
            target: Index of the layer.
            values: For each layer before it, the values of its units, float64.

        Returns:
            One value for each input.
        """
        total = torch.zeros(self.layers[target].inputs, dtype=torch.float64)
        for edge in self.into[target]:
            total += torch.where(edge.labels >= 0, values[edge.source][edge.labels.clamp(min=0)], 0.0)
        return total

    def reach(self, kept: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Which inputs lie on paths from the network's input, and which units on paths to its output.

        A mixing operation is reached by all its inputs and reaches all its readers; biases start no path.

        Args:
            kept: Masks by plain name; layers without one are dense.

        Returns:
            Two lists over the layers: which inputs the network's input reaches, and which units reach its output.
        """
        joined = [layer.joined(kept) for layer in self.layers]
        fed: list[Tensor] = []
        reached: list[Tensor] = []
        for place, layer in enumerate(self.layers):
            fed.append(self.feed(place, reached) > 0)
            meets = joined[place] & fed[place].view(layer.blocks.shape[0], 1, -1)
            unit = torch.ones(1, dtype=torch.bool) if layer.kind == "input" else meets.any(2).flatten()
            reached.append(unit.double())
        used = [torch.zeros(layer.units, dtype=torch.bool) for layer in self.layers]
        for place in reversed(range(len(self.layers))):
            layer = self.layers[place]
            if layer.kind == "output":
                used[place][:] = True
            needed = (joined[place] & used[place].view(layer.blocks.shape[0], -1, 1)).any(1).flatten()
            for edge in self.into[place]:
                used[edge.source][edge.labels[needed & (edge.labels >= 0)]] = True
        return fed, used

    def cut(self, kept: Mapping[str, Tensor]) -> list[str]:
        """The selected layers that are on no path from the network's input to its output, in forward order.

        Args:
            kept: Masks by plain name; layers without one are dense.

        Returns:
            Plain names. Layers that the forward does not run are left out.
        """
        alive: dict[str, bool] = {}
        for layer, is_used in zip(self.layers, self._used(kept), strict=True):
            if layer.parameter is not None:
                alive[layer.parameter] = alive.get(layer.parameter, False) or is_used
        return [name for name, is_alive in alive.items() if not is_alive]

    def joins(self, kept: Mapping[str, Tensor]) -> bool:
        """Whether a path leads from the network's input to its output, with masks by plain name."""
        return any(used for layer, used in zip(self.layers, self._used(kept), strict=True) if layer.kind == "output")

    def weighs(self, kept: Mapping[str, Tensor]) -> bool:
        """Whether such a path leads through a weight, selected or not."""
        return any(used for layer, used in zip(self.layers, self._used(kept), strict=True) if layer.kind == "weight")

    def _used(self, kept: Mapping[str, Tensor]) -> list[bool]:
        """For each layer, whether it is on a path from the network's input to its output."""
        found = []
        for layer, inputs, units in zip(self.layers, *self.reach(kept), strict=True):
            groups = layer.blocks.shape[0]
            joined = layer.joined(kept) & inputs.view(groups, 1, -1) & units.view(groups, -1, 1)
            found.append(bool(joined.any()))
        return found

    def check_units(self, mask: str, why: str) -> None:
        """Check that no operation mixes units.

        Args:
            mask: The name of the score that follows single units.
            why: What the score does with them, for the message.

        Raises:
            SignInError: If one does.
        """
        if mixing := [layer.name for layer in self.layers if layer.kind == "mixing"]:
            more = f" and {len(mixing) - 1} more" if mixing[1:] else ""
            raise SignInError(
                f"mask={mask!r} is undefined for {mixing[0]}{more}: {why} single units, which are mixed there. "
                "Choose another `mask`, e.g. 'synflow' or 'magnitude'."
            )
