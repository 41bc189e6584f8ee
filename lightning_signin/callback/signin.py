"""`SignInCallback`: its arguments, and hooks that delegate to the `Fit` in progress."""

import os
from collections.abc import Sequence
from typing import Any, Literal
from weakref import ref

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightning_signin.callback.exporting import export_fit, parse_exports
from lightning_signin.callback.fit import Fit, Sparsify
from lightning_signin.callback.lightning_internals import LOGGING, log_to_loggers
from lightning_signin.callback.resuming import STATE_KEY
from lightning_signin.callback.schedule import RescaleSchedule
from lightning_signin.callback.start import Start
from lightning_signin.callback.training import TrainingOptions
from lightning_signin.errors import SignInError
from lightning_signin.masks.scores import Score
from lightning_signin.masks.structures import Structure
from lightning_signin.parametrizations import Parametrization
from lightning_signin.updates import UpdateRule
from lightning_signin.weightfiles.factor_state import saved_factors

State = dict[str, Any]


class SignInCallback(Callback):
    r"""Trains any LightningModule as a sparse network with Sign-In (arXiv:2504.12801, Algorithm 1).

    At the start of ``fit`` the selected weights are masked and each becomes a product m ⊙ w; every p epochs m² − w² is
    reset to β; at the end m ⊙ w is merged. ``state_dict`` is plain at any time. A module that ``configure_model`` has
    made sparse keeps its masks and factors, sharded by FSDP2 or not.

    Args:
        sparsity: Exact fraction of zeros over the selected weights, in [0, 1). Default: 0.9, or as implied by
            ``distribution``.
        mask: Which weights are kept: a name in `masks.SCORES`, an import path, or e.g. ``SNIP(num_batches=10)``.
        distribution: How many weights each layer keeps: "balanced" (the paper's), "erk", "uniform", "global", or a dict
            of glob pattern → sparsity, a name for the rest, or ``{"max_sparsity": s}``. Default: as in the paper of the
            score, or of an update rule that prunes.
        structure: The pattern of the kept weights: "unstructured", "2:4" (any n:m), "2:4-cap" (at most 2 of 4),
            "4x4-block", "constant-fan-in", or a dict of glob pattern → structure. Default: what the update rule needs.
        mask_from: A file to take the whole mask from: a checkpoint, a state dict, masks of other libraries.
        signs_from: A checkpoint to take the signs of the selected weights from; their magnitudes stay.
        magnitudes_from: A checkpoint to take the magnitudes of the selected weights from; their signs stay.
        flip_signs: Share in [0, 1] of the kept weights whose starting sign is flipped, at random (Table 9).
        update: How the mask moves: a name in `updates.UPDATES`, an import path, or e.g. ``RigL(drop_fraction=0.5)``.
        parametrization: How θ is computed from trainable tensors: a name in `parametrizations.PARAMETRIZATIONS`, or
            e.g. ``STR(s_init=-5)``. "plain" is θ itself: the baseline "Random" of the paper's Table 3.
        beta: The scaling β > 0, or a dict of glob pattern on plain names → β.
        rescale_every_n_epochs: p; None never rescales ("m ⊙ w" of Table 14).
        rescale_every_n_steps: In optimizer steps (``trainer.global_step``); needs ``rescale_every_n_epochs=None``.
        rescale_until: T₂: the first epoch without rescales (int), or a fraction of the run (float).
        rescale_momentum: At a rescale, "carry" momentum over to the new factors, "keep" (Listing 1) or "clear" it.
        weight_decay: The optimizer's acts on "theta", as on plain weights, or "factors", m and w (Table 5, ImageNet).
        frobenius_decay: λ ≥ 0: adds the gradient of (λ/2)·‖m ⊙ w‖² (the paper's λ‖m ⊙ w‖² is 2λ here), in place of the
            optimizer's ``weight_decay``: both at once are a warning.
        log_layers: Also log sign flips, density and scaling of every layer.
        warmup_epochs: Log sign flips from the start to the end of this many epochs, and since then (Figure 1).
        sharpness_every_n_epochs: Log the sharpness after every n-th epoch: the largest eigenvalue of the Hessian of the
            training loss in θ, on the mask, within 1e-3 (Figure 4).
        sharpness_batches: Number of training batches to measure it on, the same ones every time.
        sharpness_mode: The network's mode during it: "eval", or "train", with dropout and batch statistics active.
        include: Glob patterns on the names of the weights to make sparse, or on the types of their layers
            ("type:Conv2d"). Default: every weight that multiplies activations, see `lightning_signin.core.kinds`.
        exclude: Patterns of the same form, of weights to leave dense.
        storage: "compact" (factors are vectors of the non-zeros), "dense", or "auto".
        seed: Seed of the random mask; None takes the seed of ``seed_everything``, or 0.
        export: "safetensors", "compressed", or a list of them: at the end of ``fit``, the merged weights are written
            as ``merged`` into the log folder, and each file that a ModelCheckpoint kept is exported next to itself.

    Raises:
        SignInError: For values out of range and unknown names, here; for what the model or the run does not allow, at
            the start of ``fit``.

    Example:
        >>> SignInCallback(mask="snip", update="rigl").start.rule.drop_fraction
        0.3
        >>> SignInCallback(sparsity=90)
        Traceback (most recent call last):
        lightning_signin.SignInError: `sparsity` must be in [0, 1), got 90. Pass the fraction of zeros, e.g. 0.9.
    """

    def __init__(
        self,
        *,
        sparsity: float | None = None,
        mask: str | Score = "random",
        distribution: str | dict[str, float | str | dict[str, float]] | None = None,
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
        weight_decay: Literal["theta", "factors"] = "theta",
        frobenius_decay: float = 0.0,
        log_layers: bool = False,
        warmup_epochs: int | None = None,
        sharpness_every_n_epochs: int | None = None,
        sharpness_batches: int = 1,
        sharpness_mode: Literal["eval", "train"] = "eval",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        storage: Literal["auto", "compact", "dense"] = "auto",
        seed: int | None = None,
        export: str | Sequence[str] | None = None,
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
        self.options = TrainingOptions(
            schedule=RescaleSchedule(rescale_every_n_epochs, rescale_every_n_steps, rescale_until),
            rescale_momentum=rescale_momentum,
            weight_decay=weight_decay,
            frobenius_decay=frobenius_decay,
            log_layers=log_layers,
            warmup_epochs=warmup_epochs,
            sharpness_every_n_epochs=sharpness_every_n_epochs,
            sharpness_batches=sharpness_batches,
            sharpness_mode=sharpness_mode,
        )
        self.exports = parse_exports(export)
        self.sparsify: Sparsify = self.start.sparsify
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
        self._fit = Fit(trainer, pl_module, self.start, self.options, self.sparsify, earlier)
        self._last_module, self._finished = ref(pl_module), {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the optimizers train every weight and that a checkpoint to resume is from a sparse run."""
        self._ongoing.check()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get ready to train; on resuming, restore the random generators."""
        self._ongoing.begin()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Move the mask and rescale, if due."""
        self._ongoing.ongoing.before_batch()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Move the mask, if due, or apply the decay."""
        self._ongoing.ongoing.before_step(optimizer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Record the loss."""
        self._ongoing.ongoing.after_batch(outputs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log ``signin/sparsity``, ``signin/sign_flips``, ``signin/scaling``, and how far the mask has moved."""
        numbers, layers = self._ongoing.ongoing.after_epoch()
        pl_module.log_dict(
            {f"signin/{n}": v for n, v in numbers.items()}, sync_dist=trainer.world_size > 1, batch_size=1
        )
        log_to_loggers(trainer, {f"signin/{n}": v for n, v in layers.items()})  # layers have many

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Merge, and write the requested files."""
        self._end()
        export_fit(trainer, pl_module, self.exports, self._finished)

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
    def _ongoing(self) -> Fit:
        assert self._fit is not None
        return self._fit

    @property
    def _module(self) -> LightningModule | None:
        """The module of the last fit, as long as it exists."""
        return None if self._last_module is None else self._last_module()

    def _end(self, alone: bool = False) -> None:
        if self._fit is not None:
            fit, self._fit = self._fit, None
            self._finished = fit.end(alone)
