"""Safetensors files: reading them, and checking what can be written."""

import json
from typing import Any

import torch
from torch import Tensor

from lightning_signin.errors import SignInError

_LONGEST_HEADER = 100_000_000  # bytes, a limit of the format itself


def is_safetensors(head: bytes) -> bool:
    """Whether the first bytes of a file, nine or more, are those of a safetensors file.

    Returns:
        Whether they start a header of plausible length.

    Example:
        >>> is_safetensors(bytes([2, 0, 0, 0, 0, 0, 0, 0]) + b"{}"), is_safetensors(b"some notes")
        (True, False)
    """
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


def read_safetensors(data: bytes, source: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Args:
        data: The whole file.
        source: Its name in error messages.

    Returns:
        The tensors, sorted by name, and the metadata.

    Raises:
        SignInError: If it is not a complete safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not is_safetensors(data):
        raise SignInError(f"{source} is neither a safetensors file nor one that `save_compressed` wrote.")
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:  # the latter for damaged headers
        raise SignInError(f"{source} is not a complete safetensors file: {error}. Write or copy it again.") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(sorted(tensors.items())), header.get("__metadata__") or {}  # `load` returns them in a random order


def checked(name: str, value: Any) -> Tensor:
    """An entry of a state dict, detached, if it can be written.

    Args:
        name: Its name in error messages.
        value: The entry: a dense tensor with data, or something else.

    Returns:
        The tensor.

    Raises:
        SignInError: If it is something else.
    """
    if not isinstance(value, Tensor):
        raise SignInError(f"{name} is a {type(value).__name__}, but only tensors can be written. Leave it out.")
    tensor = value.detach()
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = f"{type(tensor).__name__} of layout {tensor.layout} and dtype {tensor.dtype} on {tensor.device}"
        raise SignInError(f"{name} is a {kind}, which cannot be written. Make it a dense tensor first.")
    return tensor
