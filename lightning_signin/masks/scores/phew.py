"""PHEW: random walks from input to output choose the weights, without data.

Patil, Dovrolis: "PHEW: Constructing Sparse Networks that Learn Fast and Generalize Well without Training Data",
ICML 2021.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_signin.masks.scores.unit_graph import unit_graph
from lightning_signin.masks.task import Scores, Task
from lightning_signin.units.graph import Graph
from lightning_signin.units.walks import Walks

_NEVER = torch.iinfo(torch.long).max
_LEAST_NEW = 0.01  # the share of a round's visits that must find a new weight, or the walks end


@dataclass(frozen=True)
class PHEW:
    """The weights on random walks, in the order of their first visits.

    Walks from the input and from the output alternate, and begin in turn at each input and output unit. From a unit
    the next one is chosen in proportion to the L1 norm of the kernel between them, and the position in the kernel in
    proportion to |w|; at a fork all branches are equally likely. Walks continue until as many weights are visited as
    the mask keeps: in each layer, if the distribution gives a number per layer, else in total. The last walk may be
    cut. A walk does not depend on those before it, so many are walked at a time.

    Deviations from the authors' code: walks follow the model's real graph, while theirs has offsets for CIFAR ResNets;
    kernels need not be square (theirs uses the height for the width); the number of weights is exact, while theirs may
    exceed it by a walk; walks never end in a unit that no output depends on.

    If fewer than 1 % of the visits of a round find a new weight (at low sparsity: the smallest weights are hardly ever
    visited), the walks end, and the largest |w| of the others are kept.

    Example:
        >>> PHEW.distribution
        'global'
    """

    distribution: ClassVar[str] = "global"

    def __call__(self, task: Task) -> Scores:
        """The scores: above 1 for visited weights, higher for earlier ones; |w| scaled to at most 1 for the others."""
        graph = unit_graph(task, "phew", "its walks follow")
        first = first_visits(graph, task.weights, task.counts or task.total, task.generator)
        latest = 1 + max(int(torch.where(times < _NEVER, times, 0).max()) for times in first.values())
        largest = max(float(weight.abs().max()) for weight in task.weights.values()) or 1.0
        scores: Scores = {}
        for name, weight in task.weights.items():
            early = 1 + (latest - first[name].double()) / latest
            scores[name] = torch.where(first[name] < _NEVER, early, weight.cpu().double().abs() / largest)
        return scores


def first_visits(
    graph: Graph, weights: Mapping[str, Tensor], wanted: Mapping[str, int] | int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Walk until enough weights are visited.

    Args:
        graph: A graph without mixing layers.
        weights: The weights by plain name.
        wanted: How many to visit in each layer, or in total.
        generator: CPU generator.

    Returns:
        For each weight of a layer, the time of its first visit, a number that increases from walk to walk and from step
        to step; weights that are never visited have the largest integer.
    """
    walks, depth = Walks(graph, generator), len(graph.layers)
    first = {name: torch.full((weight.numel(),), _NEVER) for name, weight in weights.items()}
    indices = {name: torch.arange(weight.numel()).view(weight.shape) for name, weight in weights.items()}
    elements = [layer.selected(indices) for layer in graph.layers]
    missing = [(list(weights), wanted)] if isinstance(wanted, int) else [([name], n) for name, n in wanted.items()]
    number = min(max(sum(count for _, count in missing) // depth, 1024), 2**17)  # walks per round and direction
    begun, found = 0, dict.fromkeys(weights, 0)
    while missing:
        visits = dict.fromkeys(weights, 0)
        for is_back, steps in enumerate((walks.forward(begun, number), walks.backward(begun, number))):
            for place, walkers, taken in steps:
                name, visited = graph.layers[place].parameter, elements[place]
                if name is not None and visited is not None:
                    step = depth - 1 - place if is_back else place
                    times = (2 * (begun + walkers) + is_back) * depth + step
                    first[name].scatter_reduce_(0, visited.flatten()[taken], times, "amin")
                    visits[name] += len(walkers)
        begun, before = begun + number, found
        found = {name: int((times < _NEVER).sum()) for name, times in first.items()}
        missing = [
            (names, count)
            for names, count in missing
            if sum(found[n] for n in names) < count
            and sum(found[n] - before[n] for n in names) > _LEAST_NEW * sum(visits[n] for n in names)
        ]
    return {name: times.view(weights[name].shape) for name, times in first.items()}
