"""Plain weights in files: read from checkpoints of any moment of a run, written as safetensors."""

import json
import os
import pickle
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_signin._version import __version__
from lightning_signin.factor_state import saved_masks
from lightning_signin.functional import sign_flips

_METADATA = "lightning_signin.layers"


@dataclass
class SavedWeights:
    """A plain state dict, and what is known of its sparse weights.

    Attributes:
        tensors: The state dict: masked effective weights under their plain names.
        kept: For each sparse weight the number of entries that its mask keeps; empty if no mask is known.
        flips: For each sparse weight the number of kept entries whose sign differs from the start of the run.
    """

    tensors: dict[str, Tensor]
    kept: dict[str, int] = field(default_factory=dict)
    flips: dict[str, int] = field(default_factory=dict)

    def describe(self, state: dict[str, Any]) -> None:
        """Take what is kept and flipped from a callback's state, a live one or one of a checkpoint."""
        for name, mask in saved_masks(state).items():
            start, now = state["start_signs"][name].cpu(), self.tensors[name].cpu()[mask]
            self.kept[name] = int(mask.sum())
            self.flips[name] = int(sign_flips(start, now))


def read_weights(source: str | os.PathLike | nn.Module) -> SavedWeights:
    """Read plain weights from a Lightning checkpoint, a saved state dict, a safetensors file, or a live module.

    Args:
        source: A path (``.safetensors``, or anything that ``torch.save`` wrote), or a module.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not one of these, or asks to run code when it is loaded.
    """
    if isinstance(source, nn.Module):
        from lightning_signin.model import masks

        return SavedWeights(dict(source.state_dict()), {name: int(mask.sum()) for name, mask in masks(source).items()})
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


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
    metadata = {"format": "pt", "lightning_signin.version": __version__, _METADATA: json.dumps(layers)}
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


def _read_safetensors(path: Path) -> SavedWeights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            layers = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — not a dict
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}.") from error
    known = {name: layer["flips"] for name, layer in layers.items() if layer["flips"] is not None}
    return SavedWeights(tensors, {name: layer["kept"] for name, layer in layers.items()}, known)


def _read_torch(path: Path) -> SavedWeights:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read safely: it is damaged, not a checkpoint, or holds objects beyond tensors and plain "
            "values, which could run code when loaded."
        ) from error
    tensors = saved.get("state_dict", saved) if isinstance(saved, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path} holds no state dict: neither a Lightning checkpoint nor a dict of tensors.")
    result = SavedWeights(tensors)
    for state in saved.get("callbacks", {}).values():
        if isinstance(state, dict) and {"masks", "digest", "start_signs"} <= state.keys():
            result.describe(state)
    return result


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
