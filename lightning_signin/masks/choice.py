"""From scores to masks: a distribution says how many weights a layer keeps, a structure in which pattern."""

from collections.abc import Callable, Mapping, Sequence
from math import prod

from torch import Tensor

from lightning_signin.core.layout import PLAIN, Layout
from lightning_signin.errors import SignInError, warn
from lightning_signin.masks.distributions import DISTRIBUTIONS, allocate, global_counts
from lightning_signin.masks.groups import Distribution, Group, make_groups
from lightning_signin.masks.structures import Structure, Unstructured

Shape = tuple[int, ...]
_FREE = Unstructured()


class Choice:
    """The choice of the weights to keep, given their scores.

    Args:
        shapes: Shape of every weight by name, in model order.
        sparsity: Fraction of zeros over all weights, in [0, 1).
        distribution: "balanced", "uniform", "erk", "global", or a dict of glob pattern → sparsity; see `make_groups`.
        structures: The structure of every weight.
        layouts: The layouts of weights that are not stored as (outputs, inputs, kernel…).

    Raises:
        SignInError: If a structure does not fit a weight, a pattern matches nothing, a weight is in no group, or the
            budget is below one unit per layer.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        sparsity: float,
        distribution: Distribution,
        structures: Mapping[str, Structure],
        layouts: Mapping[str, Layout] | None = None,
    ) -> None:
        self.structures = structures
        self.layouts = {name: (layouts or {}).get(name, PLAIN) for name in shapes}
        self._stored = {name: tuple(shape) for name, shape in shapes.items()}
        self.shapes = {name: self.layouts[name].shape(shape) for name, shape in self._stored.items()}
        self._check_structures()
        self.groups = make_groups({name: prod(shape) for name, shape in self.shapes.items()}, sparsity, distribution)
        self._check_budgets()

    @property
    def is_global(self) -> bool:
        """Whether the layers' counts depend on their scores."""
        return any(group.spread == "global" for group in self.groups)

    @property
    def target(self) -> int:
        """The number of weights to keep according to the sparsity."""
        return sum(group.total for group in self.groups)

    @property
    def targets(self) -> list[tuple[list[str], int]]:
        """The names in each group, and the number of weights to keep according to its sparsity."""
        return [(group.names, group.total) for group in self.groups]

    def masks(
        self,
        scores: Mapping[str, Tensor],
        density: Callable[[float], float] | None = None,
        most: Mapping[str, int] | None = None,
    ) -> dict[str, Tensor]:
        """The masks of the highest scores.

        Args:
            scores: By name; higher is kept.
            density: For intermediate masks, which are unstructured: the share of weights to keep, as a function of the
                final sparsity. None gives the final masks.
            most: The most that each layer may keep, where this is less than its structure allows.

        Returns:
            Bool masks of the weights' shapes.
        """
        structures = self.structures if density is None else dict.fromkeys(scores, _FREE)
        masks = {}

        def read(name: str) -> Tensor:  # one at a time: a mapping may compute each score on access
            return self.layouts[name].read(scores[name])

        counts = self._counts(read, density, structures, most or {})
        for name in scores:
            mask = structures[name].pick(read(name), counts[name])
            masks[name] = self.layouts[name].write(mask)
        return masks

    def counts(self) -> dict[str, int]:
        """The number of weights that each layer keeps, unless the distribution is global."""
        return self._counts(None, None, self.structures, {})

    def _counts(
        self,
        scores: Callable[[str], Tensor] | None,
        density: Callable[[float], float] | None,
        structures: Mapping[str, Structure],
        most: Mapping[str, int],
    ) -> dict[str, int]:
        counts: dict[str, int] = {}
        for group in self.groups:
            names = group.names
            units = [structures[name].unit(self.shapes[name]) for name in names]
            capacities = self._capacities(group, structures, most)
            least = self._least(group, units, capacities)
            total = min(group.total if density is None else group.on_the_way(density), sum(capacities))
            if group.spread == "global":
                assert scores is not None
                values = [structures[name].values(scores(name)) for name in names]
                found, empty = global_counts(values, units, capacities, total, least)
                if empty and density is None:
                    some = ", ".join(names[layer] for layer in empty)
                    warn(f"distribution='global' would leave {some} without any weight: each keeps its best.")
            else:
                found = allocate(self._shares(group), units, capacities, total, least)
            counts.update(zip(names, found, strict=True))
        return {name: counts[name] for name in self.shapes}

    def _shares(self, group: Group) -> list[int]:
        """The share of each weight; for stacked layers, the sum of their shares."""
        layers = [self.layouts[name].layers(self._stored[name]) for name in group.names]
        return [number * DISTRIBUTIONS[group.spread](shape) for number, shape in layers]

    def _capacities(self, group: Group, structures: Mapping[str, Structure], most: Mapping[str, int]) -> list[int]:
        found = []
        for name in group.names:
            unit, capacity = structures[name].unit(self.shapes[name]), structures[name].capacity(self.shapes[name])
            found.append(max(unit, min(capacity, most[name] // unit * unit)) if most else capacity)
        return found

    def _least(self, group: Group, units: Sequence[int], capacities: Sequence[int]) -> list[int]:
        """The least that each weight keeps: one unit of its structure, or what its maximum sparsity leaves."""
        found = []
        for name, unit, capacity in zip(group.names, units, capacities, strict=True):
            found.append(min(max(-(-group.least.get(name, 1) // unit), 1) * unit, capacity))
        return found

    def _check_structures(self) -> None:
        misfits = {}
        for name in self.shapes:
            try:
                self.structures[name].unit(self.shapes[name])
            except ValueError as error:
                misfits[name] = f"{name} of shape {self._stored[name]}: {error}"
        if misfits:
            instead = ", ".join(f"'{name}': 'unstructured'" for name in misfits)
            raise SignInError(
                f"`structure` does not fit {'; '.join(misfits.values())}. Leave them out with exclude={list(misfits)}, "
                f"or choose another structure: structure={{{instead}, '*': …}}."
            )

    def _check_budgets(self) -> None:
        for group in self.groups:
            units = [self.structures[name].unit(self.shapes[name]) for name in group.names]
            capacities = self._capacities(group, self.structures, {})
            needed = sum(self._least(group, units, capacities))
            if group.total < needed:
                least = "one weight" if set(units) == {1} else "one unit of the structure"
                least = "what `max_sparsity` leaves it" if group.least else f"at least {least}"
                raise SignInError(
                    f"`sparsity`={group.sparsity:.6g} keeps {group.total} of {group.size} weights, but each of "
                    f"{len(group.names)} layers must keep {least}, together {needed}. Lower `sparsity`, or leave "
                    "layers dense with `exclude`."
                )
