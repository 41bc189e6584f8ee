"""Second derivatives, and a clear error where a function of the model has none."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_signin.errors import SignInError, in_one_line


@contextmanager
def second_derivatives(mask: str, of: Iterable[Tensor]) -> Iterator[None]:
    """Report errors from differentiating gradients inside as a missing second derivative.

    Args:
        mask: The name of the score.
        of: The tensors that will be differentiated.

    Raises:
        SignInError: If a function has no second derivative.
        OutOfMemoryError: As torch raises it.
    """
    if _is_differentiable_once(of):
        raise SignInError(_missing(mask, "it is `once_differentiable`"))
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise SignInError(_missing(mask, in_one_line(error))) from error


def _is_differentiable_once(tensors: Iterable[Tensor]) -> bool:
    """Whether a gradient came through a function that forbids differentiating it again.

    Torch raises this only in ``backward``: `torch.autograd.grad` would silently leave that function's part out.

    Returns:
        Whether any tensor has such a function in its graph.
    """
    seen, left = set(), [tensor.grad_fn for tensor in tensors]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            return True
        seen.add(node)
        left += [following for following, _ in node.next_functions]
    return False


def _missing(mask: str, why: str) -> str:
    return (
        f"mask={mask!r} needs second derivatives of the training loss, and a function of the model has none ({why}). "
        "Choose a mask that needs first derivatives only, e.g. 'snip'."
    )
