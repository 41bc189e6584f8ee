"""Text tables."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Format rows of cells as text: the first ``left`` columns flush left, the others (numbers) flush right.

    Returns:
        The lines, without trailing spaces.

    Example:
        >>> print(aligned([("weight", "non-zeros"), ("fc.weight", "12")]))
        weight     non-zeros
        fc.weight         12
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust if place < left else str.rjust for place in range(len(widths))]
    lines = ("  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
