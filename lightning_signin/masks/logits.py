"""Dividing the logits of a network by a temperature, inside whatever training step calls it."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lightning_signin.core.torch_internals import tree_map
from lightning_signin.errors import SignInError


@contextmanager
def divided_logits(module: nn.Module, weights: Collection[str], temperature: float, mask: str) -> Iterator[None]:
    """Inside, the outermost call that runs all the weights returns its outputs divided by the temperature.

    Args:
        module: The module; a call of the module itself counts too.
        weights: Plain names of the weights.
        temperature: The divisor of floating-point outputs that have dimensions.
        mask: The name of the score.

    Raises:
        SignInError: If no call runs all the weights, or what it returns is a loss.
    """
    depth = divided = 0

    def enter(part: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal depth
        depth += 1

    def leave(part: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        nonlocal depth
        depth -= 1
        return tree_map(divide, output) if depth == 0 else None

    def divide(leaf: object) -> object:
        nonlocal divided
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        if leaf.ndim == 0:
            raise SignInError(_without_logits(mask, "the network returns a single number, the loss, itself"))
        divided += 1
        return leaf / temperature

    hooks = []
    for name, part in module.named_modules():
        prefix = f"{name}." if name else ""
        if {prefix + inner for inner, _ in part.named_parameters(remove_duplicate=False)} >= set(weights):
            hooks += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    if not divided:
        raise SignInError(_without_logits(mask, "no single call in the training step runs all the selected weights"))


def _without_logits(mask: str, why: str) -> str:
    return (
        f"mask={mask!r}: there are no logits to divide by `temperature`, since {why}. Let the training step compute "
        "the loss from what the network returns, or pass temperature=1.0."
    )
