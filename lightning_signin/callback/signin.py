"""`SignInCallback`: its arguments, and hooks that delegate to the `Fit` in progress."""

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import ref

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightning_signin.arguments import Arguments, described
from lightning_signin.callback.exporting import export_fit
from lightning_signin.callback.fit import Fit, Sparsify
from lightning_signin.callback.lightning_internals import LOGGING, log_to_loggers
from lightning_signin.callback.resuming import STATE_KEY
from lightning_signin.callback.start import Start
from lightning_signin.errors import SignInError
from lightning_signin.weightfiles.factor_state import saved_factors

State = dict[str, Any]


P = ParamSpec("P")
T = TypeVar("T")


def _takes(
    arguments: Callable[P, Arguments],
) -> Callable[[Callable[[T, Arguments], None]], Callable[Concatenate[T, P], None]]:
    """Give a constructor that takes `Arguments` the parameters of `Arguments`, for people, type checkers and YAML."""
    signature = inspect.signature(arguments)

    def decorate(initialize: Callable[[T, Arguments], None]) -> Callable[Concatenate[T, P], None]:
        def __init__(self: T, *args: P.args, **kwargs: P.kwargs) -> None:
            signature.bind(*args, **kwargs)  # its TypeError names the argument alone
            initialize(self, arguments(*args, **kwargs))

        whole = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *signature.parameters.values()]
        __init__.__signature__ = signature.replace(parameters=whole, return_annotation=None)  # type: ignore[attr-defined]
        return __init__

    return decorate


def _documented(cls: type[T]) -> type[T]:
    """Put the documentation of `Arguments` into that of a class."""
    cls.__doc__ = str(cls.__doc__).replace("{arguments}", described())
    return cls


@_documented
class SignInCallback(Callback):
    r"""Trains any LightningModule as a sparse network with Sign-In (arXiv:2504.12801, Algorithm 1).

    At the start of ``fit`` the selected weights are masked and each becomes a product m ⊙ w; every p epochs m² − w² is
    reset to β; at the end m ⊙ w is merged. ``state_dict`` is plain at any time. A module that ``configure_model`` has
    made sparse keeps its masks and factors, sharded by FSDP2 or not.

    {arguments}

    Raises:
        SignInError: For values out of range and unknown names, here; for what the model or the run does not allow, at
            the start of ``fit``.

    Example:
        >>> SignInCallback(mask="snip", update="rigl").arguments.rule.drop_fraction
        0.3
        >>> SignInCallback(sparsity=90)
        Traceback (most recent call last):
        lightning_signin.SignInError: `sparsity` must be in [0, 1), got 90. Pass the fraction of zeros, e.g. 0.9.
    """

    @_takes(Arguments)
    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.sparsify: Sparsify = Start(arguments).sparsify
        self._fit: Fit | None = None  # from `setup` to the merge
        self._finished: State = {}  # the last state, from the merge until the next fit
        self._last_module: ref[LightningModule] | None = None

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint."""
        return STATE_KEY

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare a fit; the model itself is made sparse when it is complete, at the end of ``configure_model``."""
        if stage != "fit":
            return
        self._end()
        earlier = self._finished if self._module is pl_module else {}
        self._fit = Fit(trainer, pl_module, self.arguments, self.sparsify, earlier)
        self._last_module, self._finished = ref(pl_module), {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the optimizers train every weight and that a checkpoint to resume is from a sparse run."""
        if (fit := self._current) is not None:
            fit.check()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get ready to train; on resuming, restore the random generators."""
        if (fit := self._current) is not None:
            fit.begin()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Move the mask and rescale, if due."""
        if (fit := self._current) is not None:
            fit.before_batch()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Move the mask, if due, or apply the decay."""
        if self._fit is not None and not self._fit.is_idle:  # the loop can be run by hand after the fit
            self._fit.ongoing.before_step(optimizer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Record the loss."""
        if (fit := self._current) is not None:
            fit.ongoing.after_batch(outputs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log ``signin/sparsity``, ``signin/sign_flips``, ``signin/scaling``, and how far the mask has moved."""
        if (fit := self._current) is None:
            return
        numbers, layers = fit.ongoing.after_epoch()
        pl_module.log_dict({f"signin/{n}": v for n, v in numbers.items()}, sync_dist=True, batch_size=1)
        log_to_loggers(trainer, {f"signin/{n}": v for n, v in layers.items()})  # layers have many

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge, and write the requested files."""
        self._end()
        export_fit(trainer, pl_module, self.arguments.export or (), self._finished)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Merge: a checkpoint that later callbacks write now can still be resumed."""
        self._end(alone=True)
        for name in LOGGING:
            vars(self).pop(name, None)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Merge if that has not happened yet: tuners end a fit with no other hook."""
        self._end()
        for name in LOGGING:
            vars(self).pop(name, None)

    def state_dict(self) -> State:
        """What resuming needs beyond a plain state dict: tensors and plain values."""
        state = self._finished if self._fit is None else self._fit.state()
        if state and "factors" not in state:  # of a sharded module, whose ranks save together
            if self._module is None:
                raise SignInError(
                    "The factors are those of a sharded module, which this SignInCallback no longer has. Save with "
                    "the Trainer that trained it, as long as the module exists."
                )
            return {**state, "factors": saved_factors(self._module)}
        return state

    def load_state_dict(self, state_dict: State) -> None:
        """Take over mask, factors, counters and position of the run that wrote the checkpoint."""
        if self._fit is not None:
            self._fit.load(state_dict)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        """Reject checkpoints that are not from a sparse run."""
        if self._fit is not None:
            self._fit.check_checkpoint(checkpoint)

    def __getstate__(self) -> dict[str, Any]:
        """A copy, pickled or deep, has the arguments and the state as if the fit in progress had ended here."""
        finished = self._finished if self._fit is None else self._fit.state_as_if_ended()
        kept = {name: value for name, value in vars(self).items() if name not in LOGGING}
        return {**kept, "_fit": None, "_finished": finished, "_last_module": None}

    @property
    def _current(self) -> Fit | None:
        """The fit in progress; None if it is as without the callback."""
        assert self._fit is not None
        return None if self._fit.is_idle else self._fit

    @property
    def _module(self) -> LightningModule | None:
        """The module of the last fit, as long as it exists."""
        return None if self._last_module is None else self._last_module()

    def _end(self, alone: bool = False) -> None:
        if self._fit is not None:
            fit, self._fit = self._fit, None
            self._finished = fit.end(alone)
