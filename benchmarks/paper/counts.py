"""Counts of successes: their Wilson interval, how a cell of a table shows them, and when a cell agrees."""

from statistics import NormalDist

AGREES_FROM = 0.95  # a cell that is 1 in the paper agrees from here on, one that is 0 up to 1 − this


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a probability.

    The p with |p̂ − p| = z √(p (1 − p) / n): (p̂ + z²/2n ± z √(p̂ (1 − p̂) / n + z²/4n²)) / (1 + z²/n).

    Returns:
        The lower and the upper end, both in [0, 1].

    Example:
        >>> low, high = wilson(100, 100)
        >>> round(low, 3), round(high, 3)
        (0.963, 1.0)
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    middle = share + z * z / (2 * trials)
    half = z * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    below = 1 + z * z / trials
    return max(0.0, (middle - half) / below), min(1.0, (middle + half) / below)


def shown(successes: int, trials: int) -> str:
    """A count with its interval in percent."""
    low, high = wilson(successes, trials)
    return f"{successes} / {trials} [{100 * low:.1f}, {100 * high:.1f}]"


def agrees(successes: int, trials: int, paper: int) -> bool:
    """Whether a count is the 0 or the 1 of the paper."""
    share = successes / trials
    return share >= AGREES_FROM if paper else share <= 1 - AGREES_FROM


def claim(what: str, paper: str, here: str, holds: bool) -> dict[str, str | bool]:
    """A row of the page's first table."""
    return {"claim": what, "paper": paper, "here": here, "holds": holds}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
