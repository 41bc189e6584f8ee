"""The compressed form of a state dict: one safetensors file with one bit per weight, and the non-zeros.

A floating-point tensor becomes two entries: ``<name>.bitmask``, one bit per entry of the tensor (uint8, row-major,
lowest bit first), and ``<name>.values``, the entries whose bit is set, in their dtype. If these are no smaller than the
tensor, and for integers, it is stored unchanged under its own name. Metadata under `KEY`: JSON with the format's
version, each tensor's dtype and shape by name, in the state dict's order, and for tied tensors the name under which
they are stored. Under `DIGEST`: SHA-256 of all other metadata and all entries.

Bits are set where the bit pattern is not 0, so −0.0 and every NaN are restored exactly.
"""

import hashlib
import json
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_signin.core.structure import Expected, check_structure, each, entries, of_type, one_of, several, whole
from lightning_signin.errors import SignInError
from lightning_signin.weightfiles.bits import pack_bits, unpack_bits
from lightning_signin.weightfiles.files import zstd
from lightning_signin.weightfiles.files.safe import checked, read_safetensors

KEY = "lightning_signin.compressed"
DIGEST = "lightning_signin.digest"
VERSION = 1
_BITMASK, _VALUES = ".bitmask", ".values"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes
_DTYPES = {  # supported by every safetensors since 0.4; others are stored as bytes
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}

_NAMES = sorted(str(value).removeprefix("torch.") for value in vars(torch).values() if isinstance(value, torch.dtype))
_LAYOUT = entries(
    {"tensors": each(entries({"dtype": one_of(*_NAMES), "shape": several(whole())})), "same": each(of_type(str))},
    {"version": whole()},
)


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A state dict in compressed form.

    Args:
        tensors: The state dict: strided tensors of any dtype, shape and device.
        metadata: Further metadata, covered by the digest.

    Returns:
        The content of a safetensors file that `unpack` reads.

    Raises:
        SignInError: If an entry is not a plain tensor; its name is given.

    Example:
        >>> state, metadata = unpack(pack({"weight": torch.eye(64)}, {}), "the file")
        >>> torch.equal(state["weight"], torch.eye(64)), len(pack({"weight": torch.eye(64)}, {})) < 64 * 64
        (True, True)
    """
    from safetensors.torch import save

    entries: dict[str, Tensor] = {}
    layout: dict[str, Any] = {"version": VERSION, "tensors": {}, "same": {}}
    stored: dict[tuple[Any, ...], str] = {}
    used: set[int] = set()
    for name, value in tensors.items():
        tensor = checked(name, value)
        first = stored.setdefault(_place(tensor), name) if tensor.numel() else name
        if first != name:
            layout["same"][name] = first
        layout["tensors"][name] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        if first == name:
            for key, entry in _entries(name, tensor.cpu(), tensors).items():
                memory = entry.untyped_storage().data_ptr()
                entries[key] = entry.clone() if memory in used else entry  # safetensors does not allow shared memory
                used.add(memory)
    described = {"format": "pt", **metadata, KEY: json.dumps(layout)}
    return save(entries, described | {DIGEST: _digest(entries, described)})


def unpack(data: bytes, source: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict that was packed, and the metadata.

    Args:
        data: What `pack` returned, optionally compressed by `zstd.compress`.
        source: Its name in error messages.

    Returns:
        The tensors, on the CPU: bit for bit, in the same order, tied ones as one tensor under all its names.

    Raises:
        SignInError: If the data is damaged, not in this format, or of a later version.
        ModuleNotFoundError: If it is compressed, and Zstandard is not installed.
    """
    data = zstd.decompress(data, source) if data[:4] == zstd.MAGIC else data
    entries, metadata = read_safetensors(data, source)
    if KEY not in metadata:
        raise SignInError(
            f"{source} is a safetensors file, but not in the compressed form. Read it with safetensors.torch.load_file."
        )
    return decode(entries, metadata, source), metadata


def decode(entries: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> dict[str, Tensor]:
    """The state dict in the entries of a file whose metadata has `KEY`; see `unpack`.

    Returns:
        The state dict, bit for bit as it was packed.

    Raises:
        SignInError: If they are altered, or of a later version.
    """
    layout = _layout(metadata)
    version = layout.get("version", VERSION)
    if version != VERSION:
        raise SignInError(
            f"{source} has version {version} of the compressed form, but this lightning-signin reads version "
            f"{VERSION}. Read it with the lightning-signin that wrote it, or a later one."
        )
    if metadata.get(DIGEST) != _digest(entries, metadata):
        raise SignInError(f"{source} was altered: it does not match its digest. Write or copy it again.")
    check_structure(f"{source} matches its digest, but", layout, _LAYOUT)
    check_structure(f"{source} matches its digest, but", layout["tensors"], _stored(layout["same"], entries))
    return _state(layout, entries)


def _layout(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        layout = json.loads(metadata[KEY])
    except ValueError:
        layout = None
    return layout if isinstance(layout, dict) else {}  # altered: the digest check will fail


def _stored(same: dict[str, str], entries: Mapping[str, Tensor]) -> Expected:
    """Tensors, by name, that are tied to an earlier one, or whose entries have their size."""

    def check(tensors: Any, path: str) -> str | None:
        earlier: set[str] = set()
        for name, about in tensors.items():
            dtype, count = getattr(torch, about["dtype"]), prod(about["shape"])
            if name in same:
                fits = same[name] in earlier
            elif name in entries:
                fits = entries[name].nbytes == count * dtype.itemsize
            else:
                bits, values = entries.get(name + _BITMASK), entries.get(name + _VALUES)
                fits = dtype.is_floating_point and _is_packed(bits, values, count, dtype.itemsize)
            if not fits:
                return f"{path}[{name!r}] does not match what is stored"
            earlier.add(name)
        return None

    return check


def _is_packed(bits: Tensor | None, values: Tensor | None, count: int, itemsize: int) -> bool:
    if bits is None or values is None or bits.dtype != torch.uint8 or bits.numel() != -(-count // 8):
        return False  # numpy would fill up what is missing with zeros
    return int(unpack_bits(bits, (count,)).sum()) * itemsize == values.nbytes


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tied tensors only."""
    place = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset())
    return (*place, tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg())


def _entries(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    held = _as_held(tensor)
    taken = {name + _BITMASK, name + _VALUES} & tensors.keys()
    if not tensor.is_floating_point() or taken or tensor.ndim == 0:
        return {name: held}
    bits = tensor.contiguous().view(_INTEGERS[tensor.itemsize]).flatten()
    nonzero = (bits != 0).numpy()
    if -(-bits.numel() // 8) + int(nonzero.sum()) * tensor.itemsize >= tensor.nbytes:
        return {name: held}
    values = torch.from_numpy(bits.numpy()[nonzero]).view(tensor.dtype)
    return {name + _BITMASK: pack_bits(torch.from_numpy(nonzero)), name + _VALUES: _as_held(values)}


def _as_held(tensor: Tensor) -> Tensor:
    whole = tensor.resolve_conj().resolve_neg().contiguous()
    return whole if tensor.dtype in _DTYPES else _bytes(whole)


def _bytes(tensor: Tensor) -> Tensor:
    if not tensor.numel():  # numpy's empty arrays have strides that torch does not view as bytes
        return torch.empty(0, dtype=torch.uint8)
    return tensor.contiguous().flatten().view(torch.uint8)


def _state(layout: dict[str, Any], entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, about in layout["tensors"].items():
        same = layout["same"].get(name)
        dtype, shape = getattr(torch, about["dtype"]), torch.Size(about["shape"])
        if same is not None:
            state[name] = state[same]
        elif name in entries:
            state[name] = _bytes(entries[name]).view(dtype).view(shape)
        else:
            state[name] = _scattered(entries[name + _BITMASK], entries[name + _VALUES].view(dtype), shape)
    return state


def _scattered(bitmask: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    nonzero = unpack_bits(bitmask, (shape.numel(),)).numpy()
    bits = values.view(_INTEGERS[values.itemsize]).numpy()
    whole = np.zeros(shape.numel(), bits.dtype)
    whole[nonzero] = bits
    return torch.from_numpy(whole).view(values.dtype).view(shape)


def _digest(entries: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted((k, v) for k, v in metadata.items() if k != DIGEST)).encode())
    for name, tensor in sorted(entries.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(_bytes(tensor).numpy().data)
    return digest.hexdigest()
