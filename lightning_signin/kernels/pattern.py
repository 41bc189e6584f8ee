"""Where the non-zeros of a matrix are: compressed rows (CSR), in 32-bit integers."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Pattern(NamedTuple):
    """Positions of the non-zeros of a matrix [rows, width], row by row.

    Attributes:
        starts: Where each row starts, and where the last one ends: int32, [rows + 1].
        columns: The column of each non-zero, ascending in each row: int32, [non-zeros].
        width: The number of columns.

    Example:
        >>> Pattern.of(torch.tensor([[0.0, 2.0], [3.0, 4.0]]) != 0)
        Pattern(starts=tensor([0, 1, 3], dtype=torch.int32), columns=tensor([1, 0, 1], dtype=torch.int32), width=2)
    """

    starts: Tensor
    columns: Tensor
    width: int

    @classmethod
    def of(cls, mask: Tensor) -> "Pattern":
        """The pattern of a bool matrix."""
        starts = F.pad(mask.sum(1).cumsum(0), (1, 0)).int()
        return cls(starts, mask.nonzero()[:, 1].int(), mask.shape[1])

    @classmethod
    def of_index(cls, index: Tensor, rows: int, width: int, groups: int = 1) -> "Pattern":
        """The pattern of ascending positions in a flat matrix [rows, width].

        Args:
            index: The positions, in int32 or int64.
            rows: The number of rows.
            width: The number of columns.
            groups: The rows are split into as many groups, each with columns of its own: a matrix of blocks.

        Returns:
            The pattern, ``width · groups`` wide.
        """
        edges = (torch.arange(rows + 1, device=index.device) * width).clamp(max=torch.iinfo(index.dtype).max)
        starts = torch.searchsorted(index, edges.to(index.dtype)).int()
        columns = (index % width).int()
        if groups > 1:
            first = (
                torch.arange(groups, device=index.device, dtype=torch.int32).repeat_interleave(rows // groups) * width
            )
            columns += first.repeat_interleave(starts.diff())
        return cls(starts, columns, width * groups)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.starts) - 1

    @property
    def nbytes(self) -> int:
        """The bytes that it occupies."""
        return self.starts.nbytes + self.columns.nbytes

    def row_numbers(self) -> Tensor:
        """The row of each non-zero: int64, [non-zeros]."""
        rows = torch.arange(self.rows, device=self.starts.device)
        return torch.repeat_interleave(rows, self.starts.diff(), output_size=len(self.columns))

    def positions(self) -> Tensor:
        """The positions in the flat matrix, ascending: int32 if the matrix is small enough."""
        index = self.row_numbers().mul_(self.width).add_(self.columns)
        return index.int() if self.rows * self.width < 2**31 else index

    def transposed(self) -> tuple["Pattern", Tensor]:
        """The pattern of the transpose, and which non-zero of this one each of it is: int32, [non-zeros]."""
        order = torch.argsort(self.columns, stable=True)
        counts = torch.bincount(self.columns, minlength=self.width)
        starts = F.pad(counts.cumsum(0), (1, 0)).int()
        return Pattern(starts, self.row_numbers()[order].int(), self.rows), order.int()


class TwoWay:
    """The pattern of a matrix, and that of its transpose, made when it is first needed.

    Args:
        pattern: The pattern of the matrix.
    """

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self._back: tuple[Pattern, Tensor] | None = None

    def transposed(self, values: Tensor) -> tuple[Pattern, Tensor]:
        """The pattern of the transpose, and the values in its order."""
        if self._back is None:
            self._back = self.pattern.transposed()
        back, order = self._back
        return back, values.index_select(0, order)

    def move_to(self, other: "TwoWay") -> None:
        """Take over the pattern of another matrix with as many non-zeros, in place."""
        self.pattern.starts.copy_(other.pattern.starts)
        self.pattern.columns.copy_(other.pattern.columns)
        self._back = None

    @property
    def nbytes(self) -> int:
        """The bytes that both occupy."""
        return self.pattern.nbytes + (0 if self._back is None else self._back[0].nbytes + self._back[1].nbytes)
