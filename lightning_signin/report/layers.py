"""Layers in the model's order, and layer names short enough for an axis."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from lightning_signin.weightfiles.saved import read_weights

_LONGEST = 26  # characters that fit under an axis


def depth_order(names: Collection[str], folder: Path) -> tuple[list[str], bool]:
    """Sort weights in the model's order, since CSVLogger sorts its columns by name.

    Args:
        names: Plain names.
        folder: The run's folder; the order is read from its merged file or a checkpoint in it.

    Returns:
        The names, and whether their order is known. If not, they are sorted by name, with numbers sorted by value.

    Example:
        >>> depth_order({"layers.10.weight", "layers.2.weight"}, Path("nowhere"))
        (['layers.2.weight', 'layers.10.weight'], False)
    """
    by_name = sorted(names, key=_natural)
    held = {name: place for place, name in enumerate(_held_order(folder))} if len(names) > 1 else {}
    return sorted(by_name, key=lambda name: held.get(name, len(held))), held.keys() >= set(names)


def short_names(names: Sequence[str]) -> list[str]:
    """Names without their common prefix, and cut at the front if they are still long.

    Returns:
        The short names, in the same order.

    Example:
        >>> short_names(["net.layers.0.weight", "net.layers.1.conv.weight"])
        ['0', '1.conv']
    """
    parts = [name.removesuffix(".weight").split(".") for name in names]
    shortest = min((len(part) for part in parts), default=1)
    shared = 0
    while shared < shortest - 1 and len({part[shared] for part in parts}) == 1:
        shared += 1
    return [_cut(".".join(part[shared:])) for part in parts]


def _cut(name: str) -> str:
    if len(name) <= _LONGEST:
        return name
    end = name[1 - _LONGEST :]
    return f"…{end.partition('.')[2] or end}"  # whole parts, if there are any


def _held_order(folder: Path) -> list[str]:
    for path in (folder / "merged.safetensors", *sorted(folder.rglob("*.ckpt"))):
        try:
            kept = read_weights(path).kept  # `tensors` of a safetensors file are sorted by name
        except (OSError, ValueError, ModuleNotFoundError):
            continue  # without a readable file, only the order is lost
        if kept:
            return list(kept)
    return []


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]
