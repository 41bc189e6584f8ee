"""`SparseLinear`: ``nn.Linear`` on the non-zeros of its weight.

It uses two kernels: for few rows torch's CSR product (MKL), for many rows `SparseMatrix.bags`. The latter has features
first in its input and output, so both are transposed, in tiles of rows that fit into a core's cache.
"""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lightning_signin.export.sparse.matrix import Rows, SparseMatrix

CSR_ROWS = 16  # up to this many rows, the CSR product is the faster of the two (benchmarks/sparse_inference.py)
TILE_VALUES, TILE_ROWS = 2**18, (32, 128)  # size of an input tile: number of values, limits of the number of rows


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
        elif flat.shape[0] <= CSR_ROWS and _has_csr_kernel(flat):
            out = self._csr_product(flat)
        else:
            out = self._tiled(flat)
        return out if x.ndim == 2 else out.view(*x.shape[:-1], self.outputs)

    def _csr_product(self, x: Tensor) -> Tensor:
        matrix, bias = self._csr(), self._buffers["bias"]
        if x.shape[0] == 1:
            out = torch.mv(matrix, x[0]) if bias is None else torch.addmv(bias, matrix, x[0])
            return out.unsqueeze(0)
        out = torch.mm(matrix, x.t()).t().contiguous()
        return out if bias is None else out.add_(bias)

    def _csr(self) -> Tensor:
        """The buffers as torch's sparse matrix, which shares their memory; rebuilt when the tensors are replaced."""
        parts: tuple[Any, ...] = tuple(self._buffers[name] for name in Rows._fields)
        made = self.__dict__.get("_made_csr")
        if made is None or any(old is not new for old, new in zip(made[0], parts, strict=True)):
            _take_note_that_csr_is_beta()
            size = (self.outputs, self.inputs)
            matrix = torch.sparse_csr_tensor(parts[0], parts[1], parts[2], size, check_invariants=False)
            made = self.__dict__["_made_csr"] = (parts, matrix)
        return made[1]

    def __getstate__(self) -> dict:  # torch cannot copy it
        return {name: value for name, value in self.__dict__.items() if name != "_made_csr"}

    def _tiled(self, x: Tensor) -> Tensor:
        rows = min(max(TILE_VALUES // self.inputs, TILE_ROWS[0]), TILE_ROWS[1])
        tiles = [self.bags(tile.t().contiguous()) for tile in x.split(rows)]
        if len(tiles) == 1 or (x.requires_grad and torch.is_grad_enabled()):
            return torch.cat(tiles, 1).t().contiguous()
        out = x.new_empty(x.shape[0], self.outputs)
        for place, tile in zip(out.split(rows), tiles, strict=True):
            place.copy_(tile.t())
        return out


def _has_csr_kernel(x: Tensor) -> bool:
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and torch.backends.mkl.is_available()
    return fits and not (x.requires_grad and torch.is_grad_enabled())


@cache
def _take_note_that_csr_is_beta() -> None:
    """Create the process's first CSR tensor here, to silence the warning that torch gives once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1))
