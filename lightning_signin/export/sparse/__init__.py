"""Models that run on their non-zeros on the CPU."""

from lightning_signin.export.sparse.conv import SparseConv1x1
from lightning_signin.export.sparse.convert import inference_table, to_sparse_inference
from lightning_signin.export.sparse.linear import SparseLinear

__all__ = ["SparseConv1x1", "SparseLinear", "inference_table", "to_sparse_inference"]
