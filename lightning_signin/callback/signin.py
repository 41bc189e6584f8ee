"""`SignInCallback`: hooks that route to the verbs on a module. See `lightning_signin.model`."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signin.callback.companions import check_companions
from lightning_signin.callback.position import Position
from lightning_signin.callback.resuming import NOT_SPARSE, STATE_KEY, check_same_run
from lightning_signin.callback.start import Start
from lightning_signin.callback.training import Training
from lightning_signin.callback.wrapped import wrapped_hooks
from lightning_signin.factor_state import factor_state, load_factor_state, mask_digest, saved_masks
from lightning_signin.masks.build import check_choice
from lightning_signin.masks.scores import Score
from lightning_signin.masks.structures import Structure
from lightning_signin.model import merge_
from lightning_signin.optimizers import MOMENTUM
from lightning_signin.parametrizations import Parametrization
from lightning_signin.plain_view import exchange_parameters
from lightning_signin.schedule import RescaleSchedule
from lightning_signin.updates import UpdateRule
from lightning_signin.weights import SparseWeight

State = dict[str, Any]


class SignInCallback(Callback):
    r"""Trains any LightningModule as a sparse network with Sign-In (arXiv:2504.12801, Algorithm 1).

    At the start of ``fit`` the selected weights are masked and each becomes a product m ⊙ w; every p epochs m² − w² is
    reset to β; at the end m ⊙ w is merged. ``state_dict`` is plain at every moment.

    Args:
        sparsity: Exact fraction of zeros over the selected weights, in [0, 1). None is 0.9, or of ``distribution``.
        mask: Which weights are kept: a name in `masks.SCORES`, an import path, or e.g. ``SNIP(num_batches=10)``.
        distribution: How many a layer: "balanced" (the paper's), "erk", "uniform", "global", or a dict of glob pattern
            → sparsity. None is what the paper of the score, or of an update rule that prunes, uses.
        structure: In which pattern: "unstructured", "2:4" (any n:m), "2:4-cap" (at most 2 of 4), "4x4-block",
            "constant-fan-in", or a dict of glob pattern → structure. None: what the update rule needs.
        mask_from: A file to take the whole mask from: a checkpoint, a state dict, masks of other libraries.
        signs_from: A checkpoint to take the signs of the selected weights from; their magnitudes stay.
        magnitudes_from: A checkpoint to take the magnitudes of the selected weights from; their signs stay.
        flip_signs: Share in [0, 1] of the kept weights whose starting sign is flipped, at random (Table 9).
        update: How the mask moves: a name in `updates.UPDATES`, an import path, or e.g. ``RigL(drop_fraction=0.5)``.
        parametrization: How θ is made of trainable tensors: a name in `parametrizations.PARAMETRIZATIONS`, or e.g.
            ``STR(s_init=-5)``. "plain" is θ itself: the baseline "Random" of the paper's Table 3.
        beta: The scaling β > 0, or a dict of glob pattern on plain names → β.
        rescale_every_n_epochs: p; None never rescales ("m ⊙ w" of Table 14).
        rescale_every_n_steps: Counts optimizer steps (``trainer.global_step``) instead; needs
            ``rescale_every_n_epochs=None``.
        rescale_until: T₂: the first epoch without rescales (int), or a fraction of the run (float).
        rescale_momentum: What a rescale does to the optimizer's momentum: "carry" it over to the new factors, "keep"
            it (Listing 1; works with every optimizer), or "clear" it.
        frobenius_decay: λ ≥ 0: adds the gradient of (λ/2)·‖m ⊙ w‖², so that λ compares with ``weight_decay`` on θ.
            The paper's loss term λ‖m ⊙ w‖² is 2λ here. Set the optimizer's ``weight_decay`` of these weights to 0.
        include: Glob patterns of the weights to make sparse; None takes every Conv and Linear weight.
        exclude: Glob patterns of weights to leave dense.
        storage: "compact" (factors are vectors of the non-zeros), "dense", or "auto".
        seed: Seed of the random mask; None takes the seed of ``seed_everything``, or 0.

    Raises:
        ValueError: For values out of range and unknown names, here; for what the model or the run does not allow, at
            the start of ``fit``.

    Example:
        >>> SignInCallback(mask="snip", update="rigl").start.rule.drop_fraction
        0.3
        >>> SignInCallback(sparsity=90)
        Traceback (most recent call last):
        ValueError: `sparsity` must be in [0, 1), got 90. Pass the fraction of zeros, e.g. 0.9.
    """

    def __init__(
        self,
        *,
        sparsity: float | None = None,
        mask: str | Score = "random",
        distribution: str | dict[str, float] | None = None,
        structure: str | int | Structure | dict[str, str | int] | None = None,
        mask_from: str | os.PathLike | None = None,
        signs_from: str | os.PathLike | None = None,
        magnitudes_from: str | os.PathLike | None = None,
        flip_signs: float = 0.0,
        update: str | UpdateRule | None = None,
        parametrization: str | Parametrization = "sign-in",
        beta: float | dict[str, float] = 1.0,
        rescale_every_n_epochs: int | None = 5,
        rescale_every_n_steps: int | None = None,
        rescale_until: int | float = 0.75,
        rescale_momentum: Literal["keep", "carry", "clear"] = "carry",
        frobenius_decay: float = 0.0,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        storage: Literal["auto", "compact", "dense"] = "auto",
        seed: int | None = None,
    ) -> None:
        self.start = Start(
            sparsity=sparsity,
            mask=mask,
            distribution=distribution,
            structure=structure,
            mask_from=mask_from,
            signs_from=signs_from,
            magnitudes_from=magnitudes_from,
            flip_signs=flip_signs,
            update=update,
            parametrization=parametrization,
            beta=beta,
            include=include,
            exclude=exclude,
            storage=storage,
            seed=seed,
        )
        check_choice("rescale_momentum", rescale_momentum, MOMENTUM)
        if not frobenius_decay >= 0:
            raise ValueError(f"`frobenius_decay` must be at least 0, got {frobenius_decay}. The paper uses 1e-4.")
        self.schedule = RescaleSchedule(rescale_every_n_epochs, rescale_every_n_steps, rescale_until)
        self.rescale_momentum = rescale_momentum
        self.frobenius_decay = frobenius_decay
        self._module: LightningModule | None = None
        self._training: Training | None = None  # while the model is sparse
        self._finished: State = {}  # the last state, from the merge until the next fit
        self._replaced: dict[int, tuple[nn.Parameter, SparseWeight]] = {}  # plain parameters, until the fit starts
        self._undo = ExitStack()

    @property
    def state_key(self) -> str:
        """The key of this callback's state in a checkpoint; a sentence, see `STATE_KEY`."""
        return STATE_KEY

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare a fit; the model itself is made sparse when it is complete, at the end of ``configure_model``."""
        if stage != "fit":
            return
        self._finish()
        check_companions(trainer)
        self.schedule.check_run(trainer.fit_loop.max_epochs, trainer.max_steps)
        known = saved_masks(self._finished) if self._finished and self._module is pl_module else None
        self._module, self._finished = pl_module, {}
        self._position = Position(trainer)
        self._resumed = False
        self._undo.callback(self._position.detach)
        complete = partial(self._sparsify, trainer, pl_module, known)
        self._undo.enter_context(wrapped_hooks(trainer, pl_module, complete, self._position.attach))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the optimizers train every weight and that a checkpoint to resume was a sparse run's."""
        if trainer.ckpt_path and not self._resumed and not trainer.strategy.restore_checkpoint_after_setup:
            raise ValueError(NOT_SPARSE)
        for optimizer in trainer.optimizers:  # LightningCLI builds its --optimizer before any fit
            exchange_parameters(optimizer, {key: weight for key, (_, weight) in self._replaced.items()})
        self._replaced = {}
        self._ongoing.check()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get ready to train; on resuming, restore the random generators."""
        self._ongoing.begin()
        self._position.restore_generators()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Move the mask and rescale, if it is due."""
        self._ongoing.before_batch()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Move the mask, if it is due, or decay."""
        self._ongoing.before_step(optimizer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Note the loss."""
        self._ongoing.after_batch(outputs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log ``signin/sparsity``, ``signin/sign_flips``, ``signin/scaling``, and how far the mask has moved."""
        logged = {f"signin/{name}": value for name, value in self._ongoing.after_epoch().items()}
        pl_module.log_dict(logged, sync_dist=trainer.world_size > 1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge."""
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Merge: callbacks after this one may write a checkpoint now, and it can be resumed."""
        self._finish(alone=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Merge if nothing has before: tuners end a fit with no other hook."""
        self._finish()

    def state_dict(self) -> State:
        """What resuming needs and a plain state dict cannot hold: tensors and plain values."""
        return self._finished if self._training is None else self._state()

    def load_state_dict(self, state_dict: State) -> None:
        """Take over mask, factors, counters and position of the run that wrote the checkpoint."""
        if self._training is None or self._module is None:
            return
        check_same_run(state_dict["arguments"], self.start.saved(), any_seed=self.start.seed is None)
        load_factor_state(self._module, state_dict)
        self._training.load(state_dict)
        self._position.load(state_dict["position"])
        self._resumed = True

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        """Refuse to resume what was not a sparse run."""
        if self._training is not None and STATE_KEY not in checkpoint["callbacks"]:
            raise ValueError(NOT_SPARSE)

    @property
    def _ongoing(self) -> Training:
        assert self._training is not None
        return self._training

    def _sparsify(
        self, trainer: Trainer, module: LightningModule, known: dict[str, Tensor] | None, resumes: bool
    ) -> None:
        parameters = dict(module.named_parameters())
        self.start.sparsify(trainer, module, known, resumes)
        self._training = Training(
            trainer, module, self.start, self.schedule, self.rescale_momentum, self.frobenius_decay
        )
        weights = self._training.weights
        self._replaced = {id(parameters[name]): (parameters[name], weight) for name, weight in weights.items()}
        if trainer.world_size > 1:  # ranks that start from other weights would choose other magnitudes
            digest = mask_digest(module)
            same = trainer.strategy.broadcast(digest) == digest
            if not trainer.strategy.reduce_boolean_decision(same):
                load_factor_state(module, trainer.strategy.broadcast(factor_state(module)))

    def _state(self, alone: bool = False) -> State:
        assert self._module is not None
        state = {**factor_state(self._module), **self._ongoing.state()}
        return {"arguments": self.start.saved(), **state, "position": self._position.state(alone)}

    def _finish(self, alone: bool = False) -> None:
        try:
            if self._training is not None:
                self._finished = self._state(alone)
                self._training.close()
        finally:  # whatever fails, the user's model is plain again
            if self._training is not None and self._module is not None:
                merge_(self._module)
            self._training, self._replaced = None, {}
            self._undo.close()
