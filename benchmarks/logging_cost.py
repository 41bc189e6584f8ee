"""What logging once an epoch costs of a `digits` run, without sharpness: `python -m benchmarks.logging_cost`.

The share of the time of `fit` that is spent in the callback's hook at epoch ends, with everything logged; median of 3.
"""

import statistics
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything

from lightning_signin import SignInCallback
from lightning_signin.recipes.data import Digits
from lightning_signin.recipes.models import Classifier, ResNet20

RUNS, EPOCHS = 3, 10


class Timed(SignInCallback):
    """Notes the time in its hook at epoch ends."""

    seconds = 0.0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log."""
        begin = time.perf_counter()
        super().on_train_epoch_end(trainer, pl_module)
        self.seconds += time.perf_counter() - begin


def share(**options: Any) -> float:
    seed_everything(1, verbose=False)
    callback = Timed(sparsity=0.9, frobenius_decay=1e-4, **options)
    quiet: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[callback], **quiet)
    begin = time.perf_counter()
    trainer.fit(Classifier(ResNet20(), lr=0.2), Digits())
    return callback.seconds / (time.perf_counter() - begin)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    variants: dict[str, dict[str, Any]] = {
        "the default": {},
        "everything": {"log_layers": True, "warmup_epochs": 2},
        "everything, with RigL": {"log_layers": True, "warmup_epochs": 2, "update": "rigl"},
    }
    print("| logged | share of the run |\n|---|---|")
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(RUNS):
        for name, options in variants.items():
            found[name].append(share(**options))
    for name, shares in found.items():
        print(f"| {name} | {statistics.median(shares):.2%} |")
