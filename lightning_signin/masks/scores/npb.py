"""NPB: masks with many effective nodes and many effective paths, layer by layer.

Pham, Dinh, Nguyen, Phung, Nguyen: "Towards Data-Agnostic Pruning At Initialization: What Makes a Good Sparse Mask?",
NeurIPS 2023.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from lightning_signin.core.numbers import check_field, number, share, whole_number
from lightning_signin.errors import SignInError
from lightning_signin.masks.largest import largest
from lightning_signin.masks.scores.unit_graph import unit_graph
from lightning_signin.masks.task import Scores, Task
from lightning_signin.units.graph import Graph


@dataclass(frozen=True)
class NPB:
    """Node-path balancing: the number M_ij of weights in the kernel from input i to unit j, layer by layer.

    Each layer in forward order maximises

        α·A + (1 − α)·B + β·Reg    with 0 ≤ M_ij ≤ ``max_per_kernel`` and Σ M_ij = n,

    A = (inputs and units with a weight) / (inputs and units), B = Σ P_i·M_ij / (its largest possible value), where P_i
    is the number of paths from the network's input to i through the masks chosen before, and Reg = (kernels with a
    weight) / n. `weights_per_input` and `spread` solve this exactly. In a kernel the largest |w| are kept.

    Deviations from the authors' code: the optimum is found in closed form for the whole layer, not by an integer solver
    for chunks of it; paths are counted in the graph of units, in which every position of a feature map has the same
    number of them; B is scaled by its true maximum also where n is below one input's capacity, where their code sums
    over all inputs. A layer that is used twice gets its mask at its first use.

    Args:
        alpha: α in [0, 1].
        beta: β ≥ 0.
        max_per_kernel: Most weights in a kernel, at least 1. It is raised where n needs more.

    Raises:
        SignInError: If an argument is out of range.

    Example:
        >>> NPB(alpha=0.1).beta
        1.0
    """

    alpha: float = 0.01
    beta: float = 1.0
    max_per_kernel: int = 9

    distribution: ClassVar[str] = "erk"

    def __post_init__(self) -> None:
        check_field(self, "alpha", share, zero=True, hint="It is the weight of nodes against paths.")
        check_field(self, "beta", number, "[0, inf)", "Pass 0 for no regularization.")
        check_field(self, "max_per_kernel", whole_number)

    def __call__(self, task: Task) -> Scores:
        """The scores: |w| of the layer scaled to at most 1, plus 2 for chosen weights."""
        if task.counts is None:
            raise SignInError(
                "mask='npb' needs a number of weights for each layer, and distribution='global' gives none. Choose "
                "another `distribution`, e.g. 'erk'."
            )
        graph = unit_graph(task, "npb", "it counts paths through")
        masks = self.choose(graph, task.counts, {name: weight.shape for name, weight in task.weights.items()})
        scores: Scores = {}
        for name, weight in task.weights.items():
            size = weight.cpu().double().abs()
            scores[name] = size / (float(size.max()) or 1.0) + 2 * masks[name]
        return scores

    def choose(self, graph: Graph, counts: Mapping[str, int], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """The masks of all layers of a graph.

        Args:
            graph: A graph without mixing layers.
            counts: Number of weights to keep, by plain name.
            shapes: Shapes of the weights, by plain name.

        Returns:
            Bool masks, by plain name; layers that the graph does not hold are left out.
        """
        masks: dict[str, Tensor] = {}
        paths: list[Tensor] = []  # to each layer's units, scaled by a power of two against overflow, which is exact
        exponents: list[int] = []
        for place, layer in enumerate(graph.layers):
            exponent = max((exponents[edge.source] for edge in graph.into[place]), default=0)
            values = list(paths)
            for edge in graph.into[place]:
                shift = torch.tensor(exponents[edge.source] - exponent)
                values[edge.source] = torch.ldexp(paths[edge.source], shift)
            groups = layer.blocks.shape[0]
            arriving = graph.feed(place, values).view(groups, -1)
            name = layer.parameter
            if name is not None and name not in masks:
                indices = torch.arange(shapes[name].numel()).view(shapes[name])
                chosen = self.choose_layer(layer.blocks.abs(), arriving, counts[name])
                masks[name] = torch.zeros(shapes[name], dtype=torch.bool)
                masks[name].view(-1)[layer.selected({name: indices})[chosen]] = True  # type: ignore[index]
            kept = layer.selected(masks)
            number = (torch.ones_like(layer.blocks) if kept is None else kept.double()).sum(3)
            leaving = (number @ arriving.unsqueeze(2)).flatten()
            leaving = torch.ones(1, dtype=torch.float64) if layer.kind == "input" else leaving
            shift = torch.frexp(leaving.max()).exponent
            paths.append(torch.ldexp(leaving, -shift))
            exponents.append(exponent + int(shift))
        return masks

    def choose_layer(self, size: Tensor, paths: Tensor, number: int) -> Tensor:
        """The mask of one layer.

        Args:
            size: |w|, (groups, units per group, inputs per group, kernel positions).
            paths: Number of paths to each input, (groups, inputs per group).
            number: n, the number of weights to keep.

        Returns:
            A bool mask of the shape of ``size``.
        """
        groups, units, inputs, kernel = size.shape
        most = min(kernel, max(self.max_per_kernel, ceil(number / (groups * units * inputs))))
        each = weights_per_input(paths, units, most, number, self.alpha, self.beta)
        opened = spread(each.clamp(max=units), size.amax(3))
        ranks = size.argsort(stable=True, dim=3, descending=True).argsort(3)
        chosen = (ranks == 0) & opened.unsqueeze(3)
        further = (ranks > 0) & (ranks < most)
        ordered = torch.where(further, size, -1.0).transpose(1, 2).flatten(2)  # a row for each input
        place = ordered.argsort(stable=True, dim=2, descending=True).argsort(2)
        extra = place < (each - units).clamp(min=0).unsqueeze(2)
        return chosen | extra.view(groups, inputs, units, kernel).transpose(1, 2)


def weights_per_input(paths: Tensor, units: int, most: int, number: int, alpha: float, beta: float) -> Tensor:
    """Σ_j M_ij for each input i, at the maximum of `NPB`'s objective.

    An input's first weight adds (1 − α)·P_i/max + β/n + α/nodes to the objective; the first in each of its other
    kernels α/nodes less; each further one (1 − α)·P_i/max. These gains decrease, so an input opens all its kernels
    before it puts a second weight into one, and the n largest gains of all inputs are an optimum. Units need no choice:
    the kernels can be spread so that the first weights of a group, as many as it has units, each reach a new unit
    (`spread`), which adds α/nodes to the largest gains of each group. Among equal gains inputs take turns.

    Args:
        paths: P, (groups, inputs per group), not negative.
        units: Units per group.
        most: Largest M_ij.
        number: n, at most ``most`` times the number of kernels.
        alpha: α.
        beta: β.

    Returns:
        The numbers, (groups, inputs per group).

    Example:
        >>> weights_per_input(torch.tensor([[1.0, 2.0]]), units=3, most=1, number=4, alpha=0.01, beta=1.0)
        tensor([[1, 3]])
    """
    groups, inputs = paths.shape
    node = alpha / (groups * (inputs + units))
    capacity = units * most
    full, rest = divmod(number, capacity)
    best = paths.flatten().sort(descending=True).values
    ceiling = capacity * best[:full].sum() + rest * best[full : full + 1].sum()
    gains = ((1 - alpha) * paths / ceiling if ceiling > 0 else torch.zeros_like(paths)).repeat(capacity, 1, 1)
    gains[:units] += beta / number
    gains[0] += node
    if groups > 1:
        by_group = gains.transpose(0, 1).flatten(1)
        first = by_group.argsort(stable=True, dim=1, descending=True)[:, :units]
        by_group = by_group.scatter_add(1, first, torch.full(first.shape, node, dtype=gains.dtype))
        gains = by_group.view(groups, capacity, inputs).transpose(0, 1)
    return largest(gains, number).sum(0)


def spread(kernels: Tensor, size: Tensor) -> Tensor:
    """Give each input its number of units: those with the fewest kernels so far, and among them the largest kernels.

    So the first kernels of a group each reach a new unit, until all are reached.

    Args:
        kernels: Number of kernels of each input, (groups, inputs per group), at most the units per group.
        size: Size of each kernel, (groups, units per group, inputs per group).

    Returns:
        Which kernels are taken, bool, of the shape of ``size``.
    """
    units = size.shape[1]
    taken = (kernels == units).unsqueeze(1).expand(size.shape).clone()
    load = torch.zeros(size.shape[:2], dtype=torch.float64)
    smallness = 0.5 - 0.5 * size.double() / (float(size.max()) or 1.0)  # < 1, the step between two loads
    for group, place in ((kernels > 0) & (kernels < units)).nonzero().tolist():
        chosen = (load[group] + smallness[group, :, place]).argsort(stable=True)[: int(kernels[group, place])]
        taken[group, chosen, place] = True
        load[group, chosen] += 1
    return taken
