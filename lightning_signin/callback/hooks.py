"""The hooks of a fit, which delegate to functions on the module: see `lightning_signin.verbs.model` and `Training`."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signin.callback.averaging import Averaging
from lightning_signin.callback.exporting import export_fit
from lightning_signin.callback.fsdp import (
    check_agreement,
    check_not_sharded,
    check_one_file,
    resuming_sharded,
    warn_of_shards,
)
from lightning_signin.callback.incompatible import check_companions
from lightning_signin.callback.lightning_internals import log_to_loggers
from lightning_signin.callback.messages import say_start
from lightning_signin.callback.resume_position import Position
from lightning_signin.callback.resuming import NOT_SPARSE, STATE_KEY, VERSION, check_complete, check_same_run
from lightning_signin.callback.start import Start
from lightning_signin.callback.training import Training, TrainingOptions
from lightning_signin.callback.user_hooks import user_hooks
from lightning_signin.callback.wrapped_hooks import wrapped_hooks
from lightning_signin.core.plain_view import exchange_parameters
from lightning_signin.core.sharded import has_shards
from lightning_signin.core.weights import SparseWeight, sparse_weights
from lightning_signin.errors import SignInError, told_if_altered
from lightning_signin.verbs.model import merge_
from lightning_signin.weightfiles.factor_state import (
    factor_state,
    load_factor_state,
    mask_digest,
    mask_state,
    saved_factors,
    saved_masks,
)

State = dict[str, Any]


class FitHooks(Callback):
    """Makes a module sparse for the duration of a fit.

    Args:
        start: How it becomes sparse.
        options: What happens to it during training.
        exports: The formats of the files that are written at the end.
    """

    def __init__(self, start: Start, options: TrainingOptions, exports: Sequence[str] = ()) -> None:
        self.start, self.options, self.exports = start, options, exports
        self._module: LightningModule | None = None
        self._training: Training | None = None  # while the model is sparse
        self._finished: State = {}  # the last state, from the merge until the next fit
        self._origin: str | None = None  # of the masks, if the arguments do not imply it
        self._replaced: dict[int, tuple[nn.Parameter, SparseWeight]] = {}  # plain parameters, until the fit starts
        self._undo = ExitStack()

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint."""
        return STATE_KEY

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare a fit; the model itself is made sparse when it is complete, at the end of ``configure_model``."""
        if stage != "fit":
            return
        self._finish()
        check_companions(trainer)
        self._averaging = Averaging(trainer, pl_module, self.start.rule is not None, self._finish)
        check_one_file(trainer)
        self.options.schedule.check_run(trainer.fit_loop.max_epochs, trainer.max_steps)
        known = saved_masks(self._finished) if self._finished and self._module is pl_module else None
        self._module, self._finished = pl_module, {}
        self._position = Position(trainer)
        self._resumed = False
        self._undo.callback(self._position.detach)
        complete = partial(self._sparsify, trainer, pl_module, known)
        restoring = partial(resuming_sharded, pl_module)
        self._undo.enter_context(wrapped_hooks(trainer, pl_module, complete, restoring, self._position.attach))
        self._undo.enter_context(self._averaging.attached())

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the optimizers train every weight and that a checkpoint to resume is from a sparse run."""
        if trainer.ckpt_path and not self._resumed and not trainer.strategy.restore_checkpoint_after_setup:
            raise SignInError(NOT_SPARSE)
        for optimizer in trainer.optimizers:  # LightningCLI builds its --optimizer before any fit
            exchange_parameters(optimizer, {key: weight for key, (_, weight) in self._replaced.items()})
        self._replaced = {}
        self._ongoing.check()
        say_start(pl_module, self.start.in_words(self._origin))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get ready to train; on resuming, restore the random generators."""
        self._ongoing.begin()
        self._position.restore_generators()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Move the mask and rescale, if due."""
        self._ongoing.before_batch()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Move the mask, if due, or apply the decay."""
        self._ongoing.before_step(optimizer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Record the loss."""
        self._ongoing.after_batch(outputs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log ``signin/sparsity``, ``signin/sign_flips``, ``signin/scaling``, and how far the mask has moved."""
        numbers, layers = self._ongoing.after_epoch()
        pl_module.log_dict({f"signin/{n}": v for n, v in numbers.items()}, sync_dist=trainer.world_size > 1)
        log_to_loggers(trainer, {f"signin/{n}": v for n, v in layers.items()})  # layers have many

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge, and write the requested files."""
        self._finish()
        export_fit(trainer, pl_module, self.exports, self._finished)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Merge: a checkpoint that later callbacks write now can still be resumed."""
        self._finish(alone=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Merge if that has not happened yet: tuners end a fit with no other hook."""
        self._finish()

    def state_dict(self) -> State:
        """What resuming needs beyond a plain state dict: tensors and plain values."""
        if self._training is not None:
            return self._state()
        if self._finished and "factors" not in self._finished:  # of a sharded module, whose ranks save together
            assert self._module is not None
            return {**self._finished, "factors": saved_factors(self._module)}
        return self._finished

    def load_state_dict(self, state_dict: State) -> None:
        """Take over mask, factors, counters and position of the run that wrote the checkpoint."""
        if self._training is None or self._module is None:
            return
        with told_if_altered("The checkpoint's state of SignInCallback"):
            check_complete(state_dict)
            check_same_run(state_dict["arguments"], self.start.saved(), any_seed=self.start.seed is None)
            load_factor_state(self._module, state_dict)
        with told_if_altered("The checkpoint's state of SignInCallback", ValueError):
            self._training.load(state_dict)
            self._position.load(state_dict["position"])
        self._resumed, self._origin = True, "of the checkpoint"

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        """Reject checkpoints that are not from a sparse run."""
        if self._training is not None and STATE_KEY not in checkpoint["callbacks"]:
            raise SignInError(NOT_SPARSE)
        if self._training is not None:
            self._averaging.check_checkpoint(checkpoint)

    @property
    def _ongoing(self) -> Training:
        assert self._training is not None
        return self._training

    def _sparsify(
        self, trainer: Trainer, module: LightningModule, known: dict[str, Tensor] | None, resumes: bool
    ) -> None:
        parameters = dict(module.named_parameters())
        self._origin = "of the last fit" if known else None
        if sparse_weights(module):  # by `configure_model`, or by the last fit if it is sharded
            check_agreement(module, self.start, self.options)
            self._origin = "of `configure_model`"
        else:
            self.start.sparsify(trainer, module, known, resumes)
        if trainer.world_size > 1:  # ranks that start from different weights would choose different masks by magnitude
            digest = mask_digest(module)
            same = trainer.strategy.broadcast(digest) == digest
            if not trainer.strategy.reduce_boolean_decision(same):
                check_not_sharded(module)
                load_factor_state(module, trainer.strategy.broadcast(factor_state(module)))
        self._training = Training(trainer, module, self.start, self.options)
        weights = self._training.weights
        self._replaced = {id(parameters[n]): (parameters[n], w) for n, w in weights.items() if n in parameters}
        self._averaging.begin()
        self._undo.enter_context(user_hooks(trainer, module))

    def _state(self, alone: bool = False, factors: bool = True) -> State:
        """With the factors or without: those of a sharded module can only be gathered by all ranks together."""
        assert self._module is not None
        with self._averaging.put_back():
            own = factor_state(self._module) if factors else mask_state(self._module)
            state = {**own, **self._ongoing.state()}
        position = self._position.state(alone)
        if not position["epoch_complete"]:
            position["inexact"] += self._averaging.inexact_within_epochs()
        return {"version": VERSION, "arguments": self.start.saved(), **state, "position": position}

    def _finish(self, alone: bool = False) -> None:
        sharded = self._training is not None and self._module is not None and has_shards(self._module)
        try:
            if self._training is not None and self._module is not None:
                self._averaging.leave()
                self._finished = self._state(alone, factors=not sharded)
                self._training.close()
        finally:  # whatever fails, the user's model is plain again
            if sharded:
                warn_of_shards()
            elif self._training is not None and self._module is not None:
                merge_(self._module)
            self._training, self._replaced = None, {}
            self._undo.close()
