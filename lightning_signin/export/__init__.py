"""Models for inference: files of merged weights and networks, and copies that run on their non-zeros."""

from lightning_signin.export.compressed import load_compressed, save_compressed
from lightning_signin.export.formats import FORMATS, export
from lightning_signin.export.safetensors import write_safetensors
from lightning_signin.export.semi_structured import to_semi_structured
from lightning_signin.export.sparse import inference_table, to_sparse_inference

__all__ = [
    "FORMATS",
    "export",
    "inference_table",
    "load_compressed",
    "save_compressed",
    "to_semi_structured",
    "to_sparse_inference",
    "write_safetensors",
]
