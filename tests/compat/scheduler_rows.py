"""Every learning-rate schedule of torch, and warm-up, plateau and timm's."""

from collections.abc import Callable
from typing import Any

import timm.scheduler
import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR

from tests.compat.rows import Row
from tests.compat.task import BATCHES, EPOCHS, Task, sgd

TOTAL = EPOCHS * BATCHES
BY_STEP: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 4)),  # a warm-up
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 6]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(o, TOTAL - 4)], [4]
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 4), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=4),  # cycles the momentum, too
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, TOTAL),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, TOTAL),
    "SWALR": lambda o: SWALR(o, 0.01, anneal_epochs=4),
}
BY_LOSS = {"ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0)}


def task(schedule: Callable[[Optimizer], Any], **when: Any) -> Callable[[], Task]:
    def optimizers(module: torch.nn.Module) -> dict[str, Any]:
        optimizer = sgd(module)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule(optimizer), **when}}

    return lambda: Task(optimizers=optimizers)


class OfTimm(Task):
    """timm's schedules count epochs themselves, so they are stepped in the module's own hook."""

    def __init__(self) -> None:
        super().__init__(optimizers=self.with_schedule)

    @staticmethod
    def with_schedule(module: torch.nn.Module) -> Any:
        optimizer = sgd(module)
        schedule, _ = timm.scheduler.create_scheduler_v2(optimizer, "cosine", num_epochs=EPOCHS, warmup_epochs=1)
        return [optimizer], [{"scheduler": schedule, "interval": "epoch"}]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step(epoch=self.current_epoch + 1)


SCHEDULERS = [
    *(Row(name, task(schedule, interval="step")) for name, schedule in BY_STEP.items()),
    *(Row(name, task(schedule, monitor="val_loss")) for name, schedule in BY_LOSS.items()),
    Row("ReduceLROnPlateau by step", task(BY_LOSS["ReduceLROnPlateau"], monitor="loss", interval="step", frequency=2)),
    Row("CosineAnnealingLR by epoch", task(lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS), interval="epoch")),
    Row(
        "OneCycleLR and accumulation",
        task(BY_STEP["OneCycleLR"], interval="step"),
        lambda _: {"accumulate_grad_batches": 2},
    ),
    Row("timm's cosine with warm-up", OfTimm),
]
