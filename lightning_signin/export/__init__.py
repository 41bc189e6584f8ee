"""Files for inference, and what can be read back from them."""

from lightning_signin.export.saved import SavedWeights, read_weights, write_safetensors

__all__ = ["SavedWeights", "read_weights", "write_safetensors"]
