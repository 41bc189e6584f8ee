"""Plain weights and masks from files: checkpoints from any point of a run, ours or other programs'."""

import errno
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from lightning_signin.core.functional import sign_flips
from lightning_signin.core.sharded import gathered
from lightning_signin.core.structure import check_structure, each, entries, optional, tensor, whole
from lightning_signin.core.weights import sparse_weights
from lightning_signin.core.wrappers import unwrapped
from lightning_signin.errors import ALTERED, SignInError, warn
from lightning_signin.verbs.model import masks as masks_of
from lightning_signin.weightfiles.bits import expected_signs, full_signs, unpack_bits
from lightning_signin.weightfiles.factor_state import MASKS, saved_masks
from lightning_signin.weightfiles.files import compressed, zstd
from lightning_signin.weightfiles.files.archive import check_archive
from lightning_signin.weightfiles.files.paths import PathLike, is_url, opened
from lightning_signin.weightfiles.files.safe import is_safetensors, read_safetensors
from lightning_signin.weightfiles.foreign import as_mask, fit_shape, holds_only_masks, match_names, plain_weights
from lightning_signin.weightfiles.optimizer_tensors import tensors_per_weight

LAYERS_KEY = "lightning_signin.layers"  # key in a safetensors file's metadata: JSON, name → {"kept", "flips"}

_OF_TRAINING = {"state_dict", "callbacks", "optimizer_states", "lr_schedulers", "loops", "MixedPrecision"}


@dataclass
class SavedWeights:
    """A plain state dict, and what is known about its sparse weights.

    Attributes:
        tensors: The state dict: masked effective weights under their plain names.
        kept: For each sparse weight the number of entries that its mask keeps; empty if no mask is known.
        flips: For each sparse weight the number of kept entries whose sign differs from the start of the run.
        masks: The bool masks that are known exactly, by plain name; a safetensors file has none.
        rest: Other entries of a Lightning checkpoint, except the training state.
        optimizer_tensors: See `tensors_per_weight`.
    """

    tensors: dict[str, Tensor]
    kept: dict[str, int] = field(default_factory=dict)
    flips: dict[str, int] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)
    optimizer_tensors: int | str = 1

    def describe(self, state: dict[str, Any]) -> None:
        """Read masks and sign flips from a callback's state, live or from a checkpoint."""
        start = state["sign_flips"]["references"]["start"]
        for name, kept in saved_masks(state).items():
            now = self.tensors[name].cpu()
            mask = kept & (now != 0) if state["makes_zeros"] else kept
            then = start["masks"]
            was = kept if then is None else unpack_bits(then[name], tuple(kept.shape))
            self.flips[name] = int(sign_flips(full_signs(start["signs"][name], was), now))
            self.know(name, mask)

    def know(self, name: str, mask: Tensor) -> None:
        """Set the mask of a weight."""
        self.masks[name] = mask
        self.kept[name] = int(mask.sum())

    def metadata(self) -> dict[str, str]:
        """What is known about the sparse weights, as metadata of a safetensors file."""
        return {LAYERS_KEY: json.dumps({n: {"kept": k, "flips": self.flips.get(n)} for n, k in self.kept.items()})}


def read_weights(source: PathLike | nn.Module) -> SavedWeights:
    """Read plain weights from a Lightning checkpoint, a saved state dict, a safetensors file, or a live module.

    Compressed files and those of other packages (`lightning_signin.weightfiles.foreign`) are read too.

    Args:
        source: A path or fsspec URL of a safetensors file, or of anything that ``torch.save`` wrote; or a module.

    Returns:
        The weights, and what the source says of their masks; a plain file has none.

    Raises:
        MissingFileError: If there is no such file.
        SignInError: If the file is not one of these, or would run code when loaded.
    """
    if isinstance(source, nn.Module):
        return _with_masks(_tied(source), masks_of(source))
    if not is_url(source) and os.path.isdir(source):
        raise SignInError(
            f"{source} is a folder. If it holds the shards of a run with save_distributed_checkpoint=True, merge them "
            f"into one file: python -m lightning.pytorch.utilities.consolidate_checkpoint {source}"
        )
    with opened(source) as opened_file:
        # Checked, then loaded: a remote file would be transferred twice. The second time, a local one is in memory.
        file = io.BytesIO(opened_file.read()) if is_url(source) else opened_file
        head = file.read(9)
        file.seek(0)
        if is_safetensors(head) or head[:4] == zstd.MAGIC or str(source).endswith(".safetensors"):
            return _read_safetensors(file.read(), str(source))
        return _read_torch(file, str(source))


def masks_from_file(path: PathLike, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, Tensor]:
    """Read masks from a file.

    Checkpoints of this package's callback, and the formats of `lightning_signin.weightfiles.foreign`, hold masks, so
    that kept weights that are 0 stay kept. In every other file the zeros are the mask.

    Args:
        path: Any file that `read_weights` reads.
        shapes: Shapes of the weights that need a mask, by plain name. The file may have other prefixes
            (see `match_names`) and trailing dimensions of size 1. Its other masks are not used.

    Returns:
        Bool masks, True keeps: by the names and in the shapes of ``shapes``; without it by the names in the file, for
        every weight of two or more dimensions that has a mask, or both zeros and non-zeros.

    Raises:
        MissingFileError: If there is no such file.
        SignInError: If it cannot be read, none of its weights has a zero, or a weight's mask is missing, has another
            shape, other values than 0 and 1, or keeps nothing.

    Warns:
        UserWarning: If a safetensors file of this package says that more weights were kept than are non-zero now.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     torch.save({"model.fc.weight": torch.eye(2)}, file.name)
        ...     masks_from_file(file.name, {"fc.weight": (2, 2)})
        {'fc.weight': tensor([[ True, False],
                [False,  True]])}
    """
    return masks_in(read_weights(path), str(path), shapes)


def masks_in(saved: SavedWeights, source: str, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, Tensor]:
    """`masks_from_file` for a file that has been read."""
    known = saved.masks or _by_zeros(saved.tensors)
    if shapes is None:
        shapes = {name: mask.shape for name, mask in known.items() if name in saved.kept or _is_partial(mask)}
        shapes = {name: shape for name, shape in shapes.items() if len(shape) >= 2}
    keys = match_names(shapes, known, source)
    if not any(key in saved.kept or not known[key].all() for key in keys.values()):
        raise SignInError(f"{source} holds no mask: none of its weights has zeros. Use a sparse model's checkpoint.")
    found = {name: fit_shape(known[key], name, shapes[name], source) for name, key in keys.items()}
    for name, mask in found.items():
        if not mask.any():
            raise SignInError(f"The mask of {name} in {source} keeps nothing. Leave it dense with exclude=['{name}'].")
        _warn_of_lost_zeros(source, keys[name], saved.kept, int(mask.sum()))
    return found


def _by_zeros(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor != 0 for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim >= 2}


def _is_partial(mask: Tensor) -> bool:
    return bool(mask.any()) and not bool(mask.all())


def _warn_of_lost_zeros(source: str, name: str, kept: Mapping[str, int], nonzeros: int) -> None:
    if kept.get(name, nonzeros) != nonzeros:
        warn(
            f"{source} says that {kept[name]} weights of {name} were kept, but only {nonzeros} are not 0. It holds no "
            "masks, so only these are kept now. Use the run's checkpoint for the exact mask."
        )


def _tied(module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict, in which each tied sparse weight is one tensor even if it is gathered for every user."""
    module = unwrapped(module)
    tensors = {name: gathered(tensor) for name, tensor in module.state_dict().items()}
    users = {(id(owner), a): name for name, weight in sparse_weights(module).items() for owner, a in weight.owners}
    for prefix, part in module.named_modules(remove_duplicate=False):
        for attribute in getattr(part, "parametrizations", ()):
            if first := users.get((id(part), attribute)):
                tensors[f"{prefix}.{attribute}" if prefix else attribute] = tensors[first]
    return tensors


def _read_safetensors(data: bytes, source: str) -> SavedWeights:
    data = zstd.decompress(data, source) if data[:4] == zstd.MAGIC else data
    tensors, metadata = read_safetensors(data, source)
    if compressed.KEY in metadata:
        tensors = compressed.decode(tensors, metadata, source)
    saved = _with_masks(*_split(tensors, source))
    what = f"{LAYERS_KEY} in the metadata of {source}"
    try:
        layers = json.loads(metadata.get(LAYERS_KEY, "{}"))
    except ValueError as error:
        raise SignInError(f"{what} is not JSON ({error}): {ALTERED}") from error
    check_structure(what, layers, each(entries({"kept": whole(), "flips": optional(whole())})))
    saved.kept |= {name: layer["kept"] for name, layer in layers.items()}
    saved.flips |= {name: layer["flips"] for name, layer in layers.items() if layer["flips"] is not None}
    return saved


def _read_torch(file: BinaryIO, source: str) -> SavedWeights:
    check_archive(file, source)
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are not a pickle can raise anything
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL is what torch raises for a cut archive
            raise
        raise SignInError(
            f"{source} cannot be read safely: it is damaged, not a checkpoint, or holds objects beyond tensors and "
            "plain values, which could run code when loaded."
        ) from error
    tensors = saved.get("state_dict", saved) if isinstance(saved, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise SignInError(f"{source} holds no state dict: neither a Lightning checkpoint nor a dict of tensors.")
    result = _with_masks(*_split(tensors, source))
    if tensors is not saved:
        result.rest = {key: value for key, value in saved.items() if key not in _OF_TRAINING}
        result.optimizer_tensors = tensors_per_weight(saved)
        for state in saved.get("callbacks", {}).values():
            if isinstance(state, dict) and {"masks", "digest", "sign_flips"} <= state.keys():
                _check_state(state, result.tensors, f"The state of SignInCallback in {source}")
                result.describe(state)
    return result


def _check_state(state: dict[str, Any], tensors: Mapping[str, Tensor], what: str) -> None:
    """Check what `SavedWeights.describe` reads."""
    check_structure(what, state, entries(MASKS))
    masks = saved_masks(state)
    of_weights = entries({name: tensor(None, tuple(mask.shape)) for name, mask in masks.items()})
    check_structure(f"The state_dict beside {what[0].lower()}{what[1:]}", tensors, of_weights)
    flips = entries({"references": entries({"start": expected_signs(masks)})})
    check_structure(what, state, entries({"sign_flips": flips}))


def _split(tensors: dict[str, Tensor], source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dict and masks; a dict of masks alone is used as both."""
    if holds_only_masks(tensors):
        return tensors, {name: as_mask(tensor, name, source) for name, tensor in tensors.items()}
    return plain_weights(tensors, source)


def _with_masks(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> SavedWeights:
    result = SavedWeights(dict(tensors))
    for name, mask in masks.items():
        result.know(name, mask)
    return result
