"""Merged weights as one safetensors file, written whole or not at all."""

import json
import os
import tempfile
from pathlib import Path

from lightning_signin._version import __version__
from lightning_signin.saved import LAYERS_KEY, SavedWeights


def write_safetensors(weights: SavedWeights, output: str | os.PathLike) -> Path:
    """Write plain weights as one safetensors file, which replaces an older one only when it is whole.

    Args:
        weights: What `read_weights` returned.
        output: Path of the file; its folder must exist.

    Returns:
        The path.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    from safetensors.torch import save

    path = Path(output)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} into. Create it first.")
    layers = {name: {"kept": kept, "flips": weights.flips.get(name)} for name, kept in weights.kept.items()}
    metadata = {"format": "pt", "lightning_signin.version": __version__, LAYERS_KEY: json.dumps(layers)}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.tensors.items()}
    data = save(tensors, metadata)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
