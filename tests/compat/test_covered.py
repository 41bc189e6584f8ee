"""What a new torch or Lightning brings shows here, until the table has a row for it."""

import inspect

import torch
from lightning.pytorch import callbacks
from torch.optim import lr_scheduler

from tests.compat.optimizer_rows import OF_TORCH, REFUSED
from tests.compat.scheduler_rows import BY_LOSS, BY_STEP
from tests.compat.test_rows import ROWS

# Bases without a behaviour of their own, and those with tests of their own (`tests/callback/`).
BASES = {"Callback", "Checkpoint", "ProgressBar", "LRScheduler", "Optimizer"}
ELSEWHERE = {"ModelPruning"}
TOGETHER = {"RichModelSummary"}  # in the row of the progress bar


def classes(module: object) -> set[str]:
    named = getattr(module, "__all__", None) or dir(module)
    return {name for name in named if inspect.isclass(getattr(module, name))} - BASES


def test_every_schedule_of_torch_has_a_row():
    assert classes(lr_scheduler) - {*BY_STEP, *BY_LOSS} == set()


def test_every_optimizer_of_torch_has_a_row_or_is_refused():
    assert classes(torch.optim) - {*OF_TORCH, *REFUSED} == set()


def test_every_callback_of_lightning_has_a_row():
    assert classes(callbacks) - {row.name for row in ROWS} - ELSEWHERE - TOGETHER == set()
