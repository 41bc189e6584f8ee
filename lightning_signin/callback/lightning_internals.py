"""The internals of Lightning that this package reads and replaces; each function says why it is needed.

If a version of Lightning moves one, tests/callback/test_lightning_internals.py names it. One attribute is read in a
room that knows no Lightning: `_hparams_name`, in export/checkpoint.py.

What replaces something in Lightning, and where that is undone; for torch see core/torch_internals.py:

- On the instances, for the time of a fit: `configure_optimizers` of the module, `process_dataloader` of the strategy,
  `_restore_modules_and_callbacks` of the checkpoint connector, and `configure_model` where a strategy restores late
  (`wrapped_hooks`); hooks of an averaging callback (`Averaging.attached`), and those that users have overridden
  (`user_hooks`). `replaced_on_instances` undoes it at the end of its context (callback/wrapped_hooks.py), which
  `Fit` closes however a fit ends.
- `strict_loading` of the module while a checkpoint is loaded into a sharded one: `loads_any_entries`, below, until the
  end of its context.
- `max_epochs` of the fit loop while the steps of a run are counted: `total_steps` (callback/schedule.py), at once.
- The restart stage of the loops, when a checkpoint is from an epoch's end: `leave_restart`, below; Lightning leaves it
  itself after the first batch.
- Of copies that are scored and thrown away, never undone: `log`, `log_dict`, `print`, `manual_backward` and `trainer`
  of the module (callback/scoring/data.py), and strategy, loop, connector and loggers of the trainer; classes of the
  strategy and the loop make optimizers and loaders on demand (callback/scoring/trainer.py).
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.connectors.data_connector import (
    _check_dataloader_iterable,
    _parse_num_batches,
    _request_dataloader,
    _resolve_overfit_batches,
)
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn

# The method of `checkpoint_connector` that runs right after `configure_model`, and first knows of a checkpoint.
RESTORE = "_restore_modules_and_callbacks"
# Methods of the module that Lightning sets on every callback, and leaves there with the module behind them.
LOGGING = ("log", "log_dict")
# What a strategy holds of optimizers, and the fit loop of training loaders: a stand-in makes it on demand.
OF_OPTIMIZERS = ("_optimizers", "_lightning_optimizers", "lr_scheduler_configs")
OF_LOADERS = ("_combined_loader", "max_batches")


def average_of(callback: Any) -> nn.Module:
    """The average of a `WeightAveraging` or a `StochasticWeightAveraging`; neither gives public access to it."""
    return callback._average_model


def checkpoint_connector(trainer: Trainer) -> Any:
    """The method that restores a checkpoint: no hook lies between ``configure_model`` and it."""
    return trainer._checkpoint_connector


def saves_shards(strategy: Any) -> bool:
    """Whether a `ModelParallelStrategy` writes folders of shards; its argument is private."""
    return strategy._save_distributed_checkpoint


def finds_unused_parameters(strategy: Any) -> bool:
    """Whether a `DDPStrategy` looks for unused parameters, and so never rebuilds its buckets; see `saves_shards`."""
    return bool(strategy._ddp_kwargs.get("find_unused_parameters"))


@contextmanager
def loads_any_entries(module: LightningModule) -> Iterator[None]:
    """Set `strict_loading` to False, then restore it, even to unset, which the public setter cannot do."""
    strict, module.strict_loading = module._strict_loading, False
    try:
        yield
    finally:
        module._strict_loading = strict


def is_tuned(trainer: Any) -> bool:
    """Whether a `Tuner` runs this fit, and ends it before training: it marks the callback that it adds for that."""
    return any(getattr(callback, "_early_exit", False) for callback in trainer.callbacks)


def log_to_loggers(trainer: Trainer, numbers: Mapping[str, Any]) -> None:
    """Log numbers past `log_dict`, which takes some 0.5 ms for each."""
    trainer._logger_connector.log_metrics(numbers)  # type: ignore[arg-type]


def leave_restart(loop: Any) -> None:
    """The fit loop does not restart within an epoch. Its own setter may say that it does; that of its base does not."""
    _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]
    loop.reset_restart_stage()
    loop.epoch_loop.reset_restart_stage()


def training_loader(loop: Any) -> CombinedLoader | None:
    """The combined training loader of a fit loop; None before it exists. `trainer.train_dataloader` is not flat."""
    return loop._combined_loader


def set_training_loader(loop: Any, loader: CombinedLoader) -> None:
    """Let a fit loop train with it."""
    loop._combined_loader = loader


def data_source(trainer: Trainer) -> Any:
    """Where the training data of a fit come from: arguments, module or data module."""
    return trainer.fit_loop._data_source


def requested_loaders(source: Any) -> Any:
    """What a data source gives, in such a way that Lightning can exchange the samplers of its loaders later."""
    return _request_dataloader(source)


def leave_in_order(loader: CombinedLoader) -> None:
    """Take the shuffling from training loaders, as ``overfit_batches`` asks for."""
    _resolve_overfit_batches(loader, RunningStage.TRAINING)


def prepared_loader(trainer: Trainer, loader: object) -> object:
    """A training loader with the sampler of a distributed run and the strategy's own wrapping."""
    return trainer._data_connector._prepare_dataloader(loader, shuffle=True, mode=RunningStage.TRAINING)


def limited(length: float, limit: float) -> float:
    """The number of training batches that ``limit_train_batches``, an amount or a share, leaves."""
    return _parse_num_batches(RunningStage.TRAINING, length, limit)


def check_iterable(loader: object, source: Any) -> None:
    """Raise what a fit would raise for training data that cannot be iterated."""
    _check_dataloader_iterable(loader, source, TrainerFn.FITTING)


def mode_of(loader: CombinedLoader) -> str:
    """How the iteration of several loaders in parallel ends: "min_size", "max_size_cycle", …."""
    return loader._mode


def before_transfer(module: LightningModule, batch: Any) -> Any:
    """A batch after the hook before the transfer to the device, as Lightning calls it."""
    return module._on_before_batch_transfer(batch)


def make_optimizers(module: LightningModule) -> tuple[list[Any], list[Any]]:
    """What ``configure_optimizers`` gives, in all its forms, as optimizers and as schedules."""
    return _init_optimizers_and_lr_schedulers(module)


def wrapped_optimizers(strategy: Any) -> list[Any]:
    """The strategy's optimizers as ``self.optimizers()`` gives them, in the same order; public only one by one."""
    return strategy._lightning_optimizers


def give_strategy(trainer: Any, strategy: Any, module: Any) -> None:
    """Let a copy of a trainer have a strategy of its own, which has a module of its own; neither has a setter."""
    trainer._accelerator_connector = copy.copy(trainer._accelerator_connector)
    trainer._accelerator_connector.strategy = strategy
    strategy._lightning_module = strategy.model = module
