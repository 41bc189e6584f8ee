"""Names and masks as other programs save them: prefixes, pruning buffers, files that hold only masks.

Supported formats: `torch.nn.utils.prune` (``X_orig`` with ``X_mask``), TurboPrune (a buffer ``mask`` next to
``weight``; its Linear layers are convolutions of width 1; github.com/nelaturuharsha/TurboPrune), and open_lth
(``mask.pth``, a dict of 0/1 tensors by weight name; github.com/facebookresearch/open_lth).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_signin.errors import SignInError, some

Tensors = dict[str, Tensor]

_WRAPPERS = {"model", "module", "net", "network"}


def plain_weights(tensors: Mapping[str, Tensor], source: str) -> tuple[Tensors, Tensors]:
    """Split a saved state dict into plain weights and masks.

    Args:
        tensors: The state dict.
        source: Its name in error messages.

    Returns:
        The state dict under plain names, with the masks applied and removed, and the bool masks by plain name.

    Raises:
        SignInError: If a mask holds other values than 0 and 1.

    Example:
        >>> pruned = {"fc.weight_orig": torch.ones(1, 3), "fc.weight_mask": torch.tensor([[1.0, 0.0, 1.0]])}
        >>> plain_weights(pruned, "the file")
        ({'fc.weight': tensor([[1., 0., 1.]])}, {'fc.weight': tensor([[ True, False,  True]])})
    """
    masked = dict(_masked_weights(tensors))
    mask_keys = {key for _, key in masked.values()}
    plain: Tensors = {}
    masks: Tensors = {}
    for key, tensor in tensors.items():
        if key in masked:
            name, mask_key = masked[key]
            masks[name] = as_mask(tensors[mask_key], mask_key, source)
            plain[name] = tensor.where(masks[name], tensor.new_zeros(()))
        elif key not in mask_keys:
            plain[key] = tensor
    return plain, masks


def holds_only_masks(tensors: Mapping[str, Tensor]) -> bool:
    """Whether tensors are masks, not weights: all of two or more dimensions, and all integers or only 0 and 1."""
    values = tensors.values()
    if not values or any(_masked_weights(tensors)) or any(tensor.ndim < 2 or tensor.is_complex() for tensor in values):
        return False
    return not any(map(torch.is_floating_point, values)) or all(map(_is_binary, values))


def as_mask(tensor: Tensor, name: str, source: str) -> Tensor:
    """The bool tensor of a mask in any dtype.

    Returns:
        The mask; True keeps.

    Raises:
        SignInError: If it holds other values than 0 and 1.
    """
    if not _is_binary(tensor):
        other = tensor[(tensor != 0) & (tensor != 1)][0].item()
        raise SignInError(f"{source}: {name} must hold only 0 and 1 to be a mask, got {other}. Threshold it first.")
    return tensor.bool()


def match_names(wanted: Collection[str], available: Iterable[str], source: str) -> dict[str, str]:
    """Find weights under the names that another program gave them.

    All names must differ in the same way: not at all; by an extra prefix in either the file or the module; or by
    prefixes of "model.", "module.", "net." and "network." in both. "_orig_mod.", from `torch.compile`, is ignored.

    Args:
        wanted: Plain names in a module.
        available: Names in a file.
        source: The file's name in error messages.

    Returns:
        For each wanted name the available one.

    Raises:
        SignInError: If a name is not found, or is ambiguous.

    Example:
        >>> match_names(["conv.weight"], ["module.conv.weight", "module.block.0.weight"], "the file")
        {'conv.weight': 'module.conv.weight'}
    """
    keys: dict[str, str] = {}
    for key in available:
        keys.setdefault(_without_compile(key), key)
    plain = {name: _without_compile(name) for name in wanted}
    readings: list[dict[str, str]] = []
    for removed, added in _prefixes(list(plain.values()), keys):
        renamed = {name: added + short.removeprefix(removed) for name, short in plain.items()}
        readings.append({name: keys[key] for name, key in renamed.items() if key in keys})
    best = max(readings, key=len)
    if missing := [name for name in wanted if name not in best]:
        raise SignInError(
            f"{source} has nothing for {some(missing, 10)}. It has: {some(list(keys.values()), 10)}. Choose the "
            "weights that it has with `include` and `exclude`."
        )
    others = [reading for reading in readings if len(reading) == len(best) and reading != best]
    # The unchanged names are the first reading: if all of them exist, no other reading is considered.
    if best is not readings[0] and others:
        name = next(name for name in wanted if others[0][name] != best[name])
        raise SignInError(
            f"In {source}, both {best[name]} and {others[0][name]} could be {name}. Pass the right tensors "
            "directly, as a dict by plain name."
        )
    return best


def fit_shape(tensor: Tensor, name: str, shape: Sequence[int], source: str) -> Tensor:
    """A tensor reshaped to a weight's shape; the shapes may differ only in trailing dimensions of size 1.

    Returns:
        The tensor in the weight's shape.

    Raises:
        SignInError: If they differ otherwise.
    """
    if _core(tensor.shape) != _core(shape):
        raise SignInError(
            f"{source} has shape {tuple(tensor.shape)} for {name}, which has shape {tuple(shape)}. Use a file of the "
            f"same model, or leave the weight out with exclude=['{name}']."
        )
    return tensor.reshape(tuple(shape))


def _masked_weights(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[str, str]]]:
    """(Key of a weight, (its plain name, key of its mask))."""
    for key in tensors:
        name = key.removesuffix("_orig")
        if name != key and f"{name}_mask" in tensors:
            yield key, (name, f"{name}_mask")
        layer, dot, attribute = key.rpartition(".")
        mask = f"{layer}{dot}mask"
        # Only if it has the weight's shape: attention layers have a causal `mask` of another shape.
        if attribute == "weight" and mask in tensors and tensors[mask].shape == tensors[key].shape:
            yield key, (key, mask)


def _is_binary(tensor: Tensor) -> bool:
    return bool(((tensor == 0) | (tensor == 1)).all())


def _prefixes(wanted: list[str], keys: Collection[str]) -> Iterator[tuple[str, str]]:
    """(Prefix removed from all wanted names, prefix added to them), unchanged names first."""
    yield "", ""
    parts = wanted[0].split(".") if wanted else []
    for removed in ("".join(f"{part}." for part in parts[:depth]) for depth in range(len(parts))):
        if not all(name.startswith(removed) for name in wanted):
            return
        if removed:
            yield removed, ""
        shortened = [name.removeprefix(removed) for name in wanted]
        found = (key.removesuffix(name) for name in shortened for key in keys if key.endswith(f".{name}"))
        for added in dict.fromkeys(found):
            if not removed or (_wraps(removed) and _wraps(added)):
                yield removed, added


def _wraps(prefix: str) -> bool:
    return set(prefix.removesuffix(".").split(".")) <= _WRAPPERS


def _without_compile(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _core(shape: Sequence[int]) -> list[int]:
    core = list(shape)
    while core and core[-1] == 1:
        core.pop()
    return core
