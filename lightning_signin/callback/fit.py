"""One fit: all that lives from `setup` until the module is merged."""

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_signin.arguments import Arguments
from lightning_signin.callback.averaging import Averaging
from lightning_signin.callback.finetuning import freeze_as_saved_, frozen
from lightning_signin.callback.fsdp import (
    check_agreement,
    check_not_sharded,
    check_one_file,
    resuming_sharded,
    warn_of_shards,
)
from lightning_signin.callback.idle import changes_nothing, gives_way
from lightning_signin.callback.lightning_internals import is_tuned
from lightning_signin.callback.messages import say_start
from lightning_signin.callback.resume_position import Position
from lightning_signin.callback.resuming import NOT_SPARSE, STATE_KEY, VERSION, check_complete, check_same_run
from lightning_signin.callback.start import Sparsified, in_words
from lightning_signin.callback.training import Training
from lightning_signin.callback.tuned import as_it_was
from lightning_signin.callback.user_hooks import user_hooks
from lightning_signin.callback.wrapped_hooks import wrapped_hooks
from lightning_signin.core.plain_view import exchange_parameters
from lightning_signin.core.sharded import has_shards
from lightning_signin.core.weights import SparseWeight, sparse_weights
from lightning_signin.errors import NothingToSparsifyError, SignInError
from lightning_signin.verbs.model import merge_
from lightning_signin.weightfiles.factor_state import (
    factor_state,
    load_factor_state,
    mask_digest,
    mask_state,
    saved_masks,
)

State = dict[str, Any]
Sparsify = Callable[[Trainer, LightningModule, dict[str, Tensor] | None, bool], Sparsified]


class Fit:
    """Makes a module sparse for one fit, and plain again at its end.

    It wraps hooks at once; the module becomes sparse when it is complete, at the end of ``configure_model``.

    Args:
        trainer: The trainer of the fit, in ``setup``.
        module: The module.
        arguments: The arguments of the run.
        sparsify: Makes the complete module sparse, as `Start.sparsify` does.
        earlier: The state at the end of an earlier fit of the module, whose masks are kept; empty if there is none.

    Raises:
        SignInError: For what the run does not allow.

    Attributes:
        training: The sparse weights during training; None before the module is sparse, and after the end.
        is_idle: Nothing is to be masked, and no weight is there to be measured: the fit is as without the callback.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        arguments: Arguments,
        sparsify: Sparsify,
        earlier: State,
    ) -> None:
        self.trainer, self.module, self.arguments, self.earlier = trainer, module, arguments, earlier
        self.training: Training | None = None
        self._sparsify = sparsify
        self._chosen = arguments  # what the mask was made with
        self._origin: str | None = None  # of the masks, if the arguments do not imply it
        self._replaced: dict[int, tuple[nn.Parameter, SparseWeight]] = {}  # plain parameters, until training starts
        self._resumed = False
        self._frozen: list[str] | None = None  # parameters, when the checkpoint to resume was saved
        self._last: State = {}  # the state at the end
        self.is_idle = gives_way(trainer, arguments)
        self._averaging = Averaging(trainer, module, arguments.rule is not None, self.end)
        check_one_file(trainer)
        if arguments.form.rescales:
            arguments.schedule.check_run(trainer.fit_loop.max_epochs, trainer.max_steps)
        self._position = Position(trainer)
        with ExitStack() as undo:
            undo.callback(self._position.detach)
            restoring = partial(resuming_sharded, module)
            undo.enter_context(wrapped_hooks(trainer, module, self._complete, restoring, self._position.attach))
            undo.enter_context(self._averaging.attached())
            self._undo = undo.pop_all()

    @property
    def ongoing(self) -> Training:
        """The sparse weights during training."""
        assert self.training is not None
        return self.training

    def check(self) -> None:
        """Check that the optimizers train every weight and that a checkpoint to resume is from a sparse run.

        Raises:
            SignInError: If not.
        """
        late = self.trainer.strategy.restore_checkpoint_after_setup
        if self.trainer.ckpt_path and not self._resumed and not late and not changes_nothing(self.arguments):
            raise SignInError(NOT_SPARSE)
        for optimizer in self.trainer.optimizers:  # LightningCLI builds its --optimizer before any fit
            exchange_parameters(optimizer, {key: weight for key, (_, weight) in self._replaced.items()})
        self._replaced = {}
        self.ongoing.check()
        say_start(self.module, in_words(self._chosen, self._origin))

    def begin(self) -> None:
        """Get ready to train; on resuming, restore the random generators."""
        self.ongoing.begin()
        if self._frozen is not None:
            freeze_as_saved_(self.trainer, self.module, self._frozen)
            self._frozen = None
        self._position.restore_generators()

    def before_batch(self) -> None:
        """Move the mask and rescale, if due."""
        self.ongoing.before_batch()
        self._position.begin_batch()

    def check_checkpoint(self, checkpoint: State) -> None:
        """Raise `SignInError` for checkpoints that are not from a run like this one."""
        if self.training is None:
            return
        if STATE_KEY in checkpoint["callbacks"]:
            self._averaging.check_checkpoint(checkpoint)
        elif not changes_nothing(self.arguments):
            raise SignInError(NOT_SPARSE)

    def load(self, state: State) -> None:
        """Take over mask, factors, counters and position of the run that wrote the checkpoint.

        Args:
            state: As returned by `state`.

        Raises:
            SignInError: If it is of another run, or altered.
        """
        if self.training is None:
            return
        check_complete(state)
        here = self.arguments.that_are_same("resume")
        check_same_run(state["arguments"], here, any_seed=self.arguments.seed is None)
        load_factor_state(self.module, state)
        self.training.load(state)
        self._position.load(state["position"])
        self._frozen = state["frozen"]
        self._resumed, self._origin = True, "of the checkpoint"

    def state(self, alone: bool = False, factors: bool = True) -> State:
        """What resuming needs beyond a plain state dict: tensors and plain values.

        Args:
            alone: Ask no other rank, for its generators or for its shards.
            factors: With the factors, which only all ranks together can gather from a sharded module.

        Returns:
            The state; the last one after the end, and an empty one before the module is sparse.
        """
        if self.training is None:
            return self._last
        with self._averaging.put_back():
            own = factor_state(self.module) if factors else mask_state(self.module)
            state = {**own, **self.training.state(), "frozen": frozen(self.module)}
        position = self._position.state(alone)
        if not position["epoch_complete"]:
            position["inexact"] += self._averaging.inexact_within_epochs()
        return {"version": VERSION, "arguments": self.arguments.that_are_same("resume"), **state, "position": position}

    def state_as_if_ended(self) -> State:
        """The state that `end` would leave if the fit ended now, on this rank."""
        return self.state(alone=True, factors=not has_shards(self.module))

    def end(self, alone: bool = False) -> State:
        """Merge the module, and restore the hooks. Only the first call does anything.

        Args:
            alone: Ask no other rank: after an exception they may not respond.

        Returns:
            The state at the end, without the factors of a sharded module, which stays sparse. After a fit of a `Tuner`,
            which leaves no trace: the state before it.
        """
        sharded = self.training is not None and has_shards(self.module)
        try:
            if self.training is not None:
                self._averaging.leave()
                self._last = self.state(alone, factors=not sharded)
                self.training.close()
        finally:  # whatever fails, the user's model is plain again
            if sharded:
                warn_of_shards()
            elif self.training is not None:
                merge_(self.module)
            self.training, self._replaced = None, {}
            self._undo.close()
        return self.earlier if is_tuned(self.trainer) else self._last  # a `Tuner` leaves no trace

    def _complete(self, resumes: bool) -> None:
        """Make the module, which is complete now, sparse."""
        if self.is_idle:
            return
        trainer, module = self.trainer, self.module
        parameters = dict(module.named_parameters())
        known = saved_masks(self.earlier) if self.earlier else None
        self._origin = "of the last fit" if known else None
        self._undo.enter_context(as_it_was(module) if is_tuned(trainer) else nullcontext())
        is_checked = True
        if sparse_weights(module):  # by `configure_model`, or by the last fit if it is sharded
            check_agreement(module, self.arguments)
            self._origin = "of `configure_model`"
        else:
            whole = changes_nothing(self.arguments)
            try:
                is_checked, self._chosen = self._sparsify(trainer, module, known, resumes and not whole)
            except NothingToSparsifyError:
                if not whole:
                    raise
                rank_zero_info("SignIn: nothing is masked, and no weight trains that could be.")
                self.is_idle = True
                return
        if trainer.world_size > 1:  # ranks that start from different weights would choose different masks by magnitude
            digest = mask_digest(module)
            same = trainer.strategy.broadcast(digest) == digest
            if not trainer.strategy.reduce_boolean_decision(same):
                check_not_sharded(module)
                load_factor_state(module, trainer.strategy.broadcast(factor_state(module)))
        self.training = Training(trainer, module, self.arguments, is_checked)
        weights = self.training.weights
        self._replaced = {id(parameters[n]): (parameters[n], w) for n, w in weights.items() if n in parameters}
        self._averaging.begin()
        self._undo.enter_context(user_hooks(trainer, module))
