"""Whole units near ideal counts, with the sum nearest to a budget.

Layers with units of equal size form a kind. A kind goes up from its rounded-down counts in steps of one unit, the
cheapest first. The step across an ideal count costs less than a unit; every step further away costs a whole unit. So
the cost of a kind is known for any number of steps, and only the few kinds have to be combined.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm


def round_to_units(ideal: Sequence[Fraction], units: Sequence[int], capacities: Sequence[int], total: int) -> list[int]:
    """Round counts to multiples of units, with the sum nearest to a budget.

    Args:
        ideal: The exact counts, from one unit to the capacity each. Their sum is ``total``, or close to it.
        units: The layers' units.
        capacities: The most that each layer can keep, a multiple of its unit.
        total: The budget, from one unit per layer to the sum of the capacities.

    Returns:
        The counts with the least Σ |count − ideal| among those whose sum is nearest to ``total``. Among equally good
        ones, earlier layers are rounded up first, and steps beyond the ideal counts are dealt out in turn.

    Example:
        >>> round_to_units([Fraction(5, 2), Fraction(5, 2), Fraction(10)], [1, 1, 5], [9, 9, 20], total=15)
        [3, 2, 10]
    """
    scale = lcm(*(count.denominator for count in ideal))  # so that costs are whole numbers
    layers = list(zip(ideal, units, capacities, strict=True))
    kinds = [
        _Kind(unit, {i: layer for i, layer in enumerate(layers) if layer[1] == unit}, scale)
        for unit in sorted(set(units), reverse=True)
    ]
    goal = total - sum(sum(kind.counts.values()) for kind in kinds)
    divisor = gcd(*units)
    unavoidable = min(goal % divisor, -goal % divisor)
    # If a kind were further off than this, another kind would be off in the other direction by at least the least
    # common multiple of the units, and both could come nearer by that.
    furthest = scale * len(kinds) ** 2 * (lcm(*units) + sum(units))
    limit = scale * divisor
    while True:
        distance, steps = _nearest(kinds, goal, limit)
        if distance == unavoidable or limit > furthest:
            break
        limit *= 2
    counts: dict[int, int] = {}
    for kind, number in zip(kinds, steps, strict=True):
        counts |= kind.after(number)
    return [counts[layer] for layer in range(len(layers))]


class _Kind:
    """The layers whose units have the same size.

    Args:
        unit: That size.
        layers: (ideal count, unit, capacity) by index.
        scale: Costs are multiples of 1 / scale.

    Attributes:
        counts: The ideal counts, rounded down.
        ups: The layers that can be rounded up, the cheapest first.
        costs: The cost of the first 0, 1, …, len(ups) steps, above that of the cheapest number of steps.
    """

    def __init__(self, unit: int, layers: dict[int, tuple[Fraction, int, int]], scale: int) -> None:
        self.unit, self.step = unit, unit * scale
        self.counts = {i: int(ideal // unit) * unit for i, (ideal, *_) in layers.items()}
        self.capacities = {i: capacity for i, (*_, capacity) in layers.items()}
        over = {i: int((ideal - self.counts[i]) * scale) for i, (ideal, *_) in layers.items()}
        self.ups = sorted((i for i in layers if over[i]), key=lambda i: (-over[i], i))
        costs = [0]
        for i in self.ups:
            costs.append(costs[-1] + self.step - 2 * over[i])
        self.costs = [cost - min(costs) for cost in costs]
        self.cheapest = self.costs.index(0)
        room = sum(self.capacities.values()) - sum(self.counts.values())
        self.least = len(layers) - sum(self.counts.values()) // unit
        self.most = room // unit

    def cost(self, steps: int) -> int:
        """The cost of this many steps, above that of the cheapest number."""
        inside = min(max(steps, 0), len(self.ups))
        return self.costs[inside] + abs(steps - inside) * self.step

    def window(self, limit: int) -> range:
        """The range of step numbers that cost at most a limit."""
        last, cheapest = len(self.ups), self.cheapest
        low = bisect_left(range(cheapest), True, key=lambda steps: self.costs[steps] <= limit)
        high = cheapest + bisect_right(range(cheapest + 1, last + 1), False, key=lambda s: self.costs[s] > limit)
        if low == 0 and self.costs[0] <= limit:
            low = max(self.least, -((limit - self.costs[0]) // self.step))
        if high == last:
            high = min(self.most, last + (limit - self.costs[last]) // self.step)
        return range(low, high + 1)

    def after(self, steps: int) -> dict[int, int]:
        """The counts after this many steps."""
        counts = dict(self.counts)
        for i in self.ups[: max(steps, 0)]:
            counts[i] += self.unit
        left = steps - min(max(steps, 0), len(self.ups))
        while left:
            for i in sorted(counts, reverse=left < 0):
                if left > 0 and counts[i] < self.capacities[i]:
                    counts[i], left = counts[i] + self.unit, left - 1
                elif left < 0 and counts[i] > self.unit:
                    counts[i], left = counts[i] - self.unit, left + 1
        return counts


def _nearest(kinds: Sequence[_Kind], goal: int, limit: int) -> tuple[int, list[int]]:
    """The number of steps of each kind whose sum is nearest to the goal, at a total cost within a limit.

    Returns:
        The distance to the goal, and the cheapest steps at that distance.
    """
    reached = [{0: (0, 0)}]  # for every sum over the kinds so far: the least cost, and the last kind's steps
    for kind in kinds[:-1]:
        options = [(steps * kind.unit, kind.cost(steps), steps) for steps in kind.window(limit)]
        found: dict[int, tuple[int, int]] = {}
        for before, (spent, _) in reached[-1].items():
            for weights, cost, steps in options:
                after, total = before + weights, spent + cost
                if total <= limit and (after not in found or total < found[after][0]):
                    found[after] = (total, steps)
        reached.append(found)
    last, window = kinds[-1], kinds[-1].window(limit)
    ends = []
    for before, (spent, _) in reached[-1].items():
        below = (goal - before) // last.unit
        for steps in {min(max(steps, window[0]), window[-1]) for steps in (below, below + 1)}:
            if (cost := spent + last.cost(steps)) <= limit:
                ends.append((abs(goal - before - steps * last.unit), cost, before + steps * last.unit, steps))
    distance, _, left, number = min(ends)
    left -= number * last.unit
    chosen = [number]
    for kind, found in zip(reversed(kinds[:-1]), reversed(reached[1:]), strict=True):
        chosen.append(found[left][1])
        left -= chosen[-1] * kind.unit
    return distance, chosen[::-1]
