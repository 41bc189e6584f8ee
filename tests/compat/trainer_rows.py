"""What a user gives the Trainer: precisions, clipping, accumulation, limits, loggers, profilers."""

from typing import Any

import lightning.fabric.plugins.io.torch_io as torch_io
import pytorch_lightning
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from tests.compat.rows import Row
from tests.compat.task import Steps, train_loader, val_loader


def trainer(name: str, **options: Any) -> Row:
    return Row(name, trainer=lambda folder: dict(options))


class Digits(LightningDataModule):
    def train_dataloader(self) -> Any:
        return train_loader()

    def val_dataloader(self) -> Any:
        return val_loader()


class OtherImport(Steps, pytorch_lightning.LightningModule):
    """The task with `pytorch_lightning`."""


def other(name: str, sign_in: Any = None, **options: Any) -> Row:
    made = {"module": OtherImport, "trainer": lambda folder: dict(options), "sign_in": sign_in or {}}
    return Row(f"pytorch_lightning {name}", lightning=pytorch_lightning, **made)


PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")

TRAINERS = [
    *(trainer(precision, precision=precision) for precision in PRECISIONS),
    trainer("clipping by norm", gradient_clip_val=0.1),
    trainer("clipping by value", gradient_clip_val=0.01, gradient_clip_algorithm="value"),
    trainer("accumulation", accumulate_grad_batches=2),
    trainer(
        "accumulation, clipping and bf16-mixed",
        accumulate_grad_batches=3,
        gradient_clip_val=0.1,
        precision="bf16-mixed",
    ),
    trainer("max_steps", max_epochs=-1, max_steps=10),
    trainer("limits", limit_train_batches=5, limit_val_batches=1),
    trainer("overfit_batches", overfit_batches=5),
    trainer("val_check_interval", val_check_interval=2),
    trainer("validation every second epoch", check_val_every_n_epoch=2, num_sanity_val_steps=0),
    trainer("reload_dataloaders", reload_dataloaders_every_n_epochs=1),
    trainer("no inference mode", inference_mode=False),
    trainer("detect_anomaly", detect_anomaly=True),
    trainer("deterministic", deterministic=True),
    trainer("profiler", profiler="simple"),
    trainer("barebones", barebones=True, **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"))),
    trainer(
        "defaults", **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"))
    ),
    Row("CSVLogger", trainer=lambda folder: {"logger": CSVLogger(folder), "log_every_n_steps": 1}),
    Row("AsyncCheckpointIO", trainer=lambda folder: {"plugins": AsyncCheckpointIO(torch_io.TorchCheckpointIO())}),
    Row("datamodule", fit=lambda trainer, module: trainer.fit(module, datamodule=Digits())),
    other("as it is"),
    other("64-true", precision="64-true"),
    other("bf16-true", precision="bf16-true"),
    other("scores with data", {"mask": "snip", "sharpness_every_n_epochs": 1}),
    other("accumulation and clipping", accumulate_grad_batches=2, gradient_clip_val=0.1),
    Row(
        "pytorch_lightning averages",
        OtherImport,
        lambda folder: {"callbacks": [pytorch_lightning.callbacks.EMAWeightAveraging(decay=0.8)]},
        lightning=pytorch_lightning,
    ),
]
