"""Lightning's own callbacks beside ours."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.compat.rows import Row
from tests.compat.task import BATCH, Task, splits, val_loader


class Backbone(Task):
    """A backbone that is frozen for the first epoch."""

    def __init__(self) -> None:
        super().__init__(optimizers=self.of_the_rest)
        self.backbone = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))

    @staticmethod
    def of_the_rest(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.05, momentum=0.9)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.backbone(x))


class Tuned(Task):
    """What the tuners change: a learning rate."""

    def __init__(self) -> None:
        super().__init__(optimizers=lambda module: torch.optim.SGD(module.parameters(), lr=module.lr))
        self.lr = 0.05


class TunedBatches(Tuned):
    """What the other tuner changes: a batch size. Without dropout and in order, as a search draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_size = BATCH
        self.net.dropout = nn.Identity()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(splits()[0], self.batch_size)

    val_dataloader = staticmethod(val_loader)


class Writer(callbacks.BasePredictionWriter):
    def write_on_batch_end(self, *_: Any) -> None:
        """Nothing: there is no prediction in a fit."""


class Unfreeze(callbacks.BaseFinetuning):
    def freeze_before_training(self, module: Any) -> None:
        self.freeze(module.backbone)

    def finetune_function(self, module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(module.backbone, optimizer)


def beside(name: str, make: Callable[[Any], Any], module: Any = Task, says: str | None = None, **options: Any) -> Row:
    return Row(name, module, lambda folder: {**options, "callbacks": [make(folder)]}, says=says)


def logging(name: str, make: Callable[[], Any]) -> Row:
    """A callback that needs a logger."""
    given = {"log_every_n_steps": 2}
    return Row(name, trainer=lambda folder: {**given, "logger": CSVLogger(folder), "callbacks": [make()]})


def tuned(name: str, make: Callable[[], Any]) -> Row:
    started = {"fit": lambda trainer, module: trainer.fit(module)}
    return Row(name, TunedBatches, lambda _: {"callbacks": [make()], "enable_checkpointing": True}, **started)


def saved(folder: Any, **options: Any) -> Any:
    return callbacks.ModelCheckpoint(folder, "{epoch}-{step}", monitor="val_loss", save_top_k=-1, **options)


def boards(folder: Any) -> dict[str, Any]:
    return {"logger": TensorBoardLogger(folder), "log_every_n_steps": 1}


def monitored(folder: Any) -> dict[str, Any]:
    return {"logger": CSVLogger(folder), "log_every_n_steps": 2, "callbacks": [callbacks.DeviceStatsMonitor(True)]}


def rich(folder: Any) -> dict[str, Any]:
    shown = {"enable_progress_bar": True, "enable_model_summary": True}
    return {**shown, "callbacks": [callbacks.RichProgressBar(), callbacks.RichModelSummary(max_depth=-1)]}


FROZEN = "frozen (requires_grad=False)"
CHECKPOINTING = {"enable_checkpointing": True}

CALLBACKS = [
    beside("EarlyStopping", lambda _: callbacks.EarlyStopping("val_loss", patience=3)),
    beside("EarlyStopping in an epoch", lambda _: callbacks.EarlyStopping("loss", stopping_threshold=2.2)),
    beside("ModelCheckpoint", saved, **CHECKPOINTING),
    beside("ModelCheckpoint of weights", lambda f: saved(f, save_weights_only=True, save_last=True), **CHECKPOINTING),
    beside("ModelCheckpoint by step", lambda f: callbacks.ModelCheckpoint(f, every_n_train_steps=4), **CHECKPOINTING),
    beside("OnExceptionCheckpoint", lambda folder: callbacks.OnExceptionCheckpoint(folder), **CHECKPOINTING),
    beside("ModelSummary", lambda _: callbacks.ModelSummary(max_depth=-1), enable_model_summary=True),
    beside("TQDMProgressBar", lambda _: callbacks.TQDMProgressBar(), enable_progress_bar=True),
    beside("GradientAccumulationScheduler", lambda _: callbacks.GradientAccumulationScheduler({0: 1, 1: 2})),
    beside("Timer", lambda _: callbacks.Timer(timedelta(hours=1))),
    beside("BackboneFinetuning", lambda _: callbacks.BackboneFinetuning(1), Backbone, FROZEN),
    beside("BaseFinetuning", lambda _: Unfreeze(), Backbone, FROZEN),
    beside("SpikeDetection", lambda folder: callbacks.SpikeDetection(exclude_batches_path=str(folder / "spikes.json"))),
    beside("WeightAveraging", lambda _: callbacks.WeightAveraging()),
    beside("EMAWeightAveraging", lambda _: callbacks.EMAWeightAveraging(decay=0.8, update_every_n_steps=2)),
    beside("StochasticWeightAveraging", lambda _: callbacks.StochasticWeightAveraging(0.03, annealing_epochs=1)),
    beside("LambdaCallback", lambda _: callbacks.LambdaCallback(on_train_start=lambda *_: None)),
    beside("BasePredictionWriter", lambda _: Writer("batch")),
    logging("LearningRateMonitor", lambda: callbacks.LearningRateMonitor("step", log_momentum=True)),
    logging("ThroughputMonitor", lambda: callbacks.ThroughputMonitor(lambda batch: len(batch[0]))),
    tuned("LearningRateFinder", lambda: callbacks.LearningRateFinder(num_training_steps=6)),
    Row(
        "TensorBoardLogger",
        trainer=lambda f: {"logger": TensorBoardLogger(f), "log_every_n_steps": 1},
        needs="tensorboard",
    ),
    Row("DeviceStatsMonitor", trainer=monitored, needs="psutil"),
    Row("RichProgressBar", trainer=rich, needs="rich"),
    tuned("BatchSizeFinder", lambda: callbacks.BatchSizeFinder(max_trials=2, init_val=4, steps_per_trial=2)),
]
