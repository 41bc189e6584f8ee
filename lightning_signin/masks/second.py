"""Second derivatives: kernels that have them, and words where a function of the model has none."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_signin.errors import SignInError, in_one_line


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Fused attention, and the recurrences of cuDNN and oneDNN, which have no second derivatives, are not used."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
        torch._C._set_mkldnn_enabled(False)  # `torch.backends.mkldnn.flags` warns where there is no Intel GPU
        yield


@contextmanager
def second_derivatives(mask: str) -> Iterator[None]:
    """While it lasts gradients are differentiated.

    Raises:
        SignInError: If torch cannot.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise SignInError(
            f"mask={mask!r} needs second derivatives of the training loss, and a function of the model has none "
            f"({in_one_line(error)}). Choose a mask that needs first derivatives only, e.g. 'snip'."
        ) from error
