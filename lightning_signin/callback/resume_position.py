"""A run's position in its data and its random numbers, on every rank: what makes resuming exact."""

import os
import warnings
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch.distributed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_signin.callback.lightning_internals import finds_unused_parameters, leave_restart, training_loader
from lightning_signin.callback.two_packages import in_both
from lightning_signin.core.structure import anything, check_structure, entries, of_type, optional, several
from lightning_signin.core.torch_internals import tree_map, version_of
from lightning_signin.randomness import generators, replay

State = dict[str, Any]


class Position:
    """Tracks the training loaders of one fit.

    Args:
        trainer: The trainer of the fit.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        # Weak, so that loaders that Lightning has replaced with reloaded ones are freed.
        self._recorders: WeakKeyDictionary[Any, replay.Recorder] = WeakKeyDictionary()
        self._inexact: list[str] = []
        self._to_restore: State | None = None
        self._to_replay: list[State] = []
        self._written = 0
        self._filters: list[Any] = []  # of warnings, until the end of the fit

    def attach(self, loader: object) -> None:
        """Record a training loader, and on resuming continue it where it was."""
        if loader in self._recorders:
            return
        recorder = replay.attach(loader, self._current)
        if recorder is None:
            self._inexact.append("the position of an iterable or stateful training loader is not restored")
            return
        if recorder.inexact:
            self._inexact.append(recorder.inexact)
        if self._to_replay and self._to_restore is not None:
            recorder.resume(self._to_replay.pop(0), self._to_restore["epoch_complete"])
        self._recorders[loader] = recorder

    def detach(self) -> None:
        """Stop recording the loaders, and let Lightning warn again."""
        for recorder in self._recorders.values():
            recorder.detach()
        self._recorders.clear()
        for added in self._filters:
            if added in warnings.filters:
                warnings.filters.remove(added)  # type: ignore[attr-defined]
        self._filters = []

    def begin_batch(self) -> None:
        """Note how often buffers have been written: what a step that fails has done to them cannot be undone."""
        self._written = self._writes()

    def state(self, alone: bool = False) -> State:
        """The position now.

        Args:
            alone: Save only this rank's generators: after an exception the other ranks may not respond.

        Returns:
            Tensors and plain values only, as ``torch.load(weights_only=True)`` reads them.
        """
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        mid_batch = progress.current.ready != progress.current.processed
        recorders = self._current()
        now = recorders[0].before_fetch if mid_batch and recorders else None
        mine = {
            "generators": now or generators.capture(),
            "loaders": [r.state(in_flight=int(mid_batch)) for r in recorders],
        }
        return {
            "epoch_complete": progress.current.processed >= self.trainer.num_training_batches,
            "ranks": [mine] if alone or self.trainer.world_size == 1 else _of_all_ranks(mine, self.trainer.world_size),
            "seed": os.environ.get("PL_GLOBAL_SEED"),
            "inexact": self._not_exact_from_here(progress, mid_batch),
        }

    def load(self, state: State) -> None:
        """Continue from a saved position, as soon as the loaders and the training loop exist.

        Raises:
            SignInError: If it is altered.
        """
        rank = self.trainer.global_rank
        named = {"epoch_complete": of_type(bool), "seed": optional(of_type(str)), "inexact": several(of_type(str))}
        check_structure(replay.POSITION, state, entries({**named, "ranks": several(anything)}))
        self._to_restore = state
        self._inexact += state["inexact"]
        if state["seed"] != os.environ.get("PL_GLOBAL_SEED"):
            self._inexact.append(f"seed_everything was {state['seed']}, and is {os.environ.get('PL_GLOBAL_SEED')}")
        if self._sums_in_another_order():
            self._inexact.append(
                "DDP on more than two ranks sums gradients in a different order in the first step, before it has "
                "rebuilt its buckets (strategy='ddp_find_unused_parameters_true' avoids this)"
            )
        if len(state["ranks"]) == self.trainer.world_size:
            own = entries({"generators": generators.expected_state(), "loaders": several(anything)})
            check_structure(replay.POSITION, state["ranks"][rank], own)
            self._to_replay = list(state["ranks"][rank]["loaders"])
        else:
            self._inexact.append(f"generators of {len(state['ranks'])} ranks were saved, {self.trainer.world_size} run")

    def restore_generators(self) -> None:
        """On resuming, restore the generators, and warn if the run will not equal the uninterrupted one."""
        if self._to_restore is None:
            return
        if self._to_restore["epoch_complete"]:
            self._leave_finished_epoch()
        if len(self._to_restore["ranks"]) == self.trainer.world_size:
            generators.restore(self._to_restore["ranks"][self.trainer.global_rank]["generators"])
        if self._inexact:
            rank_zero_warn(f"This resume is not bit for bit: {'; '.join(dict.fromkeys(self._inexact))}.")
        else:  # Lightning does not know about the replay, and is about to warn of unreliable results
            before = len(warnings.filters)
            warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")
            self._filters += warnings.filters[: len(warnings.filters) - before]
        self._to_restore = None

    def _leave_finished_epoch(self) -> None:
        # With max_steps, Lightning takes every checkpoint for one from inside an epoch (`_FitLoop.restarting`). From an
        # epoch's end it would train one more batch in that epoch.
        loop: Any = self.trainer.fit_loop
        total = loop.epoch_progress.total
        if loop.restarting and total.ready == total.started == total.processed:
            if total.completed < total.processed:
                loop.epoch_progress.increment_completed()
            leave_restart(loop)

    def _sums_in_another_order(self) -> bool:
        """Whether the first gradients are summed in another order than without the interruption (never on 2 ranks)."""
        strategy: Any = self.trainer.strategy
        if self.trainer.world_size < 3 or not isinstance(strategy, in_both(DDPStrategy)):
            return False
        return not finds_unused_parameters(strategy)

    def _current(self) -> list[replay.Recorder]:
        """The recorders of the loaders that Lightning trains with now, in its order."""
        combined = training_loader(self.trainer.fit_loop)
        loaders = [] if combined is None else combined.flattened
        return [self._recorders[loader] for loader in loaders if loader in self._recorders]

    def _writes(self) -> int:
        return sum(version_of(buffer) for buffer in self.trainer.lightning_module.buffers())

    def _not_exact_from_here(self, progress: Any, mid_batch: bool) -> list[str]:
        trainer: Any = self.trainer
        reasons = []
        if mid_batch and self._writes() != self._written:
            reasons.append(
                "the checkpoint is from inside a training step that failed after it had changed buffers, such as "
                "BatchNorm's statistics"
            )
        last = progress.current.processed >= trainer.num_training_batches
        if not last and progress.current.processed % trainer.accumulate_grad_batches:
            reasons.append("the checkpoint is from inside an accumulation window, whose gradients are lost")
        if last and trainer.reload_dataloaders_every_n_epochs:
            reasons.append("reload_dataloaders_every_n_epochs draws further seeds after an epoch's end")
        every = trainer.check_val_every_n_epoch
        validates = trainer.enable_validation and every is not None and (trainer.current_epoch + 1) % every == 0
        if last and validates and progress.current.completed < progress.current.processed:
            reasons.append("the checkpoint is from the last batch of an epoch, before its validation, which is skipped")
        return reasons


def _of_all_ranks(mine: State, world_size: int) -> list[State]:
    """What each rank has, in their order."""
    everyone: list[Any] = [None] * world_size
    # As arrays: tensors are pickled by `torch.save`, which users patch to count, time or replace the files it writes.
    arrays = tree_map(lambda value: value.numpy() if isinstance(value, Tensor) else value, mine)
    torch.distributed.all_gather_object(everyone, arrays)
    return tree_map(lambda value: torch.from_numpy(value) if isinstance(value, np.ndarray) else value, everyone)
