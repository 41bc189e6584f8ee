"""The cells of a grid, each of which is one fit."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_signin.errors import SignInError

_LARGEST_SEED = 2**32 - 1  # numpy's limit


@dataclass(frozen=True)
class Cell:
    """One fit of the grid.

    Attributes:
        method: A name in the spelling of `parse_method`.
        sparsity: Fraction of zeros.
        seed: The seed for ``seed_everything``.

    Example:
        >>> str(Cell("snip+plain", 0.9, 0))
        'snip+plain-0.9-seed0'
    """

    method: str
    sparsity: float
    seed: int

    def __str__(self) -> str:
        return f"{self.method}-{self.sparsity}-seed{self.seed}"


def grid(methods: Sequence[str], sparsities: Sequence[float], seeds: Sequence[int]) -> list[Cell]:
    """All cells, seed by seed, so that the table of a stopped sweep has a value in as many places as possible.

    Returns:
        Cells without duplicates.

    Example:
        >>> [str(cell) for cell in grid(["plain", "sign-in"], [0.9], [0, 1])][:2]
        ['plain-0.9-seed0', 'sign-in-0.9-seed0']
    """
    cells = (Cell(method, sparsity, seed) for seed in seeds for sparsity in sparsities for method in methods)
    return list(dict.fromkeys(cells))


def parse_seeds(words: Sequence[str]) -> list[int]:
    """Parse seeds, and ranges of seeds that include their ends.

    Returns:
        Seeds without duplicates, in the order given.

    Raises:
        SignInError: If a word is neither.

    Example:
        >>> parse_seeds(["0-3", "10"])
        [0, 1, 2, 3, 10]
    """
    seeds: list[int] = []
    for word in words:
        first, _, last = word.partition("-")
        ends = (first, last or first)
        if not all(end.isdecimal() for end in ends) or not int(ends[0]) <= int(ends[1]) <= _LARGEST_SEED:
            raise SignInError(
                f"`--seeds` must be integers from 0 to {_LARGEST_SEED}, or ranges of them, got {word!r}. E.g. 0-9."
            )
        seeds += range(int(ends[0]), int(ends[1]) + 1)
    return list(dict.fromkeys(seeds))


def parse_sparsities(words: Sequence[str]) -> list[float]:
    """Parse fractions of zeros.

    Returns:
        Sparsities without duplicates, in the order given.

    Raises:
        SignInError: If a word is not a number in [0, 1).

    Example:
        >>> parse_sparsities(["0.8", "0.90"])
        [0.8, 0.9]
    """
    sparsities: list[float] = []
    for word in words:
        try:
            value = float(word)
        except ValueError:
            value = -1.0
        if not 0 <= value < 1:
            raise SignInError(f"`--sparsity` must be in [0, 1), got {word}. Pass the fraction of zeros, e.g. 0.9.")
        sparsities.append(value)
    return list(dict.fromkeys(sparsities))
