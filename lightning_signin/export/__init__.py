"""Files for inference."""

from lightning_signin.export.safetensors import write_safetensors

__all__ = ["write_safetensors"]
