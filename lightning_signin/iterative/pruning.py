"""The driver: one fit per level."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_signin.callback import SignInCallback
from lightning_signin.core.numbers import whole_number
from lightning_signin.errors import SignInError
from lightning_signin.iterative.arguments import check_same_arguments, plain_sign_in, plain_structure
from lightning_signin.iterative.callbacks import EpochEnds, SparsifyLevel, load_weights
from lightning_signin.iterative.folder import Folder
from lightning_signin.iterative.levels import Levels
from lightning_signin.iterative.seeds import enter_level
from lightning_signin.masks.build import StructureOf, check_choice
from lightning_signin.randomness import generators

REWINDS = ("lrr", "wr", "imp")

_log = logging.getLogger("lightning_signin")


class IterativePruning:
    """Iterative magnitude pruning: trains, prunes the smallest weights, rewinds, and trains the remaining ones again.

    Level 0 trains all weights. Every later level has a fresh Trainer, optimizer and learning-rate schedule, and keeps a
    share 1 − ``prune_rate`` of the previous level's weights: those of largest |θ|. The last level has exactly the
    target sparsity. The weights that a level starts from:

    - "imp": all weights, biases and buffers as they were at the start (Frankle, Carbin: "The Lottery Ticket
      Hypothesis", ICLR 2019);
    - "wr": as they were after ``rewind_epoch`` epochs of level 0 (Frankle et al.: "Linear Mode Connectivity and the
      Lottery Ticket Hypothesis", ICML 2020); the schedule restarts, whereas the paper's continues from that epoch;
    - "lrr": as the previous level left them (Renda, Frankle, Carbin: "Comparing Rewinding and Fine-tuning in Neural
      Network Pruning", ICLR 2020).

    The folder keeps what is needed to resume: `fit` with the same arguments skips what is finished, and ends bit for
    bit as if it had never been interrupted. See `Folder` for its files. All ranks must have access to it.

    Args:
        folder: The folder for the files of the run.
        sparsity: Exact fraction of zeros over the selected weights after the last level, in [0, 1).
        prune_rate: Share of the remaining weights that is pruned at each level, in (0, 1).
        rewind: "lrr", "wr" or "imp".
        rewind_epoch: For "wr", at least 1.
        distribution: How pruning is distributed: over all layers together ("global"), or so that the remaining weights
            are distributed as "uniform", "erk" or "balanced" prescribes.
        structure: The pattern of the last mask, as in `SignInCallback`; masks before it are unstructured. If it
            needs pruned weights, they return; without a structure none does.
        sign_in: Further arguments of the `SignInCallback` of every level, e.g. ``{"parametrization": "plain"}``.

    Raises:
        SignInError: For values out of range, unknown names, and arguments in ``sign_in`` that this class sets.

    Example:
        >>> IterativePruning("runs/tickets", sparsity=0.9, rewind="wr", rewind_epoch=2).levels.last
        11
        >>> IterativePruning("runs/tickets", rewind="wr")
        Traceback (most recent call last):
        lightning_signin.SignInError: `rewind_epoch` must be a whole number of at least 1, got None. rewind='wr' ...
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        sparsity: float = 0.9,
        prune_rate: float = 0.2,
        rewind: str = "lrr",
        rewind_epoch: int | None = None,
        distribution: str = "global",
        structure: StructureOf = "unstructured",
        sign_in: Mapping[str, Any] | None = None,
    ) -> None:
        check_choice("rewind", rewind, REWINDS)
        if rewind == "wr":
            rewind_epoch = whole_number("rewind_epoch", rewind_epoch, hint="rewind='wr' needs it, e.g. rewind_epoch=2.")
        elif rewind_epoch is not None:
            raise SignInError(f"`rewind_epoch`={rewind_epoch} has no effect with rewind={rewind!r}. Leave it out.")
        self.levels = Levels(sparsity, prune_rate, distribution, structure)
        self.folder = Folder(folder, rewinds=rewind == "wr")
        self.rewind, self.rewind_epoch = rewind, rewind_epoch
        self.sign_in = dict(sign_in or {})
        self.arguments = {
            **asdict(self.levels),
            "structure": plain_structure(structure),
            "rewind": rewind,
            "rewind_epoch": rewind_epoch,
            **plain_sign_in(self.sign_in),
        }

    def fit(
        self, make_trainer: Callable[[list[Callback]], Trainer], module: LightningModule, *data: Any, **options: Any
    ) -> None:
        """Train all levels that are not finished. The module ends plain, with the weights of the last level.

        Process-wide random generators, and those that the data's objects hold, are put into a known state at every
        level's start. Data that a ``setup`` splits at random needs its own seed, or else each level splits it anew.

        Args:
            make_trainer: Called for every level; builds a new Trainer with these callbacks added to its own (which must
                be new as well, if they have state): ``lambda callbacks: Trainer(max_epochs=10, callbacks=callbacks)``.
            module: The module to train.
            data: As in ``trainer.fit``.
            options: As in ``trainer.fit``, without ``ckpt_path``.

        Raises:
            SignInError: If the folder was started with other arguments, one of its files is damaged or of another
                model, the Trainer does not meet the requirements, or a weight is not finite.
        """
        if "ckpt_path" in options:
            raise SignInError("`ckpt_path` must be left out: the run resumes from its folder.")
        finished, last = self.folder.finished(), self.levels.last
        if self.folder.start.exists():
            begun_with = self.folder.read(self.folder.start)["arguments"]
            check_same_arguments(begun_with, self.arguments, self.folder.path)
        for level in range(finished, last + 1):
            self._fit_level(level, level == finished, make_trainer, module, *data, **options)
        if finished > last:
            load_weights(module, self.folder, self.folder.end(last))

    def _fit_level(
        self,
        level: int,
        may_resume: bool,
        make_trainer: Callable[[list[Callback]], Trainer],
        module: LightningModule,
        *data: Any,
        **options: Any,
    ) -> None:
        folder, last = self.folder, self.levels.last
        begun = folder.start.exists()
        generators_at_start = folder.read(folder.start)["generators"] if begun else generators.capture()
        first = {"arguments": self.arguments, "generators": generators_at_start}
        sign_in = SignInCallback(sparsity=self.levels.sparsity_at(level), **self.sign_in)
        sign_in.sparsify = SparsifyLevel(sign_in.arguments, folder, self.levels, level, self.rewind, first)
        added: list[Callback] = [sign_in, EpochEnds(folder, level, self.rewind_epoch)]
        trainer = _made(make_trainer, added)
        if level == 0 and trainer.max_epochs is not None and trainer.max_epochs >= 0:
            self._check_rewind_epoch(trainer.max_epochs)
        progress = folder.progress(level) if may_resume and folder.progress(level).exists() else None
        if progress is not None:
            folder.read(progress)  # raises a clear error if the file is damaged
        if trainer.is_global_zero:
            _log.info("Level %d of %d: sparsity %.4f", level, last, self.levels.sparsity_at(level))
        held = generators.Held()
        for holder in (module, *data, *options.values()):
            held.remember(holder)
        enter_level(level, generators_at_start)
        try:
            trainer.fit(module, *data, **{"weights_only": True, **options, "ckpt_path": progress})
        finally:
            held.restore()
        if level == 0:
            self._check_rewind_epoch(trainer.current_epoch)
        folder.save_checkpoint(trainer, folder.end(level))
        if trainer.is_global_zero:
            folder.progress(level).unlink(missing_ok=True)

    def _check_rewind_epoch(self, epochs: int) -> None:
        if self.rewind_epoch is not None and self.rewind_epoch > epochs:
            raise SignInError(
                f"`rewind_epoch`={self.rewind_epoch} must be an epoch of level 0, which has {epochs}. Lower it, or "
                "train longer."
            )


def _made(make_trainer: Callable[[list[Callback]], Trainer], added: list[Callback]) -> Trainer:
    """The Trainer of a level, checked."""
    try:
        trainer: Any = make_trainer(added)
    except RuntimeError as error:
        if "more than one stateful callback" not in str(error) or "SignIn" not in str(error):
            raise
        raise SignInError(
            "`make_trainer` must not add a SignInCallback: every level adds its own. Pass its arguments as sign_in={…} "
            "to IterativePruning."
        ) from error
    if not all(any(callback is one for one in trainer.callbacks) for callback in added):
        raise SignInError(
            "`make_trainer` must build a new Trainer with the callbacks that are passed to it. Write "
            "`lambda callbacks: Trainer(callbacks=[*others, *callbacks])`."
        )
    if trainer.fast_dev_run:
        raise SignInError(
            "`fast_dev_run` writes no checkpoints, but its levels would count as finished. Use `limit_train_batches` "
            "and `max_epochs` in a separate folder."
        )
    return trainer
