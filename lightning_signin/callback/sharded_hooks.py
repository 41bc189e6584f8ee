"""The hooks of a user's sharded module show factors: one warning says so, where they are listed."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from lightning_signin.core.weights import sparse_weights

_OWN = ("torch", "lightning", "pytorch_lightning", __name__.partition(".")[0])  # these list parameters for themselves
_PARAMETERS = nn.Module.parameters.__code__


class ShardedView:
    """In the place of a `LiveView`, for a module whose weights all ranks would have to gather together.

    Args:
        module: A sparse module that FSDP2 has sharded.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self._in_hook = self._said = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let all modules with sparse weights say what they list, in blocks of `hooks`."""
        paths = {"", *(name.rpartition(".")[0] for name in sparse_weights(self._module))}
        paths |= {path[:end] for path in paths for end, letter in enumerate(path) if letter == "."}
        parts = {self._module.get_submodule(path) for path in paths}
        for part in parts:
            vars(part)["named_parameters"] = self._telling(part.named_parameters)
        try:
            yield
        finally:
            for part in parts:
                del vars(part)["named_parameters"]

    @contextmanager
    def _in(self, in_hook: bool) -> Iterator[None]:
        before, self._in_hook = self._in_hook, in_hook
        try:
            yield
        finally:
            self._in_hook = before

    def hooks(self) -> Any:
        """User code runs in the block."""
        return self._in(True)

    def off(self) -> Any:
        """User code that runs in the block has to see factors: it computes a loss."""
        return self._in(False)

    def _telling(self, named_parameters: Callable[..., Any]) -> Callable[..., Any]:
        def telling(*args: Any, **kwargs: Any) -> Any:
            asking: Any = sys._getframe(1)  # noqa: SLF001 — documented by Python
            asking = asking.f_back if asking.f_code is _PARAMETERS else asking
            by_user = str(asking.f_globals.get("__name__")).partition(".")[0] not in _OWN
            if self._in_hook and by_user and not self._said and sparse_weights(self._module):  # none in a plain view
                self._said = True
                rank_zero_warn(
                    "The module is sharded over ranks, so that the parameters of its sparse weights are factors, in "
                    "hooks too: their values are not weights. List weights within `plain_view(module)`, on all ranks."
                )
            return named_parameters(*args, **kwargs)

        return telling
