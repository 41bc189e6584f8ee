"""Products of a sparse matrix with a dense one, and the product of two dense ones at the non-zeros of a third.

torch has two kernels for the first. ``embedding_bag`` sums, for each row of the matrix, the features at the columns of
its non-zeros, weighted by their values: FBGEMM's vectorized code, for features that come first and several columns of
them. The CSR product (MKL) is the faster one for a few columns, and the only fast one in float64. The third product is
``sampled_addmm``. Each loses by inputs that do not fit into a core's cache, so large ones are taken in tiles.
"""

import warnings
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_signin.kernels.pattern import Pattern

CSR_ROWS = 16  # up to this many rows, the CSR product is the faster of the two (benchmarks/sparse_inference.py)
TILE_VALUES, TILE_ROWS = 2**18, (32, 128)  # size of an input tile: number of values, limits of the number of rows
_VECTOR = 32  # bytes: `sampled_addmm` is vectorized over that much of the summed dimension, and slow for what is left


def features_product(pattern: Pattern, values: Tensor, features: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product with features that come first, through ``embedding_bag``, plus a bias.

    It can be compiled and exported, and differentiated by autograd.

    Args:
        pattern: The non-zeros of the matrix [outputs, inputs].
        values: Their values.
        features: Contiguous, [inputs, n].
        bias: [outputs].

    Returns:
        [outputs, n].
    """
    out = F.embedding_bag(
        pattern.columns, features, pattern.starts, mode="sum", per_sample_weights=values, include_last_offset=True
    )
    return out if bias is None else out.add_(bias.unsqueeze(1))


def rows_product(pattern: Pattern, values: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product with rows of features, as a linear layer has them, plus a bias. Autograd does not see into it.

    Args:
        pattern: The non-zeros of the matrix [outputs, inputs].
        values: Their values, in float32 or float64, on the CPU.
        x: [n, inputs].
        bias: [outputs].

    Returns:
        [n, outputs].
    """
    if takes_csr(x):
        return csr_product(csr_matrix(pattern, values), x, bias)
    out = x.new_empty(len(x), pattern.rows)
    for rows in tiles(len(x), pattern.width):
        out[rows].copy_(features_product(pattern, values, x[rows].t().contiguous(), bias).t())
    return out


def takes_csr(x: Tensor) -> bool:
    """Whether the CSR product is there for rows of features, and the faster one."""
    there = x.device.type == "cpu" and torch.backends.mkl.is_available()
    return there and (x.dtype == torch.float64 or (x.dtype == torch.float32 and len(x) <= CSR_ROWS))


def sampled_product_(out: Tensor, pattern: Pattern, left: Tensor, right: Tensor) -> None:
    """Add the product of ``left`` and the transpose of ``right``, at the non-zeros of a pattern alone.

    Args:
        out: A value for each non-zero, which is added to.
        pattern: The non-zeros of a matrix [outputs, inputs].
        left: [outputs, n].
        right: [inputs, n].
    """
    step = _VECTOR // left.itemsize
    if more := -left.shape[1] % step:
        left, right = F.pad(left, (0, more)), F.pad(right, (0, more))
    matrix = csr_matrix(pattern, out)
    torch.sparse.sampled_addmm(matrix, left.contiguous(), right.contiguous().t(), out=matrix)


def tiles(rows: int, width: int) -> Iterator[slice]:
    """Slices of rows of ``width`` values that fit into a core's cache."""
    size = min(max(TILE_VALUES // max(width, 1), TILE_ROWS[0]), TILE_ROWS[1])
    return (slice(start, start + size) for start in range(0, rows, size))


def csr_matrix(pattern: Pattern, values: Tensor) -> Tensor:
    """The matrix as torch's sparse tensor, which shares the memory of all three."""
    _take_note_that_csr_is_beta()
    size = (pattern.rows, pattern.width)
    return torch.sparse_csr_tensor(pattern.starts, pattern.columns, values, size, check_invariants=False)


def csr_product(matrix: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """`rows_product` by MKL, with a matrix from `csr_matrix`."""
    # Clones, since the result of a custom function must not be a view: layers after it may change it in place.
    if x.shape[0] == 1:
        out = torch.mv(matrix, x[0]) if bias is None else torch.addmv(bias, matrix, x[0])
        return out.unsqueeze(0).clone()
    out = torch.mm(matrix, x.t()).t().clone(memory_format=torch.contiguous_format)
    return out if bias is None else out.add_(bias)


@cache
def _take_note_that_csr_is_beta() -> None:
    """Create the process's first CSR tensor here, to silence the warning that torch gives once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1))
