"""A matrix of compressed rows (CSR) as a module, and its product for any number of columns."""

from typing import NamedTuple

from torch import Tensor, nn

from lightning_signin.kernels.pattern import Pattern
from lightning_signin.kernels.products import features_product


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
        pattern = Pattern.of(kept)
        return cls(pattern.starts, pattern.columns, matrix.detach()[kept])


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
    def pattern(self) -> Pattern:
        """Where the non-zeros are."""
        return Pattern(self.starts, self.columns, self.inputs)

    @property
    def weight(self) -> Tensor:
        """The dense weight, computed on each access, for code that reads a layer's weight instead of calling it."""
        rows = self.pattern.row_numbers()
        dense = self.values.new_zeros(self.outputs, self.inputs)
        return dense.index_put((rows, self.columns.long()), self.values)

    def bags(self, features: Tensor) -> Tensor:
        """The product with a contiguous [inputs, n] that can be compiled, plus the bias: [outputs, n]."""
        return features_product(self.pattern, self.values, features, self.bias)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        kept = len(self.values) / max(self.inputs * self.outputs, 1)
        return f"in={self.inputs}, out={self.outputs}, density={kept:.4f}, bias={self.bias is not None}"
