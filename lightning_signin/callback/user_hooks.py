"""The hooks of a user's module and callbacks run in a plain view: in them parameters are θ, to be read and written."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, ModelSummary
from lightning.pytorch.core.hooks import CheckpointHooks, ModelHooks
from lightning.pytorch.loops.optimization.closure import AbstractClosure

from lightning_signin.callback.sharded_hooks import ShardedView
from lightning_signin.callback.two_packages import in_both
from lightning_signin.callback.wrapped_hooks import InPlaceOf, replaced_on_instances
from lightning_signin.core.live_view import LiveView
from lightning_signin.core.sharded import has_shards

# Whose own hooks rely on factors, except those that compare or count the parameters of a module: see `_around`.
_PACKAGES = ("lightning", "pytorch_lightning", __name__.partition(".")[0])
_OF_CALLBACKS = [name for name in vars(Callback) if name.startswith("on_")]
_OF_MODULES = [name for hooks in (ModelHooks, CheckpointHooks) for name in vars(hooks) if name.startswith("on_")]
# Before these steps a module works on gradients; what it saves has the names of its parameters.
_OF_MODULES += ["configure_gradient_clipping", "optimizer_step", "state_dict"]
_STEPS = ["training_step", "validation_step", "test_step"]


class UserHook(InPlaceOf):
    """A method that is called within a context, in place of the original on one instance.

    Args:
        name: Of the method.
        method: The bound method.
        around: Makes the context.
    """

    def __init__(
        self, name: str, method: Callable[..., Any], around: Callable[[], AbstractContextManager[None]]
    ) -> None:
        super().__init__(method, method, name)
        self.__wrapped__, self.around = method, around

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method."""
        with self.around():
            return super().__call__(*args, **kwargs)


class OptimizerStep(UserHook):
    """A module's ``optimizer_step``: the training step and the backward pass, which it calls, need factors."""

    def __init__(self, method: Callable[..., Any], view: LiveView | ShardedView) -> None:
        super().__init__("optimizer_step", method, view.hooks)
        self.view = view
        self._kinds: dict[type, Any] = {}  # of Lightning's closures, and what takes their places

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method."""
        kwargs = {name: self._closed(value) for name, value in kwargs.items()}
        return super().__call__(*map(self._closed, args), **kwargs)

    def _closed(self, value: Any) -> Any:
        if isinstance(value, AbstractClosure):
            kind = type(value)
            if kind not in self._kinds:
                self._kinds[kind] = _closure_within(kind, self.view.off)
            closed = object.__new__(self._kinds[kind])
            closed.__dict__ = vars(value)  # the loop takes the result out of the original
            return closed
        return UserHook("__call__", value.__call__, self.view.off) if callable(value) else value


def _closure_within(kind: Any, around: Callable[[], AbstractContextManager[None]]) -> Any:
    """A class like one of Lightning's closures, which is called within a context."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        with around():
            return kind.__call__(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": __call__, "__module__": kind.__module__})


@contextmanager
def user_hooks(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Let user code see plain parameters in its hooks, until the end of the context.

    Those of a sharded module stay factors, since all ranks would have to gather θ together; a warning says so.

    Args:
        trainer: Its callbacks' hooks are included, but for those that Lightning and this package bring.
        module: A sparse module.
    """
    view = ShardedView(module) if has_shards(module) else LiveView(module)
    of_module = _OF_MODULES + (_STEPS if isinstance(view, LiveView) else [])
    hooks: dict[Callable[..., Any], Any] = {}
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    for holder, names in [(module, of_module), *((callback, _OF_CALLBACKS) for callback in callbacks)]:
        for name in names:
            method: Any = getattr(holder, name, None)
            around = _around(view, trainer, holder, name, method)
            if around is not None:
                hook = OptimizerStep(method, view) if name == "optimizer_step" else UserHook(name, method, around)
                hooks[hook] = holder
    with view.attached(), replaced_on_instances(hooks):
        yield


def _around(
    view: LiveView | ShardedView, trainer: Trainer, holder: Any, name: str, method: Any
) -> Callable[[], AbstractContextManager[None]] | None:
    """Makes the context in which a hook runs; None if there is no hook, or one that relies on factors."""
    if not callable(method):
        return None
    if isinstance(view, ShardedView):
        own = str(getattr(method, "__module__", "")).partition(".")[0] in _PACKAGES
        return None if own else view.hooks
    if isinstance(holder, in_both(BaseFinetuning)) and name in vars(BaseFinetuning):
        return lambda: view.hooks_with_optimizers(trainer.optimizers)
    if isinstance(holder, in_both(ModelSummary)) and name in vars(ModelSummary):
        return view.steps
    if str(getattr(method, "__module__", "")).partition(".")[0] in _PACKAGES:
        return None
    return view.steps if name in _STEPS else view.hooks
