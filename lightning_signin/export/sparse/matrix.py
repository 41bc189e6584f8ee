"""A matrix of compressed rows (CSR), and a product that works for any number of columns.

For each output, ``embedding_bag`` sums the input's rows at the columns of its non-zeros, weighted by their values: a
sparse product through FBGEMM's vectorized code, which compilers and exporters support as well.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Rows(NamedTuple):
    """The non-zeros of a matrix [outputs, inputs], row by row.

    Attributes:
        starts: Start of each row, and the end of the last: int32, [outputs + 1].
        columns: The input of each non-zero: int32, [non-zeros].
        values: The non-zeros.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> "Rows":
        """The non-zeros of a dense matrix; NaN is a non-zero."""
        kept = matrix.detach() != 0
        starts = F.pad(kept.sum(1).cumsum(0), (1, 0)).int()
        return cls(starts, kept.nonzero()[:, 1].int(), matrix.detach()[kept])


class SparseMatrix(nn.Module):
    """What `SparseLinear` and `SparseConv1x1` have in common: a matrix of non-zeros, and a bias.

    Its buffers ``starts``, ``columns``, ``values`` and ``bias`` are its state dict.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, rows: Rows, inputs: int, bias: Tensor | None) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, len(rows.starts) - 1
        for name, tensor in rows._asdict().items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @property
    def weight(self) -> Tensor:
        """The dense weight, computed on each access, for code that reads a layer's weight instead of calling it."""
        rows = torch.repeat_interleave(torch.arange(self.outputs, device=self.starts.device), self.starts.diff())
        dense = self.values.new_zeros(self.outputs, self.inputs)
        return dense.index_put((rows, self.columns.long()), self.values)

    def bags(self, features: Tensor) -> Tensor:
        """The product with a contiguous [inputs, n], through ``embedding_bag``, plus the bias: [outputs, n]."""
        out = F.embedding_bag(
            self.columns, features, self.starts, mode="sum", per_sample_weights=self.values, include_last_offset=True
        )
        return out if self.bias is None else out.add_(self.bias.unsqueeze(1))

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        kept = len(self.values) / max(self.inputs * self.outputs, 1)
        return f"in={self.inputs}, out={self.outputs}, density={kept:.4f}, bias={self.bias is not None}"
