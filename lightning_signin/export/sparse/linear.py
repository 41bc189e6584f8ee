"""`SparseLinear`: ``nn.Linear`` on the non-zeros of its weight."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_signin.core.torch_internals import is_transformed
from lightning_signin.export.sparse.matrix import Rows, SparseMatrix
from lightning_signin.kernels.linear import Whole, sparse_linear
from lightning_signin.kernels.pattern import TwoWay
from lightning_signin.kernels.products import csr_matrix, csr_product, rows_product, takes_csr


class SparseLinear(SparseMatrix):
    """``nn.Linear`` on the non-zeros of its weight.

    Example:
        >>> layer = nn.Linear(8, 4)
        >>> _ = layer.weight.data.masked_fill_(torch.rand(4, 8) < 0.9, 0)
        >>> x = torch.randn(3, 8)
        >>> torch.allclose(SparseLinear.of(layer)(x), layer(x), atol=1e-6)
        True
    """

    @classmethod
    def of(cls, layer: nn.Linear, rows: Rows | None = None) -> "SparseLinear":
        """Create it from a linear layer; ``rows`` may be shared with another layer."""
        return cls(rows or Rows.of(layer.weight), layer.in_features, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[…, inputs] → […, outputs]."""
        values = self._buffers["values"]  # torch's attribute look-up is slow enough to matter for single rows
        assert values is not None
        x = x if x.dtype == values.dtype else x.to(values.dtype)  # under autocast, other layers return 16 bits
        flat = x if x.ndim == 2 else x.reshape(-1, self.inputs)
        if torch.compiler.is_compiling():  # compilers and exporters lack CSR, and would fix the number of tiles
            out = self.bags(flat.t().contiguous()).t().contiguous()
        elif flat.requires_grad and torch.is_grad_enabled():
            whole = Whole(lambda x, _, bias: F.linear(x, self.weight, bias), is_transformed)
            out = sparse_linear(flat, values, self.bias, TwoWay(self.pattern), whole)
        elif takes_csr(flat):
            out = csr_product(self._csr(), flat, self._buffers["bias"])
        else:
            out = rows_product(self.pattern, values, flat, self.bias)
        return out if x.ndim == 2 else out.view(*x.shape[:-1], self.outputs)

    def _csr(self) -> Tensor:
        """The buffers as torch's sparse matrix, which shares their memory; rebuilt when the tensors are replaced."""
        parts: tuple[Any, ...] = tuple(self._buffers[name] for name in Rows._fields)
        made = self.__dict__.get("_made_csr")
        if made is None or any(old is not new for old, new in zip(made[0], parts, strict=True)):
            made = self.__dict__["_made_csr"] = (parts, csr_matrix(self.pattern, self.values))
        return made[1]

    def __getstate__(self) -> dict[str, Any]:  # torch cannot copy it
        return {name: value for name, value in self.__dict__.items() if name != "_made_csr"}
