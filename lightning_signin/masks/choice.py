"""From scores to masks: a distribution says how many weights a layer keeps, a structure in which pattern."""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod

from torch import Tensor

from lightning_signin.masks.distributions import DISTRIBUTIONS, allocate, budget, global_counts
from lightning_signin.masks.patterns import by_first_match
from lightning_signin.masks.structures import Structure, Unstructured
from lightning_signin.warn import warn

Shape = tuple[int, ...]
_FREE = Unstructured()


class Choice:
    """The choice of the weights to keep, given their scores.

    Args:
        shapes: Shape of every weight by name, in model order.
        sparsity: Fraction of zeros over all weights, in [0, 1).
        distribution: "balanced", "uniform", "erk", "global", or a dict of glob pattern → sparsity of each weight that
            it matches (groups; the first match wins), for which ``sparsity`` has no part.
        structures: The structure of every weight.
        transposed: Names of the weights that are stored as (inputs, outputs, …): those of transposed convolutions.

    Raises:
        ValueError: If a structure does not fit a weight, a pattern matches nothing, a weight is in no group, or the
            budget is below one unit a layer.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        sparsity: float,
        distribution: str | Mapping[str, float],
        structures: Mapping[str, Structure],
        transposed: Collection[str] = (),
    ) -> None:
        self.structures, self.transposed = structures, transposed
        self.shapes = {n: (s[1], s[0], *s[2:]) if n in transposed else tuple(s) for n, s in shapes.items()}
        self._check_structures(shapes)
        self.groups: list[tuple[list[str], float, str]]  # names, sparsity, how the budget is spread inside
        if isinstance(distribution, Mapping):
            spread = by_first_match("distribution", distribution, list(shapes))
            self.groups = [([n for n in shapes if spread[n] == p], s, "uniform") for p, s in distribution.items()]
        else:
            self.groups = [(list(shapes), sparsity, distribution)]
        self._check_budgets()

    @property
    def is_global(self) -> bool:
        """The layers' counts depend on their scores."""
        return self.groups[0][2] == "global"

    @property
    def target(self) -> int:
        """The number of weights to keep that sparsity asks for."""
        return sum(number for _, number in self.targets)

    @property
    def targets(self) -> list[tuple[list[str], int]]:
        """The names in each group, and the number of weights to keep that its sparsity asks for."""
        return [(names, budget(sparsity, self._size(names))) for names, sparsity, _ in self.groups]

    def masks(
        self,
        scores: Mapping[str, Tensor],
        density: Callable[[float], float] | None = None,
        most: Mapping[str, int] | None = None,
    ) -> dict[str, Tensor]:
        """The masks of the highest scores.

        Args:
            scores: By name; higher is kept.
            density: On the way to the sparsity, what share of the weights is kept, given the sparsity; such masks are
                unstructured. None is the end of the way.
            most: The most that each layer may keep, where it is less than what its structure can keep.

        Returns:
            Bool masks of the weights' shapes.
        """
        structures = self.structures if density is None else dict.fromkeys(scores, _FREE)
        masks = {}

        def turned(name: str) -> Tensor:  # one at a time: scores may be made when they are asked for
            return scores[name].transpose(0, 1) if name in self.transposed else scores[name]

        counts = self._counts(turned, density, structures, most or {})
        for name in scores:
            mask = structures[name].pick(turned(name), counts[name])
            masks[name] = (mask.transpose(0, 1) if name in self.transposed else mask).contiguous()
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
        for names, sparsity, spread in self.groups:
            units = [structures[name].unit(self.shapes[name]) for name in names]
            capacities = [structures[name].capacity(self.shapes[name]) for name in names]
            if most:
                least = [most[name] // unit * unit for name, unit in zip(names, units, strict=True)]
                capacities = [max(unit, min(both)) for unit, *both in zip(units, capacities, least, strict=True)]
            size = self._size(names)
            total = budget(sparsity, size) if density is None else round(size * density(sparsity))
            total = min(total, sum(capacities))
            if spread == "global":
                assert scores is not None
                values = [structures[name].values(scores(name)) for name in names]
                found, empty = global_counts(values, units, capacities, total)
                if empty and density is None:
                    some = ", ".join(names[layer] for layer in empty)
                    warn(f"distribution='global' would leave {some} without any weight: each keeps its best.")
            else:
                shares = [DISTRIBUTIONS[spread](self.shapes[name]) for name in names]
                found = allocate(shares, units, capacities, total)
            counts.update(zip(names, found, strict=True))
        return {name: counts[name] for name in self.shapes}

    def _check_structures(self, shapes: Mapping[str, Shape]) -> None:
        misfits = {}
        for name in shapes:
            try:
                self.structures[name].unit(self.shapes[name])
            except ValueError as error:
                misfits[name] = f"{name} of shape {tuple(shapes[name])}: {error}"
        if misfits:
            instead = ", ".join(f"'{name}': 'unstructured'" for name in misfits)
            raise ValueError(
                f"`structure` does not fit {'; '.join(misfits.values())}. Leave out with exclude={list(misfits)}, or "
                f"give another one: structure={{{instead}, '*': …}}."
            )

    def _check_budgets(self) -> None:
        for (names, sparsity, _), (_, total) in zip(self.groups, self.targets, strict=True):
            units = [self.structures[name].unit(self.shapes[name]) for name in names]
            if total < sum(units):
                least = "one weight" if set(units) == {1} else "one unit of the structure"
                raise ValueError(
                    f"`sparsity`={sparsity} keeps {total} of {self._size(names)} weights, but each of {len(names)} "
                    f"layers must keep at least {least}, together {sum(units)}. Lower `sparsity`, or leave layers "
                    "dense with `exclude`."
                )

    def _size(self, names: Sequence[str]) -> int:
        return sum(prod(self.shapes[name]) for name in names)
