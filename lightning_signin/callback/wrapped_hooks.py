"""The four hooks of a run that callbacks do not have, wrapped for the duration of a fit."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_signin.callback.lightning_internals import RESTORE, checkpoint_connector
from lightning_signin.core.plain_view import plain_view
from lightning_signin.weightfiles.files.archive import checked_while_read


@contextmanager
def wrapped_hooks(
    trainer: Trainer,
    module: LightningModule,
    complete: Callable[[bool], None],
    restoring: Callable[[Any], AbstractContextManager[None]],
    on_training_loader: Callable[[object], None],
) -> Iterator[None]:
    """Wrap hooks on the instances, and restore the originals at the end.

    Args:
        trainer: Its strategy's ``process_dataloader`` is the only hook that sees training loaders before they iterate.
        module: Its ``configure_optimizers`` gets the plain view.
        complete: Called after ``configure_model``, with whether a checkpoint is loaded next: at that point the layers
            that a module builds in its own ``setup`` or ``configure_model`` exist, and optimizers do not yet.
        restoring: Entered with the path of a checkpoint while it is loaded.
        on_training_loader: Called with every training loader.
    """
    plain_model, plain_optimizers = module.configure_model, module.configure_optimizers
    plain_loader, connector = trainer.strategy.process_dataloader, checkpoint_connector(trainer)
    plain_restore = getattr(connector, RESTORE)
    restores_late = trainer.strategy.restore_checkpoint_after_setup

    # No functools.wraps: Lightning would treat a wrapped `configure_model` as not overridden.
    def configure_model() -> None:
        plain_model()
        complete(False)

    # Right after `configure_model`, and the first to know of a checkpoint: `trainer.ckpt_path` is set inside.
    def restore(checkpoint_path: Any = None, *args: Any) -> None:
        by_torch = "TorchCheckpointIO" in {kind.__name__ for kind in type(trainer.strategy.checkpoint_io).__mro__}
        with nullcontext() if checkpoint_path is None else checked_while_read(checkpoint_path, by_torch):
            if not restores_late:
                complete(checkpoint_path is not None)
            with nullcontext() if checkpoint_path is None else restoring(checkpoint_path):
                plain_restore(checkpoint_path, *args)

    restore.__name__ = RESTORE

    def configure_optimizers() -> Any:
        with plain_view(module):
            return plain_optimizers()

    def process_dataloader(dataloader: object) -> object:
        dataloader = plain_loader(dataloader)
        if trainer.training:
            on_training_loader(dataloader)
        return dataloader

    holders: dict[Callable[..., Any], Any] = {
        restore: connector,
        configure_optimizers: module,
        process_dataloader: trainer.strategy,
    }
    if restores_late:
        holders[configure_model] = module
    with replaced_on_instances(holders):
        yield


class InPlaceOf:
    """The replacement of a method on one instance. Copies and pickles of the instance have the original method.

    Args:
        method: The bound method.
        hook: What is called.
        name: Of the method: a `partial` in the place of one has none.
    """

    def __init__(self, method: Callable[..., Any], hook: Callable[..., Any], name: str) -> None:
        self._method, self._hook, self.__name__ = method, hook, name

    @property
    def __code__(self) -> Any:
        """How Lightning detects that a method is overridden."""
        return self._hook.__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the hook."""
        return self._hook(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._method, memo)

    def __reduce__(self) -> Any:
        return self._method.__reduce__()


@contextmanager
def replaced_on_instances(holders: Mapping[Callable[..., Any], Any]) -> Iterator[None]:
    """Replace methods with functions of the same names, and restore the originals at the end.

    Args:
        holders: For each function, the instance whose method it replaces.

    Example:
        >>> from argparse import Namespace
        >>> holder = Namespace(answer=lambda: 41)
        >>> def answer():
        ...     return 42
        >>> with replaced_on_instances({answer: holder}):
        ...     holder.answer()
        42
        >>> holder.answer()
        41
    """
    before = {hook: holder.__dict__.get(hook.__name__) for hook, holder in holders.items()}
    for hook, holder in holders.items():
        own = isinstance(hook, InPlaceOf)
        name = hook.__name__
        holder.__dict__[name] = hook if own else InPlaceOf(getattr(holder, name), hook, name)
    try:
        yield
    finally:
        for hook, holder in holders.items():
            del holder.__dict__[hook.__name__]
            if before[hook] is not None:
                holder.__dict__[hook.__name__] = before[hook]
