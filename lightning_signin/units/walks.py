"""Random walks over a unit graph, many at a time.

From a unit, a walk from the input follows an edge, chosen uniformly among the branches of forks; then goes to one of
the inputs that the unit feeds, chosen uniformly; then takes one of that input's weights, in proportion to |w|. So the
next unit is chosen in proportion to the L1 norms of kernels, and the position in the kernel in proportion to |w|. A
walk from the output does the same backwards. Walks use only what lies on a path from input to output, so every walk
gets through.
"""

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_signin.units.graph import Edge, Graph

Steps = Iterator[tuple[int, Tensor, Tensor]]
Arrivals = dict[int, list[tuple[Tensor, Tensor]]]  # by layer: walks, and the inputs or units that they are at


class Walks:
    """Walks over a graph.

    Args:
        graph: A graph without mixing layers.
        generator: CPU generator.
    """

    def __init__(self, graph: Graph, generator: torch.Generator) -> None:
        self.graph, self.generator = graph, generator
        fed, used = graph.reach({})
        self.labels: dict[int, Tensor] = {}  # by the edge's id: its labels, only on paths through the network
        self.open: list[Tensor] = []  # for each layer, its connections on paths through the network
        for layer, inputs, units in zip(graph.layers, fed, used, strict=True):
            groups = layer.blocks.shape[0]
            self.open.append(units.view(groups, -1, 1) & inputs.view(groups, 1, -1))
        reached = [is_open.any(2).flatten() for is_open in self.open]
        for edge in graph.edges:
            comes = reached[edge.source] | (graph.layers[edge.source].kind == "input")
            on_way = (edge.labels >= 0) & self.open[edge.target].any(1).flatten()
            on_way &= comes[edge.labels.clamp(min=0)]
            self.labels[id(edge)] = torch.where(on_way, edge.labels, -1)
        ends = [(edge, graph.layers[edge.source].kind, graph.layers[edge.target].kind) for edge in graph.edges]
        starts = self._places([edge for edge, source, target in ends if source == "input" and target == "weight"])
        self.starts = torch.cat(starts) if starts else torch.zeros(0, 2, dtype=torch.long)
        last = self._places([edge for edge, _, target in ends if target == "output"])
        self.ends = torch.cat(last).unique(dim=0)  # one start per output unit, even if several layers add to it

    def forward(self, first: int, number: int) -> Steps:
        """Walks from the input, which begin in turn at each input of the layers that read it.

        Args:
            first: The number of the first of these walks.
            number: How many walks.

        Yields:
            The index of a layer, the walks (0 to ``number`` − 1) that pass through it, and the flat indices into the
            layer's ``blocks`` of the weights that they take; layers in forward order.
        """
        arrived: Arrivals = defaultdict(list)
        self._begin(self.starts, first, number, arrived)
        for place in range(len(self.graph.layers)):
            if self.graph.layers[place].kind == "weight" and arrived[place]:
                walks, inputs = _together(arrived.pop(place))
                taken, units = self._take(place, inputs, forward=True)
                yield place, walks, taken
                self._leave(place, walks, units, arrived)

    def backward(self, first: int, number: int) -> Steps:
        """Walks from the output, which begin in turn at each of its units. Arguments and results as in `forward`."""
        arrived: Arrivals = defaultdict(list)
        begun: Arrivals = defaultdict(list)
        self._begin(self.ends, first, number, begun)
        for place in reversed(range(len(self.graph.layers))):
            if begun[place]:
                self._return(place, *_together(begun.pop(place)), arrived)
            if self.graph.layers[place].kind == "weight" and arrived[place]:
                walks, units = _together(arrived.pop(place))
                taken, inputs = self._take(place, units, forward=False)
                yield place, walks, taken
                self._return(place, walks, inputs, arrived)

    def _places(self, edges: list[Edge]) -> list[Tensor]:
        """The (layer, input) pairs at which edges on paths end."""
        inputs = [(self.labels[id(edge)] >= 0).nonzero().squeeze(1) for edge in edges]
        return [torch.stack([torch.full_like(i, e.target), i], 1) for e, i in zip(edges, inputs, strict=True)]

    def _begin(self, places: Tensor, first: int, number: int, arrived: Arrivals) -> None:
        walks = torch.arange(number if len(places) else 0)
        chosen = places[(first + walks) % max(len(places), 1)]
        for place in chosen[:, 0].unique().tolist():
            here = chosen[:, 0] == place
            arrived[place].append((walks[here], chosen[here, 1]))

    def _take(self, place: int, rows: Tensor, forward: bool) -> tuple[Tensor, Tensor]:
        """For each row (an input, or backwards a unit) a weight in proportion to |w|, and the unit or input it ends in.

        Rows are intervals of one cumulative sum, in which one binary search finds the weight.

        Returns:
            The indices of the weights, and of the units or inputs.
        """
        blocks = self.graph.layers[place].blocks
        size = (blocks.abs() * self.open[place].unsqueeze(3)).transpose(1, 2 if forward else 1)
        _, lines, columns, kernel = size.shape
        totals = size.sum((2, 3))
        if bool(((totals == 0) & self.open[place].any(1 if forward else 2)).any()):  # all zero: uniform
            is_open = self.open[place].transpose(1, 2 if forward else 1).unsqueeze(3).expand(size.shape)
            size = torch.where((totals == 0)[..., None, None], is_open.double(), size)
        sums = size.flatten().cumsum(0)
        row = columns * kernel
        ends = sums[row - 1 :: row]
        begins = torch.cat([ends.new_zeros(1), ends[:-1]])
        draws = begins[rows] + self._uniform(len(rows)) * (ends - begins)[rows]
        # Rounding must not push the index out of its row, at either end.
        found = torch.searchsorted(sums, draws, right=True).clamp(rows * row, rows * row + row - 1)
        group, line = rows // lines, rows % lines
        column, position = found % row // kernel, found % kernel
        unit, source = (column, line) if forward else (line, column)
        taken = ((group * blocks.shape[1] + unit) * blocks.shape[2] + source) * kernel + position
        return taken, group * columns + column

    def _leave(self, place: int, walks: Tensor, units: Tensor, arrived: Arrivals) -> None:
        """From units along edges to the inputs of other layers."""
        edges = self.graph.out_of[place]
        features = [torch.sort(self.labels[id(edge)], stable=True) for edge in edges]
        bounds = [torch.searchsorted(f.values, torch.arange(self.graph.layers[place].units + 1)) for f in features]
        odds = torch.stack([(b.diff() > 0) * edge.forward for edge, b in zip(edges, bounds, strict=True)], 1)
        chosen = self._choose(odds, units)
        for number, edge in enumerate(edges):
            here = chosen == number
            if not here.any():
                continue  # this edge may be on no path
            begin, count = bounds[number][:-1][units[here]], bounds[number].diff()[units[here]]
            which = begin + (self._uniform(len(count)) * count).long().clamp(max=count - 1)
            arrived[edge.target].append((walks[here], features[number].indices[which]))

    def _return(self, place: int, walks: Tensor, inputs: Tensor, arrived: Arrivals) -> None:
        """From inputs back along edges to the units that feed them."""
        edges = self.graph.into[place]
        odds = torch.stack([(self.labels[id(edge)] >= 0) * edge.backward for edge in edges], 1)
        chosen = self._choose(odds, inputs)
        for number, edge in enumerate(edges):
            here = chosen == number
            arrived[edge.source].append((walks[here], self.labels[id(edge)][inputs[here]]))

    def _choose(self, odds: Tensor, rows: Tensor) -> Tensor:
        """For each row, a column drawn with the odds of that row."""
        sums = odds.double().cumsum(1)
        draws = self._uniform(len(rows)) * sums[rows, -1]
        return (sums[rows] <= draws.unsqueeze(1)).sum(1).clamp(max=odds.shape[1] - 1)

    def _uniform(self, number: int) -> Tensor:
        return torch.rand(number, generator=self.generator, dtype=torch.float64)


def _together(arrivals: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    walks, places = zip(*arrivals, strict=True)
    return torch.cat(walks), torch.cat(places)
