"""Train sparse networks from scratch with Sign-In (arXiv:2504.12801)."""

from typing import TYPE_CHECKING

from lightning_signin._version import __version__
from lightning_signin.model import effective_weights, masks, merge_, rescale_, sparsify
from lightning_signin.plain_view import plain_view

if TYPE_CHECKING:
    from lightning_signin.callback import SignInCallback

__all__ = [
    "SignInCallback",
    "__version__",
    "effective_weights",
    "masks",
    "merge_",
    "plain_view",
    "rescale_",
    "sparsify",
]


def __getattr__(name: str) -> object:
    if name == "SignInCallback":  # only here is lightning imported: plain PyTorch users go without
        from lightning_signin.callback import SignInCallback

        return SignInCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
